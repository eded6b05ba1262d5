"""Dropout for decoders whose architecture has none, such as Qwen3's: a matter of training, not of the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.nn import functional as F

_BRANCHES = ("self_attn", "mlp")


@contextmanager
def residual_dropout(model: nn.Module, share: float) -> Iterator[None]:
    """While it lasts, drop *share* of the embedding's output and of what each attention and feed-forward adds.

    That is where GPT-2 drops (Srivastava et al., 2014; Radford et al., 2019). Only modules in training mode drop; the
    model's weights, its config and what ``save_pretrained`` writes are the same with and without.
    """

    def drop(module: nn.Module, _: Any, output: Any) -> Any:
        if not module.training:
            return output
        if isinstance(output, tuple):  # an attention gives its weights too
            return (F.dropout(output[0], share), *output[1:])
        return F.dropout(output, share)

    with ExitStack() as stack:
        if share > 0:
            for name, module in model.named_modules():
                if isinstance(module, nn.Embedding) or name.rpartition(".")[2] in _BRANCHES:
                    stack.callback(module.register_forward_hook(drop).remove)
        yield


def draws_at_random(model: nn.Module) -> bool:
    """Whether training *model* draws random numbers: some dropout is on, as a module or a number that blocks hold."""
    shares = (
        getattr(module, "p" if isinstance(module, nn.Dropout) else key, 0.0)
        for module in model.modules()
        for key in ("dropout", "attention_dropout", "activation_dropout")
    )
    return any(isinstance(share, (int, float)) and share > 0 for share in shares)
