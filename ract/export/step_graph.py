"""A decoder as a graph of fixed shapes, for LiteRT and ExecuTorch: some new tokens and a cache of so many slots go in,
logits and the keys and values of the new tokens come out.

Whoever runs it writes these into the cache, so that no cache is copied in the graph. Attention is over two pieces, what
is in the cache and what is new; keys are stored with their tokens last, as the matrix product reads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.cache_utils import Cache, DynamicLayer

from ract.model.live import ENSEMBLE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = "ract_two_pieces"
_NEVER = -1e9


class StepGraph(nn.Module):
    """*model*, or an ensemble of them, with a cache of *slots* tokens; batch of one.

    Call it with ``input_ids`` (1, new), ``seen`` (1,), the number of tokens in the cache, both of type *ids*, and for
    every block *i* (of all members in turn) ``k_i`` (heads, width, slots) and ``v_i`` (heads, slots, width). It returns
    ``logits`` (1, new, vocabulary) and ``k_i`` and ``v_i`` (heads, new, width) of the new tokens. :func:`step_graph`
    makes one.
    """

    def __init__(self, model: PreTrainedModel, slots: int, ids: torch.dtype) -> None:
        super().__init__()
        self.model, self.slots, self.ids = model, slots, ids
        self.shapes = [shape for one in _members(model) for shape in _shapes(one)]

    def sample(self, new: int) -> dict[str, Tensor]:
        """Inputs of the right shapes for *new* tokens."""
        given = {"input_ids": torch.zeros(1, new, dtype=self.ids), "seen": torch.zeros(1, dtype=self.ids)}
        for i, (heads, key_width, value_width) in enumerate(self.shapes):
            given[f"k_{i}"] = torch.zeros(heads, key_width, self.slots)
            given[f"v_{i}"] = torch.zeros(heads, self.slots, value_width)
        return given

    def forward(self, input_ids: Tensor, seen: Tensor, **caches: Tensor) -> dict[str, Tensor]:
        """Logits after each new token, and the new keys and values."""
        layers = [_Layer(caches[f"k_{i}"], caches[f"v_{i}"]) for i in range(len(self.shapes))]
        found = {"logits": self._logits(self.model, input_ids, seen, iter(layers))}
        for i, layer in enumerate(layers):
            found[f"k_{i}"], found[f"v_{i}"] = layer.keys[0], layer.values[0]
        return found

    def _logits(self, model: Any, input_ids: Tensor, seen: Tensor, layers: Iterator[_Layer]) -> Tensor:
        if model.config.model_type == ENSEMBLE:
            each = [self._logits(member, input_ids, seen, layers) for member in model.members]
            return model._combined([SimpleNamespace(logits=logits) for logits in each])
        new = input_ids.shape[1]
        return model(
            input_ids=input_ids,
            # A block may reach beyond the last position with tokens that nobody looks at.
            position_ids=(seen + torch.arange(new, dtype=self.ids)).clamp(max=self.slots - 1)[None],
            attention_mask=self._masks(model.config, seen, new),
            past_key_values=Cache(layers=[next(layers) for _ in range(model.config.num_hidden_layers)]),
            use_cache=True,
        ).logits

    def _masks(self, config: Any, seen: Tensor, new: int) -> Tensor | dict[str, Tensor]:
        """What is added to the scores, (1, 1, new, slots + new): one mask, or one for each type of layer where a model
        mixes types.
        """
        window = getattr(config, "sliding_window", None)
        if getattr(config, "layer_types", None):
            return {"full_attention": self._mask(seen, new, None), "sliding_attention": self._mask(seen, new, window)}
        return self._mask(seen, new, window)

    def _mask(self, seen: Tensor, new: int, window: int | None) -> Tensor:
        slots, rows = torch.arange(self.slots, dtype=self.ids), torch.arange(new, dtype=self.ids)[:, None]
        past = (slots < seen).expand(new, self.slots)
        fresh = rows >= rows.T
        if window is not None and window < self.slots:
            past = past & (seen + rows - slots < window)
            fresh = fresh & (rows - rows.T < window)
        return torch.where(torch.cat([past, fresh], -1), 0.0, _NEVER)[None, None]


class _Layer(DynamicLayer):
    """One block's cache: hands attention what is old and what is new side by side, and keeps the new."""

    def __init__(self, past_keys: Tensor, past_values: Tensor) -> None:
        super().__init__()
        self.past_keys, self.past_values = past_keys, past_values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Pairs for :func:`two_pieces`."""
        self.keys, self.values = key_states, value_states
        return (self.past_keys, key_states), (self.past_values, value_states)

    def get_seq_length(self) -> int:
        """Positions are given to the model, so that no one counts."""
        return 0


def two_pieces(
    module: nn.Module,
    query: Tensor,
    key: tuple[Tensor, Tensor],
    value: tuple[Tensor, Tensor],
    attention_mask: Tensor,
    scaling: float | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of *query* (1, heads, new, width) to the cache and to the new tokens; (1, new, heads, width)."""
    if kwargs.get("s_aux") is not None:
        raise NotImplementedError("attention sinks")
    (past_keys, new_keys), (past_values, new_values) = key, value
    _, heads, new, width = query.shape
    shared = past_keys.shape[0]  # heads of keys and values, each for a group of the query's
    scale = width**-0.5 if scaling is None else scaling
    grouped = (query * scale).reshape(shared, heads // shared * new, width)
    scores = torch.cat([grouped.bmm(past_keys), grouped.bmm(new_keys[0].transpose(1, 2))], -1)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    slots = past_keys.shape[-1]
    weights = (scores + torch.cat([attention_mask[0]] * (heads // shared), 1)).softmax(-1)
    mixed = weights[..., :slots].bmm(past_values) + weights[..., slots:].bmm(new_values[0])
    return mixed.reshape(1, heads, new, -1).transpose(1, 2), None


AttentionInterface.register(ATTENTION, two_pieces)


@contextmanager
def step_graph(model: PreTrainedModel, slots: int, ids: torch.dtype = torch.int32) -> Iterator[StepGraph]:
    """The graph of *model*, which has :func:`two_pieces` for its attention meanwhile, with a cache of *slots* tokens
    and token numbers of type *ids*.

    Raises ValueError for a model that has an attention of its own.
    """
    graph = StepGraph(model, slots, ids).eval()
    with ExitStack() as stack:
        for one in _members(model):
            if not one._supports_attention_backend:
                raise ValueError(f"the attention of a {one.config.model_type} cannot be replaced")
            stack.callback(one.set_attn_implementation, one.config._attn_implementation)
            one.set_attn_implementation(ATTENTION)
            if one._can_set_experts_implementation():  # sorting tokens by expert has no fixed shape
                stack.callback(one.set_experts_implementation, one.get_experts_implementation())
                one.set_experts_implementation("batched_mm")
        yield graph


def _members(model: Any) -> list[Any]:
    """*model*, or the members of an ensemble, and of those within it."""
    if model.config.model_type != ENSEMBLE:
        return [model]
    return [one for member in model.members for one in _members(member)]


@torch.inference_mode()
def _shapes(model: PreTrainedModel) -> list[tuple[int, int, int]]:
    """Heads of keys and values, width of a key, width of a value, for each block: read off a cache."""
    cache = model(input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=True).past_key_values
    return [(one.keys.shape[1], one.keys.shape[3], one.values.shape[3]) for one in cache.layers]
