"""The recipe harness: equal cost by construction, shared nodes, subsets, patterns; pico runs through the real thing."""

from __future__ import annotations

import json
import sys
import tomllib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import recipe_records, recipe_schedule, recipe_tuning, recipes
from benchmarks.recipe_corpora import (
    BUILT_IN,
    CHARACTERS,
    CHINESE,
    ENGLISH,
    SETTINGS,
    SPLITS,
    Cell,
    Setting,
    cell,
    materialise,
    sources,
)
from benchmarks.recipe_matrix import (
    CORPORA,
    Search,
    at_larger_scale,
    chosen,
    had_second_lap,
    matrix,
    searches,
    second_lap,
    spec_named,
    tuned,
)
from benchmarks.recipe_measure import window_losses
from benchmarks.recipe_plans import graph_of, plan_of, stage_of, toml_of
from benchmarks.recipe_run import RESULT, Spec, carry_out, result_of
from benchmarks.recipe_schedule import listing, run_all
from benchmarks.recipe_trees import RECIPES, Values, recipe_named
from ract.errors import BadInput, RactError
from ract.plan.graph import ModelSettings
from ract.plan.schema import parse_plan
from ract.tree.job import node_keys
from tests.plans import write_text_corpus

FILES = {split: Path(f"{split}.txt") for split in SPLITS}
PICO = Setting("data", 300, "1x32", "2x32", ("1x32", "2x32"), 150_000)


@pytest.mark.parametrize("corpus", [ENGLISH[0], CHINESE, CHARACTERS, BUILT_IN])
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_every_recipe_spends_the_budget_and_no_more(corpus: str, setting: str, scale: float) -> None:
    place = cell(corpus, setting, scale).setting
    names = [name for name, one in RECIPES.items() if setting in one.settings]
    for name in names:
        for values, fraction in ((Values(), 1.0), (Values(share=0.5, members=2), 1.0), (Values(), 2.0)):
            plan = plan_of(recipe_named(name), place, values, FILES, seed=0, fraction=fraction)
            assert parse_plan(tomllib.loads(toml_of(plan))) == parse_plan(plan)
            graph = graph_of(plan, place)
            spent = graph.total_flops(graph.final) / (place.flops * fraction * values.share)
            assert 0.96 < spent <= 1.0 + 1e-9, name
            assert {stage_of(n) for n in graph if n.train} == set(recipe_named(name).tree(place, values).shares)


def test_a_budget_below_a_few_steps_is_refused() -> None:
    with pytest.raises(RactError, match="too few for its stage"):
        plan_of(RECIPES["students"], PICO, Values(), FILES, seed=0, fraction=0.01)


def test_a_tenfold_budget_is_a_larger_model_on_as_many_tokens() -> None:
    one, ten = cell("wikipedia", "compute").setting, cell("wikipedia", "compute", 10.0).setting
    assert ten.final_tokens == one.final_tokens
    assert 8 < ten.shape(ten.final).parameters / one.shape(one.final).parameters < 12


def test_what_recipes_share_has_the_same_key() -> None:
    place = cell("wikipedia", "data").setting
    keys = []
    for name in ("ensemble-distil", "students", "ensemble-distil-stack"):
        graph = graph_of(plan_of(RECIPES[name], place, Values(), FILES, seed=0), place)
        named = node_keys(graph, "data", ModelSettings())
        keys.append({named[node.name] for node in graph if node.method == "leaf"})
    assert keys[0] == keys[1] == keys[2] and len(keys[0]) == 4


def test_the_matrix_has_what_was_asked_for() -> None:
    names = [spec.name for spec in matrix(CORPORA, (0, 1), 1.0)]
    assert len(names) == len(set(names))
    for corpus in CORPORA:
        core = {f"{corpus}/compute/stack/0", f"{corpus}/compute/best-stack/0", f"{corpus}/data/best-single/1"}
        assert core < {*names}
    assert "wikipedia/compute/single@2/0" in names and "stories/compute/single@2/0" not in names
    assert "wikipedia/data/students/1" in names and "stories/data/students/1" not in names


