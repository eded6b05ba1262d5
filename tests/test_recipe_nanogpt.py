"""The comparison with nanoGPT: its output is read, ours gets a budget, and both are measured on the same text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import recipe_nanogpt
from benchmarks.recipe_corpora import CHARACTERS, SPLITS
from benchmarks.recipe_nanogpt import (
    CONTENDERS,
    CPU_SETTINGS,
    LONGER,
    THEIRS,
    Contender,
    _ours,
    run_nanogpt,
    side_by_side,
)
from benchmarks.recipe_pages import _translated
from benchmarks.recipe_trees import Values
from ract.errors import BadInput, RactError
from tests.plans import write_text_corpus

_TRAIN = """import sys
print("number of parameters: 0.80M")
print("step 0: train loss 4.2, val loss 4.1")
print("step 250: train loss 1.9, val loss 1.95")
print("step 500: train loss 1.8, val loss 1.97")
print(sys.argv[1:])
"""


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    sizes = {"train": 300, "valid": 40, "test": 40}
    return {split: write_text_corpus(tmp_path / f"{split}.txt", documents=sizes[split]) for split in SPLITS}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder laid out as nanoGPT is, with scripts that print what its own print."""
    prepare = tmp_path / "nanogpt" / "data" / "shakespeare_char" / "prepare.py"
    prepare.parent.mkdir(parents=True)
    prepare.write_text("assert open(__file__.replace('prepare.py', 'input.txt')).read()\n", encoding="utf-8")
    (tmp_path / "nanogpt" / "train.py").write_text(_TRAIN, encoding="utf-8")
    return tmp_path / "nanogpt"


def test_its_best_loss_is_read_and_the_whole_text_given(checkout: Path, files: dict[str, Path], tmp_path: Path) -> None:
    found = run_nanogpt(checkout, files, tmp_path)
    assert (found["nats_per_character"], found["parameters"]) == (1.95, 800_000)
    given = (checkout / "data" / "shakespeare_char" / "input.txt").read_text(encoding="utf-8")
    assert given == "".join(files[split].read_text(encoding="utf-8") for split in SPLITS)
    assert "--n_embd=128" in CPU_SETTINGS and "--device=cpu" in CPU_SETTINGS


def test_another_folder_and_a_failing_script_are_explained(
    checkout: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="is no checkout of nanoGPT"):
        run_nanogpt(tmp_path, files, tmp_path)
    (checkout / "train.py").write_text("raise SystemExit('no such device')\n", encoding="utf-8")
    with pytest.raises(RactError, match=r"train\.py of nanoGPT failed: no such device"):
        run_nanogpt(checkout, files, tmp_path)


@pytest.mark.slow
def test_a_comparison_that_was_stopped_goes_on_with_the_same_budget(
    files: dict[str, Path], checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = tmp_path / "lm" / CHARACTERS
    corpus.mkdir(parents=True)
    for split, file in files.items():
        file.rename(corpus / f"{split}.txt")
    pico = Contender("single", "1x16", Values(lr=1e-2), "a pico model", window=16)
    monkeypatch.setattr(recipe_nanogpt, "CONTENDERS", (pico,))
    fractions = iter([0.02, 0.03])
    monkeypatch.setattr(recipe_nanogpt, "_fraction", lambda *_: next(fractions))
    whole = recipe_nanogpt._ours

    def stopped(contender: Contender, fraction: float, where: dict[str, Path], folder: Path, seed: int = 0) -> object:
        if seed == 2:
            raise KeyboardInterrupt
        return whole(contender, fraction, where, folder, seed)

    monkeypatch.setattr(recipe_nanogpt, "_ours", stopped)
    with pytest.raises(KeyboardInterrupt):
        side_by_side(checkout, tmp_path, tmp_path / "work", tmp_path, longer=False)
    (checkout / "train.py").write_text("raise SystemExit('it ran already')", encoding="utf-8")
    made = tmp_path / "work" / "nanogpt" / "made.json"  # the long row was begun, and is not asked for now
    begun = {**json.loads(made.read_text(encoding="utf-8")), LONGER.name: {"fraction": 1.0}}
    made.write_text(json.dumps(begun), encoding="utf-8")
    monkeypatch.setattr(recipe_nanogpt, "_ours", whole)
    assert side_by_side(checkout, tmp_path, tmp_path / "work", tmp_path, longer=False) == 0
    theirs, ours = json.loads((tmp_path / "nanogpt.json").read_text(encoding="utf-8"))["rows"]
    assert theirs["nats_per_character"] == 1.95 and ours["name"] == pico.name
    assert len(ours["losses"]) == 3 == len({*ours["losses"]}) and next(fractions) == 0.03
    assert len(list((tmp_path / "work" / "nanogpt").glob("ours-single-1x16-0.02-*"))) == 3


def test_a_seed_of_an_accelerator_counts_for_the_loss_and_not_for_the_clock() -> None:
    here = {"nats_per_character": 1.4, "seconds": 60.0, "parameters": 7, "accelerator": False}
    row = recipe_nanogpt._joined([here, {**here, "nats_per_character": 1.5, "seconds": 2.0, "accelerator": True}])
    assert row["seconds"] == 60.0 and row["untimed"] == 1 and row["nats_per_character"] == pytest.approx(1.45)
    assert recipe_nanogpt._joined([here, here])["untimed"] == 0


@pytest.mark.slow
def test_ours_is_measured_on_text_that_served_no_choice(files: dict[str, Path], tmp_path: Path) -> None:
    ensemble = next(one for one in CONTENDERS if one.recipe == "ensemble")
    flops = 2.5e11
    made = _ours(ensemble, flops / ensemble.setting.flops, files, tmp_path)
    assert made["flops"] <= flops and made["seconds"] > 0
    assert made["nats_per_character"] < 5.6  # ln 258
    [asked] = tmp_path.glob("ours-ensemble-4x128-*-0/asked.toml")
    plan = asked.read_text(encoding="utf-8")
    assert "valid.txt" not in plan and "test.txt" not in plan


def test_every_row_has_a_chinese_name() -> None:
    for name in (THEIRS, *(one.name for one in (*CONTENDERS, LONGER))):
        chinese = _translated(name, "zh")
        assert chinese != name == _translated(name, "en")
        assert name[0] == chinese[0] or not name[0].isdigit()
