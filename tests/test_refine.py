"""The refinements of the merge: worked examples and the laws of each formula."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ract.aggregate import engine, refine
from ract.aggregate.methods import METHODS, method
from ract.checkpoint.directory import ModelDirectory
from ract.errors import BadInput
from tests.checkpoints import bits, checkpoint, random_tensors, stored

WITH_BASE = ("task_arithmetic", "ties", "dare", "model_stock")


def models(folder: Path, count: int = 3, dtype: str = "F32") -> list[ModelDirectory]:
    return [checkpoint(folder / str(i), random_tensors(i, dtype)) for i in range(count)]


def run(
    name: str, children: Sequence[ModelDirectory], alpha: Sequence[float], out: Path, **options: Any
) -> dict[str, torch.Tensor]:
    out.mkdir()
    recipe = method(name).recipe(children, alpha, **options)
    engine.execute(recipe, [*children, *([options["base"]] if "base" in options else [])], out)
    return stored(out)


def close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], tolerance: float = 1e-6) -> None:
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        torch.testing.assert_close(tensor, b[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", WITH_BASE)
def test_children_equal_to_the_base_give_the_base_back(name: str, tmp_path: Path) -> None:
    base = models(tmp_path, 1)[0]
    result = run(name, [base, base], [0.5, 0.5], tmp_path / "out", base=base)
    assert {n: bits(t) for n, t in result.items()} == {n: bits(t) for n, t in stored(base.path).items()}


@pytest.mark.parametrize("name", WITH_BASE)
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_equal_children_give_the_child_back_where_nothing_is_dropped(name: str, dtype: str, tmp_path: Path) -> None:
    child, base = models(tmp_path, 2, dtype)
    options = {"density": 1.0} if name in ("ties", "dare") else {}
    result = run(name, [child, child], [0.5, 0.5], tmp_path / "out", base=base, **options)
    close(result, stored(child.path), 1e-6 if dtype == "F32" else 1e-2)


def test_task_arithmetic_scales_from_the_base_to_beyond_the_child(tmp_path: Path) -> None:
    a, b, base = models(tmp_path)
    x, y, z = (stored(m.path) for m in (a, b, base))
    for scale in (0.0, 0.7, 2.0):
        result = run("task_arithmetic", [a, b], [0.25, 0.75], tmp_path / f"s{scale}", base=base, scale=scale)
        close(result, {n: z[n] + scale * (0.25 * (x[n] - z[n]) + 0.75 * (y[n] - z[n])) for n in z})


def test_ties_on_the_example_worked_by_hand(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", {"w": torch.zeros(4)})
    a = checkpoint(tmp_path / "a", {"w": torch.tensor([3.0, 1.0, -2.0, 0.1])})
    b = checkpoint(tmp_path / "b", {"w": torch.tensor([1.0, -4.0, -6.0, 0.2])})
    # Density 3/4 drops the smallest entry of each; elected signs are + − −; only b agrees in the second entry.
    result = run("ties", [a, b], [0.5, 0.5], tmp_path / "out", base=base, density=0.75)
    assert result["w"].tolist() == [2.0, -4.0, -4.0, 0.0]
    scaled = run("ties", [a, b], [0.75, 0.25], tmp_path / "scaled", base=base, density=0.5, scale=2.0)
    # Density 1/2 keeps (3, −2) of a and (−4, −6) of b; the weighted mean of −2 and −6 is −3.
    assert scaled["w"].tolist() == [6.0, -8.0, -6.0, 0.0]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.01, 1.0), st.integers(1, 200))
def test_trim_keeps_the_largest_share(seed: int, density: float, size: int) -> None:
    vector = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    kept = refine.trim(vector.clone(), density)
    count = max(1, round(density * size))
    assert int((kept != 0).sum()) == count
    assert torch.equal(kept[kept != 0], vector[kept != 0])
    dropped = vector[kept == 0].abs()
    assert not len(dropped) or dropped.max() <= kept[kept != 0].abs().min()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 4))
def test_the_elected_mean_has_the_sign_of_the_sum_and_lies_among_those_that_agree(seed: int, n: int) -> None:
    vectors = list(torch.randn(n, 50, generator=torch.Generator().manual_seed(seed)))
    result = refine.elect_and_average(vectors, [1 / n] * n)
    total = torch.stack(vectors).mean(0)
    assert torch.equal(result.sign(), total.sign())
    agreeing = torch.stack(vectors).where(torch.stack(vectors).sign() == total.sign(), torch.nan)
    torch.testing.assert_close(result, agreeing.nanmean(0))


def test_dare_depends_on_its_seed_alone_and_keeps_the_mean(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", {"w": torch.zeros(100, 400)})
    child = checkpoint(tmp_path / "child", {"w": torch.ones(100, 400)})
    results = [
        run("dare", [child], [1.0], tmp_path / str(i), base=base, density=0.25, seed=seed)["w"]
        for i, seed in enumerate((1, 1, 2))
    ]
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
    assert set(results[0].unique().tolist()) == {0.0, 4.0}
    # 40,000 draws: the mean's standard deviation is √(3)/200 = 0.0087.
    assert results[0].mean() == pytest.approx(1.0, abs=0.05)


def test_model_stock_is_the_average_of_parallel_and_the_base_of_orthogonal_task_vectors(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", {"w": torch.tensor([1.0, 1.0])})
    right = checkpoint(tmp_path / "right", {"w": torch.tensor([3.0, 1.0])})
    far = checkpoint(tmp_path / "far", {"w": torch.tensor([5.0, 1.0])})
    up = checkpoint(tmp_path / "up", {"w": torch.tensor([1.0, 3.0])})
    diagonal = checkpoint(tmp_path / "diagonal", {"w": torch.tensor([3.0, 3.0])})
    alpha = [0.5, 0.5]
    assert run("model_stock", [right, far], alpha, tmp_path / "o1", base=base)["w"].tolist() == [4.0, 1.0]
    assert run("model_stock", [right, up], alpha, tmp_path / "o2", base=base)["w"].tolist() == [1.0, 1.0]
    ratio = 2 * math.sqrt(0.5) / (1 + math.sqrt(0.5))
    half = run("model_stock", [right, diagonal], alpha, tmp_path / "o3", base=base)["w"]
    torch.testing.assert_close(half, torch.tensor([1 + 2 * ratio, 1 + ratio]))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.0, 1.0))
def test_slerp_stays_on_the_sphere_and_moves_evenly(seed: int, t: float) -> None:
    a, b = torch.nn.functional.normalize(torch.randn(2, 30, generator=torch.Generator().manual_seed(seed)), dim=1)
    middle = refine.interpolate_on_sphere(a, b, t)
    assert float(middle.norm()) == pytest.approx(1.0, abs=1e-5)
    whole, part = (math.acos(max(-1.0, min(1.0, float(torch.dot(a, other))))) for other in (b, middle))
    assert part == pytest.approx(t * whole, abs=1e-3)


def test_slerp_of_equal_models_is_the_model_and_its_ends_are_the_models(tmp_path: Path) -> None:
    a, b, _ = models(tmp_path)
    same = run("slerp", [a, a], [0.3, 0.7], tmp_path / "same")
    assert {n: bits(t) for n, t in same.items()} == {n: bits(t) for n, t in stored(a.path).items()}
    close(run("slerp", [a, b], [1.0, 0.0], tmp_path / "start"), stored(a.path))
    close(run("slerp", [a, b], [0.0, 1.0], tmp_path / "end"), stored(b.path))
    with pytest.raises(BadInput, match="slerp goes between two models, 3 were given"):
        refine.slerp([a, b, a], [0.2, 0.3, 0.5])


def test_slerp_of_a_zero_tensor_is_straight() -> None:
    zero, one = torch.zeros(3), torch.ones(3)
    assert torch.equal(refine.interpolate_on_sphere(zero, one, 0.25), torch.full((3,), 0.25))


@pytest.mark.parametrize("density", [0.0, -0.1, 1.5, math.nan])
@pytest.mark.parametrize("name", ["ties", "dare"])
def test_a_density_outside_0_to_1_is_refused(name: str, density: float, tmp_path: Path) -> None:
    a, b, base = models(tmp_path)
    with pytest.raises(BadInput, match="density is"):
        method(name).recipe([a, b], [0.5, 0.5], base=base, density=density)


def test_model_stock_needs_two(tmp_path: Path) -> None:
    a, base = models(tmp_path, 2)
    with pytest.raises(BadInput, match="needs two models or more"):
        refine.model_stock([a], [1.0], base=base)


@pytest.mark.parametrize("name", ["slerp", *WITH_BASE])
def test_integers_are_taken_over(name: str, tmp_path: Path) -> None:
    ids = torch.arange(4)
    a, b = (checkpoint(tmp_path / str(i), {"w": torch.full((3,), i + 1.0), "ids": ids}) for i in range(2))
    options = {} if name == "slerp" else {"base": a}
    assert torch.equal(run(name, [a, b], [0.5, 0.5], tmp_path / "out", **options)["ids"], ids)


def test_every_method_has_a_line_a_paper_and_a_function() -> None:
    for name, one in METHODS.items():
        assert one.name == name and one.summary and one.paper
        assert callable(one.recipe), name
    with pytest.raises(BadInput, match=r'no method "tie"\. Did you mean "ties"'):
        method("tie")
    assert method("task-arithmetic") is METHODS["task_arithmetic"]
