"""Muon for accelerators, which small matrices taken one by one leave idle, and for the smallest on any machine."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch


class BatchedMuon(torch.optim.Muon):
    """``torch.optim.Muon`` that orthogonalises all matrices of one shape together; its state has the same names.

    Equal to it up to the rounding of bf16 products. Of its settings those that ReAct uses: Nesterov momentum and the
    learning rate that matches AdamW's RMS (Moonlight, 2502.16982).
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of every matrix that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            shapes: dict[torch.Size, list[torch.Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in shapes.items():
                self._step(group, shape, parameters)

    def _step(self, group: dict[str, Any], shape: torch.Size, parameters: list[torch.Tensor]) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        momenta = [self._momentum(p) for p in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        ahead = torch.stack(list(torch._foreach_lerp(gradients, momenta, group["momentum"])))
        steps = orthogonalised(ahead, group["ns_coefficients"], group["ns_steps"], group["eps"]).to(parameters[0].dtype)
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, list(steps.unbind()), alpha=-group["lr"] * 0.2 * math.sqrt(max(shape)))

    def _momentum(self, parameter: torch.Tensor) -> torch.Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]


def orthogonalised(
    matrices: torch.Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> torch.Tensor:
    """The nearest semi-orthogonal matrix to each of *matrices*, roughly: quintic Newton-Schulz in bf16 (Jordan, 2024).

    Shapes: (count, rows, columns), in and out; as ``torch.optim.Muon`` does it with each.
    """
    a, b, c = coefficients
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.bfloat16()
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
