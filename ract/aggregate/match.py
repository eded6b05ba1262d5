"""Which tensors of several checkpoints of one architecture belong together, and the α of each."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ract.checkpoint.directory import ModelDirectory
from ract.checkpoint.tensors import DTYPES, FLOATS, TensorInfo, TensorReader
from ract.errors import BadInput, nearest

Weights = Sequence[float] | Mapping[str, Sequence[float]]

# Differences in these keys do not change what the weights mean: provenance, training settings, labels' names, tokens.
_HARMLESS = re.compile(
    r"^_|dropout|pdrop|drop_path|layerdrop|initializer|token_id|dtype|version|use_cache|label|architectures|task|problem"
    r"|summary|path|return_dict|output_|torchscript|checkpointing|transformers|num_beams|max_length|pruned|auto_map"
)


@dataclass(frozen=True, slots=True)
class Match:
    """One tensor that all children have; ``names[i]`` is what child *i* calls it (a tied tensor has several names)."""

    name: str
    names: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str

    @property
    def is_float(self) -> bool:
        """Whether it can be averaged."""
        return self.dtype in FLOATS


def match(children: Sequence[ModelDirectory], dtype: str | None = None) -> list[Match]:
    """The tensors of *children*, in the order of the first one's files; tied ones once.

    *dtype* is what floating-point tensors are to be written in: a safetensors or torch spelling; by default the widest
    of the children's. Raises BadInput: configs that disagree on more than provenance, tensors that one child lacks or
    has in another shape.
    """
    same_architecture(children)
    wanted = _spelling(dtype) if dtype else None
    readers = [TensorReader.of(child) for child in children]
    places = _places(children, readers)
    for child, own in zip(children[1:], places[1:], strict=True):
        odd = sorted(own.keys() ^ places[0].keys())
        if odd:
            having, lacking = (children[0], child) if odd[0] in places[0] else (child, children[0])
            raise BadInput(
                f"{having.path} has the tensor {odd[0]}, which {lacking.path} lacks",
                "Give models of one architecture, saved from the same class",
            )
    matches = [
        _matched(name, [reader.infos[own[name]] for reader, own in zip(readers, places, strict=True)], children, wanted)
        for name in places[0]
    ]
    for reader in readers:
        reader.close()
    return matches


def _matched(name: str, infos: Sequence[TensorInfo], children: Sequence[ModelDirectory], wanted: str | None) -> Match:
    for child, info in zip(children, infos, strict=True):
        if info.shape != infos[0].shape:
            raise BadInput(
                f"tensor {name} has the shape {infos[0].shape} in {children[0].path} and {info.shape} in {child.path}",
                "Give models of one size; models of different sizes can be put in an ensemble",
            )
    kinds = list(dict.fromkeys(info.dtype for info in infos))
    dtype = kinds[0]
    if all(kind in FLOATS for kind in kinds):
        dtype = wanted or _widest(kinds)
    return Match(name, tuple(info.name for info in infos), infos[0].shape, dtype)


def _widest(kinds: Sequence[str]) -> str:
    widest = DTYPES[kinds[0]]
    for kind in kinds[1:]:
        widest = torch.promote_types(widest, DTYPES[kind])
    return next(name for name, dtype in DTYPES.items() if dtype == widest)


def _spelling(dtype: str) -> str:
    names = {name: name for name in FLOATS} | {str(DTYPES[name]).removeprefix("torch."): name for name in FLOATS}
    names |= {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}
    if dtype not in names:
        raise BadInput(f'weights cannot be written as "{dtype}"', nearest(dtype, names))
    return names[dtype]


def _places(children: Sequence[ModelDirectory], readers: Sequence[TensorReader]) -> list[dict[str, str]]:
    """For every child ``{name to write: name in its files}``.

    The live model is asked (which takes seconds to import) only where it can matter: where the names in the files
    differ, or where a model that may tie its embeddings stores more than one of their size.
    """
    config = children[0].config
    large = [
        [i for i in reader.infos.values() if len(i.shape) == 2 and i.shape[0] == config.get("vocab_size")]
        for reader in readers
    ]
    may_tie = config.get("tie_word_embeddings") is not False and any(len(found) > 1 for found in large)
    if not may_tie and all(reader.infos.keys() == readers[0].infos.keys() for reader in readers):
        return [{name: name for name in reader.infos} for reader in readers]
    from ract.model.anatomy import anatomy

    known = anatomy(children[0].path)
    places = [known.locate(reader.infos) for reader in readers]
    for alias, source in known.aliases.items():
        if not any(alias in own for own in places):
            continue
        if all(alias not in own or _equal(r, own[alias], own[source]) for r, own in zip(readers, places, strict=True)):
            for own in places:  # the same tensor twice: tied when loaded, so written once
                own.pop(alias, None)
        else:
            for own in places:
                own.setdefault(alias, own[source])
    return places


def _equal(reader: TensorReader, a: str, b: str) -> bool:
    return torch.equal(reader.read(a), reader.read(b))


def same_architecture(children: Sequence[ModelDirectory]) -> None:
    """BadInput if the configs disagree on a key that changes what the weights mean: heads, activation, rotary base …"""
    first = children[0]
    for child in children[1:]:
        for key in first.config.keys() & child.config.keys():
            a, b = first.config[key], child.config[key]
            if a != b and not _HARMLESS.search(key):
                raise BadInput(
                    f"config.json says {key} = {_short(a)} in {first.path} and {_short(b)} in {child.path}",
                    "Models that compute differently cannot be averaged; use equal architectures, or an ensemble",
                )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def alpha_for(weights: Weights, children: Sequence[ModelDirectory]) -> Callable[[str], Sequence[float]]:
    """Tensor name → α: the same list everywhere, or by tensor name or by its group in the architecture.

    Raises BadInput for a list of another length than *children*, or a tensor in no given group.
    """
    lists = list(weights.values()) if isinstance(weights, Mapping) else [weights]
    if not lists or any(len(one) != len(children) for one in lists):
        raise BadInput(f"{len(lists[0]) if lists else 0} weights were given for {len(children)} models")
    if not isinstance(weights, Mapping):
        return lambda name: weights
    group: Callable[[str], str] | None = None

    def lookup(name: str) -> Sequence[float]:
        nonlocal group
        if name in weights:
            return weights[name]
        if group is None:
            from ract.model.anatomy import anatomy

            group = anatomy(children[0].path).group
        if group(name) not in weights:
            raise BadInput(f"no weights are given for the group {group(name)} of tensor {name}", nearest(name, weights))
        return weights[group(name)]

    return lookup


def output_config(config: Mapping[str, Any], matches: Sequence[Match]) -> dict[str, Any]:
    """*config* with its dtype set to the one that most of the written numbers have."""
    counts: dict[str, int] = {}
    for one in matches:
        if one.is_float:
            counts[one.dtype] = counts.get(one.dtype, 0) + torch.Size(one.shape).numel()
    if not counts:
        return dict(config)
    dtype = str(DTYPES[max(counts, key=counts.__getitem__)]).removeprefix("torch.")
    return {key: dtype if key in ("dtype", "torch_dtype") else value for key, value in config.items()}
