"""GGUF for llama.cpp: decoders of the Llama, Qwen and GPT-2 families, with their tokenizer, in one file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from ract.errors import BadInput
from ract.export.gguf_quantize import BLOCK, quantized
from ract.export.gguf_tokenizer import add_tokenizer, check_tokenizer
from ract.export.source import Source
from ract.runtime.engines.gguf import FILE_NAME

_ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "mixtral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "qwen3_moe": gguf.MODEL_ARCH.QWEN3MOE,
    "gpt2": gguf.MODEL_ARCH.GPT2,
}
_TYPES = {
    "fp32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "int8": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "int4": (gguf.GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}
_EMBEDDINGS = ("token_embd.weight", "output.weight")  # with 4 bits these cost most of the loss: they get 8
_FULL = ("position_embd.weight", "ffn_gate_inp.weight")  # looked up or tiny
Array = npt.NDArray[np.float32]


def write(source: Source, staging: Path, precision: str) -> None:
    """Write ``model.gguf`` into *staging*: weights of *precision* (int8: Q8_0, int4: Q4_0 with the embeddings and the
    head in Q8_0), every hyperparameter and the tokenizer.

    Raises BadInput for an architecture, a setting or a tokenizer that llama.cpp does not compute.
    """
    architecture = _ARCHITECTURES.get(source.architecture)
    if architecture is None or source.kind != "decoder":
        known = ", ".join(sorted(_ARCHITECTURES))
        raise BadInput(
            f"GGUF is written for decoders ({known}), not for {source.architecture} ({source.kind})",
            "Use --format onnx",
        )
    _check(source, precision)
    file = staging / FILE_NAME
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_name(source.directory.name)
    writer.add_file_type(_TYPES[precision][1])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_hyperparameters(writer, source)
    add_tokenizer(writer, source)
    for name, tensor in _tensors(source, architecture):
        kind = _type(name, tensor, precision)
        writer.add_tensor(name, quantized(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    check_tokenizer(file, source)


def _check(source: Source, precision: str) -> None:
    """BadInput for settings that llama.cpp would pass over in silence, and for weights that fill no blocks."""
    config: Any = source.model.config
    gpt2 = source.architecture == "gpt2"
    activation = config.activation_function if gpt2 else config.hidden_act
    if precision != "fp32" and config.hidden_size % BLOCK:
        raise BadInput(
            f"GGUF packs weights in blocks of {BLOCK}, and hidden_size = {config.hidden_size} is no multiple of that",
            "Use --precision fp32 or --format onnx",
        )
    if activation not in (("gelu_new", "gelu_pytorch_tanh") if gpt2 else ("silu",)):
        raise BadInput(f"llama.cpp has no {source.architecture} with the activation {activation}", "Use --format onnx")
    if gpt2 and (config.scale_attn_by_inverse_layer_idx or not config.scale_attn_weights):
        raise BadInput("llama.cpp scales the attention of every layer of a gpt2 alike", "Use --format onnx")
    width = getattr(config, "head_dim", None) or 0
    if source.architecture == "qwen2" and width * config.num_attention_heads not in (0, config.hidden_size):
        raise BadInput("llama.cpp needs num_attention_heads × head_dim = hidden_size of a qwen2", "Use --format onnx")
    window, kinds = getattr(config, "sliding_window", None), set(getattr(config, "layer_types", None) or ())
    if window and window < (source.limit or 10**9) and kinds != {"full_attention"}:
        raise BadInput(
            f"llama.cpp has no sliding window ({window} tokens) for a {source.architecture}", "Use --format onnx"
        )
    if not gpt2 and _rope(config)["rope_type"] not in ("default", "linear", *(("llama3",) * _is_llama(source))):
        raise BadInput(f"positions scaled by {_rope(config)['rope_type']} are not written to GGUF", "Use --format onnx")
    if source.architecture == "qwen3_moe" and not config.norm_topk_prob:
        raise BadInput(
            "llama.cpp lets the chosen experts' weights sum to one, this model does not", "Use --format onnx"
        )


def _is_llama(source: Source) -> bool:
    return _ARCHITECTURES[source.architecture] is gguf.MODEL_ARCH.LLAMA


def _rope(config: Any) -> dict[str, Any]:
    given = config.rope_parameters or {}
    return {"rope_type": "default", "rope_theta": 10000.0, **given}


def _add_hyperparameters(writer: gguf.GGUFWriter, source: Source) -> None:
    config: Any = source.model.config
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(source.model.get_input_embeddings().weight.shape[0])
    writer.add_context_length(config.max_position_embeddings)
    if source.architecture == "gpt2":
        writer.add_feed_forward_length(config.n_inner or 4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = _rope(config)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    if source.architecture == "qwen3_moe":
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def _tensors(source: Source, architecture: gguf.MODEL_ARCH) -> Iterator[tuple[str, Array]]:
    """Every tensor under the name and in the layout that llama.cpp has for it."""
    config: Any = source.model.config
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    if _is_llama(source) and _rope(config)["rope_type"] == "llama3":
        yield "rope_freqs.weight", _slowdown(source)
    for name, tensor in source.model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue  # llama.cpp takes the embeddings
        for part, values in _laid_out(source, name, tensor.numpy()):
            found = names.get_name(part, try_suffixes=(".weight", ".bias"))
            if found is None:
                raise BadInput(f"llama.cpp has no place for {part} of a {source.architecture}", "Use --format onnx")
            yield found, np.ascontiguousarray(values)


def _laid_out(source: Source, name: str, values: Array) -> Iterator[tuple[str, Array]]:
    """The tensor *name* as llama.cpp lays it out: one, or several with names of their own."""
    config: Any = source.model.config
    if source.architecture == "gpt2" and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
        yield name, values.T  # transformers keeps these as inputs × outputs
    elif name.endswith(".experts.gate_up_proj"):
        gate, up = np.split(values, 2, axis=1)
        yield name.replace("gate_up_proj", "gate_proj.weight"), gate
        yield name.replace("gate_up_proj", "up_proj.weight"), up
    elif name.endswith(".experts.down_proj"):
        yield f"{name}.weight", values
    elif _is_llama(source) and ".q_proj." in name:
        yield name, _interleaved(values, config.num_attention_heads)
    elif _is_llama(source) and ".k_proj." in name:
        yield name, _interleaved(values, config.num_key_value_heads)
    else:
        yield name, values


def _interleaved(values: Array, heads: int) -> Array:
    """Rows of a query or key projection in the order of llama.cpp's Llama, which rotates neighbours, where transformers
    rotates the first half of a head with the second.
    """
    return values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def _slowdown(source: Source) -> Array:
    """By how much Llama 3 slows each frequency of the positions down: (half the head's width,)."""
    scaled = source.model.get_submodule("model.rotary_emb").inv_freq.numpy()
    plain = _rope(source.model.config)["rope_theta"] ** -(np.arange(len(scaled)) / len(scaled))
    return (plain / scaled).astype(np.float32)


def _type(name: str, tensor: Array, precision: str) -> gguf.GGMLQuantizationType:
    """How the tensor is stored. Matrices whose rows fill no whole blocks stay in 16 bits."""
    if precision == "fp32" or tensor.ndim == 1 or name.endswith(_FULL):
        return gguf.GGMLQuantizationType.F32
    if tensor.shape[-1] % BLOCK:
        return gguf.GGMLQuantizationType.F16
    return gguf.GGMLQuantizationType.Q8_0 if name in _EMBEDDINGS else _TYPES[precision][0]
