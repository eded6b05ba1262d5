"""Stacks: the module lists of repeated blocks in a live model, and the config fields that count them.

Which field counts a stack is found by experiment: the model is built again on the meta device with the field one
larger, and the stack that grew is the one it counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import MODEL_FOR_MASKED_LM_MAPPING, PreTrainedModel

from ract.errors import BadInput
from ract.model.live import build
from ract.model.projections import Attention, FeedForward, attentions, feed_forward


@dataclass(frozen=True, slots=True)
class Block:
    """The projections of one block; *feed_forward* is None for a mixture of experts."""

    attentions: tuple[Attention, ...]
    feed_forward: FeedForward | None


@dataclass(frozen=True, slots=True)
class Stack:
    """A list of *depth* blocks at *prefix* (``model.layers``).

    *depth_fields* are the config keys that count it; *layer_fields* the config lists with an entry per block
    (``layer_types``); *run_fields* the keys that count how often shared blocks run (ALBERT's ``num_hidden_layers``);
    *bound_fields* other counts of layers, which must not fall below the depth (``max_window_layers``).
    """

    name: str
    prefix: str
    depth: int
    depth_fields: tuple[str, ...]
    layer_fields: tuple[str, ...] = ()
    run_fields: tuple[str, ...] = ()
    bound_fields: tuple[str, ...] = ()
    blocks: tuple[Block, ...] = ()


def find_stacks(model: PreTrainedModel, config: dict[str, Any], disk: dict[str, tuple[str, ...]]) -> tuple[Stack, ...]:
    """The stacks of *model*, in its order; *config* is the full one, *disk* the saved names of its tensors."""
    return tuple(_stack(model, prefix, config, disk) for prefix in stack_prefixes(model))


def stack_prefixes(model: nn.Module) -> list[str]:
    """Paths of the outermost module lists that hold blocks of one class with parameters."""
    found: list[str] = []
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) and not any(path.startswith(f"{p}.") for p in found):
            one_class = len({type(block) for block in module}) == 1
            whole_models = isinstance(
                module[0], PreTrainedModel
            )  # an ensemble's members, which have stacks of their own
            if one_class and not whole_models and any(True for _ in module[0].parameters()):
                found.append(path)
    return found


def _stack(model: PreTrainedModel, prefix: str, config: dict[str, Any], disk: dict[str, tuple[str, ...]]) -> Stack:
    blocks = model.get_submodule(prefix)
    assert isinstance(blocks, nn.ModuleList)
    depth = len(blocks)
    lists = tuple(key for key, value in config.items() if key != "architectures" and _is_layer_list(value, depth))
    candidates = [key for key, value in config.items() if type(value) is int and value == depth]
    if prefix.startswith("members."):
        candidates = []  # an ensemble's members are counted in their own configs
    fields = tuple(key for key in candidates if _grown_depth(config, key, lists, prefix) == depth + 1)
    runs, bounds = _other_counts(model, depth, fields, config)
    described = tuple(
        Block(
            attentions(block, f"{prefix}.{index}", disk, model.config),
            feed_forward(block, f"{prefix}.{index}", disk, model.config.hidden_size),
        )
        for index, block in enumerate(blocks)
    )
    return Stack(_stack_name(model, prefix), prefix, depth, fields, lists if fields else (), runs, bounds, described)


def _is_layer_list(value: Any, depth: int) -> bool:
    """Whether *value* names a kind for each of *depth* blocks, as ``layer_types`` does."""
    return isinstance(value, list) and len(value) == depth and all(isinstance(kind, str) for kind in value)


def grown(config: dict[str, Any], key: str, lists: tuple[str, ...]) -> dict[str, Any]:
    """*config* with its field *key* one larger and the last entry of each of the *lists* repeated."""
    return {**config, key: config[key] + 1, **{name: [*config[name], config[name][-1]] for name in lists}}


def _grown_depth(config: dict[str, Any], key: str, lists: tuple[str, ...], prefix: str) -> int | None:
    """Length of the stack at *prefix* when the config field *key* is one larger, or None when that makes no model."""
    try:
        blocks = build(grown(config, key, lists)).get_submodule(prefix)
    except (BadInput, AttributeError):
        return None
    return len(blocks) if isinstance(blocks, nn.ModuleList) else None


def _other_counts(
    model: PreTrainedModel, depth: int, fields: tuple[str, ...], config: dict[str, Any]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """``(run_fields, bound_fields)``: counts of layers in the config that are not this stack's length."""
    standard = type(model.config).attribute_map.get("num_hidden_layers", "num_hidden_layers")
    counts = [k for k, v in config.items() if type(v) is int and "layers" in k and k not in fields]
    shared = standard in counts and config[standard] % depth == 0 and len(stack_prefixes(model)) == 1
    runs = (standard,) if shared and fields else ()
    bounds = tuple(k for k in counts if k not in runs and k != standard and config[k] >= depth and "max" in k)
    return runs, bounds


def _stack_name(model: PreTrainedModel, prefix: str) -> str:
    if prefix.startswith("members."):
        _, index, inner = prefix.split(".", 2)
        member = model.get_submodule(f"members.{index}")
        assert isinstance(member, PreTrainedModel)
        return f"members.{index}.{_stack_name(member, inner)}"
    for side in ("decoder", "encoder"):
        if side in prefix:
            return side
    return "encoder" if type(model.config) in MODEL_FOR_MASKED_LM_MAPPING else "decoder"


def later_suffixes(model: nn.Module, stack: Stack, config: dict[str, Any]) -> set[str]:
    """Tensor names inside a block that is not the first; a stack of one block is grown by one to see such a block."""
    if stack.depth == 1 and stack.depth_fields:
        model = build(grown(config, stack.depth_fields[0], stack.layer_fields))
    return set(list(model.get_submodule(stack.prefix).children())[-1].state_dict())
