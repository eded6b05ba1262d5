"""Losses: torch's own numbers, however the logits are cut."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ract.train.losses import _PIECE, distillation_loss, summed_cross_entropy, teachers_mixture


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
    for name in ("exact", "torch", "ours"):
        given = logits.to(torch.float32 if name == "exact" else torch.bfloat16).requires_grad_()
        if name == "ours":
            value = summed_cross_entropy(given, right, smoothing)
        else:
            value = F.cross_entropy(given.float(), right, reduction="sum", label_smoothing=smoothing)
        found[name] = torch.autograd.grad(value / 7, [given])[0].float()
    wrong = {name: (found[name] - found["exact"]).norm() / found["exact"].norm() for name in ("torch", "ours")}
    assert wrong["ours"] < 1.1 * wrong["torch"] < 0.01


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(("targets", "classes"), [(5, 2), (300, 4000)])
def test_what_teachers_teach_and_its_gradients_are_torchs(targets: int, classes: int, temperature: float) -> None:
    torch.manual_seed(0)
    teachers = [3 * torch.randn(targets, classes) for _ in range(2)]
    mixture = teachers_mixture(teachers, [0.3, 0.7], temperature)
    exact = 0.3 * F.softmax(teachers[0] / temperature, -1) + 0.7 * F.softmax(teachers[1] / temperature, -1)
    torch.testing.assert_close(mixture, exact)
    exact[0] = 0.0
    exact[0, 1] = 0.9  # a class is certain, and a rounded distribution no longer sums to 1
    for kind, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 5e-3)):
        logits = (3 * torch.randn(targets, classes)).to(kind).requires_grad_()
        before = logits.detach().clone()
        ours = distillation_loss(logits, exact, temperature)
        assert torch.equal(logits.detach(), before)
        said = F.log_softmax(logits.float() / temperature, dim=-1)
        right = temperature**2 * F.kl_div(said, exact, reduction="batchmean")
        torch.testing.assert_close(ours, right, rtol=1e-5, atol=1e-6)
        with torch.no_grad():
            torch.testing.assert_close(distillation_loss(logits, exact, temperature), right)
        (slopes,), (found,) = torch.autograd.grad(right / 7, [logits]), torch.autograd.grad(ours / 7, [logits])
        assert (found - slopes).norm() <= tolerance * slopes.norm()
