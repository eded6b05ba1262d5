"""The schedule's shape, and which parameter goes to which optimizer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ract.cost import derive_shape
from ract.model.compact import new_compact_transformer
from ract.plan.defaults import default_train_spec
from ract.train.device import autocast_dtype, has_native_bf16
from ract.train.muon import BatchedMuon
from ract.train.optim import build_optimizers, wsd_multiplier


@given(steps=st.integers(1, 500), warmup=st.floats(0, 1), decay=st.floats(0, 1))
def test_the_schedule_is_never_zero_nor_above_its_peak(steps: int, warmup: float, decay: float) -> None:
    values = [wsd_multiplier(s, steps, warmup, decay) for s in range(steps)]
    assert all(0 < v <= 1 for v in values)


def test_the_schedule_warms_up_holds_and_decays() -> None:
    values = [wsd_multiplier(s, 100, 0.1, 0.4) for s in range(100)]
    assert values[0] == pytest.approx(0.1) and values[9:60] == [1.0] * 51
    assert values[-1] == pytest.approx(1 / 40) and values[60:] == sorted(values[60:], reverse=True)


def test_a_stage_without_decay_ends_at_the_full_rate() -> None:
    assert wsd_multiplier(99, 100, 0.1, 0.0) == 1.0


def test_only_small_matrices_are_orthogonalised_together_on_a_cpu() -> None:
    for width, kind in ((32, BatchedMuon), (256, torch.optim.Muon)):
        model = new_compact_transformer(derive_shape(64, width, 1), seed=0)
        assert type(build_optimizers(model, default_train_spec(tokens=4096))[0]) is kind


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_every_parameter_is_in_exactly_one_optimizer(optimizer: str) -> None:
    model = new_compact_transformer(derive_shape(64, 32, 2), seed=0)
    found = build_optimizers(model, replace(default_train_spec(tokens=4096), optimizer=optimizer))
    held = [id(p) for o in found for group in o.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    kinds = {type(o): [p for g in o.param_groups for p in g["params"]] for o in found}
    if optimizer == "muon":
        embedding = model.get_input_embeddings().weight
        assert all(p.ndim == 2 and p is not embedding for p in kinds[BatchedMuon])
    undecayed = [p for o in found for g in o.param_groups if g["weight_decay"] == 0 for p in g["params"]]
    assert all(p.ndim < 2 for p in undecayed)


def test_precision_follows_the_processor_unless_it_is_asked_for() -> None:
    cpu = torch.device("cpu")
    assert autocast_dtype("fp32", cpu) is None
    assert autocast_dtype("bf16", cpu) is torch.bfloat16
    assert (autocast_dtype("auto", cpu) is torch.bfloat16) == has_native_bf16(cpu)


def test_matrices_of_a_shape_together_take_the_steps_of_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(16, 16), (48, 16), (16, 48), (16, 16), (48, 16), (16, 16)]
    starts = [torch.randn(shape, generator=generator) for shape in shapes]
    ends = []
    for kind in (torch.optim.Muon, BatchedMuon):
        matrices = [start.clone().requires_grad_() for start in starts]
        optimizer = kind(matrices, lr=0.1, weight_decay=0.3, adjust_lr_fn="match_rms_adamw")
        drawn = torch.Generator().manual_seed(1)
        for step in range(5):
            for number, matrix in enumerate(matrices):
                matrix.grad = torch.randn(matrix.shape, generator=drawn) if number or step % 2 else None
            optimizer.step()
        ends.append((matrices, [optimizer.state[m]["momentum_buffer"] for m in matrices]))
    (one_by_one, momenta), (together, other_momenta) = ends
    for start, a, b in zip(starts, one_by_one, together, strict=True):
        assert (a - start).norm() > 0.5
        torch.testing.assert_close(a, b, rtol=0, atol=2e-3)
    torch.testing.assert_close(momenta, other_momenta)
