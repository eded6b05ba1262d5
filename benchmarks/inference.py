"""Speed, size, memory and faithfulness of exported models on this processor, every engine beside ``transformers``.

    python -m benchmarks.inference [--engines onnx gguf openvino ctranslate2] [--rounds 3] [--run RUN] [--work FOLDER]

Each number is the median of *rounds* processes, in which the contenders take turns, so that what else the machine does
hits all alike. The unit of latency is a token (decoders, after a prompt of 32, greedy, with a cache), a text of 64
tokens (the classifier) or a sentence of 16 tokens with 4 beams (the translator). "Bandwidth" is the share of the time
that reading the weight file once would take at the speed one thread reads memory. Faithfulness is measured against the
fp32 original while exporting: KL and equal first choices on text the model wrote itself; with ``--run`` (a finished
``ract build`` of a language model) the held-out loss of its final node in every precision too. Speculative decoding is
timed on that run's exports: the text is the same, so only the time differs.

The results are written to ``benchmarks/results/inference.json``; ``--table`` prints them as Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.inference_models import prepare

RESULTS = Path(__file__).parent / "results" / "inference.json"
BASELINE = "transformers fp32"
PRECISIONS = ("fp32", "int8", "int4")


def contenders(models: dict[str, Path], engines: list[str], work: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """For each model the exports that could be made: where they are and how far from the original."""
    from ract.errors import RactError
    from ract.export.export import export

    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, directory in models.items():
        found[name] = {}
        for engine in engines:
            for precision in PRECISIONS:
                out = work / f"{directory.name}-{engine}-{precision}"
                record = out.with_suffix(".json")
                if not record.is_file():
                    print(f"exporting {name}: {engine} {precision}", file=sys.stderr, flush=True)
                    try:
                        made = export(directory, out, format=engine, precision=precision, force=True)  # type: ignore[arg-type]
                        record.write_text(json.dumps(made.measured), encoding="utf-8")
                    except RactError as error:
                        record.write_text(json.dumps({"refused": str(error)}), encoding="utf-8")
                measured = json.loads(record.read_text(encoding="utf-8"))
                found[name][f"{engine} {precision}"] = {"directory": str(out), **measured}
    return found


def time_all(
    models: dict[str, Path], exports: dict[str, dict[str, dict[str, Any]]], threads: int, rounds: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Medians by model and contender, everything measured in turns."""
    from ract.errors import RactError
    from ract.runtime.measure import measure

    seen: dict[tuple[str, str], list[dict[str, float]]] = {}
    for number in range(rounds):
        for name, directory in models.items():
            print(f"round {number + 1} of {rounds}, {threads} thread(s): {name}", file=sys.stderr, flush=True)
            seen.setdefault((name, BASELINE), []).append(_child(str(directory), str(threads)))
            for contender, record in exports[name].items():
                if "refused" in record:
                    continue
                try:
                    one = measure(record["directory"], threads=threads)
                except RactError as error:
                    print(f"{name}, {contender}: {error}", file=sys.stderr)
                    continue
                values = {"latency_ms": one.latency_ms, "peak_memory_bytes": one.peak_memory_bytes}
                seen.setdefault((name, contender), []).append({**values, "size_bytes": one.size_bytes})
    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in models}
    for (name, contender), values in seen.items():
        found[name][contender] = {key: statistics.median(v[key] for v in values) for key in values[0]}
    return found