def test_patterns_choose_runs_and_name_others() -> None:
    every = list(matrix(CORPORA, (0, 1, 2), 1.0))
    assert [s.name for s in chosen(every, ["wikipedia/data/students"], 1.0)] == [
        f"wikipedia/data/students/{seed}" for seed in (0, 1, 2)
    ]
    assert {s.seed for s in chosen(every, ["*/stack/1"], 1.0)} == {1}
    (other,) = chosen(every, ["mine/compute/single-3x64@0.5/7"], 1.0)
    assert (other.recipe, other.fraction, other.seed) == ("single-3x64", 0.5, 7)
    for wrong in ("wikipedia", "wikipedia/data/stac/0", "wikipedia/date/stack/0"):
        with pytest.raises(BadInput):
            spec_named(wrong, 1.0)


def test_each_side_takes_the_values_found_for_it() -> None:
    rates = {"wikipedia/data/ours": 1.0, "zh_wikipedia/data/ours": 2.0, "wikipedia/data/single": 3.0}
    rates |= {"wikipedia/compute/ours": 4.0, "zh_wikipedia/compute/ours": 5.0, "zh_wikipedia/compute/stack": 6.0}
    tuning = {key: {"values": {"lr": lr}} for key, lr in rates.items()}
    expected = {
        "stories/data/students/0": 1.0,
        "zh_wikipedia/data/students/0": 2.0,
        "zh_wikipedia/data/single/0": 3.0,
        "stories/data/best-single/0": Values().lr,
        "stories/compute/single/0": Values().lr,
        "stories/compute/stack/0": 4.0,  # a search of its own, where there is one, of the corpus's class
        "zh_wikipedia/compute/stack/0": 6.0,
        "zh_wikipedia/compute/best-stack/0": 5.0,
    }
    assert {name: tuned(spec_named(name, 1.0), tuning).values.lr for name in expected} == expected


def test_the_best_single_model_may_come_from_the_search_of_another_size() -> None:
    def found(lr: float, loss: float) -> dict[str, Any]:
        return {
            "values": {"lr": lr, "size": "6x224"},
            "trials": [{"valid_nats_per_token": one} for one in (9.0, loss, None)],
        }

    tuning = {"wikipedia/data/best-single": found(1.0, 4.9), "wikipedia/data/child-alone": found(2.0, 4.8)}
    values = tuned(spec_named("stories/data/best-single/0", 1.0), tuning).values
    assert (values.lr, values.size) == (2.0, "4x96")
    tuning["wikipedia/data/child-alone"] = found(2.0, 5.0)
    values = tuned(spec_named("stories/data/best-single/0", 1.0), tuning).values
    assert (values.lr, values.size) == (1.0, "6x224")


def test_both_sides_are_tuned_over_the_same_grid() -> None:
    for setting in SETTINGS:
        sides = {s.side: dict(s.grid) for s in searches(CORPORA, 1.0) if s.cell.name == f"wikipedia/{setting}"}
        controls = {"single", "best-single"} | ({"child-alone"} if setting == "data" else set())
        assert set(sides) == {*controls, "ours"} | ({"stack", "ensemble"} if setting == "compute" else set())
        for key, options in sides["single"].items():
            assert all(sides[control][key] == options for control in controls)
            assert sides["ours"].get(key, options) == options
        # A stack chooses its size, as the control does, and its moment; an ensemble its leaves, their number and their
        # part of the budget, where others choose their size and how many passes they make.
        own = {"grow_at"} if setting == "compute" else {"leaf", "members", "split"}
        assert {*sides["ours"]} - {*sides["best-single"]} == own
        assert ("size" in sides["ours"]) == (setting == "compute")


