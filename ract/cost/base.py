"""What every shape can say of its cost; the formulas that do not depend on the architecture.

Counting follows the usual convention (PaLM, 2204.02311, appendix B): a multiply-add is 2 FLOPs, the backward pass costs
twice the forward pass, the embedding look-up is free and the head is a matrix like any other. Causal attention is
counted at the average context, half the window. The orthogonalisation of Muon is counted too.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

BYTES_PER_PARAMETER = {"fp32": 4.0, "bf16": 2.0, "int8": 1.0, "int4": 0.5}

# What a process holds before any model: interpreter, torch, transformers (measured, with some room).
PROCESS_BYTES = 450_000_000
# What the allocator holds for every byte of activations in use: holes between tensors, and what waits for the next step
# (measured: 1.4 to 2, more for models that need little in all).
_ALLOCATOR = 1.7
# What oneDNN keeps for batches of every new length: a thousand prepared products (measured: 0.5 to 0.7 GB).
MANY_LENGTHS_BYTES = 600_000_000
_NEWTON_SCHULZ_STEPS = 5

Matrices = Sequence[tuple[int, int, int]]


@dataclass(frozen=True)
class Costs:
    """A model's dimensions, from which everything it costs is counted. *members* > 1 is an ensemble of equal models."""

    @property
    def parameters(self) -> int:
        """Parameters of the whole model, tied ones counted once."""
        raise NotImplementedError

    @property
    def all_matrices(self) -> Matrices:
        """The weight matrices of all blocks of all members as (how many, rows, columns)."""
        raise NotImplementedError

    def forward_flops_per_token(self, block_size: int) -> float:
        """FLOPs of the forward pass for one token of a text of *block_size* tokens (all experts and members run)."""
        raise NotImplementedError

    def activation_bytes(self, tokens: int) -> float:
        """Bytes of activations and logits that a training pass over *tokens* tokens keeps."""
        raise NotImplementedError

    @property
    def table_parameters(self) -> int:
        """Parameters of one member's embedding, which AdamW trains even beside Muon."""
        raise NotImplementedError

    def train_flops_per_token(self, block_size: int, batch_tokens: int, optimizer: str) -> float:
        """FLOPs of a training step, per token: forward, backward, and the optimizer's own matrix products."""
        return 3 * self.forward_flops_per_token(block_size) + self.optimizer_flops_per_step(optimizer) / batch_tokens

    def optimizer_flops_per_step(self, optimizer: str) -> float:
        """Muon's Newton-Schulz iteration on every matrix of every block; AdamW's element-wise work is not counted."""
        if optimizer != "muon":
            return 0.0
        total = 0.0
        for count, rows, columns in self.all_matrices:
            small, large = sorted((rows, columns))
            total += count * _NEWTON_SCHULZ_STEPS * (4.0 * small * small * large + 2.0 * small**3)
        return total

    def size_bytes(self, precision: str) -> float:
        """Bytes of the weights at ``fp32``, ``bf16``, ``int8`` or ``int4`` (scales not counted)."""
        return self.parameters * BYTES_PER_PARAMETER[precision]

    def training_memory_bytes(self, micro_batch_tokens: int, block_size: int, *, ema: bool, optimizer: str) -> float:
        """Peak bytes of one training process: weights, gradients, optimizer, activations and logits of a pass."""
        states = 4.0 * self.parameters if optimizer == "muon" else 8.0 * self.parameters
        states += 4.0 * self.table_parameters if optimizer == "muon" else 0.0
        weights = self.parameters * (4 + 4 + 2 + (4 if ema else 0)) + states
        return PROCESS_BYTES + weights + _ALLOCATOR * self.activation_bytes(micro_batch_tokens)

    def as_dict(self) -> dict[str, Any]:
        """The fields, for hashing and records."""
        return asdict(self)


def machine_memory_bytes() -> int | None:
    """Physical memory of this machine, or None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
