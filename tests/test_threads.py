"""Threads that share a batch: the gradients of the whole, the same every time, and not where numbers are drawn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from ract.data.examples import Examples
from ract.train.threads import parts_of
from tests import test_node, test_objectives
from tests.test_node import tokens  # noqa: F401
from tests.test_objectives import data  # noqa: F401

THREADS = 2


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


def gradients(m: torch.nn.Module) -> dict[str, torch.Tensor | None]:
    found = {name: None if p.grad is None else p.grad.clone() for name, p in m.named_parameters()}
    m.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("kind", ["next-token", "masked", "classification", "translation"])
def test_parts_of_a_batch_make_the_gradients_of_the_whole(
    data: dict[str, Examples],  # noqa: F811
    tokens: np.ndarray,  # noqa: F811
    kind: str,
) -> None:
    changes = {"precision": "fp32", "micro_batch_tokens": 256}
    if kind == "next-token":
        m = test_node.model()
        run = test_node.training(m, test_node.spec(**changes), tokens)
    else:
        m = test_objectives.model(kind, data[kind], dropout=0.0)
        settings = test_objectives.spec(kind, **changes)
        run = test_objectives.training(kind, data[kind], m, settings=settings)
    assert run._threaded is not None and run._threaded.parts == THREADS
    m.train()
    whole = run._gradients(3), gradients(m)
    parts = run._threaded(run.objective, 3), gradients(m)
    assert parts[0] == pytest.approx(whole[0], rel=1e-5)
    for name, gradient in whole[1].items():
        if gradient is None:
            assert parts[1][name] is None
        else:
            torch.testing.assert_close(parts[1][name], gradient, rtol=1e-3, atol=1e-6)


def test_a_killed_run_ends_in_the_weights_of_an_undisturbed_one(tmp_path: Path, tokens: np.ndarray) -> None:  # noqa: F811
    assert test_node.training(test_node.model(), test_node.spec(), tokens)._threaded is not None
    test_node.test_a_killed_run_ends_in_the_weights_of_an_undisturbed_one(tmp_path, tokens, {})


def test_what_draws_random_numbers_shares_operators_instead(
    data: dict[str, Examples],  # noqa: F811
    tokens: np.ndarray,  # noqa: F811
) -> None:
    assert test_node.training(test_node.model(), test_node.spec(dropout=0.1), tokens)._threaded is None
    m = test_objectives.model("classification", data["classification"], dropout=0.1)
    settings = test_objectives.spec("classification")
    assert test_objectives.training("classification", data["classification"], m, settings=settings)._threaded is None


def test_windows_and_what_is_read_in_passes_are_not_cut() -> None:
    assert parts_of(test_node.spec(micro_batch_tokens=128)) == 1
    torch.set_num_threads(6)
    assert parts_of(test_node.spec()) == 2  # of eight windows
    assert parts_of(test_objectives.spec("classification")) == 6
    torch.set_num_threads(1)
    assert parts_of(test_node.spec()) == 1
