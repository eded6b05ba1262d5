"""Batches of examples: every example once an epoch, shards apart, little padding, collated as the model reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ract.data.example_batches import IGNORED, ExampleOrder, collate, heldout_batches, micro_batches
from ract.data.examples import Examples
from ract.errors import BadInput
from tests import examples


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    return examples.classification(tmp_path_factory.mktemp("reviews"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    return examples.translation(tmp_path_factory.mktemp("pairs"))


@pytest.mark.parametrize("batch_tokens", [1, 64, 500, 10**6])
@pytest.mark.parametrize("shards", [1, 3])
def test_an_epoch_of_all_shards_is_every_example_once(reviews: Examples, batch_tokens: int, shards: int) -> None:
    for epoch in (0, 2):
        seen: list[int] = []
        for index in range(shards):
            order = ExampleOrder(reviews, batch_tokens=batch_tokens, seed=3, shard=(index, shards))
            first = epoch * order.batches
            batches = [order.batch(first + i) for i in range(order.batches)]
            assert all(len(batch) for batch in batches)
            seen += np.concatenate(batches).tolist()
        assert sorted(seen) == list(range(reviews.count("train")))


def test_the_order_follows_from_seed_and_step_alone(reviews: Examples) -> None:
    def of(seed: int, step: int) -> list[int]:
        return ExampleOrder(reviews, batch_tokens=100, seed=seed).batch(step).tolist()

    assert of(0, 5) == of(0, 5) != of(1, 5)
    batches = ExampleOrder(reviews, batch_tokens=100, seed=0).batches
    assert of(0, 5) != of(0, 5 + batches)  # another epoch, another order


def test_texts_of_like_length_share_a_batch(reviews: Examples) -> None:
    order = ExampleOrder(reviews, batch_tokens=128, seed=0)
    lengths = reviews.lengths("train")
    padded = sum(len(b) * lengths[b].max() for b in map(order.batch, range(order.batches)))
    assert padded < 1.2 * lengths.sum()
    at_random = np.array_split(np.random.default_rng(0).permutation(len(lengths)), order.batches)
    assert padded < 0.9 * sum(len(b) * lengths[b].max() for b in at_random)


def test_micro_batches_hold_at_most_so_many_padded_tokens(pairs: Examples) -> None:
    chosen = np.arange(40)
    pieces = micro_batches(pairs, "train", chosen, 200)
    assert sorted(np.concatenate(pieces).tolist()) == chosen.tolist()
    for piece in pieces:
        batch = collate(pairs, "train", piece)
        assert batch["input_ids"].numel() + batch["labels"].numel() <= 200 or len(piece) == 1


def test_collation_pads_what_the_model_ignores(pairs: Examples, reviews: Examples) -> None:
    batch = collate(pairs, "train", [0, 1, 2])
    for row, number in enumerate([0, 1, 2]):
        source, target = pairs.tokens["train"][number], pairs.targets["train"][number]
        assert batch["attention_mask"][row].sum() == len(source)
        assert batch["input_ids"][row, : len(source)].tolist() == source.tolist()
        assert (batch["input_ids"][row, len(source) :] == pairs.pad_token_id).all()
        assert batch["labels"][row][batch["labels"][row] != IGNORED].tolist() == target.tolist()
    labels = collate(reviews, "train", [3, 1])["labels"]
    assert torch.equal(labels, torch.tensor(reviews.label_ids["train"][[3, 1]]))


def test_the_parts_of_held_out_data_share_nothing(reviews: Examples) -> None:
    def texts(part: int) -> set[tuple[int, ...]]:
        batches = heldout_batches(reviews, "valid", part=(part, 2), batch_tokens=64)
        return {tuple(row.tolist()) for b in batches for row in b["input_ids"]}

    one, two = (heldout_batches(reviews, "valid", part=(i, 2), batch_tokens=64) for i in (0, 1))
    assert sum(len(b["labels"]) for b in one + two) == reviews.count("valid")
    assert not texts(0) & texts(1)
    few = heldout_batches(reviews, "valid", limit_tokens=30, batch_tokens=64)
    assert 30 <= sum(int(b["attention_mask"].sum()) for b in few) < 30 + 32


def test_too_few_examples_are_refused(tmp_path: Path) -> None:
    data = examples.classification(tmp_path, count=40)
    with pytest.raises(BadInput, match="too few for 1000 shards"):
        ExampleOrder(data, batch_tokens=64, seed=0, shard=(999, 1000))
