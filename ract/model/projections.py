"""Attention and feed-forward projections of a block, recognised by shape and module structure.

A *projection* is a linear map with its on-disk names. ``nn.Linear`` stores ``(out, in)``; GPT-2's ``Conv1D`` stores
``(in, out)``, which is what *transposed* says. Fused maps are described, not split:

- *concatenated* query-key-value (GPT-2, Phi-3, ModernBERT): all of q, then all of k, then all of v;
- *interleaved* (GPT-NeoX, BLOOM): for each head its q, k and v rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True, slots=True)
class Projection:
    """One linear map. *weight* and *bias* are names on disk; *transposed* when stored as ``(in, out)``."""

    weight: str
    bias: str | None
    in_features: int
    out_features: int
    transposed: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors of this projection."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class Attention:
    """One attention of a block: either *q*, *k*, *v* or one fused *qkv*, and the output *o*.

    *layout* is ``separate``, ``concatenated`` or ``interleaved``. ``q`` has ``heads · head_dim`` rows, ``k`` and ``v``
    ``kv_heads · head_dim``; head ``h`` reads key-value head ``h // (heads // kv_heads)``. *cross* in decoders that look
    at an encoder.
    """

    path: str
    o: Projection
    heads: int
    kv_heads: int
    head_dim: int
    layout: str
    q: Projection | None = None
    k: Projection | None = None
    v: Projection | None = None
    qkv: Projection | None = None
    cross: bool = False


@dataclass(frozen=True, slots=True)
class FeedForward:
    """``down(act(up(x)))``, or with *gate* ``down(act(gate(x)) · up(x))``.

    *fused* when gate and up are the one tensor *up*: its rows are the first half, then the second (Phi-3, ModernBERT).
    *width* is the number of neurons, the input size of *down*.
    """

    path: str
    up: Projection
    down: Projection
    width: int
    gate: Projection | None = None
    fused: bool = False


def attentions(block: nn.Module, path: str, disk: Mapping[str, tuple[str, ...]], config: Any) -> tuple[Attention, ...]:
    """The attentions of *block*, which is at *path* in the model, in its order; unrecognised ones are left out."""
    found = []
    for inner in attention_paths(block):
        module = block.get_submodule(inner)
        linears = _linears(module, f"{path}.{inner}", disk)
        attention = _attention(module, f"{path}.{inner}", linears, config)
        if attention is not None:
            found.append(attention)
    return tuple(found)


def feed_forward(block: nn.Module, path: str, disk: Mapping[str, tuple[str, ...]], hidden: int) -> FeedForward | None:
    """The dense feed-forward of *block*, or None where it has none (mixture of experts) or it is not recognised."""
    inside = attention_paths(block)
    linears = {
        name: projection
        for name, projection in _linears(block, path, disk).items()
        if not any(name.startswith(f"{path}.{inner}.") for inner in inside)
    }
    downs = [p for p in linears.values() if p.out_features == hidden and _is_down(p, linears)]
    ups = [(name, p) for name, p in linears.items() if p not in downs and p.in_features == hidden]
    if len(downs) != 1 or not 1 <= len(ups) <= 2 or len(downs) + len(ups) != len(linears):
        return None
    down, (first_name, first) = downs[0], ups[0]
    where = first_name.rsplit(".", 1)[0]
    if len(ups) == 2:
        if not first.out_features == ups[1][1].out_features == down.in_features:
            return None
        second_is_gate = (
            "gate" in ups[1][0].rsplit(".", 1)[1]
        )  # else the first is: T5's wi_0 goes through the activation
        gate, up = (ups[1][1], first) if second_is_gate else (first, ups[1][1])
        return FeedForward(where, up=up, down=down, width=down.in_features, gate=gate)
    if first.out_features not in (down.in_features, 2 * down.in_features):
        return None
    return FeedForward(where, first, down, down.in_features, fused=first.out_features == 2 * down.in_features)


def attention_paths(block: nn.Module) -> list[str]:
    """Where in *block* its attentions are: the outermost submodules whose class is one."""
    found: list[str] = []
    for name, module in block.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if name and not inside and "Attention" in type(module).__name__ and any(True for _ in module.parameters()):
            found.append(name)
    return found


def _linears(module: nn.Module, path: str, disk: Mapping[str, tuple[str, ...]]) -> dict[str, Projection]:
    """Every linear map below *module* that is one tensor on disk, by its path in the model."""
    found = {}
    for name, child in module.named_modules():
        inner = f"{path}.{name}"
        if isinstance(child, (nn.Linear, Conv1D)) and len(disk.get(f"{inner}.weight", ())) == 1:
            rows, columns = child.weight.shape
            transposed = isinstance(child, Conv1D)
            out_features, in_features = (columns, rows) if transposed else (rows, columns)
            bias = disk[f"{inner}.bias"][0] if child.bias is not None and disk.get(f"{inner}.bias") else None
            found[inner] = Projection(disk[f"{inner}.weight"][0], bias, in_features, out_features, transposed)
    return found


def _attention(module: nn.Module, path: str, linears: Mapping[str, Projection], config: Any) -> Attention | None:
    head_dim = _head_dim(module, config)
    cross = "cross" in type(module).__name__.lower() or any(word in path.lower() for word in ("cross", "encoder_attn"))
    by_name = {name.rsplit(".", 1)[1]: projection for name, projection in linears.items()}
    if len(by_name) == 2:
        (_, o), (name, qkv) = sorted(by_name.items(), key=lambda item: item[1].out_features)
        kv_rows, layout = (qkv.out_features - o.in_features) // 2, "concatenated"
        if name == "query_key_value":
            layout = "interleaved"
        found = Attention(
            path, o, o.in_features // head_dim, kv_rows // head_dim, head_dim, layout, qkv=qkv, cross=cross
        )
        rows = (found.heads + 2 * found.kv_heads) * head_dim
        return found if rows == qkv.out_features and _heads_fit(found) else None
    roles = [[p for name, p in by_name.items() if name[0] == letter] for letter in "qkv"]
    others = [p for name, p in by_name.items() if name[0] not in "qkv"]
    if any(len(role) != 1 for role in (*roles, others)):
        return None
    (q,), (k,), (v,) = roles
    heads, kv_heads = q.out_features // head_dim, k.out_features // head_dim
    found = Attention(path, others[0], heads, kv_heads, head_dim, "separate", q=q, k=k, v=v, cross=cross)
    return found if k.out_features == v.out_features == kv_heads * head_dim and _heads_fit(found) else None


def _heads_fit(found: Attention) -> bool:
    """Whether the output reads all heads and the heads divide evenly among the key-value heads."""
    whole = found.o.in_features == found.heads * found.head_dim
    return whole and found.kv_heads > 0 and found.heads % found.kv_heads == 0


def _head_dim(module: nn.Module, config: Any) -> int:
    """Size of a head as the attention itself says it, else as the config does."""
    for attribute in ("head_dim", "attention_head_size", "head_size", "key_value_proj_dim"):
        for inner in module.modules():
            value = getattr(inner, attribute, None)
            if isinstance(value, int) and value > 0:
                return value
    value = getattr(config, "head_dim", None)
    return value if isinstance(value, int) else config.hidden_size // config.num_attention_heads


def _is_down(projection: Projection, linears: Mapping[str, Projection]) -> bool:
    """Whether *projection* reads what the others write; where all are square, the one registered last does."""
    others = [p for p in linears.values() if p is not projection]
    if projection.in_features != projection.out_features:
        return all(p.in_features == projection.out_features for p in others)
    return bool(others) and projection is list(linears.values())[-1]
