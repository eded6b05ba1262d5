"""What this machine can do: how many nodes at a time, with how many threads, and how fast (measured once)."""

from __future__ import annotations

import json
import subprocess
import sys

from ract.checkpoint.directory import write_text
from ract.cost import MANY_LENGTHS_BYTES, machine_memory_bytes
from ract.errors import BadInput
from ract.machine import cache_folder, calm_environment, fingerprint, is_busy, processors
from ract.plan.graph import Graph, Node, kept_bytes

_SHARE_OF_MEMORY = 0.85


def memory_of(graph: Graph, node: Node) -> float:
    """Peak bytes of the process that makes *node*."""
    spec = node.train
    if spec is None:
        return node.shape.training_memory_bytes(1024, 256, ema=False, optimizer="adamw")
    bytes_needed = node.shape.training_memory_bytes(
        spec.micro_batch_tokens, spec.block_size, ema=spec.ema > 0, optimizer=spec.optimizer
    )
    bytes_needed += 0.0 if spec.reads_windows else MANY_LENGTHS_BYTES
    kept = 4.0 * node.shape.parameters if spec.patience else 0.0
    kept += kept_bytes(spec.teacher_tokens, getattr(node.shape, "num_labels", 0) or node.shape.vocab_size)
    return bytes_needed + kept + sum(graph[t].shape.size_bytes("fp32") for t in node.teachers)


def worker_count(graph: Graph, asked: int | None) -> int:
    """How many nodes to make at a time: as asked, else one per processor as far as memory reaches.

    Raises BadInput when one node alone needs more memory than the machine has.
    """
    if asked is not None and asked < 1:
        raise BadInput(f"--workers {asked} is not a number of processes", "Give 1 or more")
    widest = max(graph.beside(node.name) for node in graph)
    count = min(asked or processors(), widest)
    memory = machine_memory_bytes()
    if memory is None:
        return count
    needs = sorted((memory_of(graph, node) for node in graph), reverse=True)
    check_memory(graph)
    while asked is None and count > 1 and sum(needs[:count]) > _SHARE_OF_MEMORY * memory:
        count -= 1
    return count


def check_memory(graph: Graph) -> None:
    """Raise BadInput, naming the node, when training it needs more memory than this machine has."""
    memory = machine_memory_bytes()
    worst = max(graph, key=lambda node: memory_of(graph, node))
    need = memory_of(graph, worst)
    if memory is not None and need > memory:
        raise BadInput(
            f"making {worst.name} ({worst.shape.parameters / 1e6:,.0f} M parameters) "
            f"needs about {need / 1e9:.0f} GB of memory and this machine has {memory / 1e9:.0f} GB",
            "Use fewer or smaller compact models, less depth, or a smaller micro_batch_tokens",
        )


def threads_for(graph: Graph, name: str, workers: int) -> int:
    """Threads of the process that makes *name*: the processors shared out among what may run beside it."""
    return max(1, processors() // min(workers, graph.beside(name)))


def training_speed(threads: int, *, measure: bool = True) -> dict[str, float] | None:
    """FLOP/s of a training step here by model width (``{"64": …}``), on *threads* threads.

    Measured once in a process of its own (a few seconds) and kept in the user's cache folder; None without torch, or
    where nothing is cached and *measure* is off. What was measured beside other work serves only while there is such.
    """
    kept, rough = (cache_folder() / f"{kind}-{fingerprint(threads)}.json" for kind in ("speed", "speed-busy"))
    busy = is_busy()
    for file in (kept, rough) if busy or not measure else (kept,):
        if file.is_file():
            return json.loads(file.read_text(encoding="utf-8"))
    if not measure:
        return None
    command = [sys.executable, "-m", "ract.train.calibrate", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=calm_environment())
    if done.returncode != 0:
        return None
    speeds = json.loads(done.stdout.strip().splitlines()[-1])
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_text(rough if busy else kept, json.dumps(speeds))
    return speeds


def seconds_of(graph: Graph, name: str, speeds: dict[str, float]) -> float:
    """Estimated seconds to make *name*, from the speed measured at the nearest width."""
    width = graph[name].shape.hidden_size
    nearest = min(speeds, key=lambda w: abs(int(w) - width))
    return graph.own_flops(name) / speeds[nearest]
