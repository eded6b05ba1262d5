"""What the recipe harness makes of its runs: statistics, schedules on paper, tables, and that the pages are of them."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.recipe_figures import draw, figure_names
from benchmarks.recipe_matrix import spec_named
from benchmarks.recipe_measure import window_losses
from benchmarks.recipe_pages import PAGES, nanogpt_of, page_text, read_sets
from benchmarks.recipe_results import flops_for, makespan, mean_and_spread, paired_bootstrap
from benchmarks.recipe_results import results as judge
from benchmarks.recipe_scaling import fit, fits, scaling_points
from benchmarks.recipe_tables import short, tables
from benchmarks.recipes import RESULTS, _parser, _place
from ract.cost import derive_shape
from ract.data.corpus import CorpusSpec
from ract.data.tokens import prepare
from ract.errors import BadInput
from ract.evaluate.language_modeling import evaluate
from ract.model.compact import new_compact_transformer
from tests.plans import write_text_corpus

ROOT = Path(__file__).resolve().parents[1]


def node(seconds: float, *parents: str) -> dict[str, Any]:
    return {"parents": list(parents), "processor_seconds": seconds}


def test_the_critical_path_of_a_tree() -> None:
    nodes = {"a": node(3), "b": node(3), "c": node(2), "sum": node(1, "a", "b", "c"), "heal": node(4, "sum")}
    assert makespan(nodes, 1) == 13
    assert makespan(nodes, 2) == 5 + 5
    assert makespan(nodes, 3) == makespan(nodes, 8) == 3 + 5


def test_a_difference_on_the_same_windows_is_surer_than_the_windows_are() -> None:
    generator = np.random.default_rng(0)
    control = generator.gamma(4.0, 50.0, size=400)  # windows differ a lot from each other
    ours = control * generator.normal(0.97, 0.01, size=400)
    found = paired_bootstrap(ours, control)
    assert found["difference"] == pytest.approx(-0.03, abs=0.002)
    assert found["low"] < found["difference"] < found["high"] < -0.025
    assert found == paired_bootstrap(ours, control)
    same = paired_bootstrap(control, control)
    assert same["difference"] == same["low"] == same["high"] == 0


def test_no_difference_is_not_found() -> None:
    generator = np.random.default_rng(1)
    base = generator.gamma(4.0, 50.0, size=400)
    found = paired_bootstrap(base + generator.normal(0, 5, 400), base + generator.normal(0, 5, 400))
    assert found["low"] < 0 < found["high"]


def test_the_same_loss_is_read_off_the_curve() -> None:
    curve = [{"flops": f, "test": 3.0 * f**-0.1} for f in (1.0, 2.0, 4.0)]
    assert flops_for(3.0 * 3.0**-0.1, curve) == pytest.approx(3.0)
    assert flops_for(3.0 * 8.0**-0.1, curve) == pytest.approx(8.0)  # prolonged
    assert flops_for(3.0 * 100.0**-0.1, curve) is None  # too far
    assert flops_for(2.0, curve[:1]) is None
    assert flops_for(2.0, [{"flops": 1.0, "test": 2.0}, {"flops": 2.0, "test": 2.1}]) is None


def test_a_fit_tells_its_uncertainty_and_needs_a_range() -> None:
    generator, held = np.random.default_rng(0), 0
    for _ in range(40):
        points = [(x, 0.02 + 0.01 * math.log(x) + generator.normal(0, 0.001)) for x in (1.0, 2.0, 4.0, 8.0, 16.0) * 3]
        found = fit(points)
        assert found is not None and found.b == pytest.approx(0.01, abs=0.002)
        held += found.interval[0] < 0.01 < found.interval[1]
        x = np.array([1.0, 4.0, 16.0])
        low, high = found.band(x)
        assert (high - low)[1] < (high - low)[0] and (high - low)[1] < (high - low)[2]
        assert (low < found.at(x)).all() and (found.at(x) < high).all()
    assert 32 <= held < 40  # of 40 intervals of 95%, from fifteen points each
    assert fit([(1.0, 0.1), (1.1, 0.1), (1.2, 0.3)]) is None
    assert fit([]) is None


def test_a_fit_of_workers_is_the_share_of_the_work_that_can_be_shared() -> None:
    found = fit([(1.0, 0.0), (2.0, 0.4), (4.0, 0.6)], workers=True)
    assert found is not None and found.a == 0 and found.b == pytest.approx(0.8)
    assert found.at(np.array([1.0, 8.0])) == pytest.approx([0.0, 0.7])


def test_what_growth_saves_is_told_at_equal_size_and_budget(results: dict[str, Any]) -> None:
    found = {
        "single": recipe([4.0]),
        "stack": recipe([3.8]),
        "single@2": recipe([3.5], fraction=2.0),
        "stack@2": recipe([3.43], fraction=2.0),
        "stack@0.6": recipe([3.9], fraction=0.6),  # has no single model of its budget beside it
    }
    place = {"corpus": "wikipedia", "setting": "compute", "recipes": found}
    larger = {"single": recipe([5.0], parameters=10_000_000), "stack": recipe([4.5], parameters=10_000_000)}
    sets = [
        {**results, "cells": {**results["cells"], "wikipedia/compute": place}},
        {"scale": 10.0, "cells": {"wikipedia/compute": {**place, "recipes": larger}}},
    ]
    points = scaling_points(sets)
    assert points["parameters"] == [(1e6, pytest.approx(0.05)), (1e7, pytest.approx(0.1))]
    assert points["tokens a parameter"] == [(0.75, pytest.approx(0.05)), (1.5, pytest.approx(0.02))]
    assert points["workers, ensemble-distil"] == [(1.0, 0.0), (2.0, pytest.approx(1 / 3)), (4.0, 0.5)]
    assert list(fits(sets)) == ["workers, ensemble-distil"]  # two sizes or budgets tell nothing


def test_what_an_accelerator_made_has_losses_and_no_times() -> None:
    spec = spec_named("wikipedia/compute/single/0", 1.0)
    here = {**record(0), "accelerator": False}
    there = {**record(1), "accelerator": True, "device": "a large card"}
    both = judge([(spec, here), (replace(spec, seed=1), there)], {})["cells"]["wikipedia/compute"]["recipes"]["single"]
    assert both["processor_seconds"] == both["critical_seconds"]["4"] == 7.0  # of the run that a processor made
    assert both["test"]["mean"] == pytest.approx(3.5)
    found = judge([(spec, there)], {})
    line = next(line for line in tables({**found, "scale": 1.0}, "en").splitlines() if line.startswith("| single |"))
    assert "s |" not in line and "a large card" in tables({**found, "scale": 1.0}, "en")
    assert "one worker" not in tables({**found, "scale": 1.0}, "en")


def test_seconds_of_two_machines_are_not_averaged() -> None:
    spec = spec_named("wikipedia/compute/single/0", 1.0)
    slow = {"b": {**node(700), "tokens": 1}}
    there = {**record(1), "device": "a slower machine", "nodes": slow}
    another = spec_named("wikipedia/compute/stack/0", 1.0)
    runs = [(spec, record(0)), (replace(spec, seed=1), there), (another, there)]
    found = judge(runs, {})["cells"]["wikipedia/compute"]["recipes"]
    assert "critical_seconds" not in found["stack"]
    both = found["single"]
    assert both["processor_seconds"] == both["critical_seconds"]["4"] == 7.0
    assert {one["device"] for one in both["runs"]} == {"a machine", "a slower machine"}


def record(seed: int) -> dict[str, Any]:
    """A finished run of one node."""
    loss = {"nats_per_token": 3.0 + seed, "bits_per_byte": 1.0}
    return {
        "seed": seed,
        "device": "a machine",
        "fraction": 1.0,
        "values": {"lr": 3e-3},
        "flops": 1e12,
        "parameters": 1000,
        "train_tokens": 10,
        "nodes": {"leaf": node(7.0)},
        "losses": {"final": {"valid": loss, "test": loss}},
        "test_nats": [3.0 + seed, 3.0],
    }


def test_windows_sum_to_what_the_evaluation_says(tmp_path: Path) -> None:
    texts = {s: write_text_corpus(tmp_path / f"{s}.txt", documents=n) for s, n in (("train", 200), ("valid", 40))}
    spec = CorpusSpec(train=(str(texts["train"]),), valid=(str(texts["valid"]),), test_fraction=0.0)
    corpus = prepare(spec, tmp_path / "data", vocab_size=300)
    model = new_compact_transformer(derive_shape(corpus.vocab_size, 32, 1), seed=0)
    model.save_pretrained(tmp_path / "model")
    for file in corpus.tokenizer_dir.iterdir():
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    windows = window_losses(tmp_path / "model", [str(texts["valid"])])
    stream, size = corpus.tokens["valid"], corpus.bytes["valid"]
    expected = evaluate(model.eval(), stream, size, block_size=256, separator=corpus.separator)
    assert windows["tokens"].sum() == expected["tokens"]
    assert windows["bytes"].sum() == size
    assert windows["nats"].sum() / windows["tokens"].sum() == pytest.approx(expected["nats_per_token"], rel=1e-5)


def run(seed: int, loss: float) -> dict[str, Any]:
    losses = {"valid": loss, "test": loss, "test_bits_per_byte": loss / 2}
    return {"seed": seed, "device": "a machine", **losses, "flops": 1e12}


def recipe(losses: list[float], **more: Any) -> dict[str, Any]:
    values = mean_and_spread(losses)
    return {
        **{
            "fraction": 1.0,
            "values": {"lr": 3e-3, "members": 4},
            "parameters": 1_000_000,
            "flops": 1e12,
            "processor_seconds": 60.0,
        },
        "runs": [run(seed, loss) for seed, loss in enumerate(losses)],
        **{"valid": values, "test": values, "test_bits_per_byte": mean_and_spread([loss / 2 for loss in losses])},
        "critical_seconds": {"1": 60.0, "2": 40.0, "4": 30.0, "8": 30.0},
        "against": {},
        **more,
    }


@pytest.fixture
def results() -> dict[str, Any]:
    against = {"single": {"seeds": [0, 1], "difference": -0.05, "low": -0.06, "high": -0.045}}
    against["child-alone"] = {"seeds": [0, 1], "difference": -0.08, "low": -0.09, "high": -0.07}
    against["best-single"] = {"seeds": [0, 1], "difference": -0.01, "low": -0.03, "high": 0.01}
    shares = {"flops_share": 0.6, "time_share": {"1": 0.6, "2": 0.4, "4": 0.3, "8": 0.3}}
    kept = {"teacher_test": 2.7, "leaf_test": 3.0, "gain_kept": 0.5, "gain_kept_over_child_alone": 0.4}
    found = {
        "single": recipe([3.0, 3.2]),
        "single@2": recipe([2.9], flops=2e12),
        "best-single": recipe([2.9, 3.0]),
        "child-alone": recipe([3.1, 3.1], parameters=300_000),
        "ensemble": recipe([2.8, 2.7]),
        "ensemble-distil": recipe([2.9, 2.8], against=against, parameters=300_000, **shares, **kept),
    }
    curve = [{"flops": 1e12, "test": 3.1, "seeds": 2}, {"flops": 2e12, "test": 2.9, "seeds": 1}]
    place = {"corpus": "mine", "setting": "data", "budget": 1e12, "train_tokens": 100_000, "curve": curve}
    trial = {"values": {"lr": 3e-3}, "valid_nats_per_token": 3.0, "flops": 1e12}
    search = {
        "recipe": "single",
        "grid": {"lr": [1e-3, 3e-3]},
        "values": {"lr": 3e-3},
        "trials": [trial],
        "flops": 1e12,
    }
    return {"scale": 1.0, "tuning": {"mine/data/single": search}, "cells": {"mine/data": {**place, "recipes": found}}}


def test_every_row_names_seeds_spread_cost_and_command(results: dict[str, Any]) -> None:
    text = tables(results, "en")
    line = next(line for line in text.splitlines() if line.startswith("| ensemble-distil |"))
    for said in ("2.8500 ± 0.0707", "0, 1", "-5.0% [-6.0%, -4.5%]", "1T", "60 s", "30 s"):
        assert said in line, said
    [command] = [line for line in text.splitlines() if line.startswith("Any row again:")]
    assert command == "Any row again: `python -m benchmarks.recipes --data DATA --anew --only mine/data/RECIPE/SEED`"


def test_columns_that_say_nothing_are_left_out_and_heads_are_translated(results: dict[str, Any]) -> None:
    assert "| against single | against best-single | against child-alone |" in tables(results, "en")
    assert "| 相对 single | 相对 best-single | 相对 child-alone |" in tables(results, "zh")
    for one in results["cells"]["mine/data"]["recipes"].values():
        one["against"].pop("child-alone", None)
    assert "| against single | against best-single | FLOPs |" in tables(results, "en")


def test_targets_are_judged_from_the_interval(results: dict[str, Any]) -> None:
    text = short(results, "en") + tables(results, "en")
    line = next(line for line in text.splitlines() if line.startswith("| mine/data | ensemble-distil | child-alone |"))
    assert "| -8.0% [-9.0%, -7.0%] | ≤ -4%: met |" in line  # against a single model of the student's own size
    assert "≤ -2%: missed (the interval holds the target)" in line
    assert "50%" in text and "40%" in text  # what the student keeps


def test_the_best_of_the_given_size_stands_beside_the_best(results: dict[str, Any]) -> None:
    against = {"single": {"seeds": [0, 1], "difference": -0.02, "low": -0.025, "high": -0.015}}
    results["cells"]["mine/data"]["recipes"]["stack"] = recipe([3.0, 3.1], against=against)
    rows = [line for line in short(results, "en").splitlines() if line.startswith("| mine/data | ")]
    assert rows[0].startswith("| mine/data | ensemble-distil | child-alone |")
    assert rows[1].startswith("| mine/data | stack | single | -2.0% [-2.5%, -1.5%] | ≤ -4%: missed | best-single | – |")


def test_both_languages_have_the_same_numbers(results: dict[str, Any]) -> None:
    def numbers(language: str) -> list[list[str]]:
        rows = [line for line in page_text([results], language).splitlines() if line.startswith("| ")]
        return [re.findall(r"\d+(?:\.\d+)?", row) for row in rows]

    assert numbers("en") == numbers("zh")


def test_figures_are_drawn_for_what_there_is(results: dict[str, Any], tmp_path: Path) -> None:
    tenfold = {**copy.deepcopy(results), "scale": 10.0}
    names = figure_names([results, tenfold])
    assert names == ["recipes-data", "recipes-curve", "recipes-data-x10", "recipes-curve-x10", "recipes-scaling"]
    draw([results, tenfold], tmp_path)
    assert sorted(file.stem for file in tmp_path.glob("*.svg")) == sorted(names)
    text = page_text([results, tenfold], "en")
    assert "(budget × 10)" in text and "--scale 10" in text


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        ([], RESULTS),
        (["--scale", "10"], RESULTS.with_name("recipes-x10.json")),
        (["--only", "stories/data"], Path("w/results.json")),
        (["--quick"], Path("w/results.json")),
    ],
)
def test_a_part_of_the_matrix_does_not_take_the_place_of_the_published(arguments: list[str], place: Path) -> None:
    assert _place(_parser().parse_args([*arguments, "--work", "w"])) == place


def test_no_results_are_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"holds no recipes\.json"):
        read_sets(tmp_path)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_committed_pages_are_those_of_the_committed_results(language: str) -> None:
    sets = read_sets(RESULTS.parent)
    page = (ROOT / "docs" / PAGES[language]).read_text(encoding="utf-8")
    assert page == page_text(sets, language, nanogpt_of(RESULTS.parent)), "run python -m benchmarks.recipes --docs docs"
    for name in figure_names(sets):
        assert (ROOT / "docs" / "figures" / f"{name}.svg").is_file()
