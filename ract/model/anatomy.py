"""Where an architecture keeps its parts: read from the live model, for any architecture ``transformers`` can build.

The model is built from its config on the meta device (:mod:`ract.model.live`). Stacks of blocks are module lists,
counted by the config field they grow with (:mod:`ract.model.stacks`). Embeddings, norms and heads are known by class
and by ``get_input_embeddings`` and ``get_output_embeddings``; tied tensors by the declared ties and by shared storage.
All names are those on disk.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ract.errors import BadInput
from ract.model.live import build, full_config, read_config, saved_names, saved_shapes, tied_names
from ract.model.projections import attention_paths
from ract.model.stacks import Stack, find_stacks, later_suffixes

_MISMATCH = "The config and the weights contradict each other: copy both again from their source"


@dataclass(frozen=True, slots=True)
class Part:
    """One saved tensor: its *role* in {embedding, position, attention, feed_forward, norm, head, other}.

    *stack* and *block* say whose it is, or are None outside the blocks; *suffix* is the name inside the block. A tensor
    that the first block holds for the whole stack (T5's relative attention bias) has a *stack* and no *block*.
    """

    role: str
    shape: tuple[int, ...]
    stack: str | None = None
    block: int | None = None
    suffix: str = ""


@dataclass(frozen=True)
class Anatomy:
    """What a config stands for. *parts* has every tensor ``save_pretrained`` writes.

    *config* has every field, defaults filled in. *tied* groups names that are one tensor, the saved name first, and
    *aliases* maps the other names to it. *buffers* are patterns of names that files of other versions may hold and
    loading ignores; *base_prefix* is what checkpoints of the bare model leave out (``transformer``).
    """

    model_type: str
    model_class: str
    config: dict[str, Any]
    stacks: tuple[Stack, ...]
    parts: dict[str, Part]
    tied: tuple[tuple[str, ...], ...]
    buffers: tuple[str, ...]
    base_prefix: str
    embeddings: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    aliases: dict[str, str] = field(default_factory=dict)

    def stack(self, name: str) -> Stack:
        """The stack called *name*; BadInput when there is none."""
        for stack in self.stacks:
            if stack.name == name:
                return stack
        known = ", ".join(s.name for s in self.stacks) or "none"
        raise BadInput(f'{self.model_class} has no stack "{name}"', f"Known: {known}")

    def canonical(self, name: str) -> str | None:
        """The saved name that *name* in some file stands for, or None: files may lack or add the base model's prefix,
        and may hold the other name of a tied tensor."""
        prefix = f"{self.base_prefix}."
        name = re.sub(r"\.beta$", ".bias", re.sub(r"\.gamma$", ".weight", name))  # TensorFlow's names for norms
        for candidate in (name, prefix + name, name.removeprefix(prefix)):
            if candidate in self.parts:
                return candidate
            if candidate in self.aliases:
                return self.aliases[candidate]
        return None

    def is_ignored(self, name: str) -> bool:
        """Whether loading ignores *name*: a buffer that older files still carry (masks, position ids, frequencies)."""
        return any(re.search(pattern, name) for pattern in self.buffers)

    def group(self, name: str) -> str:
        """The group for α per layer: ``embeddings``, ``<stack>.<block>`` or ``head``."""
        part = self.parts.get(self.canonical(name) or "")
        if part is None:
            return "embeddings" if _is_early(name) else "head"
        if part.block is not None:
            return f"{part.stack}.{part.block}"
        return "embeddings" if part.role in ("embedding", "position") or _is_early(name) else "head"

    @property
    def groups(self) -> tuple[str, ...]:
        """Every group, from the embeddings to the head."""
        return ("embeddings", *(f"{s.name}.{k}" for s in self.stacks for k in range(s.depth)), "head")

    def locate(self, names: Iterable[str]) -> dict[str, str]:
        """``{saved name: name in the file}`` for the tensor *names* of a checkpoint.

        A tied alias that lies in the file beside its source (Flan-T5's own head) is kept under its own name; tensors
        outside the blocks that the architecture does not have (a pooler beside a masked-LM head) are left out, as
        loading does. Raises BadInput: a tensor is missing, or a block's tensor is there that the config does not have.
        """
        names = list(names)
        found: dict[str, str] = {}
        for name in names:
            canonical = self.canonical(name)
            if canonical is None and not self.is_ignored(name) and any(f"{s.prefix}." in name for s in self.stacks):
                raise BadInput(f"the tensor {name} has no place in the {self.model_class} of the config", _MISMATCH)
            if canonical is not None and name not in self.aliases:
                found[canonical] = name
        for name in names:
            if name in self.aliases:
                source = self.aliases[name]
                found[source if source not in found else name] = name
        missing = sorted(set(self.parts) - set(found))
        if missing:
            raise BadInput(f"the tensor {missing[0]} of {self.model_class} is missing", _MISMATCH)
        return found


def anatomy(source: Mapping[str, Any] | str | os.PathLike[str]) -> Anatomy:
    """The anatomy of a config: a dictionary, a ``config.json`` or a model directory.

    Raises BadInput: the config is unreadable, names no known architecture, or makes no model.
    """
    return _anatomy(json.dumps(read_config(source)))


@functools.lru_cache(maxsize=64)
def _anatomy(text: str) -> Anatomy:
    config = json.loads(text)
    model = build(config)
    filled = full_config(config)
    disk, shapes = saved_names(model), saved_shapes(model)
    ties = tied_names(model)
    stacks = find_stacks(model, filled, disk)
    embeddings = _names(model, model.get_input_embeddings(), disk, ties)
    head = _names(model, model.get_output_embeddings(), disk, ties)
    parts = _parts(model, filled, stacks, disk)
    parts = {name: replace(part, shape=shapes[name]) for name, part in parts.items()}
    for role, names in (("head", head), ("embedding", embeddings)):  # a tied head is the embedding
        parts.update({name: replace(parts[name], role=role) for name in names})
    groups: dict[str, list[str]] = {}
    for alias, source in ties.items():
        groups.setdefault(disk[source][0], []).append(alias)
    return Anatomy(
        model_type=str(config.get("model_type")),
        model_class=type(model).__name__,
        config=filled,
        stacks=stacks,
        parts=parts,
        tied=tuple((source, *aliases) for source, aliases in groups.items()),
        buffers=_ignored(model),
        base_prefix=model.base_model_prefix or "",
        embeddings=embeddings,
        head=head,
        aliases={alias: disk[source][0] for alias, source in ties.items()},
    )


def _parts(
    model: PreTrainedModel, config: dict[str, Any], stacks: tuple[Stack, ...], disk: dict[str, tuple[str, ...]]
) -> dict[str, Part]:
    owners = dict(model.named_modules())
    later = {s.prefix: later_suffixes(model, s, config) for s in stacks}
    parts: dict[str, Part] = {}
    for name, saved in disk.items():
        owner = owners[name.rpartition(".")[0]]
        stack, block, suffix = _place(name, stacks)
        inside = attention_paths(owners[f"{stack.prefix}.{block}"]) if stack else None
        role = _role(owner, name, suffix, inside)
        if stack is not None and isinstance(owner, nn.Embedding) and suffix not in later[stack.prefix]:
            role, block = "position", None  # held by the first block, used by all
        for one in saved:
            inner = one.partition(f".{block}.")[2] if block is not None else ""
            parts[one] = Part(role, (), stack.name if stack else None, block, inner)
    return parts


def _place(name: str, stacks: tuple[Stack, ...]) -> tuple[Stack | None, int | None, str]:
    for stack in stacks:
        if name.startswith(f"{stack.prefix}."):
            index, _, suffix = name.removeprefix(f"{stack.prefix}.").partition(".")
            return stack, int(index), suffix
    return None, None, ""


def _role(owner: nn.Module, name: str, suffix: str, attentions: list[str] | None) -> str:
    """The role of a tensor held by *owner*; *attentions* are those of its block, None outside the blocks."""
    if "Norm" in type(owner).__name__:
        return "norm"
    if attentions is not None:
        return "attention" if any(suffix.startswith(f"{path}.") for path in attentions) else "feed_forward"
    if isinstance(owner, nn.Embedding):
        return "position" if re.search(r"pos|wpe", name) else "embedding"
    if isinstance(getattr(owner, name.rpartition(".")[2], None), nn.Parameter):
        return "embedding" if _is_early(name) else "head"
    return "other"


def _is_early(name: str) -> bool:
    """Whether a tensor outside the blocks comes before them: models name what they do to embeddings after them."""
    return re.search(r"emb|wte|wpe|project_in", name.lower()) is not None and "embed_out" not in name


def _names(
    model: nn.Module, module: nn.Module | None, disk: dict[str, tuple[str, ...]], ties: dict[str, str]
) -> tuple[str, ...]:
    """Saved names of the parameters of *module*."""
    paths = [path for path, found in model.named_modules() if found is module] if module is not None else []
    names = [f"{paths[0]}.{name}" for name, _ in module.named_parameters()] if module is not None and paths else []
    return tuple(dict.fromkeys(saved for name in names for saved in disk.get(ties.get(name, name), ())))


def _ignored(model: PreTrainedModel) -> tuple[str, ...]:
    declared = [str(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    saved = set(model.state_dict())
    transient = [f"{re.escape(name)}$" for name, _ in model.named_buffers() if name not in saved]
    # Masks, position ids and rotary frequencies were persistent in older versions; loading drops them.
    legacy = [
        r"\.attn\.(masked_)?bias$",
        r"attention\.(masked_)?bias$",
        r"rotary_emb\.inv_freq$",
        r"(^|\.)position_ids$",
    ]
    return (*declared, *transient, *legacy)
