"""Speed, size, memory and faithfulness of exported models on this processor, every engine beside ``transformers``.

    python -m benchmarks.inference [--engines onnx gguf openvino ctranslate2] [--rounds 3] [--run RUN] [--work FOLDER]
    python -m benchmarks.inference --add --interpreter litert=PYTHON executorch=PYTHON [--run RUN] [--work FOLDER]

Each number is the median of *rounds* processes, in which the contenders take turns, so that what else the machine does
hits all alike. The unit of latency is a token (decoders, after a prompt of 32, greedy, with a cache), a text of 64
tokens (the classifier) or a sentence of 16 tokens with 4 beams (the translator). "Bandwidth" is the share of the time
that reading the weight file once would take at the speed one thread reads memory. Faithfulness is measured against the
fp32 original while exporting: KL and equal first choices on text the model wrote itself; with ``--run`` (a finished
``ract build`` of a language model) the held-out loss of its nodes in every precision too. Speculative decoding is
timed on that run's exports: the text is the same, so only the time differs.

An engine whose packages want an environment of their own is exported and run by that environment's interpreter. With
``--add`` the engines asked for are measured beside ``transformers`` again, and join the results that are there as a run
of their own: every ratio is within one run.

On a machine that is busy with other things, ``--cpu-clock`` counts processor seconds, of one thread: what it would take
on a quiet one. Memory and faithfulness do not depend on it.

The results are written to ``benchmarks/results/inference.json``; ``--table`` prints them as Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.inference_models import prepare
from benchmarks.inference_pages import BASELINE, table, write_docs
from ract.machine import processor_name

RESULTS = Path(__file__).parent / "results" / "inference.json"
PRECISIONS = ("fp32", "int8", "int4")
ENGINES = ("onnx", "gguf", "openvino", "ctranslate2")

Engines = Mapping[str, str]  # by name the interpreter that has it


def contenders(
    models: dict[str, Path], engines: Engines, work: Path, *, ready: bool
) -> dict[str, dict[str, dict[str, Any]]]:
    """For each model the exports that could be made (*ready*: those that are there already): where they are, what runs
    them, how far from the original.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, directory in models.items():
        found[name] = {}
        for engine, python in engines.items():
            for precision in PRECISIONS:
                out = work / f"{directory.name}-{engine}-{precision}"
                record = out.with_suffix(".json")
                if ready and not record.is_file():
                    continue
                if not record.is_file():
                    print(f"exporting {name}: {engine} {precision}", file=sys.stderr, flush=True)
                    made = _child(python, "export", str(directory), str(out), engine, precision)
                    record.write_text(json.dumps(made), encoding="utf-8")
                measured = json.loads(record.read_text(encoding="utf-8"))
                found[name][f"{engine} {precision}"] = {"directory": str(out), "python": python, **measured}
    return found


