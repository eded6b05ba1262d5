"""Costs are counted from shapes; the counts agree with the live model."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ract.cost import Shape, derive_shape, shape_for_parameters
from ract.model.compact import new_compact_transformer, shape_of
from ract.plan.quantities import parse_count, parse_size, show_count, show_size, show_time


@settings(max_examples=8, deadline=None)
@given(hidden=st.sampled_from([32, 64, 96]), layers=st.integers(1, 3), vocab=st.sampled_from([300, 512]))
def test_parameters_are_those_of_the_live_model(hidden: int, layers: int, vocab: int) -> None:
    shape = derive_shape(vocab, hidden, layers)
    model = new_compact_transformer(shape, seed=0)
    assert sum(p.numel() for p in model.parameters()) == shape.parameters
    assert shape_of(model) == shape


def test_forward_flops_are_those_that_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    shape, block = derive_shape(512, 64, 2), 64
    model = new_compact_transformer(shape, seed=0)
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros(1, block, dtype=torch.long), use_cache=False)
    matrices = shape.forward_flops_per_token(0) * block
    attention = 2 * (shape.forward_flops_per_token(block) * block - matrices)  # torch counts the masked half too
    # The rotary table is a product of 16 × 1 × block that is not worth counting.
    assert counter.get_total_flops() == pytest.approx(matrices + attention, rel=1e-3)


def test_growth_multiplies_what_it_says() -> None:
    shape = derive_shape(512, 64, 2)
    table = shape.vocab_size * shape.hidden_size + shape.hidden_size
    assert shape.stacked(3).parameters - table == 3 * (shape.parameters - table)
    assert shape.ensembled(4).parameters == 4 * shape.parameters
    feed_forward = 3 * shape.hidden_size * shape.intermediate_size * shape.num_hidden_layers
    router = 2 * shape.hidden_size * shape.num_hidden_layers
    assert shape.upcycled(2).parameters == shape.parameters + feed_forward + router


def test_muon_costs_more_and_adamw_nothing() -> None:
    shape = derive_shape(512, 64, 2)
    plain = shape.train_flops_per_token(64, 4096, "adamw")
    assert plain == 3 * shape.forward_flops_per_token(64)
    assert shape.train_flops_per_token(64, 4096, "muon") > plain


def test_the_smallest_model_is_named_when_a_budget_is_below_it() -> None:
    with pytest.raises(ValueError, match="the smallest model has"):
        shape_for_parameters(4096, 1000)


def test_quantities_read_and_write() -> None:
    assert [parse_count(v) for v in (5, "2M", "0.5M", "1_000", "40T", 2.0)] == [
        5,
        2_000_000,
        500_000,
        1000,
        40 * 10**12,
        2,
    ]
    assert [parse_size(v) for v in ("20MB", "20 MiB", 7)] == [20_000_000, 20 * 2**20, 7]
    for wrong in ("", "M", "1X", "-1", 1.5, True, None):
        with pytest.raises(ValueError, match="must be"):
            parse_count(wrong)
    assert (show_count(1_234_567), show_size(14_200_000), show_time(200), show_time(7500)) == (
        "1.23M", "14.2 MB", "3 min 20 s", "2 h 05 min",
    )  # fmt: skip


def test_memory_grows_with_the_model_and_the_batch() -> None:
    small, large = derive_shape(512, 64, 2), derive_shape(512, 64, 8)

    def need(shape: Shape, tokens: int) -> float:
        return shape.training_memory_bytes(tokens, 64, ema=True, optimizer="muon")

    assert need(small, 1024) < need(large, 1024) < need(large, 4096)