def _child(*arguments: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.inference_models", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def trained(run: Path) -> dict[str, Any]:
    """The final node of *run* in every precision on its held-out data, and speculative decoding between its nodes."""
    from ract.runtime.choose import exports_in
    from ract.runtime.manifest import read_manifest
    from ract.tree.forms import export_tree, worthwhile

    export_tree(run)
    nodes = worthwhile(run)
    final, draft = nodes[-1], nodes[0]
    losses = {}
    for path in exports_in(run):
        manifest = read_manifest(path, verify=False)
        if manifest.held_out is not None:
            loss, original = manifest.held_out.loss, manifest.held_out.loss_original
            losses[f"{manifest.node} {manifest.precision}"] = {"loss": loss, "change": loss / original - 1}
    found: dict[str, Any] = {"parameters": final["parameters"], "losses": losses, "speculative": {}}
    for precision in ("fp32", "int8"):
        target = run / "exports" / f"{final['name']}-onnx-{precision}"
        smaller = run / "exports" / f"{draft['name']}-onnx-int8"
        found["speculative"][precision] = speculative(target, smaller)
    return found


def speculative(target: Path, draft: Path, tokens: int = 128, rounds: int = 5) -> dict[str, float]:
    """Seconds with and without the draft, in turns; the text must be the same."""
    from ract.runtime.generate import TextGenerator

    plain = TextGenerator(target)
    times: dict[str, list[float]] = {"plain": []}
    shares = {}
    for ahead in (2, 4, 6):
        drafted = TextGenerator(target, draft=draft, ahead=ahead)
        times[f"{ahead} ahead"] = []
        for _ in range(rounds):
            texts = []
            for name, generator in (("plain", plain), (f"{ahead} ahead", drafted)):
                begin = time.perf_counter()
                texts.append("".join(generator.stream("def read", max_new_tokens=tokens, temperature=0)))
                times[name].append(time.perf_counter() - begin)
            assert texts[0] == texts[1]
        assert drafted.speculator is not None
        counts = drafted.speculator.counts
        shares[f"{ahead} ahead, kept"] = counts.kept / max(1, counts.proposed)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {**{f"{name}, speed": medians["plain"] / value for name, value in medians.items()}, **shares}


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = []
    bandwidth = results["bytes_per_second"]
    for name, exports in results["exports"].items():
        one, two = (results["timings"][str(count)][name] for count in (1, 2))
        lines += [
            f"\n**{name}**\n",
            "| engine, precision | one thread, ms | × | two threads, × | bandwidth | peak MB | size MB | KL | top-1 |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        base, base_two = one[BASELINE]["latency_ms"], two[BASELINE]["latency_ms"]
        for contender in [BASELINE, *exports]:
            record = exports.get(contender, {})
            if contender not in one:
                if "refused" in record:
                    lines.append(f"| {contender} | refused | | | | | | | |")
                continue
            here = one[contender]
            share = here["size_bytes"] / bandwidth * 1000 / here["latency_ms"] if "decoder" in name else None
            lines.append(
                f"| {contender} | {here['latency_ms']:.2f} | {base / here['latency_ms']:.1f} | "
                f"{base_two / two[contender]['latency_ms']:.1f} | {'–' if share is None else f'{share:.0%}'} | "
                f"{here['peak_memory_bytes'] / 1e6:.0f} | {here['size_bytes'] / 1e6:.1f} | "
                + (f"{record['kl']:.1e} | {record['top1']:.1%} |" if record else "– | – |")
            )
    if "trained" in results:
        found = results["trained"]
        lines += [
            "\n**A trained model, held-out loss**\n",
            "| node, precision | nats a token | change |",
            "|---|---|---|",
        ]
        lines += [f"| {name} | {v['loss']:.4f} | {v['change']:+.2%} |" for name, v in found["losses"].items()]
        lines += ["\n**Speculative decoding**\n", "| target | what | value |", "|---|---|---|"]
        lines += [
            f"| {precision} | {what} | {value:.2f} |"
            for precision, values in found["speculative"].items()
            for what, value in values.items()
        ]
    return "\n".join(lines).strip()


ENGLISH = """# Exported models: speed, size, memory, faithfulness

[中文](inference.zh-CN.md)

Made by `python -m benchmarks.inference` (its docstring says how) and written here by `--docs docs`.

- **×** is the speed against `transformers` in fp32 with as many threads, in the same run.
- **bandwidth** is the share of the time that reading the weights once takes at the speed one thread reads memory.
- **KL** (nats) and **top-1** are against the fp32 original, on text that the model wrote itself (the classifier: on
  random tokens). The decoders and the translator here have random weights. That does not matter for speed, and makes
  quantization look worse than on trained models: their logits are nearly flat. The trained model is below.
- **refused**: the format does not take this kind of model, or this precision; the command says why.
"""
CHINESE = """# 导出的模型：速度、大小、内存、忠实程度

[English](inference.md)

由 `python -m benchmarks.inference` 测得（做法见其文档字符串），用 `--docs docs` 写到这里。

- **×**：在同一次运行中、同样线程数下相对于 `transformers` fp32 的速度。
- **bandwidth**：以单线程读内存的速度把权重读一遍所需时间的占比。
- **KL**（奈特）和 **top-1**：以 fp32 原模型为准，在模型自己写的文本上测得（分类器用随机词元）。
  这里的解码器和翻译模型的权重是随机的。这不影响速度，但会使量化显得比训练过的模型更差，因为它们的 logits 几乎是平的。
  训练过的模型在下面。
- **refused**：该格式不支持这种模型或这种精度；命令会说明原因。
"""


def write_docs(results: dict[str, Any], folder: Path) -> None:
    """``inference.md`` in both languages."""
    for name, head in (("inference.md", ENGLISH), ("inference.zh-CN.md", CHINESE)):
        (folder / name).write_text(head + "\n" + table(results) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", default=["onnx", "gguf", "openvino", "ctranslate2"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--run", type=Path, help="a finished run of a language model")
    parser.add_argument("--work", type=Path, help="where models and exports are kept; default: a temporary folder")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the results that are there")
    parser.add_argument("--docs", type=Path, metavar="FOLDER", help="write the results that are there as pages")
    options = parser.parse_args()
    if options.docs:
        write_docs(json.loads(options.out.read_text(encoding="utf-8")), options.docs)
        return
    if not options.table:
        with tempfile.TemporaryDirectory() as temporary:
            work = options.work or Path(temporary)
            work.mkdir(parents=True, exist_ok=True)
            models = prepare(work)
            exports = contenders(models, options.engines, work)
            results: dict[str, Any] = {
                "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
                "load_before": os.getloadavg()[0],
                "bytes_per_second": _child("bandwidth")["bytes_per_second"],
                "timings": {str(n): time_all(models, exports, n, options.rounds) for n in (1, 2)},
            }
            if options.run:
                results["trained"] = trained(options.run)
            results["exports"] = {
                name: {key: {k: v for k, v in one.items() if k != "directory"} for key, one in made.items()}
                for name, made in exports.items()
            }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(table(json.loads(options.out.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
