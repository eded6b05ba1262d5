"""The command line: one line for every mistake, the right exit code, nothing lost, nothing imported for a look."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ract.cost import derive_shape
from ract.data.tokenizer import train_tokenizer
from ract.model.compact import new_compact_transformer
from tests.conftest import Ract
from tests.plans import plan_text, write_text_corpus


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "pico"
    new_compact_transformer(derive_shape(300, 32, 2), seed=0).save_pretrained(folder)
    train_tokenizer(["the cat sat on the mat"] * 20, 300, folder)
    return folder


def one_line(error: str) -> str:
    lines = [line for line in error.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("ract: ") and "Traceback" not in error, error
    return lines[0]


def test_help_and_version(ract: Ract) -> None:
    for arguments in (["--help"], ["build", "--help"], ["aggregate", "-h"]):
        code, out, _ = ract(*arguments)
        assert code == 0 and "Usage" in out
    assert ract("--version")[1].startswith("ract 0")


@pytest.mark.parametrize(
    "arguments", [["bulid"], ["build"], ["generate", "--temperature", "-1", "x"], ["train", "a.toml"]]
)
def test_wrong_usage_is_exit_code_2(ract: Ract, arguments: list[str]) -> None:
    code, _, error = ract(*arguments)
    assert code == 2 and "Traceback" not in error


def test_mistakes_in_a_plan(ract: Ract, tmp_path: Path) -> None:
    corpus = write_text_corpus(tmp_path / "text.txt")
    for change, says in {
        ("hidden_size", "hiden_size"): 'Did you mean "hidden_size"?',
        ("hidden_size = 32", 'hidden_size = "wide"'): "compact.hidden_size",
        ('weights = "learned"', "weights = [0.5, 0.6]"): "α must sum to 1",
        ("copies = 2", "copies = 2\nmembers = 2"): "either members or copies",
        ("hidden_size = 32", "hidden_size = 33"): "not divisible",
        ("hidden_size = 32", "hidden_size = 3000000"): "memory",
        (str(corpus), str(tmp_path / "none.txt")): "none.txt",
    }.items():
        plan = tmp_path / "plan.toml"
        plan.write_text(plan_text(corpus).replace(*change, 1), encoding="utf-8")
        code, out, error = ract("check", plan)
        assert code == 2 and not out and says in one_line(error)
    assert "does not exist" in one_line(ract("check", tmp_path / "no.toml")[2])


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "empty"), (b"caf\xe9 au lait\n" * 50, "UTF-8"), (b"short\n", "token")],
    ids=["empty", "latin-1", "small"],
)
def test_text_that_cannot_be_used_is_named(ract: Ract, tmp_path: Path, content: bytes, says: str) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_bytes(content)
    plan = tmp_path / "plan.toml"
    plan.write_text(plan_text(corpus), encoding="utf-8")
    code, _, error = ract("build", plan, "-o", tmp_path / "run")
    assert code == 2 and "corpus.txt" in error and says in error


def test_check_prints_a_row_for_every_level(ract: Ract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ract.tree.check.training_speed", lambda threads, measure: {"64": 1e10})
    plan = tmp_path / "plan.toml"
    plan.write_text(plan_text(write_text_corpus(tmp_path / "text.txt")), encoding="utf-8")
    code, out, _ = ract("check", plan)
    assert code == 0 and all(word in out for word in ("leaf", "branch", "merge", "stack", "heal", "baseline", "int4"))
    found = json.loads(ract("check", plan, "--json")[1])
    rows = {row["method"]: row for row in found["rows"]}
    assert rows["branch"]["members"] == 2 and found["seconds"] > 0
    assert rows["stack"]["parameters"] == derive_shape(300, 32, 4).parameters
    assert rows["leaf"]["size_bytes"]["fp32"] == 4 * derive_shape(300, 32, 2).parameters


def test_init_writes_a_plan_that_fits(ract: Ract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ract.plan.derive import build_graph
    from ract.plan.schema import load_plan

    monkeypatch.setattr("ract.tree.init.training_speed", lambda threads: {"64": 1e13})
    corpus = write_text_corpus(tmp_path / "text.txt", documents=3000)
    for size, precision, per_parameter in (("2MB", "fp32", 4), ("20MB", "fp32", 4), ("2MB", "int8", 1)):
        target = tmp_path / f"{size}-{precision}"
        code, out, error = ract("init", target, "--data", corpus, "--target-size", size, "--precision", precision)
        assert code == 0, error
        assert "plan.toml" in out
        graph = build_graph(load_plan(target / "plan.toml"), 100_000)
        limit = int(size.removesuffix("MB")) * 1_000_000
        assert 0.4 * limit < graph[graph.final].shape.parameters * per_parameter <= limit
    code, _, error = ract("init", tmp_path / "2MB-fp32")
    assert code == 2 and "--force" in one_line(error)
    code, _, error = ract("init", tmp_path / "x", "--data", corpus, "--target-size", "10kB")
    assert code == 2 and "The smallest takes" in one_line(error)
    assert "absent" in one_line(ract("init", tmp_path / "y", "--data", tmp_path / "absent.txt")[2])


def test_broken_model_directories_are_explained(ract: Ract, tmp_path: Path, model: Path) -> None:
    import shutil

    empty = tmp_path / "empty"
    empty.mkdir()
    code, _, error = ract("generate", empty, "x")
    assert code == 2 and "config.json" in one_line(error)
    shutil.copy(model / "config.json", empty)
    assert "no weights" in one_line(ract("generate", empty, "x")[2])
    truncated = tmp_path / "truncated"
    shutil.copytree(model, truncated)
    weights = truncated / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    for arguments in (["generate", truncated, "x"], ["aggregate", truncated, model, "-o", tmp_path / "out"]):
        code, _, error = ract(*arguments)
        assert code == 2 and "truncated" in one_line(error)
    assert not (tmp_path / "out").exists()


def test_aggregate_from_the_command_line(ract: Ract, tmp_path: Path, model: Path) -> None:
    code, out, error = ract("aggregate", model, model, "-w", ".6,.4", "-o", tmp_path / "merged")
    assert code == 0, error
    assert "checked" in out
    for weights, says in (
        (".6,.6", "sum to 1.2"),
        ("1", "1 weights"),
        ("nan,1", "finite"),
        ("1,-1", "negative"),
        ("a,b", "numbers"),
    ):
        code, _, error = ract("aggregate", model, model, "-w", weights, "-o", tmp_path / "bad")
        assert code == 2 and says in one_line(error), weights
    assert "exists" in one_line(ract("aggregate", model, model, "-o", tmp_path / "merged")[2])
    assert "Did you mean" in one_line(ract("aggregate", model, model, "-m", "stak", "-o", tmp_path / "bad")[2])
    assert not (tmp_path / "bad").exists()
    assert json.loads(ract("list", "methods", "--json")[1])["merge"]["paper"]


def test_generate_streams_the_same_text_for_the_same_seed(ract: Ract, model: Path) -> None:
    first = ract("generate", model, "the cat", "-n", 8, "--seed", 3)
    assert (
        first[0] == 0
        and first[1].startswith("the cat")
        and first == ract("generate", model, "the cat", "-n", 8, "--seed", 3)
    )
    assert ract("generate", model, "the cat", "-n", 8, "--no-echo")[1].startswith("the cat") is False


def test_generate_takes_any_bytes(ract: Ract, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="ascii"))
    for prompt, source, ending in (("-", "standard input", "\n"), (os.fsdecode(b"caf\xe9"), "command line", "")):
        code, out, error = ract("generate", model, prompt, "-n", 2)
        assert code == 0 and out.startswith(f"caf\ufffd{ending}")
        assert f"{source} text 1 is not UTF-8 (byte 3)" in one_line(error)


def test_evaluate_needs_text_and_prints_a_row_a_model(ract: Ract, model: Path, tmp_path: Path) -> None:
    assert "--data" in one_line(ract("evaluate", model)[2])
    corpus = write_text_corpus(tmp_path / "text.txt", documents=5)
    rows = json.loads(ract("evaluate", model, model, "--data", corpus, "--no-speed", "--json")[1])
    assert len(rows) == 2 and rows[0]["bits_per_byte"] == rows[1]["bits_per_byte"] > 0


@pytest.mark.slow
def test_a_full_disk_is_said_and_loses_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: the write is cut short with an error, not a signal."""
    plan = tmp_path / "plan.toml"
    plan.write_text(plan_text(write_text_corpus(tmp_path / "text.txt")), encoding="utf-8")
    code = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.argv = ["ract", "build", *sys.argv[2:]]
