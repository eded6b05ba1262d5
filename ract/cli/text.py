"""Commands that use a model on text: generate, classify, translate."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from ract.cli.app import app
from ract.cli.limits import Adaptive, MaxLatency, MaxMemory, MaxSize, Threads, runtime_options
from ract.cli.lines import prompt_of, texts_of, write_utf8

Model = Annotated[
    Path,
    typer.Argument(metavar="DIR", help="A model directory, an exported model, or a finished run (its final model)."),
]
Texts = Annotated[
    list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts; - reads standard input, a text a line.")
]
TextFile = Annotated[Path | None, typer.Option("--file", help="Read the texts from this file, one a line.")]
JsonLines = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]


@app.command("generate")
def generate_command(
    model: Model,
    prompt: Annotated[str, typer.Argument(help="The text to continue; - reads standard input.")] = "",
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", min=1, help="Most tokens to write.")] = 200,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, help="0 always takes the likeliest token.")
    ] = 0.8,
    top_p: Annotated[float, typer.Option("--top-p", help="Smallest set of tokens with this probability.")] = 0.95,
    top_k: Annotated[int, typer.Option("--top-k", min=0, help="Only so many likeliest tokens; 0: all.")] = 0,
    seed: Annotated[int, typer.Option("--seed", help="The same seed gives the same text.")] = 0,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="End before this text. Repeatable.")] = None,
    echo: Annotated[bool, typer.Option("--echo/--no-echo", help="Print the prompt too.")] = True,
    draft: Annotated[
        Path | None,
        typer.Option("--draft", help="An exported smaller model of the same tree that proposes; the text stays as is."),
    ] = None,
    max_size: MaxSize = None,
    max_latency_ms: MaxLatency = None,
    max_memory_mb: MaxMemory = None,
    adaptive: Adaptive = False,
    threads: Threads = None,
) -> None:
    """Continue a text, streaming."""
    write_utf8()
    text = prompt_of(prompt)
    from ract.runtime.generate import generate

    pieces = generate(
        model,
        text,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        stop=stop or (),
        draft=draft,
        **runtime_options(model, max_size, max_latency_ms, max_memory_mb, adaptive, threads),
    )
    if echo:
        sys.stdout.write(text)
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


@app.command("classify")
def classify_command(
    model: Model,
    texts: Texts = None,
    file: TextFile = None,
    windows: Annotated[
        bool, typer.Option("--windows", help="Read long texts whole, in overlapping windows that are averaged.")
    ] = False,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Texts at a time.")] = 32,
    as_json: JsonLines = False,
    max_size: MaxSize = None,
    max_latency_ms: MaxLatency = None,
    max_memory_mb: MaxMemory = None,
    adaptive: Adaptive = False,
    threads: Threads = None,
) -> None:
    """Print the class of each text with its probability, one line a text."""
    write_utf8()
    groups = texts_of(texts or [], file, batch_size)
    from ract.runtime.classify import TextClassifier

    classifier = TextClassifier(
        model, **runtime_options(model, max_size, max_latency_ms, max_memory_mb, adaptive, threads)
    )
    cut = 0
    for group in groups:
        for found in classifier.classify(group, batch_size=batch_size, windows=windows):
            cut += found.truncated
            if as_json:
                value = {"label": found.label, "probabilities": found.probabilities, "truncated": found.truncated}
                print(json.dumps(value, ensure_ascii=False), flush=True)
            else:
                print(f"{found.label}\t{found.probability:.3f}", flush=True)
    if cut:
        which = "1 text was" if cut == 1 else f"{cut} texts were"
        print(f"{which} cut after {classifier.limit} tokens; --windows reads all of it", file=sys.stderr)


@app.command("translate")
def translate_command(
    model: Model,
    texts: Texts = None,
    file: TextFile = None,
    num_beams: Annotated[int, typer.Option("--beams", min=1, help="Width of the beam search; 1 is greedy.")] = 4,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", min=1, help="Most tokens for a sentence; default: by its length.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Lines at a time.")] = 16,
    split: Annotated[bool, typer.Option("--split/--whole", help="Translate a line sentence by sentence.")] = True,
    as_json: JsonLines = False,
    max_size: MaxSize = None,
    max_latency_ms: MaxLatency = None,
    max_memory_mb: MaxMemory = None,
    adaptive: Adaptive = False,
    threads: Threads = None,
) -> None:
    """Translate each text: as many lines out as in, in their order."""
    write_utf8()
    groups = texts_of(texts or [], file, batch_size)
    from ract.runtime.translate import Translator

    options = runtime_options(model, max_size, max_latency_ms, max_memory_mb, adaptive, threads)
    translator = Translator(model, **options)
    for group in groups:
        outputs = translator.translate(
            group, num_beams=num_beams, max_new_tokens=max_new_tokens, batch_size=batch_size, split=split
        )
        for text, output in zip(group, outputs, strict=True):
            if as_json:
                print(json.dumps({"source": text, "translation": output}, ensure_ascii=False), flush=True)
            else:
                print(output, flush=True)
