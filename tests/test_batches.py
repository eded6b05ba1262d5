"""Batches are pure functions; epochs, shards and evaluation windows partition the stream."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ract.data.batches import evaluation_batches, permute, training_batch, window_count
from ract.errors import BadInput

SIZES = {"windows": st.integers(1, 60), "block_size": st.integers(1, 9), "rest": st.integers(0, 8)}
SEEDS = st.integers(0, 2**70)


def stream(windows: int, block_size: int, rest: int = 0) -> np.ndarray:
    """Tokens that are their own places, so that a window says where it is from."""
    return np.arange(windows * block_size + 1 + min(rest, block_size - 1), dtype=np.uint32)


def windows_of(batch: np.ndarray, block_size: int) -> list[int]:
    assert (np.diff(batch) == 1).all()
    assert (batch[:, 0] % block_size == 0).all()
    return (batch[:, 0] // block_size).tolist()


@given(count=st.integers(1, 300), key=st.tuples(SEEDS, st.integers(-5, 5)))
def test_permute_permutes(count: int, key: tuple[int, ...]) -> None:
    assert sorted(permute(np.arange(count), count, key=key)) == list(range(count))


def test_permutations_are_the_same_on_every_machine_and_look_random() -> None:
    assert permute(np.arange(12), 12, key=(0, 0)).tolist() == [4, 5, 11, 9, 0, 1, 8, 3, 7, 10, 6, 2]
    first = np.array([permute(np.arange(1), 1000, key=(seed,))[0] for seed in range(2000)])
    assert abs(first.mean() - 499.5) < 4 * 1000 / np.sqrt(12 * 2000)
    order = permute(np.arange(1000), 1000, key=(3,))
    assert abs(np.corrcoef(np.arange(1000), order)[0, 1]) < 0.12


@given(**SIZES, seed=SEEDS, batch_size=st.integers(1, 7), step=st.integers(0, 10**6), shards=st.integers(1, 4))
def test_a_batch_follows_from_its_arguments_alone(
    windows: int, block_size: int, rest: int, seed: int, batch_size: int, step: int, shards: int
) -> None:
    assume(shards <= windows)
    tokens = stream(windows, block_size, rest)
    options = {"batch_size": batch_size, "block_size": block_size, "seed": seed, "shard": (shards - 1, shards)}
    batch = training_batch(tokens, step=step, **options)
    assert batch.shape == (batch_size, block_size + 1)
    assert batch.dtype == np.int64
    np.random.default_rng().random()
    np.testing.assert_array_equal(training_batch(tokens.copy(), step=step, **options), batch)


@given(**SIZES, seed=SEEDS, shards=st.integers(1, 5))
def test_each_epoch_visits_each_window_once_and_shards_partition_them(
    windows: int, block_size: int, rest: int, seed: int, shards: int
) -> None:
    assume(shards <= windows)
    tokens = stream(windows, block_size, rest)
    by_shard: list[list[int]] = []
    for shard in ((i, shards) for i in range(shards)):
        count = window_count(tokens, block_size, shard)
        epochs = [
            windows_of(
                training_batch(tokens, step=step, batch_size=count, block_size=block_size, seed=seed, shard=shard),
                block_size,
            )
            for step in range(3)
        ]
        assert len(set(epochs[0])) == count
        assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
        by_shard.append(epochs[0])
    assert sorted(window for shard in by_shard for window in shard) == list(range(windows))


@given(**SIZES, seed=SEEDS, batch_size=st.integers(1, 7))
def test_the_batch_size_does_not_change_the_order(
    windows: int, block_size: int, rest: int, seed: int, batch_size: int
) -> None:
    tokens = stream(windows, block_size, rest)
    options = {"block_size": block_size, "seed": seed}
    small = [training_batch(tokens, step=step, batch_size=1, **options) for step in range(2 * batch_size)]
    large = [training_batch(tokens, step=step, batch_size=batch_size, **options) for step in range(2)]
    np.testing.assert_array_equal(np.concatenate(small), np.concatenate(large))


def test_epochs_and_seeds_shuffle_anew() -> None:
    tokens = stream(200, 4)
    options = {"batch_size": 200, "block_size": 4}
    first, again = (training_batch(tokens, step=step, seed=0, **options) for step in (0, 1))
    other = training_batch(tokens, step=0, seed=1, **options)
    assert windows_of(first, 4) != windows_of(again, 4)
    assert windows_of(first, 4) != windows_of(other, 4)


def test_branches_go_on_with_windows_that_their_ancestor_has_not_read() -> None:
    tokens = stream(120, 4)
    options = {"batch_size": 4, "block_size": 4, "seed": 5}
    ancestor = [w for step in range(15) for w in windows_of(training_batch(tokens, step=step, **options), 4)]
    branches = [
        w
        for shard in ((0, 3), (1, 3), (2, 3))
        for step in range(5, 10)
        for w in windows_of(training_batch(tokens, step=step, shard=shard, **options), 4)
    ]
    assert sorted(ancestor + branches) == list(range(120))


@given(**SIZES, batch_size=st.integers(1, 7), limit=st.none() | st.integers(0, 400))
def test_evaluation_predicts_every_token_but_the_first_once(
    windows: int, block_size: int, rest: int, batch_size: int, limit: int | None
) -> None:
    tokens = stream(windows, block_size, rest)
    batches = list(evaluation_batches(tokens, block_size, batch_size, limit))
    targets = np.concatenate([np.empty(0, dtype=int), *(batch[:, 1:].ravel() for batch in batches)])
    np.testing.assert_array_equal(targets, tokens[1:][:limit])
    assert all(batch.shape[0] <= batch_size and batch.shape[1] <= block_size + 1 for batch in batches)
    assert all((np.diff(batch) == 1).all() for batch in batches)


def test_a_stream_without_a_whole_block_is_refused() -> None:
    with pytest.raises(BadInput, match=r"8 tokens are too few: 2 shard.s. of a block of 4 need 9") as caught:
        training_batch(np.arange(8), step=0, batch_size=1, block_size=4, seed=0, shard=(1, 2))
    assert caught.value.exit_code == 2
    with pytest.raises(ValueError, match="shard 2 of 2"):
        window_count(np.arange(8), 4, (2, 2))
    assert list(evaluation_batches(np.arange(1), 4, 2)) == []
