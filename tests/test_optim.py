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


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_every_parameter_is_in_exactly_one_optimizer(optimizer: str) -> None:
    model = new_compact_transformer(derive_shape(64, 32, 2), seed=0)
    found = build_optimizers(model, replace(default_train_spec(tokens=4096), optimizer=optimizer))
    held = [id(p) for o in found for group in o.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    kinds = {type(o): [p for g in o.param_groups for p in g["params"]] for o in found}
    if optimizer == "muon":
        embedding = model.get_input_embeddings().weight
        assert all(p.ndim == 2 and p is not embedding for p in kinds[torch.optim.Muon])
    undecayed = [p for o in found for g in o.param_groups if g["weight_decay"] == 0 for p in g["params"]]
    assert all(p.ndim < 2 for p in undecayed)


def test_precision_follows_the_processor_unless_it_is_asked_for() -> None:
    cpu = torch.device("cpu")
    assert autocast_dtype("fp32", cpu) is None
    assert autocast_dtype("bf16", cpu) is torch.bfloat16
    assert (autocast_dtype("auto", cpu) is torch.bfloat16) == has_native_bf16(cpu)
