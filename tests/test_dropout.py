"""Dropout in training decoders: where it acts, and that nothing of it is left behind."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification

from ract.cost import derive_shape
from ract.errors import BadInput
from ract.model.compact import new_compact_transformer
from ract.plan.defaults import default_train_spec
from ract.plan.schema import parse_plan
from ract.train.dropout import DrawnDropout, residual_dropout

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.85, 0.999])
def test_what_is_drawn_drops_the_share_and_scales_the_rest(dtype: torch.dtype, share: float) -> None:
    x = torch.ones(101, 1003, dtype=dtype, requires_grad=True)
    with DrawnDropout(1):
        y = F.dropout(x, share)
    kept = y != 0
    count, spread = x.numel(), (x.numel() * share * (1 - share)) ** 0.5
    assert abs(int((~kept).sum()) - count * share) < 4 * spread + count / 65536
    assert torch.equal(y[kept], torch.tensor(1 / (1 - share), dtype=dtype).expand(int(kept.sum())))
    y.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, y)


def test_what_is_drawn_follows_from_the_seed() -> None:
    def drawn(seed: int) -> list[torch.Tensor]:
        with DrawnDropout(seed):
            return [F.dropout(torch.ones(999), 0.3), torch.nn.Dropout(0.3)(torch.ones(999))]

    first, second = drawn(5)
    assert not torch.equal(first, second)
    assert all(map(torch.equal, drawn(5), [first, second]))
    assert not torch.equal(drawn(6)[0], first)


def test_where_nothing_is_to_be_drawn_it_is_as_torch_has_it() -> None:
    x = torch.ones(64)
    with DrawnDropout(0):
        assert torch.equal(F.dropout(x, 0.5, training=False), x)
        assert torch.equal(F.dropout(x, 0.0), x)
        assert torch.count_nonzero(F.dropout(x, 1.0)) == 0
        assert F.dropout(torch.ones(0), 0.5).shape == (0,)
        y = torch.ones(64)
        assert F.dropout(y, 0.5, inplace=True) is y and 0 < torch.count_nonzero(y) < 64


def test_an_encoder_draws_nothing_from_torch() -> None:
    config = BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    model = BertForSequenceClassification._from_config(config, attn_implementation="eager").train()
    before = torch.get_rng_state()
    with DrawnDropout(0):
        first, second = (model(input_ids=INPUTS).logits for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)
    model(input_ids=INPUTS)
    assert not torch.equal(torch.get_rng_state(), before)
