/* Continues a text with a model that `ract export --format gguf` wrote: llama.cpp's C interface, no Python.
 *
 *   cc -O2 complete.c -I INCLUDE -L LIB -lllama -lggml -lggml-base -Wl,-rpath,LIB -o complete
 *   ./complete model.gguf "Once upon a time" 50
 *
 * INCLUDE and LIB are those of an installed llama.cpp (on a board: built there with cmake).
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llama.h"

static void quiet(enum ggml_log_level level, const char *text, void *data) {
    (void)data;
    if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

static int fail(const char *problem) {
    fprintf(stderr, "complete: %s\n", problem);
    return 1;
}

/* The likeliest token after what the context has seen: greedy, as --temperature 0 is. */
static llama_token likeliest(struct llama_context *context, int vocabulary) {
    const float *logits = llama_get_logits_ith(context, -1);
    int best = 0;
    for (int i = 1; i < vocabulary; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

int main(int count, char **arguments) {
    if (count != 4) return fail("give MODEL.gguf, a text and how many tokens to write");
    const int wanted = atoi(arguments[3]);
    llama_log_set(quiet, NULL);
    llama_backend_init();

    struct llama_model *model = llama_model_load_from_file(arguments[1], llama_model_default_params());
    if (model == NULL) return fail("the model cannot be loaded");
    const struct llama_vocab *vocab = llama_model_get_vocab(model);

    const int length = (int)strlen(arguments[2]);
    const int room = length + 8;
    llama_token *tokens = malloc(sizeof *tokens * (size_t)room);
    const int prompt = llama_tokenize(vocab, arguments[2], length, tokens, room, true, false);
    if (prompt < 1) return fail("the text is empty or cannot be tokenized");

    struct llama_context_params parameters = llama_context_default_params();
    parameters.n_ctx = (uint32_t)(prompt + wanted);
    parameters.n_batch = (uint32_t)prompt;
    parameters.n_threads = 1; /* more are slower on small models; try it on your machine */
    parameters.n_threads_batch = 1;
    struct llama_context *context = llama_init_from_model(model, parameters);
    if (context == NULL) return fail("there is not enough memory for the model's context");

    struct llama_batch batch = llama_batch_get_one(tokens, prompt);
    llama_token next;
    for (int written = 0; written < wanted; written++) {
        if (llama_decode(context, batch) != 0) return fail("the model cannot go on");
        next = likeliest(context, llama_vocab_n_tokens(vocab));
        if (llama_vocab_is_eog(vocab, next)) break;
        char piece[256];
        const int bytes = llama_token_to_piece(vocab, next, piece, sizeof piece, 0, false);
        fwrite(piece, 1, bytes > 0 ? (size_t)bytes : 0, stdout);
        fflush(stdout);
        batch = llama_batch_get_one(&next, 1);
    }
    putchar('\n');
    llama_free(context);
    llama_model_free(model);
    free(tokens);
    return 0;
}
