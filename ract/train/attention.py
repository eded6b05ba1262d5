"""Attention as plain matrix products in bf16: on a CPU what trains fastest while windows are short.

The fused kernel's backward pass is slower in bf16 than in fp32 (torch 2.13). The plain attention of ``transformers``
spends as much on conversions as on products: under autocast its softmax reads and writes fp32, in the backward pass
too, and in some models dropout is drawn and applied in fp32 there. Here scores and weights stay in bf16, which is what
the products round them to anyway; the softmax computes in fp32 within, element by element.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

PLAIN = "ract_plain"
_LONGEST_PLAIN_BLOCK = 512
# Those whose attention is softmax(q·kᵀ · scale + mask) · v and nothing else.
_PLAIN_ATTENTION = (
    *("qwen2", "qwen3", "qwen3_moe", "llama", "mistral", "mixtral", "phi3", "gpt_neox", "opt"),
    *("modernbert", "bert", "roberta", "xlm-roberta", "distilbert", "albert", "bart", "marian"),
)


def prefers_plain_attention(device: torch.device, dtype: torch.dtype | None, block_size: int) -> bool:
    """Whether attention as plain matrix products trains faster than the fused kernel.

    On a CPU in bf16; from long windows on, score matrices (block²) cost more memory than that is worth.
    """
    return device.type == "cpu" and dtype is torch.bfloat16 and block_size <= _LONGEST_PLAIN_BLOCK


def use_plain_attention(*models: nn.Module) -> None:
    """A choice for this process only: it is not part of what ``save_pretrained`` writes."""
    for model in models:
        if getattr(getattr(model, "config", None), "model_type", "") in _PLAIN_ATTENTION:
            model.set_attn_implementation(PLAIN)  # type: ignore[operator]


def plain_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention as ``transformers`` asks for it, in autocast's dtype where that is on, else in that of *query*.

    *query* is (batch, heads, queries, head size), *key* and *value* (batch, key heads, keys, head size),
    *attention_mask* is added to the scores. Gives (batch, queries, heads, head size) and the attention weights.
    """
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
    groups = query.shape[1] // key.shape[1]
    with torch.autocast(kind, enabled=False):
        scaled = (query * (query.shape[-1] ** -0.5 if scaling is None else scaling)).to(dtype)
        keys, values = (x.to(dtype).repeat_interleave(groups, 1) if groups > 1 else x.to(dtype) for x in (key, value))
        scores = scaled @ keys.transpose(2, 3)
        if attention_mask is not None:  # the lowest fp32 is -inf in bf16, and a row of it would have no softmax
            scores += attention_mask.to(dtype).clamp_min(torch.finfo(dtype).min)
        weights = F.dropout(scores.softmax(-1), dropout, module.training)
        return (weights @ values).transpose(1, 2).contiguous(), weights


AttentionInterface.register(PLAIN, plain_attention)
AttentionMaskInterface.register(PLAIN, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
