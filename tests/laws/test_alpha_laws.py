"""Laws of α and of alignment, on drawn examples."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ract.aggregate.align import distance, match_weights
from ract.aggregate.loaded import parameters
from ract.aggregate.permutation import KINDS, symmetries
from ract.aggregate.weights import LearnedWeights, Per, learn, project_to_simplex
from ract.model.anatomy import anatomy
from tests.pico import inputs, output, pico, save

POINTS = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=8)


@given(POINTS)
def test_projection_lands_on_the_simplex_and_stays(values: list[float]) -> None:
    point = project_to_simplex(torch.tensor(values, dtype=torch.float64))
    assert float(point.sum()) == pytest.approx(1.0, abs=1e-9)
    assert float(point.min()) >= 0.0
    torch.testing.assert_close(project_to_simplex(point), point, rtol=0, atol=1e-9)


@given(POINTS, st.integers(0, 2**31))
def test_no_other_point_of_the_simplex_is_nearer(values: list[float], seed: int) -> None:
    v = torch.tensor(values, dtype=torch.float64)
    others = torch.rand(50, len(v), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    others = torch.cat([others / others.sum(-1, keepdim=True), torch.eye(len(v), dtype=torch.float64)])
    assert (v - project_to_simplex(v)).norm() <= (v - others).norm(dim=-1).min() + 1e-9


@given(POINTS)
def test_affine_projection_only_shifts(values: list[float]) -> None:
    v = torch.tensor(values, dtype=torch.float64)
    shift = project_to_simplex(v, affine=True) - v
    assert float((v + shift).sum()) == pytest.approx(1.0, abs=1e-9)
    torch.testing.assert_close(shift, shift[:1].expand_as(shift), rtol=0, atol=1e-9)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [save(pico("Qwen3", seed), folder / str(seed)) for seed in range(3)]


@settings(max_examples=6, deadline=None)
@given(st.sampled_from(["model", "layer", "tensor"]), st.booleans(), st.integers(0, 1000))
def test_learned_weights_sum_to_one_and_are_never_worse(models: list[Path], per: Per, affine: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 96, (3, 2, 12), generator=generator)
    batches = [{"input_ids": t, "labels": t} for t in tokens]
    found: LearnedWeights = learn(models, batches, per=per, affine=affine, steps=4, lr=0.2, seed=seed)
    rows = list(found.weights.values()) if isinstance(found.weights, dict) else [found.weights]
    for row in rows:
        assert sum(row) == pytest.approx(1.0, abs=1e-9)
        assert affine or min(row) >= 0.0
    assert found.loss <= min(found.loss_uniform, *found.loss_children)


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(["GPT-2", "GPT-NeoX", "Phi-3", "Qwen3", "BERT, masked LM", "BART"]), st.integers(0, 1000))
def test_permuting_preserves_the_function_and_aligning_undoes_it(name: str, seed: int) -> None:
    model, permuted = pico(name, seed), pico(name, seed)
    config = model.config.to_dict() | {"architectures": [type(model).__name__]}
    allowed, own = symmetries(model, anatomy(config)), parameters(model)
    generator = torch.Generator().manual_seed(seed)
    drawn = {g: index for kind in KINDS for g, index in allowed.random(kind, generator).items()}
    moved = allowed.apply(own, drawn)
    permuted.load_state_dict(moved, strict=False)
    torch.testing.assert_close(output(permuted, inputs(model)), output(model), rtol=1e-4, atol=1e-5)
    assert distance(own, moved) > 0.1
    assert distance(own, allowed.apply(moved, match_weights(own, moved, allowed, seed=seed))) == 0.0
