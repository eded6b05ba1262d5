"""A decoder as one ONNX graph of ONNX Runtime's fused operators: grouped-query attention with rotary positions and the
key-value cache inside, quantized matrix products, normalisation with the residual sum.

The exporter of ``transformers`` traces any architecture; this writes the few operators that a Llama-like block comes
to, so that a small model's step is not spent between operators. The operators are those of ONNX Runtime's own model
builder (github.com/microsoft/onnxruntime-genai).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto

from ract.export.onnx_graph import Graph
from ract.export.onnx_quantize import Quantized, block_size, quantize
from ract.model.live import ENSEMBLE, live_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
_HEAD = 16  # attention's heads are a multiple of this wide; narrower ones are filled up with zeros
_INNER = 32  # and so is the feed-forward's width
_FLOAT, _INT32, _INT64 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64


def why_not(config: Any, precision: str) -> str | None:
    """Why a decoder of *config*, or an ensemble of decoders, cannot be written this way; None when it can."""
    if config.model_type == ENSEMBLE:
        return next((reason for one in config.members if (reason := why_not(live_config(one), precision))), None)
    c = config
    rope = getattr(c, "rope_parameters", None) or {}
    window = c.sliding_window if c.model_type == "mistral" else getattr(c, "use_sliding_window", False) and 1
    reasons = (
        (c.model_type not in ARCHITECTURES, f"{c.model_type} is none of {', '.join(ARCHITECTURES)}"),
        (getattr(c, "hidden_act", "") not in ("silu", "swish"), "its activation is not silu"),
        (
            rope.get("rope_type", "default") != "default",
            f"its rotary positions are {rope.get('rope_type')}",
        ),
        (bool(window) and window < c.max_position_embeddings, "it looks through a sliding window"),
        (
            c.model_type == "qwen3" and c.head_dim % _HEAD != 0,
            f"its heads, which it normalises, are no multiple of {_HEAD} wide",
        ),
        (
            precision != "fp32" and block_size(c.hidden_size) is None,
            f"its width {c.hidden_size} is no multiple of 16",
        ),
    )
    return next((reason for applies, reason in reasons if applies), None)


def write_decoder(model: PreTrainedModel, folder: Path, precision: str) -> None:
    """Write *model* as ``decode.onnx`` with its weights in ``decode.onnx.data``, in *precision* fp32, int8 or int4.

    int4 keeps embedding and head in 8 bits: they see every token, and cost the most when rounded. The members of an
    ensemble stand side by side in one graph, so that they may run at the same time.
    """
    bits = {"fp32": 0, "int8": 8, "int4": 4}[precision]
    graph = Graph("decode")
    for name, kind, shape in (
        ("input_ids", _INT64, ["rows", "tokens"]),
        ("seqlens_k", _INT32, ["rows"]),
        ("total_sequence_length", _INT32, []),
        ("first", _INT64, [1]),
    ):
        graph.input(name, kind, shape)
    graph.output("logits", _FLOAT, ["rows", "asked", model.config.vocab_size])
    tensors = {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}
    if model.config.model_type != ENSEMBLE:
        _Decoder(graph, model.config, tensors, "", bits).write("logits")
    else:
        names = [f"members.{index}." for index in range(len(model.config.members))]
        for name, member in zip(names, model.config.members, strict=True):
            _Decoder(graph, live_config(member), tensors, name, bits).write(name + "logits")
        _mix(graph, [name + "logits" for name in names], model.config.weights, model.config.mode)
    graph.save(folder)


def _mix(graph: Graph, logits: list[str], alpha: list[float], mode: str) -> None:
    """Σ αᵢ logitsᵢ, or log Σ αᵢ softmax(logitsᵢ), as :mod:`ract.model.ensemble` has it."""
    parts = []
    for name, weight in zip(logits, alpha, strict=True):
        given = name if mode == "logits" else graph.node("LogSoftmax", [name], name + ".log", axis=-1)
        by = weight if mode == "logits" else np.log(weight)
        factor = graph.weights.add(name + ".alpha", np.array(by, np.float32))
        parts.append(graph.node("Mul" if mode == "logits" else "Add", [given, factor], name + ".weighted"))
    if mode == "logits":
        graph.node("Sum", parts, "logits")
        return
    axis = graph.numbers([0])
    each = [graph.node("Unsqueeze", [part, axis], part + ".one") for part in parts]
    graph.node("ReduceLogSumExp", [graph.node("Concat", each, "mixed", axis=0), axis], "logits", keepdims=0)


class _Decoder:
    """The nodes of one model with *config*, whose *tensors* are named *prefix*…; hidden states are float
    (rows, new tokens, hidden).
    """

    def __init__(self, graph: Graph, config: Any, tensors: dict[str, np.ndarray], prefix: str, bits: int) -> None:
        self.graph, self.config, self.tensors, self.prefix, self.bits = graph, config, tensors, prefix, bits
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        self.head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.width = -(-self.head // _HEAD) * _HEAD

    def write(self, logits: str) -> None:
        """All of the model, from ``input_ids`` to *logits* (rows, tokens from ``first`` on, vocabulary)."""
        self._rotary()
        hidden, residual = self._embed(), ""
        for layer in range(self.config.num_hidden_layers):
            at = f"{self.prefix}model.layers.{layer}."
            normed, residual = self._norm(hidden, residual, at + "input_layernorm.weight")
            hidden = self._attention(normed, layer, at + "self_attn.")
            normed, residual = self._norm(hidden, residual, at + "post_attention_layernorm.weight")
            hidden = self._feed_forward(normed, at + "mlp.")
        self._head(self._norm(hidden, residual, self.prefix + "model.norm.weight")[0], logits)

    def _rotary(self) -> None:
        """cos and sin (positions, half a head) for every position that the model can look at."""
        c = self.config
        theta = (getattr(c, "rope_parameters", None) or {}).get("rope_theta", getattr(c, "rope_theta", 10000.0))
        inverse = theta ** -(np.arange(0, self.head, 2, dtype=np.float64) / self.head)
        angles = np.outer(np.arange(c.max_position_embeddings), np.pad(inverse, (0, (self.width - self.head) // 2)))
        self.cos = self.graph.weights.add(self.prefix + "cos_cache", np.cos(angles).astype(np.float32))
        self.sin = self.graph.weights.add(self.prefix + "sin_cache", np.sin(angles).astype(np.float32))

    def _embed(self) -> str:
        name, out = self.prefix + "model.embed_tokens.weight", self.prefix + "embedded"
        add = self.graph.weights.add
        if not self.bits:
            return self.graph.node("Gather", [add(name, self.tensors[name]), "input_ids"], out)
        self.table = quantize(self.tensors[name], 8)
        inputs = [
            add(name, self.table.packed.reshape(self.table.rows, -1)),
            "input_ids",
            add(name + ".scales", self.table.scales),
        ]
        attributes = {"bits": 8, "block_size": self.table.block, "gather_axis": 0, "quantize_axis": 1}
        return self.graph.node("GatherBlockQuantized", inputs, out, contrib=True, **attributes)

    def _norm(self, hidden: str, residual: str, name: str) -> tuple[str, str]:
        """The normalised sum of *hidden* and *residual* ("": none yet), and that sum."""
        gamma, epsilon = self.graph.weights.add(name, self.tensors[name]), self.config.rms_norm_eps
        kind, out = "SimplifiedLayerNormalization", name + ".out"
        if not residual:
            return self.graph.node(kind, [hidden, gamma], out, epsilon=epsilon, axis=-1), hidden
        outputs = [out, "", "", name + ".sum"]
        self.graph.node("Skip" + kind, [hidden, residual, gamma], outputs, contrib=True, epsilon=epsilon)
        return outputs[0], outputs[3]

    def _attention(self, hidden: str, layer: int, at: str) -> str:
        weights = [self._heads(at + f"{x}_proj.weight", rotated=x != "v") for x in "qkv"]
        biases = [
            self._heads(at + f"{x}_proj.bias", rotated=x != "v") for x in "qkv" if at + f"{x}_proj.bias" in self.tensors
        ]
        bias = np.concatenate(biases) if biases else None
        together = self._product(hidden, np.concatenate(weights), at + "qkv", bias)
        parts = [together, "", ""] if at + "q_norm.weight" not in self.tensors else self._normed_heads(together, at)
        names = [f"past_key_values.{self.prefix}{layer}.{part}" for part in ("key", "value")]
        shape = ["rows", self.groups, "past", self.width]
        caches = [self.graph.input("input." + name, _FLOAT, shape) for name in names]
        grown = [self.graph.output("output." + name, _FLOAT, [*shape[:2], "now", self.width]) for name in names]
        out = self.graph.node(
            "GroupQueryAttention",
            [*parts, *caches, "seqlens_k", "total_sequence_length", self.cos, self.sin],
            [at + "attended", *grown],
            contrib=True,
            num_heads=self.heads,
            kv_num_heads=self.groups,
            do_rotary=1,
            scale=self.head**-0.5,
        )
        return self._product(out, self._heads(at + "o_proj.weight", columns=True), at + "o", self._bias(at + "o_proj"))

    def _normed_heads(self, together: str, at: str) -> list[str]:
        """Queries, keys and values of the product *together*, the first two normalised head by head (Qwen3)."""
        widths = [self.heads * self.width, self.groups * self.width, self.groups * self.width]
        parts = [at + name for name in "qkv"]
        self.graph.node("Split", [together, self.graph.numbers(widths)], parts, axis=-1)
        single = self.graph.numbers([0, -1, self.width])
        for place in (0, 1):
            name = parts[place]
            gamma = self.graph.weights.add(name + "_norm.weight", self.tensors[name + "_norm.weight"])
            each = self.graph.node("Reshape", [name, single], name + ".heads")
            epsilon = self.config.rms_norm_eps
            kind = "SimplifiedLayerNormalization"
            normed = self.graph.node(kind, [each, gamma], name + ".normed", epsilon=epsilon, axis=-1)
            parts[place] = self.graph.node(
                "Reshape", [normed, self.graph.numbers([0, -1, widths[place]])], name + ".whole"
            )
        return parts

    def _feed_forward(self, hidden: str, at: str) -> str:
        more = -self.config.intermediate_size % _INNER
        gate, up = (
            self._product(
                hidden, np.pad(self.tensors[name + ".weight"], ((0, more), (0, 0))), name, self._bias(name, more)
            )
            for name in (at + "gate_proj", at + "up_proj")
        )
        active = self.graph.node("QuickGelu", [gate], at + "active", contrib=True, alpha=1.0)  # x · sigmoid(x): silu
        gated = self.graph.node("Mul", [active, up], at + "gated")
        down = np.pad(self.tensors[at + "down_proj.weight"], ((0, 0), (0, more)))
        return self._product(gated, down, at + "down", self._bias(at + "down_proj"))

    def _head(self, hidden: str, logits: str) -> None:
        """*logits* of the positions from ``first`` on: a prompt's earlier ones are rarely asked for."""
        graph, numbers = self.graph, self.graph.numbers
        inputs = [hidden, "first", numbers([np.iinfo(np.int64).max]), numbers([1])]
        asked = graph.node("Slice", inputs, self.prefix + "asked")
        tied = self.config.tie_word_embeddings
        name = self.prefix + ("model.embed_tokens.weight" if tied else "lm_head.weight")
        if not self.bits:
            weight = graph.weights.add(name, self.tensors[name])
            graph.node("FusedMatMul", [asked, weight], logits, contrib=True, transB=1)
        elif tied:  # the embedding's own bytes, seen as blocks
            graph.weights.again(name + ".head", name, self.table.packed.shape)
            self._quantized_product(asked, name + ".head", name + ".scales", self.table, logits)
        else:
            self._quantize(asked, self.tensors[name], 8, name, logits)

    def _product(self, hidden: str, weight: np.ndarray, out: str, bias: np.ndarray | None = None) -> str:
        """*hidden* times *weight* (outputs, inputs), plus *bias*."""
        if self.bits:
            return self._quantize(hidden, weight, self.bits, out + ".weight", out, bias)
        self.graph.weights.add(out + ".weight", np.ascontiguousarray(weight.T))
        product = self.graph.node("MatMul", [hidden, out + ".weight"], out if bias is None else out + ".product")
        if bias is None:
            return product
        return self.graph.node("Add", [product, self.graph.weights.add(out + ".bias", bias)], out)

    def _quantize(
        self, hidden: str, weight: np.ndarray, bits: int, name: str, out: str, bias: np.ndarray | None = None
    ) -> str:
        found = quantize(weight, bits)
        self.graph.weights.add(name, found.packed)
        self.graph.weights.add(name + ".scales", found.scales)
        given = "" if bias is None else self.graph.weights.add(out + ".bias", bias)
        return self._quantized_product(hidden, name, name + ".scales", found, out, given)

    def _quantized_product(self, hidden: str, name: str, scales: str, of: Quantized, out: str, bias: str = "") -> str:
        attributes = {"K": of.columns, "N": of.rows, "bits": of.bits, "block_size": of.block, "accuracy_level": 4}
        inputs = [hidden, name, scales, *(["", "", bias] if bias else [])]
        return self.graph.node("MatMulNBits", inputs, out, contrib=True, **attributes)

    def _heads(self, name: str, *, rotated: bool = False, columns: bool = False) -> np.ndarray:
        """A projection into heads (with *columns* out of them), each filled up with zeros to the width of the graph's
        heads; what is *rotated* pairs number i with number i + half a head, so that each half is filled up.
        """
        weight = self.tensors[name]
        if self.width == self.head:
            return weight
        weight = weight.T if columns else weight
        halves = 2 if rotated else 1
        parts = weight.reshape(-1, halves, self.head // halves, *weight.shape[1:])
        more = (self.width - self.head) // halves
        filled = np.pad(parts, [(0, 0), (0, 0), (0, more)] + [(0, 0)] * (weight.ndim - 1))
        filled = filled.reshape(-1, *weight.shape[1:])
        return np.ascontiguousarray(filled.T) if columns else filled

    def _bias(self, name: str, rows: int = 0) -> np.ndarray | None:
        """The bias of *name*, *rows* zeros longer; None when it has none."""
        return np.pad(self.tensors[name + ".bias"], (0, rows)) if name + ".bias" in self.tensors else None
