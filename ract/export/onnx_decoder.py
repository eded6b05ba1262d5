"""A decoder as one ONNX graph of ONNX Runtime's fused operators: grouped-query attention with rotary positions and the
key-value cache inside, quantized matrix products, normalisation with the residual sum.

The exporter of ``transformers`` traces any architecture; this writes the few operators that a Llama-like block comes
to, so that a small model's step is not spent between operators. The operators are those of ONNX Runtime's own model builder
(github.com/microsoft/onnxruntime-genai).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from ract.export.onnx_quantize import block_size, quantize
from ract.export.onnx_weights import Weights

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
_CONTRIB = "com.microsoft"
_HEAD = 16  # attention's heads are a multiple of this wide; narrower ones are filled up with zeros
_INNER = 32  # and so is the feed-forward's width
_FLOAT, _INT32, _INT64 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64


def why_not(config: Any, precision: str) -> str | None:
    """Why a decoder of *config* cannot be written this way; None when it can."""
    if config.model_type not in ARCHITECTURES:
        return f"{config.model_type} is not one of {', '.join(ARCHITECTURES)}"
    if config.hidden_act not in ("silu", "swish"):
        return f"its activation is {config.hidden_act}, not silu"
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default" or rope.get("partial_rotary_factor", 1.0) != 1.0:
        return f"its rotary positions are of the kind {rope.get('rope_type')}"
    if getattr(config, "use_sliding_window", False) or (
        config.model_type == "mistral"
        and (config.sliding_window or config.max_position_embeddings) < config.max_position_embeddings
    ):
        return "it looks through a sliding window"
    if config.model_type == "qwen3" and config.head_dim % _HEAD:
        return f"its heads of {config.head_dim} are no multiple of {_HEAD}"
    if precision != "fp32" and block_size(config.hidden_size, 4) is None:
        return f"its width {config.hidden_size} is no multiple of 16"
    return None


def write_decoder(model: PreTrainedModel, folder: Path, precision: str) -> None:
    """Write *model* as ``decode.onnx`` with its weights in ``decode.onnx.data``, in *precision* fp32, int8 or int4.

    int4 keeps embedding and head in 8 bits: they see every token, and cost the most when rounded (docs/log.md).
    """
    graph = _Graph(model, precision)
    graph.write()
    graph.save(folder)


class _Graph:
    """The nodes and weights while they are put together. Hidden states are float (rows, new tokens, hidden)."""

    def __init__(self, model: PreTrainedModel, precision: str) -> None:
        self.config: Any = model.config
        self.tensors: dict[str, torch.Tensor] = model.state_dict()
        self.bits = {"fp32": 0, "int8": 8, "int4": 4}[precision]
        self.weights = Weights("decode.onnx.data")
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        c = self.config
        self.heads, self.groups = c.num_attention_heads, c.num_key_value_heads
        self.head = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        self.width = -(-self.head // _HEAD) * _HEAD

    def write(self) -> None:
        """All of the graph."""
        for name, kind, shape in (
            ("input_ids", _INT64, ["rows", "tokens"]),
            ("seqlens_k", _INT32, ["rows"]),
            ("total_sequence_length", _INT32, []),
            ("first", _INT64, [1]),
        ):
            self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        self._rotary()
        hidden, residual = self._embed(), ""
        epsilon = self.config.rms_norm_eps
        for layer in range(self.config.num_hidden_layers):
            at = f"model.layers.{layer}."
            normed, residual = self._norm(hidden, residual, at + "input_layernorm.weight", epsilon)
            hidden = self._attention(normed, layer, at + "self_attn.")
            normed, residual = self._norm(hidden, residual, at + "post_attention_layernorm.weight", epsilon)
            hidden = self._feed_forward(normed, at + "mlp.")
        normed, _ = self._norm(hidden, residual, "model.norm.weight", epsilon)
        self._head(normed)

    def _rotary(self) -> None:
        """cos and sin (positions, half a head) for every position that the model can look at."""
        c = self.config
        theta = (getattr(c, "rope_parameters", None) or {}).get("rope_theta", getattr(c, "rope_theta", 10000.0))
        inverse = theta ** -(np.arange(0, self.head, 2, dtype=np.float64) / self.head)
        angles = np.outer(np.arange(c.max_position_embeddings), np.pad(inverse, (0, (self.width - self.head) // 2)))
        self.weights.add("cos_cache", np.cos(angles).astype(np.float32))
        self.weights.add("sin_cache", np.sin(angles).astype(np.float32))

    def _embed(self) -> str:
        name = "model.embed_tokens.weight"
        if not self.bits:
            return self._node("Gather", [self.weights.add(name, self._array(name)), "input_ids"], "embedded")
        table = quantize(self._array(name), 8)
        self.weights.add(name, table.packed.reshape(table.rows, -1))
        self.weights.add(name + ".scales", table.scales)
        attributes = {"bits": 8, "block_size": table.block, "gather_axis": 0, "quantize_axis": 1}
        inputs = [name, "input_ids", name + ".scales"]
        return self._node("GatherBlockQuantized", inputs, "embedded", domain=_CONTRIB, **attributes)

    def _norm(self, hidden: str, residual: str, name: str, epsilon: float) -> tuple[str, str]:
        """The normalised sum of *hidden* and *residual* ("": none yet), and that sum."""
        self.weights.add(name, self._array(name))
        if not residual:
            return self._node(
                "SimplifiedLayerNormalization", [hidden, name], name + ".out", epsilon=epsilon, axis=-1
            ), hidden
        outputs = [name + ".out", "", "", name + ".sum"]
        self.nodes.append(
            helper.make_node(
                "SkipSimplifiedLayerNormalization", [hidden, residual, name], outputs, domain=_CONTRIB, epsilon=epsilon
            )
        )
        return outputs[0], outputs[3]

    def _attention(self, hidden: str, layer: int, at: str) -> str:
        weights = [self._heads(at + f"{x}_proj.weight", rotated=x != "v") for x in "qkv"]
        biases = [
            self._heads(at + f"{x}_proj.bias", rotated=x != "v") for x in "qkv" if at + f"{x}_proj.bias" in self.tensors
        ]
        together = self._product(
            hidden, np.concatenate(weights), at + "qkv", np.concatenate(biases) if biases else None
        )
        cache = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        shape = ["rows", self.groups, "past", self.width]
        for name in cache:
            self.inputs.append(helper.make_tensor_value_info("input." + name, _FLOAT, shape))
            self.outputs.append(
                helper.make_tensor_value_info("output." + name, _FLOAT, [*shape[:2], "now", self.width])
            )
        parts = [together, "", ""] if at + "q_norm.weight" not in self.tensors else self._normed_heads(together, at)
        inputs = [
            *parts,
            *("input." + n for n in cache),
            "seqlens_k",
            "total_sequence_length",
            "cos_cache",
            "sin_cache",
        ]
        attributes = {"num_heads": self.heads, "kv_num_heads": self.groups, "do_rotary": 1, "scale": self.head**-0.5}
        out = at + "attended"
        self.nodes.append(
            helper.make_node(
                "GroupQueryAttention", inputs, [out, *("output." + n for n in cache)], domain=_CONTRIB, **attributes
            )
        )
        weight = self._heads(at + "o_proj.weight", columns=True)
        return self._product(out, weight, at + "o", self._bias(at + "o_proj"))

    def _heads(self, name: str, *, rotated: bool = False, columns: bool = False) -> np.ndarray:
        """A projection into heads (with *columns* out of them), each filled up with zeros to the width of the graph's
        heads; what is *rotated* pairs number i with number i + half a head, so that each half is filled up.
        """
        weight = self._array(name)
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
        return np.pad(self._array(name + ".bias"), (0, rows)) if name + ".bias" in self.tensors else None

    def _normed_heads(self, together: str, at: str) -> list[str]:
        """Queries, keys and values of the product *together*, the first two normalised head by head (Qwen3)."""
        widths = [self.heads * self.width, self.groups * self.width, self.groups * self.width]
        parts = [at + name for name in ("q", "k", "v")]
        self.weights.add(at + "widths", np.array(widths, np.int64))
        self.nodes.append(helper.make_node("Split", [together, at + "widths"], parts, axis=-1))
        for place, width in ((0, widths[0]), (1, widths[1])):
            name = parts[place]
            single = self.weights.add("one_head", np.array([0, -1, self.width], np.int64))
            back = self.weights.add(f"heads_of_{width}", np.array([0, -1, width], np.int64))
            gamma = self.weights.add(name + "_norm.weight", self._array(name + "_norm.weight"))
            each = self._node("Reshape", [name, single], name + ".heads")
            normed = self._node(
                "SimplifiedLayerNormalization",
                [each, gamma],
                name + ".normed",
                epsilon=self.config.rms_norm_eps,
                axis=-1,
            )
            parts[place] = self._node("Reshape", [normed, back], name + ".whole")
        return parts

    def _feed_forward(self, hidden: str, at: str) -> str:
        more = -self.config.intermediate_size % _INNER
        gate, up = (
            self._product(
                hidden,
                np.pad(self._array(at + name + ".weight"), ((0, more), (0, 0))),
                at + name,
                self._bias(at + name, more),
            )
            for name in ("gate_proj", "up_proj")
        )
        active = self._node("QuickGelu", [gate], at + "active", domain=_CONTRIB, alpha=1.0)  # x · sigmoid(x): silu
        gated = self._node("Mul", [active, up], at + "gated")
        down = np.pad(self._array(at + "down_proj.weight"), ((0, 0), (0, more)))
        return self._product(gated, down, at + "down", self._bias(at + "down_proj"))

    def _head(self, hidden: str) -> None:
        """Logits (rows, tokens from *first* on, vocabulary)."""
        self.weights.add("axis_1", np.array([1], np.int64))
        self.weights.add("the_end", np.array([np.iinfo(np.int64).max], np.int64))
        asked = self._node("Slice", [hidden, "first", "the_end", "axis_1"], "asked")
        name = "model.embed_tokens.weight" if self.config.tie_word_embeddings else "lm_head.weight"
        shape = ["rows", "asked", self.config.vocab_size]
        self.outputs.insert(0, helper.make_tensor_value_info("logits", _FLOAT, shape))
        if not self.bits:
            weight = self.weights.add(name, self._array(name))
            self._node("FusedMatMul", [asked, weight], "logits", domain=_CONTRIB, transB=1)
        elif self.config.tie_word_embeddings:  # the embedding's own bytes, seen as blocks
            table = quantize(self._array(name), 8)
            self.weights.again(name + ".head", name, table.packed.shape)
            self._quantized_product(asked, name + ".head", name + ".scales", table, "logits")
        else:
            self._quantize(asked, self._array(name), 8, name, "logits")

    def _product(self, hidden: str, weight: np.ndarray, out: str, bias: np.ndarray | None = None) -> str:
        """*hidden* times *weight* (outputs, inputs), plus *bias*."""
        if self.bits:
            return self._quantize(hidden, weight, self.bits, out + ".weight", out, bias)
        self.weights.add(out + ".weight", np.ascontiguousarray(weight.T))
        product = self._node("MatMul", [hidden, out + ".weight"], out if bias is None else out + ".product")
        if bias is None:
            return product
        return self._node("Add", [product, self.weights.add(out + ".bias", bias)], out)

    def _quantize(
        self, hidden: str, weight: np.ndarray, bits: int, name: str, out: str, bias: np.ndarray | None = None
    ) -> str:
        found = quantize(weight, bits)
        self.weights.add(name, found.packed)
        self.weights.add(name + ".scales", found.scales)
        given = "" if bias is None else self.weights.add(out + ".bias", bias)
        return self._quantized_product(hidden, name, name + ".scales", found, out, given)

    def _quantized_product(self, hidden: str, name: str, scales: str, of: Any, out: str, bias: str = "") -> str:
        attributes = {"K": of.columns, "N": of.rows, "bits": of.bits, "block_size": of.block, "accuracy_level": 4}
        inputs = [hidden, name, scales, *(["", "", bias] if bias else [])]
        return self._node("MatMulNBits", inputs, out, domain=_CONTRIB, **attributes)

    def _array(self, name: str) -> np.ndarray:
        return self.tensors[name].float().numpy()

    def _node(self, kind: str, inputs: list[str], out: str, domain: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [out], domain=domain, **attributes))
        return out

    def save(self, folder: Path) -> None:
        """``decode.onnx`` and its weights into *folder*."""
        self.weights.save(folder)
        graph = helper.make_graph(self.nodes, "decode", self.inputs, self.outputs, self.weights.initializers)
        versions = [helper.make_opsetid("", 21), helper.make_opsetid(_CONTRIB, 1)]
        model = helper.make_model(graph, opset_imports=versions, ir_version=10, producer_name="ract")
        onnx.save_model(model, folder / "decode.onnx")
