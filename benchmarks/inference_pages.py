"""The results of ``benchmarks/inference.py`` as Markdown, and as pages of the documentation in both languages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

BASELINE = "transformers fp32"


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = []
    for name in results["runs"][0]["timings"]["1"]:
        lines += [
            f"\n**{name}**\n",
            "| engine, precision | one thread, ms | × | two threads, × | bandwidth | peak MB | size MB | KL | top-1 |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for number, run in enumerate(results["runs"], 1):
            lines += _rows(name, run, "" if number == 1 else f" (run {number})")
    if "trained" in results:
        lines += _trained(results["trained"])
    return "\n".join(lines).strip()


def _rows(name: str, run: dict[str, Any], mark: str) -> Iterator[str]:
    """The rows of the model *name* in one run; the first is the baseline that they are compared with."""
    one, two = (run["timings"].get(count, {}).get(name, {}) for count in ("1", "2"))
    exports = run["exports"].get(name, {})
    for contender in [BASELINE, *exports]:
        record = exports.get(contender, {})
        if "refused" in record:
            yield f"| {contender}{mark} | refused | | | | | | | |"
        if contender not in one:
            continue
        here = one[contender]
        ratios = [f"{t[BASELINE]['latency_ms'] / t[contender]['latency_ms']:.1f}" if t else "–" for t in (one, two)]
        share = here["size_bytes"] / run["bytes_per_second"] * 1000 / here["latency_ms"] if "decoder" in name else None
        yield (
            f"| {contender}{mark} | {here['latency_ms']:.2f} | {ratios[0]} | {ratios[1]} | "
            f"{'–' if share is None else f'{share:.0%}'} | "
            f"{here['peak_memory_bytes'] / 1e6:.0f} | {here['size_bytes'] / 1e6:.1f} | "
            + (f"{record['kl']:.1e} | {record['top1']:.1%} |" if record else "– | – |")
        )


def _trained(found: dict[str, Any]) -> Iterator[str]:
    yield from (
        "\n**A trained model, held-out loss**\n",
        "| node, engine, precision | nats a token | change |",
        "|---|---|---|",
    )
    for name, values in found["losses"].items():
        yield f"| {name} | {values['loss']:.4f} | {values['change']:+.2%} |"
    yield from ("\n**Speculative decoding**\n", "| target | what | value |", "|---|---|---|")
    for precision, values in found["speculative"].items():
        yield from (f"| {precision} | {what} | {value:.2f} |" for what, value in values.items())


ENGLISH = """# Exported models: speed, size, memory, faithfulness

[中文](inference.zh-CN.md)

Made by `python -m benchmarks.inference` (its docstring says how) and written here by `--docs docs`.

- **×** is the speed against `transformers` in fp32 with as many threads, in the same run. What is marked "(run 2)" or
  higher was added later (`--add`): its ratios are against `transformers` in that run's own turns. The machine was busy
  then, so that the time is that of the processor, of one thread (`--cpu-clock`); milliseconds of different runs do not
  compare.
- **bandwidth** is the share of the time that reading the weights once takes at the speed one thread reads memory.
- **KL** (nats) and **top-1** are against the fp32 original, on text that the model wrote itself (the classifier: on
  random tokens). The decoders and the translator here have random weights. That does not matter for speed, and makes
  quantization look worse than on trained models: their logits are nearly flat. The trained model is below.
- **peak MB** is of the whole process; ExecuTorch's has torch in it, which its Python binding needs and a phone does
  not.
- **refused**: the format does not take this kind of model, or this precision; the command says why.
- ExecuTorch's memory has torch in it, which its Python binding needs; a C++ program does without.
"""
CHINESE = """# 导出的模型：速度、大小、内存、忠实程度

[English](inference.md)

由 `python -m benchmarks.inference` 测得（做法见其文档字符串），用 `--docs docs` 写到这里。

- **×**：在同一次运行中、同样线程数下相对于 `transformers` fp32 的速度。
  标有 "(run 2)" 或更大编号的是后来加入的（`--add`），比值以该次运行中轮流测得的 `transformers` 为准。
  那时机器繁忙，因此记的是单线程的处理器时间（`--cpu-clock`）；
  不同运行的毫秒数不能相互比较。
- **bandwidth**：以单线程读内存的速度把权重读一遍所需时间的占比。
- **KL**（奈特）和 **top-1**：以 fp32 原模型为准，在模型自己写的文本上测得（分类器用随机词元）。
  这里的解码器和翻译模型的权重是随机的。这不影响速度，但会使量化显得比训练过的模型更差，因为它们的 logits 几乎是平的。
  训练过的模型在下面。
- **peak MB** 是整个进程的；ExecuTorch 的进程里有 torch，它的 Python 接口需要，手机上则不需要。
- **refused**：该格式不支持这种模型或这种精度；命令会说明原因。
- ExecuTorch 的内存包含其 Python 绑定所需的 torch；C++ 程序不需要它。
"""


def write_docs(results: dict[str, Any], folder: Path) -> None:
    """``inference.md`` in both languages."""
    for name, head in (("inference.md", ENGLISH), ("inference.zh-CN.md", CHINESE)):
        (folder / name).write_text(head + "\n" + table(results) + "\n", encoding="utf-8")
