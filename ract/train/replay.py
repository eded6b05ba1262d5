"""Forward and backward pass of a small model as one CUDA graph: launched one by one, kernels wait for the processor."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel

from ract.data.example_batches import Batch
from ract.model.live import ENSEMBLE

_WARM_UP = 3
_FIXED = ("qwen3", "llama", ENSEMBLE)
# On a batch: what is minimised, and the cross-entropy alone; both sums, as tensors.
Pass = Callable[[Batch], tuple[torch.Tensor, torch.Tensor]]


def can_be_replayed(*models: nn.Module) -> bool:
    """Whether nothing that *models* do depends on the values they are given, as the routing of experts does."""
    return all(
        module.config.model_type in _FIXED
        for model in models
        for module in model.modules()
        if isinstance(module, PreTrainedModel)
    )


class ReplayedPass:
    """*passed* with its backward pass, captured for batches shaped as *batch* and replayed for others.

    Each call leaves the gradients of ``weight × objective`` in *model*'s parameters, in place of what was there, and
    returns the cross-entropy. Random numbers are drawn anew in each (CUDA graphs, PyTorch's notes on CUDA semantics).
    """

    def __init__(self, model: nn.Module, passed: Pass, batch: Batch, weight: float) -> None:
        self.batch = {key: value.clone() for key, value in batch.items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                (passed(self.batch)[0] * weight).backward()
        torch.cuda.current_stream().wait_stream(stream)
        model.zero_grad(set_to_none=True)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            objective, self.loss = passed(self.batch)
            (objective * weight).backward()
        self.gradients = [(p, p.grad) for p in model.parameters() if p.grad is not None]

    def __call__(self, batch: Batch) -> torch.Tensor:
        """The cross-entropy of *batch*, summed over its targets."""
        for key, value in self.batch.items():
            value.copy_(batch[key])
        self.graph.replay()
        for parameter, gradient in self.gradients:
            parameter.grad = gradient
        return self.loss
