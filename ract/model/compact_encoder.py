"""The compact encoder and encoder-decoder that ReAct trains, as standard Hugging Face architectures.

The choice of ModernBERT and Marian, and what it was chosen against, is in ``docs/decisions/0007``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ract.cost import EncoderDecoderShape, EncoderShape
from ract.model.origin import TaskLabels
from ract.plan.graph import ModelSettings

if TYPE_CHECKING:
    from transformers import (
        MarianMTModel,
        ModernBertForMaskedLM,
        ModernBertForSequenceClassification,
        PreTrainedTokenizerBase,
    )


def new_encoder(
    shape: EncoderShape,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    settings: ModelSettings,
    task: TaskLabels | None = None,
) -> ModernBertForMaskedLM | ModernBertForSequenceClassification:
    """An untrained encoder of *shape* for *task*, or with a masked-language-model head where it has no labels.

    Every block attends to the whole text (ModernBERT's local attention pays for texts of thousands of tokens), and a
    text's vector is the mean over its tokens. The same *seed* gives the same weights.
    """
    from transformers import ModernBertConfig, ModernBertForMaskedLM, ModernBertForSequenceClassification

    dropout = settings.dropout
    config = ModernBertConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        intermediate_size=shape.intermediate_size,
        max_position_embeddings=settings.max_position_embeddings,
        global_attn_every_n_layers=1,
        embedding_dropout=dropout,
        attention_dropout=dropout,
        mlp_dropout=dropout,
        classifier_dropout=dropout,
        classifier_pooling="mean",
        pad_token_id=tokenizer.pad_token_id,
        cls_token_id=tokenizer.cls_token_id,
        sep_token_id=tokenizer.sep_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        dtype="float32",
        **(task.config_values() if task and shape.num_labels else {}),
    )
    cls = ModernBertForSequenceClassification if shape.num_labels else ModernBertForMaskedLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cls(config)
    model.config.architectures = [cls.__name__]
    return model


def new_encoder_decoder(
    shape: EncoderDecoderShape,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    settings: ModelSettings,
    task: TaskLabels | None = None,
) -> MarianMTModel:
    """An untrained encoder-decoder of *shape*: Marian with one embedding for source, target and head.

    The same *seed* gives the same weights. Its generation config asks for beam search with four beams.
    """
    from transformers import GenerationConfig, MarianConfig, MarianMTModel

    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    config = MarianConfig(
        vocab_size=shape.vocab_size,
        d_model=shape.hidden_size,
        encoder_layers=shape.num_hidden_layers,
        decoder_layers=shape.num_hidden_layers,
        encoder_attention_heads=shape.num_attention_heads,
        decoder_attention_heads=shape.num_attention_heads,
        encoder_ffn_dim=shape.intermediate_size,
        decoder_ffn_dim=shape.intermediate_size,
        max_position_embeddings=settings.max_position_embeddings,
        activation_function="swish",
        dropout=settings.dropout,
        scale_embedding=True,
        share_encoder_decoder_embeddings=True,
        pad_token_id=pad,
        bos_token_id=eos,
        eos_token_id=eos,
        decoder_start_token_id=pad,
        forced_eos_token_id=None,
        dtype="float32",
        **(task.config_values() if task else {}),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MarianMTModel(config)
    model.config.architectures = ["MarianMTModel"]
    model.generation_config = GenerationConfig(
        num_beams=4,
        max_length=settings.max_position_embeddings,
        pad_token_id=pad,
        bos_token_id=eos,
        eos_token_id=eos,
        decoder_start_token_id=pad,
    )
    return model
