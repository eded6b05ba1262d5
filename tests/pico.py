"""A model of a few thousand random weights for every architecture the project answers for, in its own class."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from ract.model.live import model_class

SIZE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
}
GROUPED = {**SIZE, "num_key_value_heads": 2, "head_dim": 8}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LABELS = {"num_labels": 3}
GPT2 = {"vocab_size": 96, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64, **TOKENS}
DISTILBERT = {"vocab_size": 96, "dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64}
MODERNBERT = {**SIZE, **TOKENS, "cls_token_id": 1, "sep_token_id": 2}
T5 = {
    "vocab_size": 96, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 4,
    "decoder_start_token_id": 0,
}  # fmt: skip
BART = {
    "vocab_size": 96, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 64,
    "decoder_start_token_id": 2, "forced_eos_token_id": 2, **TOKENS,
}  # fmt: skip

# name → (class, config class, fields)
ZOO: dict[str, tuple[str, str, dict[str, Any]]] = {
    "GPT-2": ("GPT2LMHeadModel", "GPT2Config", GPT2),
    "GPT-NeoX": ("GPTNeoXForCausalLM", "GPTNeoXConfig", SIZE),
    "OPT": ("OPTForCausalLM", "OPTConfig", {**SIZE, "ffn_dim": 24, "word_embed_proj_dim": 16}),
    "Llama": ("LlamaForCausalLM", "LlamaConfig", GROUPED),
    "Mistral": ("MistralForCausalLM", "MistralConfig", GROUPED),
    "Qwen2": ("Qwen2ForCausalLM", "Qwen2Config", GROUPED),
    "Qwen3": ("Qwen3ForCausalLM", "Qwen3Config", GROUPED),
    "Gemma": ("GemmaForCausalLM", "GemmaConfig", GROUPED),
    "Gemma 2": ("Gemma2ForCausalLM", "Gemma2Config", GROUPED),
    "Gemma 3": ("Gemma3ForCausalLM", "Gemma3TextConfig", GROUPED),
    "Phi": ("PhiForCausalLM", "PhiConfig", SIZE),
    "Phi-3": ("Phi3ForCausalLM", "Phi3Config", {**SIZE, **TOKENS, "num_key_value_heads": 2}),
    "Mixtral": ("MixtralForCausalLM", "MixtralConfig", {**GROUPED, "num_local_experts": 3}),
    "BERT": ("BertModel", "BertConfig", SIZE),
    "BERT, masked LM": ("BertForMaskedLM", "BertConfig", SIZE),
    "BERT, classification": ("BertForSequenceClassification", "BertConfig", {**SIZE, **LABELS}),
    "RoBERTa": ("RobertaForMaskedLM", "RobertaConfig", SIZE),
    "RoBERTa, classification": ("RobertaForSequenceClassification", "RobertaConfig", {**SIZE, **LABELS}),
    "DistilBERT": ("DistilBertForMaskedLM", "DistilBertConfig", DISTILBERT),
    "ModernBERT": ("ModernBertForMaskedLM", "ModernBertConfig", MODERNBERT),
    "ALBERT": ("AlbertForMaskedLM", "AlbertConfig", {**SIZE, "embedding_size": 8}),
    "T5": ("T5ForConditionalGeneration", "T5Config", T5),
    "T5, gated": ("T5ForConditionalGeneration", "T5Config", {**T5, "feed_forward_proj": "gated-gelu"}),
    "BART": ("BartForConditionalGeneration", "BartConfig", BART),
    "Marian": ("MarianMTModel", "MarianConfig", {**BART, "pad_token_id": 95, "decoder_start_token_id": 95}),
}  # fmt: skip


def pico(name: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """The *name* of the zoo with weights drawn from *seed*, norms and biases too, so that no tensor is neutral."""
    model_class, config_class, fields = ZOO[name]
    config = getattr(transformers, config_class)(**{**fields, **changes})
    torch.manual_seed(seed)
    model = getattr(transformers, model_class)(config).eval()
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):  # not Marian's sinusoids
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def save(model: PreTrainedModel, path: Path) -> Path:
    """*model* as a model directory."""
    model.save_pretrained(path)
    return path


def children(folder: Path, name: str, count: int = 2, **changes: Any) -> list[Path]:
    """*count* different models of one architecture, saved."""
    return [save(pico(name, seed, **changes), folder / f"child{seed}") for seed in range(count)]


def inputs(model: PreTrainedModel, length: int = 7) -> dict[str, torch.Tensor]:
    """Two sequences of tokens in the form *model* takes them."""
    ids = torch.randint(3, 90, (2, length), generator=torch.Generator().manual_seed(1))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {**given, "decoder_input_ids": ids[:, :5]} if model.config.is_encoder_decoder else given


@torch.no_grad()
def output(model: PreTrainedModel, given: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
    """The logits of *model*, or the last hidden state of a bare one."""
    result = model(**(given or inputs(model)))
    return result.logits if "logits" in result else result.last_hidden_state


def load(path: Path) -> PreTrainedModel:
    """The model at *path*, with not one tensor missing, left over or of another shape."""
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    model, info = model_class(config).from_pretrained(
        path, dtype="auto", local_files_only=True, output_loading_info=True
    )
    wrong: Sequence[str] = [f"{key}: {value}" for key, value in info.items() if value]
    assert not wrong, wrong
    return model.eval()
