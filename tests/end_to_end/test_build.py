"""The main job on a pico plan: every node made, opened by plain transformers, resumed after any kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ract.checkpoint.lineage import content_hash, read_lineage
from ract.errors import BadInput, RactError
from ract.plan.graph import Graph
from ract.tree.build import Run, Watcher, build
from tests.plans import plan_text, write_text_corpus

BUILD = """
import sys
from ract.tree.build import build
build(sys.argv[1], sys.argv[2], workers=int(sys.argv[3]), checkpoint_seconds=0)
"""


class Recorder(Watcher):
    """Which nodes a build made."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.to_do: list[str] = []

    def started(self, graph: Graph, to_do: dict[str, float], finished: int) -> None:  # type: ignore[override]
        self.to_do = list(to_do)

    def node_finished(self, name: str) -> None:
        self.made.append(name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("build")


@pytest.fixture(scope="module")
def plan(folder: Path) -> Path:
    file = folder / "plan.toml"
    file.write_text(plan_text(write_text_corpus(folder / "text.txt")), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def run(plan: Path, folder: Path) -> Iterator[Run]:
    """An undisturbed run, with one worker as in the disturbed ones below."""
    yield build(plan, folder / "undisturbed", workers=2)


def contents(run_folder: Path) -> dict[str, str]:
    """Node name → hash of its files."""
    return {p.name: content_hash(p) for p in (run_folder / "nodes").iterdir() if not p.name.startswith(".")}


def test_every_node_is_a_plain_checkpoint_with_its_lineage(run: Run) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for name, directory in run.directories.items():
        model, info = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True, local_files_only=True)
        assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
        lineage = read_lineage(directory)
        assert lineage is not None and lineage.name == name
        assert [parent.name for parent in lineage.parents] == list(run.graph[name].parents)
        assert lineage.metrics_after["bits_per_byte"] > 0
        assert sum(p.numel() for p in model.parameters()) == run.graph[name].shape.parameters
        assert AutoTokenizer.from_pretrained(directory).eos_token_id == model.config.eos_token_id
    final = read_lineage(run.final)
    leaf = read_lineage(run.directories["leaf"])
    assert final is not None and leaf is not None
    assert final.metrics_after["bits_per_byte"] < leaf.metrics_after["bits_per_byte"]


def test_the_final_model_needs_nothing_of_ours(run: Run, tmp_path: Path) -> None:
    """Plain transformers, in a process that never sees this package, gives the same logits."""
    from ract.checkpoint.live import load_model

    ids = torch.arange(40)[None]
    with torch.inference_mode():
        ours = load_model(run.final)(input_ids=ids).logits
    code = """
import sys, torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], local_files_only=True)
with torch.inference_mode():
    save_file({"logits": model(input_ids=torch.arange(40)[None]).logits}, sys.argv[2])
assert "ract" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(run.final), str(tmp_path / "plain")], check=True)
    from safetensors.torch import load_file

    assert torch.equal(load_file(tmp_path / "plain")["logits"], ours)


def test_merged_and_stacked_nodes_keep_their_laws(run: Run) -> None:
    from safetensors.torch import load_file

    def tensors(name: str) -> dict[str, torch.Tensor]:
        return load_file(run.directories[name] / "model.safetensors")

    lineage = read_lineage(run.directories["level-1-merge"])
    assert lineage is not None and isinstance(lineage.weights, list)
    assert sum(lineage.weights) == pytest.approx(1, abs=1e-9)
    search = lineage.metrics_after["weights"]
    assert search["loss"] <= min(search["loss_uniform"], *search["loss_children"])
    children = [tensors(p.name) for p in lineage.parents]
    for name, value in tensors("level-1-merge").items():
        expected = sum(a * child[name].double() for a, child in zip(lineage.weights, children, strict=True))
        assert torch.equal(value, torch.as_tensor(expected).float()), name
    child, stacked = tensors("level-1-merge"), tensors("level-2-stack")
    depth = run.graph["level-1-merge"].shape.num_hidden_layers
    for name, value in stacked.items():
        if ".layers." in name:
            before, number, rest = name.split(".layers.")[0], *name.split(".layers.")[1].split(".", 1)
            assert torch.equal(value, child[f"{before}.layers.{int(number) % depth}.{rest}"]), name


def test_a_finished_build_has_nothing_to_do_and_an_edited_plan_recomputes_what_changed(
    run: Run, plan: Path, folder: Path
) -> None:
    seen = Recorder()
    again = build(plan, run.path, workers=2, watcher=seen)
    assert seen.to_do == [] and again.directories == run.directories
    edited = folder / "edited.toml"
    edited.write_text(plan_text(folder / "text.txt", heal_tokens=2048), encoding="utf-8")
    seen = Recorder()
    build(edited, run.path, workers=2, watcher=seen)
    assert set(seen.made) == {"level-2-heal", "baseline"}


def test_a_damaged_node_is_made_again(run: Run, plan: Path) -> None:
    before = contents(run.path)
    file = run.directories["leaf"] / "model.safetensors"
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(damaged)
    seen = Recorder()
    build(plan, run.path, workers=2, watcher=seen)
    assert seen.made == ["leaf"] and contents(run.path) == before


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "point", ["leaf-6", *(pytest.param(p, marks=SLOW) for p in ("weights-3", "heal-5", "node-written"))]
)
def test_a_worker_killed_anywhere_leaves_a_build_that_goes_on(
    run: Run, plan: Path, folder: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = folder / f"killed-{point}"
    monkeypatch.setenv("RACT_CRASH_AT", point)
    with pytest.raises(RactError, match="was killed"):
        build(plan, target, workers=2, checkpoint_seconds=0)
    monkeypatch.delenv("RACT_CRASH_AT")
    build(plan, target, workers=2, checkpoint_seconds=0)
    assert contents(target) == {d.name: content_hash(d) for d in run.directories.values()}
    assert not list((target / "nodes").glob(".*")) and not (target / "work").exists()


@SLOW
def test_a_killed_command_goes_on_where_it_stopped(run: Run, plan: Path, folder: Path) -> None:
    target = folder / "killed-command"
    command = [sys.executable, "-c", BUILD, str(plan), str(target), "2"]
    for checkpoint in ("work/*/checkpoint-*.json", "nodes/level-1-branch-1-*"):
        process = subprocess.Popen(command)
        deadline = time.monotonic() + 120
        while not list(target.glob(checkpoint)) and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True)
    assert contents(target) == {d.name: content_hash(d) for d in run.directories.values()}


@SLOW
def test_a_failing_node_stops_the_build_and_keeps_the_rest(plan: Path, folder: Path) -> None:
    target = folder / "diverging"
    wild = folder / "wild.toml"
    wild.write_text(plan_text(folder / "text.txt").replace(
        "heal = { tokens = 3072 }",
        'heal = { tokens = 3072, lr = 1e30, grad_clip = 0.0, warmup = 0.0, optimizer = "adamw" }',
    ), encoding="utf-8")  # fmt: skip
    with pytest.raises(
        RactError, match=r"no longer finite at step \d+ of 12 .*Try a lower lr|valid loss is not finite"
    ):
        build(wild, target, workers=2)
    kept = [p.name for p in (target / "nodes").iterdir() if not p.name.startswith(".")]
    assert any(name.startswith("level-2-stack") for name in kept)
    assert not any(name.startswith("level-2-heal") for name in kept)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("text.txt", "absent.txt"), "absent.txt"),
        (("block_size = 64", "block_size = 100000"), "block"),
        (("vocab_size = 300", "vocab_size = 10"), "vocab_size"),
        (("hidden_size = 32", "hidden_size = 2000000"), "memory"),
        (("hidden_size = 32", "hiden_size = 32"), 'Did you mean "hidden_size"'),
    ],
)
def test_bad_input_is_said_before_any_training(folder: Path, change: tuple[str, str], says: str) -> None:
    file = folder / "bad.toml"
    file.write_text(plan_text(folder / "text.txt").replace(*change), encoding="utf-8")
    with pytest.raises(BadInput, match=says):
        build(file, folder / "bad")


@SLOW
def test_processes_do_not_outlive_their_build(plan: Path, folder: Path) -> None:
    target = folder / "orphans"
    process = subprocess.Popen([sys.executable, "-c", BUILD, str(plan), str(target), "1"])
    while not list(target.glob("work/*/checkpoint-*.json")) and process.poll() is None:
        time.sleep(0.02)
    children = _children(process.pid)
    assert children
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while any(_alive(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in children)


def _children(pid: int) -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    import psutil

    return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_the_record_of_a_worker_is_json(run: Run) -> None:
    lineage = json.loads((run.final / "lineage.json").read_text(encoding="utf-8"))
    assert lineage["cost"]["total_flops"] == pytest.approx(run.graph.total_flops(run.graph.final))
