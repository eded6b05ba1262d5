"""CTranslate2 (OpenNMT): decoders, translators and BERT-like classifiers for its C++ and Python library.

The weights are placed by CTranslate2's own loaders, which read a live ``transformers`` model. They are given a copy:
they take the modules apart, and the quantizer works in place.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from ctranslate2.converters import transformers as loaders
from safetensors.torch import save_file

from ract.errors import BadInput
from ract.export.source import Source
from ract.export.vocabulary import token_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Architecture → the loader that knows where its weights belong.
_LOADERS: dict[str, dict[str, str]] = {
    "decoder": {
        "llama": "LlamaLoader",
        "mistral": "MistralLoader",
        "qwen2": "Qwen2Loader",
        "qwen3": "Qwen3Loader",
        "gpt2": "GPT2Loader",
    },
    "encoder-decoder": {"marian": "BartLoader", "bart": "BartLoader", "t5": "T5Loader"},
    "encoder": {
        "bert": "BertLoader",
        "roberta": "RobertaLoader",
        "xlm-roberta": "RobertaLoader",
        "distilbert": "DistilBertLoader",
    },
}
# A classifier's head reads the first token: a hidden layer, its activation, and the layer that gives the classes.
_HEADS = {
    "bert": ("bert.pooler.dense", "tanh", "classifier"),
    "roberta": ("classifier.dense", "tanh", "classifier.out_proj"),
    "xlm-roberta": ("classifier.dense", "tanh", "classifier.out_proj"),
    "distilbert": ("pre_classifier", "relu", "classifier"),
}
HEAD_FILE = "head.safetensors"


def write(source: Source, staging: Path, precision: str) -> None:
    """Write ``model.bin``, its config and its vocabulary into *staging*; of a classifier also its head.

    Raises BadInput for an architecture that CTranslate2 does not compute, and for 4-bit weights, which it has not.
    """
    if precision == "int4":
        raise BadInput("CTranslate2 has no 4-bit weights on a CPU", "Use --precision int8, or --format gguf or onnx")
    name = _LOADERS[source.kind].get(source.architecture)
    if name is None:
        known = ", ".join(sorted(_LOADERS[source.kind]))
        raise BadInput(
            f"CTranslate2 has no {source.architecture} among its kinds of {source.kind} ({known})", "Use --format onnx"
        )
    _check(source)
    with torch.no_grad():
        spec = _spec(source, getattr(loaders, name)())
        spec.validate()
        spec.optimize("int8_float32" if precision == "int8" else None)
        spec.save(str(staging))
    if source.kind == "encoder":
        _write_head(source.model, source.architecture, staging / HEAD_FILE)


def _check(source: Source) -> None:
    """BadInput for settings that the loaders pass over in silence."""
    config: Any = source.model.config
    rope = getattr(config, "rope_parameters", None) or {}
    kind = rope.get("rope_type", "default")
    if kind not in ("default", "linear"):  # its own scaling of Llama 3 is off from the second token on (4.8)
        raise BadInput(f"CTranslate2 does not scale positions as this model does ({kind})", "Use --format onnx or gguf")
    width = getattr(config, "head_dim", None) or 0
    if source.architecture in ("llama", "qwen2") and width * config.num_attention_heads not in (0, config.hidden_size):
        raise BadInput(
            f"CTranslate2 needs num_attention_heads × head_dim = hidden_size of a {source.architecture}, here "
            f"{config.num_attention_heads} × {width} and {config.hidden_size}",
            "Use --format onnx or gguf",
        )
    window, kinds = getattr(config, "sliding_window", None), set(getattr(config, "layer_types", None) or ())
    if window and window < (source.limit or 10**9) and kinds != {"full_attention"}:
        raise BadInput(
            f"CTranslate2's sliding window ({window} tokens) is not that of transformers", "Use --format onnx"
        )
    if source.kind == "encoder" and getattr(config, "position_embedding_type", "absolute") != "absolute":
        raise BadInput("CTranslate2 has only absolute positions for encoders", "Use --format onnx")


def _spec(source: Source, loader: Any) -> Any:
    """CTranslate2's description of the model, filled with its tensors."""
    model: Any = copy.deepcopy(source.model)
    if source.kind == "encoder":
        model = model.base_model
        model.config.position_embedding_type = "absolute"  # no longer a field of transformers 5, but the loaders ask
    if source.architecture == "marian":
        model.config.normalize_before = model.config.normalize_embedding = False
    if source.architecture == "bart":
        model.config.normalize_before, model.config.normalize_embedding = False, True
    if source.architecture == "mistral":
        model.config.sliding_window = None
    try:
        spec = loader.get_model_spec(model)
    except (KeyError, NotImplementedError) as error:
        raise BadInput(f"CTranslate2 lacks what this model needs: {error.args[0]}", "Use --format onnx") from error
    loader.set_config(spec.config, model, source.tokenizer)
    tokens = [f"<unused {row}>" if name is None else name for row, name in enumerate(token_names(source))]
    if source.kind == "encoder-decoder":
        spec.register_source_vocabulary(tokens)
        spec.register_target_vocabulary(tokens)
    else:
        spec.register_vocabulary(tokens)
    _name_tokens(spec.config, source, tokens)
    return spec


def _name_tokens(config: Any, source: Source, tokens: list[str]) -> None:
    """The special tokens by name: CTranslate2 reads text made of tokens, and cannot do without any of these."""
    tokenizer, ends = source.tokenizer, source.manifest("ctranslate2", "fp32").ends
    end = tokens[ends[0]] if ends else tokenizer.eos_token or tokens[0]
    config.unk_token = tokenizer.unk_token or ""
    if source.kind == "encoder":
        return
    config.bos_token, config.eos_token = tokenizer.bos_token or end, end
    if source.kind == "encoder-decoder":
        start = getattr(source.model.generation_config, "decoder_start_token_id", None)
        config.decoder_start_token = tokens[source.model.config.decoder_start_token_id if start is None else start]


def _write_head(model: PreTrainedModel, architecture: str, file: Path) -> None:
    hidden, activation, out = _HEADS[architecture]
    layers = {"hidden": model.get_submodule(hidden), "out": model.get_submodule(out)}
    tensors = {
        f"{name}.{part}": tensor for name, layer in layers.items() for part, tensor in layer.state_dict().items()
    }
    save_file(tensors, file, metadata={"activation": activation})
