"""Dropout in training decoders: where it acts, and that nothing of it is left behind."""

from __future__ import annotations

import copy

import pytest
import torch

from ract.cost import derive_shape
from ract.errors import BadInput
from ract.model.compact import new_compact_transformer
from ract.plan.defaults import default_train_spec
from ract.plan.schema import parse_plan
from ract.train.dropout import residual_dropout

SHAPE = derive_shape(64, 32, 2)
INPUTS = torch.arange(24).reshape(2, 12)


def test_only_training_is_disturbed_and_only_while_it_lasts() -> None:
    model = new_compact_transformer(SHAPE, seed=0)
    plain = model(input_ids=INPUTS).logits
    with residual_dropout(model, 0.5):
        assert torch.equal(model.eval()(input_ids=INPUTS).logits, plain)
        model.train()
        assert not torch.equal(model(input_ids=INPUTS).logits, model(input_ids=INPUTS).logits)
        copied = copy.deepcopy(model).eval()
    assert torch.equal(model(input_ids=INPUTS).logits, plain)
    assert torch.equal(copied(input_ids=INPUTS).logits, plain)


def test_everything_dropped_leaves_the_stream_empty() -> None:
    model = new_compact_transformer(SHAPE, seed=0).train()
    with residual_dropout(model, 1.0):
        hidden = model.model(input_ids=INPUTS).last_hidden_state
    assert torch.count_nonzero(hidden) == 0


def test_a_run_without_it_keeps_its_name() -> None:
    assert "dropout" not in default_train_spec(tokens=4096).content()


def test_encoders_have_their_own_dropout() -> None:
    plan = {
        "name": "x",
        "data": {"task": "classification", "train": ["a.jsonl"]},
        "compact": {"hidden_size": 32, "train": {"epochs": 1, "dropout": 0.1}},
    }
    with pytest.raises(BadInput, match=r"compact\.train\.dropout is for decoders"):
        parse_plan(plan)
