"""Losses: torch's own numbers, however the logits are cut."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ract.train.losses import _PIECE, summed_cross_entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(("targets", "classes"), [(5, 2), (300, 4000), (0, 7), (3, _PIECE + 1)])
def test_the_cross_entropy_and_its_gradients_are_torchs(targets: int, classes: int, smoothing: float) -> None:
    torch.manual_seed(0)
    logits = (3 * torch.randn(targets, classes)).requires_grad_()
    right = torch.randint(classes, (targets,))
    exact = F.cross_entropy(logits, right, reduction="sum", label_smoothing=smoothing)
    (slopes,) = torch.autograd.grad(exact / 7, [logits])
    ours = summed_cross_entropy(logits, right, smoothing)
    torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-5)
    assert (torch.autograd.grad(ours / 7, [logits])[0] - slopes).norm() <= 2e-4 * slopes.norm()
    with torch.no_grad():
        assert summed_cross_entropy(logits, right, smoothing) == exact


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_in_bf16_its_gradients_are_rounded_no_more_than_torchs(smoothing: float) -> None:
    torch.manual_seed(0)
    logits, right = torch.randn(300, 4000), torch.randint(4000, (300,))
    found = {}
    for name, loss in {"torch": F.cross_entropy, "ours": None, "exact": F.cross_entropy}.items():
        given = logits.to(torch.float32 if name == "exact" else torch.bfloat16).requires_grad_()
        if loss is None:
            value = summed_cross_entropy(given, right, smoothing)
        else:
            value = loss(given.float(), right, reduction="sum", label_smoothing=smoothing)
        found[name] = torch.autograd.grad(value / 7, [given])[0].float()
    wrong = {name: (found[name] - found["exact"]).norm() / found["exact"].norm() for name in ("torch", "ours")}
    assert wrong["ours"] < 1.1 * wrong["torch"] < 0.01
