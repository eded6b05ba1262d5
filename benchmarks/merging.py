"""Linear merge of synthetic checkpoints: ReAct beside mergekit and plain file copies, in one run.

    python benchmarks/merging.py --mergekit PYTHON_OF_ITS_ENVIRONMENT

Every contender runs in a process of its own, which imports everything first; time and peak anonymous memory (RssAnon,
sampled every 2 ms) are then taken of the merge alone. Inputs are in the page cache unless ``--cold`` evicts them before
every run. The file-copy baseline reads all inputs and writes as many bytes as the result has. Nobody flushes to the
disk except "ract aggregate", the whole command: configs checked, merge, result loaded and compared, hashes, fsync.
Processor seconds (all threads, user and system) are given beside wall seconds because they bear other load better.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from ract.checkpoint.tensors import TensorReader
from ract.checkpoint.writer import write_tensors
from ract.machine import processor_name

RESULTS = Path(__file__).parent / "results" / "merging.json"
# Llama shapes of the wanted size: (children, dtype, hidden, intermediate, layers, vocabulary).
CASES = {
    "4 × 0.55 GB fp32": (4, torch.float32, 768, 2048, 13, 32000),
    "8 × 1.03 GB bf16": (8, torch.bfloat16, 1280, 3456, 23, 32000),
}
QUICK = {"4 × 4 MB fp32": (4, torch.float32, 128, 256, 4, 2000)}

_WAIT = """
import resource
def cpu_seconds():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
print("READY", flush=True)
input()
before = cpu_seconds()
"""
_DONE = """
taken = {"seconds": time.perf_counter() - start, "cpu_seconds": cpu_seconds() - before}
print(json.dumps(taken), flush=True)
"""
ENGINE = (
    """
import json, sys, time
from pathlib import Path
from ract.aggregate import engine, merge
from ract.checkpoint.directory import open_model
*paths, out, weights = sys.argv[1:]
"""
    + _WAIT
    + """
start = time.perf_counter()
children = [open_model(path) for path in paths]
Path(out).mkdir()
engine.execute(merge.recipe(children, json.loads(weights)), children, Path(out))
"""
    + _DONE
)
COMMAND = (
    """
import json, sys, time
from transformers import LlamaForCausalLM
from ract.aggregate import verify
from ract.aggregate.run import aggregate
from ract.model import anatomy
*paths, out, weights = sys.argv[1:]
"""
    + _WAIT
    + """
start = time.perf_counter()
aggregate(paths, out, weights=json.loads(weights))
"""
    + _DONE
)
COPIES = (
    """
import json, sys, time, shutil
from pathlib import Path
*paths, out, weights = sys.argv[1:]
buffer = bytearray(1 << 20)
"""
    + _WAIT
    + """
start = time.perf_counter()
for path in paths[1:]:
    with open(f"{path}/model.safetensors", "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
Path(out).mkdir()
shutil.copyfile(f"{paths[0]}/model.safetensors", f"{out}/model.safetensors")
"""
    + _DONE
)
MERGEKIT = (
    """
import json, logging, sys, time
import mergekit.merge, mergekit.merge_methods, torch
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions
logging.disable(logging.WARNING)
*paths, out, weights = sys.argv[1:]
dtype = json.load(open(f"{paths[0]}/config.json"))["dtype"]
models = [{"model": p, "parameters": {"weight": w}} for p, w in zip(paths, json.loads(weights))]
config = MergeConfiguration.model_validate({"merge_method": "linear", "models": models, "dtype": dtype})
"""
    + _WAIT
    + """
start = time.perf_counter()
mergekit.merge.run_merge(config, out, MergeOptions(copy_tokenizer=False, quiet=True))
"""
    + _DONE
)


def create(folder: Path, shape: tuple[int, torch.dtype, int, int, int, int]) -> list[Path]:
    """Write the children of a case: one Llama shape, numbers drawn anew for each."""
    count, dtype, hidden, intermediate, layers, vocabulary = shape
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": str(dtype).removeprefix("torch."),
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 64,
        "vocab_size": vocabulary,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    }
    paths = []
    for child in range(count):
        path = folder / f"child{child}"
        path.mkdir()
        (path / "config.json").write_text(json.dumps(config))
        generator = torch.Generator().manual_seed(child)
        tensors = {name: torch.randn(size, generator=generator).mul_(0.02).to(dtype) for name, size in _shapes(config)}
        write_tensors(path, tensors)
        paths.append(path)
    os.sync()  # or the first runs would share the disk with the writing of their own inputs
    return paths


def _shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, intermediate, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for name in "qkvo":
            yield f"{prefix}.self_attn.{name}_proj.weight", (hidden, hidden)
        yield f"{prefix}.mlp.gate_proj.weight", (intermediate, hidden)
        yield f"{prefix}.mlp.up_proj.weight", (intermediate, hidden)
        yield f"{prefix}.mlp.down_proj.weight", (hidden, intermediate)
        yield f"{prefix}.input_layernorm.weight", (hidden,)
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocabulary, hidden)


def run(python: str, script: str, paths: list[Path], out: Path, weights: list[float]) -> dict[str, float]:
    """Run one contender: wall and processor seconds and MiB of the merge, imports excluded, and MiB of the imports."""
    arguments = [python, "-c", script, *map(str, paths), str(out), json.dumps(weights)]
    process = subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdin and process.stdout and process.stderr
    errors: list[str] = []
    drain = threading.Thread(target=lambda: errors.append(process.stderr.read()))  # type: ignore[union-attr]
    drain.start()
    for line in process.stdout:
        if line.strip() == "READY":
            break
    base = anonymous_mib(process.pid)
    peak, stop = [base], threading.Event()

    def sample() -> None:
        while not stop.is_set():
            peak[0] = max(peak[0], anonymous_mib(process.pid))
            time.sleep(0.002)

    sampler = threading.Thread(target=sample)
    sampler.start()
    process.stdin.write("\n")
    process.stdin.flush()
    lines = process.stdout.read().strip().splitlines()
    stop.set()
    sampler.join()
    process.wait()
    drain.join()
    if process.returncode or not lines:
        raise SystemExit(f"a contender failed:\n{''.join(errors)[-2000:]}")
    return {**json.loads(lines[-1]), "peak_mib": peak[0] - base, "imported_mib": base}


def anonymous_mib(pid: int) -> float:
    """The anonymous memory of a process now, in MiB; 0 when it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith("RssAnon:")), 0.0)


