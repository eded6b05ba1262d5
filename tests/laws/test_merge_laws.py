"""Laws of the linear merge, for any numbers, dtypes, counts and α."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ract.aggregate import engine, merge
from ract.aggregate.alpha import exactly_one
from ract.aggregate.collapse import Nested, collapse
from ract.checkpoint.directory import ModelDirectory
from tests.checkpoints import DTYPES, bits, checkpoint, fingerprint, random_tensors, stored

SCALES = {"F64": [1.0], "F32": [1.0, 1e-41, 1e30], "BF16": [1.0, 1e-39, 1e30], "F16": [1.0, 1e-7, 1e4]}
laws = settings(max_examples=25, deadline=None)


@contextmanager
def models(tensors: Sequence[dict[str, torch.Tensor]]) -> Iterator[list[ModelDirectory]]:
    with tempfile.TemporaryDirectory() as folder:
        yield [checkpoint(Path(folder) / str(i), own) for i, own in enumerate(tensors)]


def merged(children: Sequence[ModelDirectory], alpha: Sequence[float], **limits: int) -> dict[str, torch.Tensor]:
    with tempfile.TemporaryDirectory() as out:
        engine.execute(merge.recipe(children, alpha), children, Path(out), **limits)  # type: ignore[arg-type]
        return stored(Path(out))


@st.composite
def tensors(draw: st.DrawFn, dtypes: Sequence[str] = tuple(DTYPES)) -> tuple[str, dict[str, torch.Tensor]]:
    """Tensors of one dtype at some scale, subnormal numbers and both zeros among them."""
    dtype = draw(st.sampled_from(dtypes))
    own = random_tensors(draw(st.integers(0, 2**31)), dtype, draw(st.sampled_from(SCALES[dtype])))
    own["b.bias"][:2] = torch.tensor([0.0, -0.0])
    return dtype, own


def simplex(n: int) -> st.SearchStrategy[list[float]]:
    """n numbers of any size from 0 to 1 that sum to 1, as ``aggregate`` passes them on."""
    positive = st.lists(st.floats(0, 1), min_size=n, max_size=n).filter(lambda a: sum(a) > 1e-3)
    return positive.map(exactly_one)


@laws
@given(tensors(), st.integers(1, 5).flatmap(simplex))
def test_equal_children_give_the_child_back_bit_for_bit(
    drawn: tuple[str, dict[str, torch.Tensor]], alpha: list[float]
) -> None:
    with models([drawn[1]] * len(alpha)) as children:
        result = merged(children, alpha)
    assert {name: bits(t) for name, t in result.items()} == {name: bits(t) for name, t in drawn[1].items()}


@pytest.mark.parametrize("n", [3, 6, 7, 10])
@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_children_at_one_nth(dtype: str, n: int) -> None:
    own = {"a": torch.randn(4000, generator=torch.Generator().manual_seed(n)).to(DTYPES[dtype])}
    with models([own] * n) as children:
        assert bits(merged(children, [1 / n] * n)["a"]) == bits(own["a"])


@laws
@given(st.sampled_from(list(DTYPES)), st.integers(0, 2**31), st.integers(1, 4), st.data())
def test_a_one_hot_alpha_gives_that_child_bit_for_bit(dtype: str, seed: int, n: int, data: st.DataObject) -> None:
    chosen = data.draw(st.integers(0, n - 1))
    own = [random_tensors(seed + i, dtype) for i in range(n)]
    with models(own) as children:
        result = merged(children, [float(i == chosen) for i in range(n)])
    assert {name: bits(t) for name, t in result.items()} == {name: bits(t) for name, t in own[chosen].items()}


@laws
@given(st.sampled_from(["F32", "BF16", "F16"]), st.integers(0, 2**31), st.integers(1, 5).flatmap(simplex))
def test_the_result_is_the_fp64_formula_rounded_once(dtype: str, seed: int, alpha: list[float]) -> None:
    own = [random_tensors(seed + i, dtype) for i in range(len(alpha))]
    with models(own) as children:
        result = merged(children, alpha)
    for name, tensor in result.items():
        exact = sum(a * child[name].double() for a, child in zip(alpha, own, strict=True))
        assert torch.equal(tensor, exact.to(tensor.dtype)), name  # type: ignore[union-attr]


@laws
@given(st.sampled_from(["F32", "BF16", "F16"]), st.integers(0, 2**31), st.data())
def test_the_order_of_the_children_does_not_matter_beyond_rounding(dtype: str, seed: int, data: st.DataObject) -> None:
    alpha = data.draw(st.integers(2, 5).flatmap(simplex))
    order = data.draw(st.permutations(range(len(alpha))))
    with models([random_tensors(seed + i, dtype) for i in range(len(alpha))]) as children:
        one = merged(children, alpha)
        other = merged([children[i] for i in order], [alpha[i] for i in order])
    for name in one:
        assert_within_one_rounding(one[name], other[name])


@laws
@given(st.sampled_from(["F32", "BF16"]), st.integers(0, 2**31), st.data())
def test_nested_merges_equal_one_merge_with_multiplied_coefficients(dtype: str, seed: int, data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    top = data.draw(simplex(len(sizes)))
    below = [data.draw(simplex(n)) for n in sizes]
    with models([random_tensors(seed + i, dtype) for i in range(sum(sizes))]) as children:
        parts = [children[sum(sizes[:i]) : sum(sizes[: i + 1])] for i in range(len(sizes))]
        nodes = [Nested(merge.recipe(part, alpha), part) for part, alpha in zip(parts, below, strict=True)]
        recipe, leaves = collapse(merge.recipe([part[0] for part in parts], top), nodes)
        assert leaves == children
        flat = [a * b for a, own in zip(top, below, strict=True) for b in own]
        assert recipe.weights == pytest.approx(flat)
        with tempfile.TemporaryDirectory() as out:
            engine.execute(recipe, leaves, Path(out))
            nested = stored(Path(out))
        direct = merged(children, flat)
    for name in direct:
        assert_within_one_rounding(nested[name], direct[name])


@laws
@given(st.integers(0, 2**31), st.sampled_from([1 << 20, 3 << 20, 64 << 20]), st.integers(40, 400))
def test_memory_and_shards_change_nothing(seed: int, memory: int, shard: int) -> None:
    with models([random_tensors(seed + i) for i in range(3)]) as children:
        before = [fingerprint(child.path) for child in children]
        plain = merged(children, [0.2, 0.3, 0.5])
        limited = merged(children, [0.2, 0.3, 0.5], max_memory_bytes=memory, max_shard_bytes=shard)
        assert [fingerprint(child.path) for child in children] == before
    assert {name: bits(t) for name, t in plain.items()} == {name: bits(t) for name, t in limited.items()}


def assert_within_one_rounding(a: torch.Tensor, b: torch.Tensor) -> None:
    limits = torch.finfo(a.dtype)
    bound = limits.eps * torch.maximum(a.double().abs(), b.double().abs()) + limits.tiny * limits.eps
    assert math.prod(a.shape) == 0 or bool(((a.double() - b.double()).abs() <= bound).all())