def test_a_subset_is_the_same_everywhere_and_comes_from_all_over(tmp_path: Path) -> None:
    folder = tmp_path / "lm" / "mine"
    folder.mkdir(parents=True)
    for split in SPLITS:
        write_text_corpus(folder / f"{split}.txt", documents=600)
    whole = cell("mine", "compute")
    assert materialise(whole, tmp_path, tmp_path / "a") == sources(tmp_path, "mine")
    small = Cell("mine", replace(cell("mine", "data").setting, subset_bytes=40_000), "mine")
    first = materialise(small, tmp_path, tmp_path / "a")["train"]
    again = materialise(small, tmp_path, tmp_path / "b")["train"]
    assert first.read_bytes() == again.read_bytes()
    rows = first.read_text(encoding="utf-8").splitlines()
    assert 40_000 <= sum(len(json.loads(row)["text"]) for row in rows) < 50_000
    with pytest.raises(BadInput, match="holds no corpus other"):
        sources(tmp_path, "other")


@pytest.fixture
def pico(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cell:
    """A cell small enough for tests, with its text in ``tmp_path``."""
    folder = tmp_path / "data" / "mine"
    folder.mkdir(parents=True)
    for split, documents in (("train", 300), ("valid", 60), ("test", 60)):
        write_text_corpus(folder / f"{split}.txt", documents=documents)
    monkeypatch.setattr("benchmarks.recipe_corpora._DATA", PICO)
    return cell("mine", "data")


@pytest.mark.slow
def test_a_run_is_measured_shared_and_only_read_when_finished(pico: Cell, tmp_path: Path) -> None:
    work, data = tmp_path / "work", tmp_path / "data"
    values = Values(members=2)
    distil, students = (Spec(pico, name, 0, values) for name in ("ensemble-distil", "students"))
    record = carry_out(distil, work, data)
    assert set(record["losses"]) == {"final", "teacher", "leaf"}
    assert record["losses"]["final"]["test"]["nats_per_token"] < np.log(300)
    assert record["flops"] <= record["budget"]
    assert all(node["processor_seconds"] >= 0 for node in record["nodes"].values())
    final = next((work / "mine" / "data" / "nodes").glob(f"{record['final']}-*"))
    windows = window_losses(final, [str(data / "mine" / "test.txt")])
    assert record["test_nats"] == pytest.approx(windows["nats"], abs=0.01)
    per_token = sum(record["test_nats"]) / windows["tokens"].sum()
    assert per_token == pytest.approx(record["losses"]["final"]["test"]["nats_per_token"], rel=1e-4)
    leaves = {path: path.stat().st_mtime_ns for path in (work / "mine" / "data" / "nodes").glob("leaf-of-*")}
    carry_out(students, work, data)
    assert leaves == {p: p.stat().st_mtime_ns for p in (work / "mine" / "data" / "nodes").glob("leaf-of-*")}
    assert result_of(distil, work) == json.loads((distil.folder(work) / RESULT).read_text("utf-8"))
    assert result_of(replace(distil, values=Values(members=2, lr=1e-3)), work) is None
    assert "done" in listing([distil], work, 1)


def in_this_process(specs: list[Spec], work: Path, data: Path, jobs: int | None) -> list[str]:
    """As run_all, without the start of other processes."""
    for spec in specs:
        if result_of(spec, work) is None:
            carry_out(spec, work, data)
    return []


@pytest.mark.slow
def test_a_published_run_is_made_again_beside_what_is_published(
    pico: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recipe_records, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(recipes, "RESULTS", tmp_path / "results" / "recipes.json")
    monkeypatch.setattr(recipe_schedule, "run_all", in_this_process)
    spec = spec_named("mine/data/single/0", 1.0)
    record = carry_out(spec, tmp_path / "elsewhere", tmp_path / "data")
    recipe_records.publish([{**record, "device": "another machine"}], recipe_records.folder_of(1.0))
    before = {file: file.read_bytes() for file in (tmp_path / "results").rglob("*.json*")}
    arguments = ["--data", str(tmp_path / "data"), "--work", str(tmp_path / "work"), "--anew", "--only", spec.name]
    monkeypatch.setattr("sys.argv", ["recipes", *arguments])
    assert recipes.main() == 0
    loss = f"{record['losses']['final']['test']['nats_per_token']:.4f}"
    line = capsys.readouterr().out.splitlines()[2]
    assert line.startswith(f"| {spec.name} | {loss} | {loss} | +0.00% | {record['device']} | another machine |")
    assert (spec.folder(tmp_path / "work") / RESULT).is_file()
    assert before == {file: file.read_bytes() for file in (tmp_path / "results").rglob("*.json*")}


@pytest.mark.slow
def test_tuning_keeps_the_best_of_each_coordinate_and_says_what_it_cost(
    pico: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, data = tmp_path / "work", tmp_path / "data"
    monkeypatch.setattr(recipe_tuning, "run_all", in_this_process)
    search = Search(pico, "single", (("lr", (1e-5, 3e-3)), ("share", (1.0, 0.25))))
    found = recipe_tuning.tune([search], work, data, None)["mine/data/single"]
    assert found["values"]["lr"] == 3e-3 and found["values"]["share"] == 1.0
    assert len(found["trials"]) == 3 and found["flops"] == pytest.approx(sum(t["flops"] for t in found["trials"]))
    records = [json.loads(file.read_text("utf-8")) for file in (work / "mine" / "data").glob(f"tuning-*/{RESULT}")]
    assert records and not any("test" in one["losses"]["final"] for one in records)  # test text is not for choices


def test_a_trial_that_diverges_is_out_and_a_second_lap_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def outcome(spec: Spec, work: Path) -> dict[str, Any] | None:
        loss = {"final": {"valid": {"nats_per_token": abs(spec.values.lr - 2.0) + spec.values.weight_decay}}}
        record = {"losses": loss, "flops": 1.0, "parameters": 1, "device": "", "nodes": {}}
        return None if spec.values.lr > 2 else record

    monkeypatch.setattr(recipe_tuning, "run_all", lambda specs, work, data, jobs: [])
    monkeypatch.setattr(recipe_tuning, "result_of", outcome)
    place = cell("mine", "data")
    search = Search(place, "single", (("lr", (1.0, 2.0, 3.0)), ("weight_decay", (0.5, 0.05))))
    found = recipe_tuning.tune([search], tmp_path, None, None)[search.key]
    assert (found["values"]["lr"], found["values"]["weight_decay"]) == (2.0, 0.05)
    assert len(found["trials"]) == 5 and found["flops"] == 4.0
    lap = second_lap(search, found)
    assert (lap.start.lr, lap.start.weight_decay) == (4e-2, 2.0) and 6e-3 in dict(lap.grid)["lr"]
    both = recipe_tuning.tune([lap], tmp_path, None, None, before={search.key: found})[search.key]
    assert both["values"] == found["values"], "no trial of the second lap was better"
    assert both["trials"][:5] == found["trials"] and len(both["trials"]) > 10
    assert had_second_lap(both) and not had_second_lap(found)
    assert both["grid"]["lr"] == [1.0, 2.0, 3.0, 4e-2, 2.5e-2, 1.6e-2, 6e-3]
    with pytest.raises(RactError, match="no trial of mine/data/single ended"):
        recipe_tuning.tune([Search(place, "single", (("lr", (3.0, 4.0)),))], tmp_path, None, None)


@pytest.mark.parametrize("side", ["single", "best-single", "stack", "ensemble", "ours"])
def test_a_second_lap_of_compute_offers_both_sides_the_same_and_starts_from_the_first(side: str) -> None:
    [first] = [one for one in searches(["wikipedia"], 1.0) if one.key == f"wikipedia/compute/{side}"]
    chosen_first = Values(lr=1.2e-2, size="2x96" if side in ("best-single", "ours") else "", grow_at=0.55)
    record = {"setting": "compute", "grid": dict(first.grid), "values": asdict(chosen_first)}
    lap = second_lap(first, record)
    grid = dict(lap.grid)
    assert lap.start == chosen_first and not had_second_lap(record)
    assert grid["lr"] == (3e-3, 6e-3, 1.2e-2, 2.4e-2) and grid["ema"] == (0.0, 0.98)
    assert ("grow_at" in grid) == (side in ("stack", "ours"))
    assert grid.get("size") == (("2x96", "2x64") if chosen_first.size else None)
    assert had_second_lap({**record, "grid": grid})


@pytest.mark.slow
def test_a_run_that_fails_is_named_and_the_others_go_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for split in SPLITS:
        (folder / f"{split}.txt").write_text("far too little to train on\n", encoding="utf-8")
    specs = [spec_named(f"mine/compute/{name}/0", 1.0) for name in ("single", "stack")]
    assert run_all(specs, tmp_path / "work", tmp_path, 1) == [spec.name for spec in specs]
    assert "mine/compute/single/0 failed: see " in capfd.readouterr().err
    assert "needs 257" in (specs[0].folder(tmp_path / "work") / "log.txt").read_text(encoding="utf-8")


def test_a_corpus_that_is_not_there_is_said_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no corpus absent"):
        run_all([spec_named("absent/compute/single/0", 1.0)], tmp_path / "work", tmp_path, 1)


def test_what_is_published_counts_as_done_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe_records, "RESULTS", tmp_path / "results")
    spec = spec_named("wikipedia/compute/single-2x96/0", 1.0)
    folder = recipe_records.folder_of(1.0)
    recipe_records.publish([{"name": spec.name, "plan": spec.identity, "seed": 0}], folder)
    recipe_records.publish([{"name": "stories/data/single/0", "plan": ""}], folder)
    assert {file.name for file in folder.iterdir()} == {"wikipedia-compute.jsonl", "stories-data.jsonl"}
    assert result_of(spec, tmp_path / "work") == {"name": spec.name, "plan": spec.identity, "seed": 0}
    assert result_of(replace(spec, values=Values(lr=1e-3)), tmp_path / "work") is None
    assert result_of(replace(spec, trial=True), tmp_path / "work") is None


def test_what_was_searched_at_a_scale_comes_before_a_class_of_scale_1() -> None:
    base = {"wikipedia/data/ours": 1, "wikipedia/compute/single": 2, "zh_wikipedia/compute/single": 3}
    found = at_larger_scale({"wikipedia/compute/single": 4}, base)
    assert found == {"wikipedia/data/ours": 1, "wikipedia/compute/single": 4}


def test_at_a_larger_scale_what_was_not_searched_there_takes_the_values_of_scale_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = tmp_path / "results" / "recipes.json"
    published.parent.mkdir()
    published.write_text(json.dumps({"tuning": {"wikipedia/compute/single": {"values": {"lr": 0.5}}}}))
    monkeypatch.setattr(recipes, "RESULTS", published)
    asked: list[Spec] = []
    monkeypatch.setattr(recipe_schedule, "listing", lambda specs, work, jobs: asked.extend(specs) or "")
    for more in ([], ["--scale", "10"]):
        monkeypatch.setattr("sys.argv", ["recipes", "--only", "wikipedia/compute/single/0", "--list", *more])
        assert recipes.main() == 0
    work = tmp_path / "work"
    work.mkdir()
    (work / "tuning.json").write_text(json.dumps({"wikipedia/compute/single": {"values": {"lr": 0.25}}}))
    monkeypatch.setattr("sys.argv", [*sys.argv, "--work", str(work)])
    assert recipes.main() == 0
    assert [spec.values.lr for spec in asked] == [0.5, 0.5, 0.25]
    assert [spec.cell.setting.scale for spec in asked] == [1, 10, 10]