def errors(paths: list[Path], out: Path, weights: list[float]) -> dict[str, float]:
    """How far the result is from fp64: the largest error, and the share of numbers that are not it rounded once."""
    readers = [TensorReader([path / "model.safetensors"]) for path in paths]
    result = TensorReader(sorted(out.glob("*.safetensors")))
    worst, wrong, seen = 0.0, 0, 0
    names = sorted(readers[0].infos)
    for name in names[:: max(1, len(names) // 24)]:
        written = result.read(name)
        exact = sum(w * reader.read(name).double() for w, reader in zip(weights, readers, strict=True))
        assert isinstance(exact, torch.Tensor)
        worst = max(worst, float((written.double() - exact).abs().max()))
        wrong += int((written != exact.to(written.dtype)).sum())
        seen += written.numel()
    return {"largest_error": worst, "not_rounded_once": wrong / seen, "numbers_compared": seen}


def warm(paths: list[Path], cold: bool) -> None:
    """Read the inputs once, or evict them from the page cache; nothing of the run before is left to be written."""
    os.sync()
    for path in paths:
        handle = os.open(path / "model.safetensors", os.O_RDONLY)
        if cold:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        else:
            while os.read(handle, 1 << 22):
                pass
        os.close(handle)


def measure(name: str, shape: Any, options: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    count = shape[0]
    weights = [2 * (i + 1) / (count * (count + 1)) for i in range(count)]
    contenders = {"ract merge": (sys.executable, ENGINE), "file copies": (sys.executable, COPIES)}
    contenders["ract aggregate"] = (sys.executable, COMMAND)
    if options.mergekit:
        contenders["mergekit"] = (options.mergekit, MERGEKIT)
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="ract-merging-") as folder:
        paths = create(Path(folder), shape)
        size = sum((path / "model.safetensors").stat().st_size for path in paths)
        runs: dict[str, list[dict[str, float]]] = {contender: [] for contender in contenders}
        found: dict[str, dict[str, float]] = {}
        for repeat in range(options.repeats):
            for contender, (python, script) in contenders.items():
                out = Path(folder) / "out"
                warm(paths, options.cold)
                runs[contender].append(run(python, script, paths, out, weights))
                if repeat == 0 and contender in ("ract merge", "mergekit"):
                    found[contender] = errors(paths, out, weights)
                shutil.rmtree(out)
                say(f"{name}: {contender} {runs[contender][-1]['seconds']:.2f} s")
    summary = {
        contender: {
            "seconds_median": statistics.median(one["seconds"] for one in own),
            "seconds_best": min(one["seconds"] for one in own),
            "cpu_seconds_median": statistics.median(one["cpu_seconds"] for one in own),
            "peak_mib": max(one["peak_mib"] for one in own),
            "imported_mib": own[0]["imported_mib"],
            **found.get(contender, {}),
        }
        for contender, own in runs.items()
    }
    return {"children": count, "bytes_read": size, "bytes_written": size // count, "contenders": summary}


def table(results: dict[str, Any]) -> str:
    columns = ("median s", "best s", "× copies", "cpu s", "× copies", "peak MiB", "error", "≠ fp64")
    lines = [f"{'case':18} {'contender':15}" + "".join(f"{column:>10}" for column in columns)]
    for case, result in results.items():
        copies = result["contenders"]["file copies"]
        for contender, own in result["contenders"].items():
            line = f"{case:18} {contender:15}{own['seconds_median']:10.2f}{own['seconds_best']:10.2f}"
            line += f"{own['seconds_median'] / copies['seconds_median']:10.2f}{own['cpu_seconds_median']:10.2f}"
            line += f"{own['cpu_seconds_median'] / copies['cpu_seconds_median']:10.2f}{own['peak_mib']:10.1f}"
            if "largest_error" in own:
                line += f"{own['largest_error']:10.2e}{own['not_rounded_once']:10.2%}"
            lines.append(line)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mergekit", help="the Python of an environment that has mergekit; left out: not measured")
    parser.add_argument(
        "--dir", help="where to put the checkpoints (12 GB free), by default the system's temporary folder"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cold", action="store_true", help="evict the inputs from the page cache before every run")
    parser.add_argument("--quick", action="store_true", help="one small case, to see that it runs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if not options.mergekit:
        print("mergekit: not measured (give --mergekit PYTHON_OF_ITS_ENVIRONMENT)")
    load = os.getloadavg()[0]
    results = {
        name: measure(name, shape, options, lambda text: print(text, file=sys.stderr))
        for name, shape in (QUICK if options.quick else CASES).items()
    }
    record = {
        "machine": {
            "processor": processor_name(),
            "cores": os.cpu_count(),
            "load_before": load,
        },
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "page_cache": "cold" if options.cold else "warm",
        "repeats": options.repeats,
        "cases": results,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=2) + "\n")
    print(f"page cache {record['page_cache']}, load {load:.1f} before the run on {os.cpu_count()} cores")
    print(table(results))


if __name__ == "__main__":
    main()