def time_all(
    models: dict[str, Path], exports: dict[str, dict[str, dict[str, Any]]], threads: int, rounds: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Medians by model and contender, everything measured in turns."""
    seen: dict[tuple[str, str], list[dict[str, float]]] = {}
    for number in range(rounds):
        for name, directory in models.items():
            if all("refused" in record for record in exports[name].values()):
                continue
            print(f"round {number + 1} of {rounds}, {threads} thread(s): {name}", file=sys.stderr, flush=True)
            values = _child(sys.executable, "baseline", str(directory), str(threads))
            seen.setdefault((name, BASELINE), []).append(values)
            for contender, record in exports[name].items():
                if "refused" in record:
                    continue
                values = _child(record["python"], "measure", record["directory"], str(threads))
                if "failed" in values:
                    print(f"{name}, {contender}: {values['failed']}", file=sys.stderr)
                    continue
                seen.setdefault((name, contender), []).append(values)
    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in models}
    for (name, contender), each in seen.items():
        found[name][contender] = {key: statistics.median(v[key] for v in each) for key in each[0]}
    return found


def _child(python: str, *arguments: str) -> dict[str, Any]:
    command = [python, "-m", "benchmarks.inference_processes", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def run_of(
    models: dict[str, Path], exports: dict[str, dict[str, dict[str, Any]]], rounds: int, counts: tuple[int, ...]
) -> dict[str, Any]:
    """All *exports* measured beside ``transformers``, with each of *counts* threads."""
    return {
        "machine": {"processor": processor_name(), "cores": os.cpu_count()},
        "rounds": rounds,
        "load_before": os.getloadavg()[0],
        "bytes_per_second": _child(sys.executable, "bandwidth")["bytes_per_second"],
        "timings": {str(n): time_all(models, exports, n, rounds) for n in counts},
        "exports": {
            name: {key: {k: v for k, v in one.items() if k not in ("directory", "python")} for key, one in made.items()}
            for name, made in exports.items()
        },
    }


def losses(run: Path, engines: Engines, work: Path) -> dict[str, dict[str, float]]:
    """Held-out loss of the nodes of *run* by node, engine and precision."""
    found: dict[str, dict[str, float]] = {}
    for engine, python in engines.items():
        out = run / "exports" if engine == "onnx" else work / f"{run.name}-{engine}"
        found |= _child(python, "losses", str(run), str(out), engine)
    return found


def speculation(run: Path) -> dict[str, dict[str, float]]:
    """Speculative decoding between the nodes of *run*: its final one, and the smallest as the draft."""
    from ract.tree.forms import worthwhile

    nodes = worthwhile(run)
    draft = run / "exports" / f"{nodes[0]['name']}-onnx-int8"
    precisions = ("fp32", "int8")
    return {one: speculative(run / "exports" / f"{nodes[-1]['name']}-onnx-{one}", draft) for one in precisions}


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", help=f"default: {' '.join(ENGINES)}; with --add those of --interpreter")
    parser.add_argument("--interpreter", nargs="+", default=[], metavar="ENGINE=PYTHON", help="the Python that has it")
    parser.add_argument("--add", action="store_true", help="a further run, beside the results that are there")
    parser.add_argument("--cpu-clock", action="store_true", help="processor seconds, with one thread only")
    parser.add_argument("--models", nargs="+", metavar="N", type=int, help="only these of the models; default: all")
    parser.add_argument("--ready", action="store_true", help="only what --work holds exported already")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--run", type=Path, help="a finished run of a language model")
    parser.add_argument("--work", type=Path, help="where models and exports are kept; default: a temporary folder")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the results that are there")
    parser.add_argument("--docs", type=Path, metavar="FOLDER", help="write the results that are there as pages")
    options = parser.parse_args()
    if not (options.docs or options.table):
        _measure(options)
    results = json.loads(options.out.read_text(encoding="utf-8"))
    if options.docs:
        write_docs(results, options.docs)
    else:
        print(table(results))


def _measure(options: argparse.Namespace) -> None:
    interpreters = dict(one.split("=", 1) for one in options.interpreter)
    names = options.engines or [*(() if options.add else ENGINES), *interpreters]
    engines = {name: interpreters.get(name, sys.executable) for name in names}
    results: dict[str, Any] = {"runs": []}
    if options.add:
        results = json.loads(options.out.read_text(encoding="utf-8"))
    clock = os.environ["RACT_BENCHMARK_CLOCK"] = "cpu" if options.cpu_clock else "wall"
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        models = dict(one for n, one in enumerate(prepare(work).items()) if n in (options.models or range(4)))
        exports = contenders(models, engines, work, ready=options.ready)
        counts = (1,) if options.cpu_clock else (1, 2)
        results["runs"].append({"clock": clock, **run_of(models, exports, options.rounds, counts)})
        if options.run:
            trained = results.setdefault("trained", {"losses": {}})
            trained["losses"] |= losses(options.run, engines, work)
            if "onnx" in engines:
                trained["speculative"] = speculation(options.run)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
