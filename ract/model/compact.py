"""CompactTransformer: the decoder that ReAct trains, as a standard Hugging Face architecture.

Qwen3's block holds what compact models gain from: rotary positions, grouped-query attention, normalised queries and
keys, SwiGLU, RMSNorm, tied embeddings (MobileLLM, 2402.14905; Qwen3 technical report, 2505.09388). Because it is a
stock architecture, every tool that opens Qwen3 opens it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ract.cost import Shape

if TYPE_CHECKING:
    from transformers import Qwen3Config, Qwen3ForCausalLM


def compact_config(
    shape: Shape, *, max_position_embeddings: int = 1024, eos_token_id: int = 0, pad_token_id: int | None = None
) -> Qwen3Config:
    """The configuration of a dense decoder of *shape*; *eos_token_id* stands between documents."""
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.intermediate_size,
        max_position_embeddings=max_position_embeddings,
        tie_word_embeddings=True,
        bos_token_id=eos_token_id,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
        architectures=["Qwen3ForCausalLM"],
        dtype="float32",
    )


def new_compact_transformer(
    shape: Shape,
    *,
    seed: int,
    max_position_embeddings: int = 1024,
    eos_token_id: int = 0,
    pad_token_id: int | None = None,
) -> Qwen3ForCausalLM:
    """An untrained decoder of *shape*; the same *seed* gives the same weights.

    Matrices are drawn from N(0, 0.02²) as in transformers; those that write into the residual stream are scaled down by
    √(2 · num_hidden_layers), as in GPT-2, so that depth does not raise the variance of the stream.
    """
    from transformers import Qwen3ForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(
            compact_config(
                shape,
                max_position_embeddings=max_position_embeddings,
                eos_token_id=eos_token_id,
                pad_token_id=pad_token_id,
            )
        )
    scale = (2 * shape.num_hidden_layers) ** -0.5
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(scale)
            layer.mlp.down_proj.weight.mul_(scale)
    return model


def shape_of(model: Qwen3ForCausalLM) -> Shape:
    """The :class:`~ract.cost.Shape` of a live compact transformer."""
    c = model.config
    return Shape(
        c.vocab_size,
        c.hidden_size,
        c.num_hidden_layers,
        c.num_attention_heads,
        c.num_key_value_heads,
        c.head_dim,
        c.intermediate_size,
    )