from ract.cli import main
main()
"""
    leaf = 4 * derive_shape(300, 32, 2).parameters
    done = subprocess.run(
        [sys.executable, "-c", code, str(leaf + 30_000), str(plan), "-o", str(tmp_path / "run"), "--workers", "2"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "no space left on the disk" in done.stderr and "Traceback" not in done.stderr
    kept = [p.name for p in (tmp_path / "run" / "nodes").iterdir() if not p.name.startswith(".")]
    assert any(name.startswith("leaf") for name in kept)
    assert not any(name.startswith(("level-2-stack", "baseline")) for name in kept)


def test_train_makes_one_leaf_and_refuses_to_replace_it(ract: Ract, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    plan = tmp_path / "plan.toml"
    plan.write_text(plan_text(write_text_corpus(tmp_path / "text.txt")), encoding="utf-8")
    code, out, error = ract("train", plan, "-o", tmp_path / "leaf")
    assert code == 0, error
    assert out.strip() == str(tmp_path / "leaf") and not list(tmp_path.glob(".leaf*"))
    assert "--force" in one_line(ract("train", plan, "-o", tmp_path / "leaf")[2])
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "leaf").dtype == torch.float32


@pytest.mark.slow
def test_torchrun_trains_data_parallel_to_nearly_the_same_weights(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    plan = tmp_path / "plan.toml"
    plan.write_text(
        plan_text(write_text_corpus(tmp_path / "text.txt")).replace("[train]", '[train]\nprecision = "fp32"'), "utf-8"
    )
    alone, together = tmp_path / "alone", tmp_path / "together"
    subprocess.run([sys.executable, "-m", "ract", "train", plan, "-o", alone, "--threads", "1"], check=True)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "-m",
        "ract",
        "train",
        plan,
        "-o",
        together,
    ]
    subprocess.run(command, check=True)
    a, b = load_file(alone / "model.safetensors"), load_file(together / "model.safetensors")
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0.05, atol=0.02)
