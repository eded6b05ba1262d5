/* Continues a text with a decoder that `ract export --format executorch` wrote: ExecuTorch's C++ interface, no Python.
 * Token numbers go in and come out, one a line; an app has a tokenizer that reads the export's tokenizer.json.
 *
 *   ./complete model.pte 50 < prompt.txt
 *
 * How to build it: docs/deploy.md.
 */
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

using executorch::aten::Tensor;
using executorch::extension::from_blob;
using executorch::extension::Module;
using executorch::extension::TensorPtr;
using executorch::runtime::EValue;

static int fail(const std::string &problem) {
    std::fprintf(stderr, "complete: %s\n", problem.c_str());
    return 1;
}

/* Keys (heads, width, slots) or values (heads, slots, width) of the tokens so far, which the graph reads in place. */
struct Cache {
    bool keys;
    std::vector<int> shape;
    std::vector<float> numbers;
    TensorPtr tensor;

    Cache(bool keys_, std::vector<int> shape_) : keys(keys_), shape(std::move(shape_)) {
        numbers.assign(static_cast<std::size_t>(shape[0]) * shape[1] * shape[2], 0.0f);
        tensor = from_blob(numbers.data(), shape);
    }

    int slots() const { return shape[keys ? 2 : 1]; }

    /* Writes what the graph has returned for one token, (heads, 1, width), into slot `at`. */
    void put(const Tensor &found, int at) {
        const float *from = found.const_data_ptr<float>();
        const int width = shape[keys ? 1 : 2];
        for (int head = 0; head < shape[0]; head++)
            for (int i = 0; i < width; i++) {
                const std::size_t place = keys ? (static_cast<std::size_t>(head) * width + i) * slots() + at
                                               : (static_cast<std::size_t>(head) * slots() + at) * width + i;
                numbers[place] = from[head * width + i];
            }
    }
};

int main(int count, char **arguments) {
    if (count != 3) return fail("give MODEL.pte and how many tokens to write, and the prompt's on the standard input");
    const int wanted = std::atoi(arguments[2]);
    std::vector<std::int64_t> prompt;
    for (std::int64_t number; std::cin >> number;) prompt.push_back(number);
    if (prompt.empty()) return fail("the prompt is empty");

    Module module(arguments[1]);
    auto meta = module.method_meta("decode");
    if (!meta.ok()) return fail(std::string(arguments[1]) + " is no exported decoder");

    std::int64_t token = 0, seen = 0;
    const TensorPtr ids = from_blob(&token, {1, 1}, executorch::aten::ScalarType::Long);
    const TensorPtr before = from_blob(&seen, {1}, executorch::aten::ScalarType::Long);
    std::vector<EValue> inputs = {*ids, *before};
    std::vector<Cache> caches;
    caches.reserve(meta->num_inputs() - 2);
    for (std::size_t i = 2; i < meta->num_inputs(); i++) {
        auto input = meta->input_tensor_meta(i);
        if (!input.ok()) return fail("an input of the graph is no tensor");
        const auto sizes = input->sizes();
        caches.emplace_back(i % 2 == 0, std::vector<int>(sizes.begin(), sizes.end()));
        inputs.emplace_back(*caches.back().tensor);
    }
    const std::int64_t room = caches.front().slots();
    if (static_cast<std::int64_t>(prompt.size()) + wanted > room) return fail("the model looks at fewer tokens");

    for (std::int64_t last = static_cast<std::int64_t>(prompt.size()) + wanted - 1; seen < last; seen++) {
        if (seen < static_cast<std::int64_t>(prompt.size())) token = prompt[static_cast<std::size_t>(seen)];
        const auto found = module.execute("decode", inputs);
        if (!found.ok()) return fail("the model cannot go on");
        for (std::size_t i = 0; i < caches.size(); i++)
            caches[i].put(found->at(i + 1).toTensor(), static_cast<int>(seen));
        const Tensor logits = found->at(0).toTensor();
        const float *scores = logits.const_data_ptr<float>();
        token = std::max_element(scores, scores + logits.numel()) - scores;
        if (seen + 1 >= static_cast<std::int64_t>(prompt.size())) std::cout << token << std::endl;
    }
    return 0;
}
