"""Upcycle: the children's feed-forwards become the experts of a standard mixture of experts; the rest is blended by α.

Sparse upcycling (Komatsuzaki et al. 2022, arXiv:2212.05055) with experts from different branches as in Branch-Train-MiX
(Sukhbaatar et al. 2024, arXiv:2403.07816). The parent is an architecture of ``transformers``: Llama and Mistral become
Mixtral, Qwen2 and Qwen3 their own mixtures. Whether all else fits is asked of the live models, not assumed.

The router's row *i* scores expert *i*:

- ``uniform``: zeros. Equal children then give the child's logits, since the chosen experts' weights sum to one. Ties
  are broken alike for every token, so by default every expert is chosen.
- ``random``: normal with the config's ``initializer_range``, from a seed.
- ``hidden``: the mean of what reaches child *i*'s feed-forward on prompts that are its own, of length one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import CONFIG_MAPPING

from ract.aggregate.loaded import load
from ract.aggregate.match import Weights
from ract.aggregate.members import Member, blend_weights, blended, copied, open_members, same_kind, widest, with_dtype
from ract.aggregate.merge import recorded
from ract.aggregate.recipe import Recipe, TensorRecipe
from ract.checkpoint.directory import ModelDirectory
from ract.errors import BadInput
from ract.model.anatomy import Anatomy, Part, anatomy
from ract.model.live import build, traits
from ract.model.projections import FeedForward

ROUTERS = ("uniform", "random", "hidden")
# Model type of the child → class and model type of the mixture, and what else its config must say.
_MIXTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("MixtralForCausalLM", "mixtral", {}),
    "mistral": ("MixtralForCausalLM", "mixtral", {}),
    "qwen3": ("Qwen3MoeForCausalLM", "qwen3_moe", {"norm_topk_prob": True}),
    # Its shared expert has no counterpart in the children: one neuron of zeros, which adds nothing.
    "qwen2": ("Qwen2MoeForCausalLM", "qwen2_moe", {"norm_topk_prob": True, "shared_expert_intermediate_size": 1}),
}
_PROJECTIONS = {"w1": "gate", "gate_proj": "gate", "w3": "up", "up_proj": "up", "w2": "down", "down_proj": "down"}


def recipe(
    children: Sequence[ModelDirectory],
    weights: Weights,
    *,
    router: str = "uniform",
    prompts: Sequence[Sequence[str]] | None = None,
    copies: int = 1,
    top_k: int | None = None,
    seed: int = 0,
) -> Recipe:
    """The mixture of *children*: expert ``c·n + i`` of every block is child *i*'s feed-forward, for ``c`` < *copies*.

    *router* is one of uniform, random, hidden; *prompts* are the texts of each child for hidden; *top_k* experts are
    chosen for each token, by default all for uniform and two otherwise.

    Raises BadInput: an architecture without an exact mixture in ``transformers``, children that compute differently,
    an unknown router, or a *top_k* above the number of experts.
    """
    members = open_members(children)
    same_kind(members)
    experts = len(members) * copies
    top_k = top_k or (experts if router == "uniform" else min(2, experts))
    _check_options(router, prompts, experts, top_k, len(members))
    config = with_dtype(_mixture_config(members[0], experts, top_k), members)
    parent = anatomy(config)
    _check_fit(members[0], parent)
    rows = _router_rows(router, members, config, prompts, seed)
    builder = _Builder(members, weights, rows)
    tensors = tuple(builder.tensor(name, part) for name, part in parent.parts.items())
    notes = {"router": router, "experts": experts, "top_k": top_k, "seed": seed if router == "random" else None}
    return Recipe("upcycle", config, tensors, recorded(weights), notes)


def _check_options(router: str, prompts: Sequence[Sequence[str]] | None, experts: int, top_k: int, count: int) -> None:
    if router not in ROUTERS:
        raise BadInput(f'"{router}" is no router', f"Known: {', '.join(ROUTERS)}")
    if experts < 1 or not 1 <= top_k <= experts:
        raise BadInput(
            f"{top_k} of {experts} experts cannot be chosen", "Give top_k between 1 and the number of experts"
        )
    if router == "hidden" and (prompts is None or len(prompts) != count or not all(prompts)):
        raise BadInput("the hidden router needs prompts for every model", f"Give {count} lists of texts")


def _mixture_config(child: Member, experts: int, top_k: int) -> dict[str, Any]:
    """The mixture's config: every field it shares with the child's, and the experts."""
    known = child.anatomy
    if known.model_type not in _MIXTURES or not known.model_class.endswith("ForCausalLM"):
        raise BadInput(
            f"{child.directory.path} cannot be upcycled: {_hindrance(known)}",
            f"Causal models of {', '.join(sorted(_MIXTURES))} can; use --method ensemble for others",
        )
    model_class, model_type, fixed = _MIXTURES[known.model_type]
    empty = CONFIG_MAPPING[model_type]()
    shared = {key: value for key, value in known.config.items() if key in empty.to_dict()}
    shared.pop("transformers_version", None)
    kinds = set(known.config.get("layer_types") or ())
    if len(kinds) > 1 and "layer_types" not in shared:
        raise BadInput(
            f"{model_class} has one kind of attention, {child.directory.path} has {', '.join(sorted(kinds))}"
        )
    if "layer_types" not in shared and "use_sliding_window" in shared:
        shared["use_sliding_window"] = kinds == {"sliding_attention"}
    if "head_dim" in known.config:
        shared["head_dim"] = known.config["head_dim"]
    count = "num_local_experts" if "num_local_experts" in empty.to_dict() else "num_experts"
    if "moe_intermediate_size" in empty.to_dict():
        shared["moe_intermediate_size"] = known.config["intermediate_size"]
    own = {"architectures": [model_class], "model_type": model_type, count: experts, "num_experts_per_tok": top_k}
    return {**shared, **fixed, **own}


def _hindrance(known: Anatomy) -> str:
    """Why ``transformers`` has no mixture of experts that computes what this architecture does."""
    forwards = [block.feed_forward for stack in known.stacks for block in stack.blocks]
    if not known.model_class.endswith(("ForCausalLM", "LMHeadModel")):
        return "the mixtures of experts of transformers that fit are causal language models, and it is none"
    if None in forwards:
        return "its blocks have no dense feed-forward (it may be a mixture of experts already)"
    if not any(forward.gate or forward.fused for forward in forwards if forward):
        return "its feed-forward has no gate, which experts have"
    return f"no mixture of experts of transformers is known to have the norms and attention of {known.model_type}"


def _check_fit(child: Member, parent: Anatomy) -> None:
    """BadInput unless, feed-forwards aside, child and parent have the same tensors and compute alike."""
    ours = {name: part.shape for name, part in child.anatomy.parts.items() if part.role != "feed_forward"}
    theirs = {name: part.shape for name, part in parent.parts.items() if part.role != "feed_forward"}
    odd = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if odd:
        raise BadInput(
            f"{odd[0]} of {child.directory.path} has no counterpart in {parent.model_class}", "Use an ensemble"
        )
    stack = child.anatomy.stacks[0]
    before, after = (build(known.config).get_submodule(stack.prefix) for known in (child.anatomy, parent))
    for index, block in enumerate(stack.blocks):
        forward = block.feed_forward
        if forward is None or forward.gate is None or any(p.bias for p in (forward.up, forward.gate, forward.down)):
            raise BadInput(f"{child.directory.path} has no gated feed-forward without biases in block {index}")
        old, new = traits(before.get_submodule(str(index))), traits(after.get_submodule(str(index)))
        for key in sorted(old.keys() & new.keys()):
            if not key.endswith(":class") and old[key] != new[key]:
                what = key.replace(":", " ")
                raise BadInput(
                    f"{what} is {old[key]} in {child.directory.path} and would be {new[key]} in {parent.model_class}",
                    "Use an ensemble",
                )


def _router_rows(
    router: str, members: Sequence[Member], config: dict[str, Any], prompts: Sequence[Sequence[str]] | None, seed: int
) -> Callable[[int], torch.Tensor]:
    """Block → the router's weight, (experts, hidden)."""
    stack = members[0].anatomy.stacks[0]
    shape = (config.get("num_local_experts") or config["num_experts"], config["hidden_size"])
    if router == "uniform":
        return lambda block: torch.zeros(shape)
    if router == "random":
        spread = members[0].anatomy.config.get("initializer_range", 0.02)
        generator = torch.Generator().manual_seed(seed)
        drawn = spread * torch.randn(stack.depth, *shape, generator=generator)
        return lambda block: drawn[block]
    assert prompts is not None
    states = torch.stack([_mean_inputs(member, texts) for member, texts in zip(members, prompts, strict=True)], dim=1)
    rows = states / states.norm(dim=-1, keepdim=True)
    return lambda block: rows[block].repeat(shape[0] // len(members), 1)


def _mean_inputs(member: Member, texts: Sequence[str]) -> torch.Tensor:
    """(blocks, hidden): the mean over all tokens of *texts* of what goes into each feed-forward of *member*."""
    from transformers import AutoTokenizer

    if not member.directory.has_tokenizer:
        raise BadInput(f"{member.directory.path} has no tokenizer.json, which the prompts need", "Use another router")
    tokenizer = AutoTokenizer.from_pretrained(member.directory.path, local_files_only=True)
    model = load(member.directory.path)
    stack = member.anatomy.stacks[0]
    sums, count = torch.zeros(stack.depth, model.config.hidden_size), 0
    for index, block in enumerate(stack.blocks):
        assert block.feed_forward is not None
        module = model.get_submodule(block.feed_forward.path)
        module.register_forward_pre_hook(lambda _, args, index=index: sums[index].add_(args[0].float().sum((0, 1))))
    limit = getattr(model.config, "max_position_embeddings", None)
    for text in texts:
        ids = tokenizer(text, return_tensors="pt", truncation=limit is not None, max_length=limit)["input_ids"]
        if ids.shape[1]:
            count += ids.shape[1]
            with torch.no_grad():
                model(input_ids=ids)
    if not count:
        raise BadInput(f"the prompts for {member.directory.path} are empty", "Give texts with words in them")
    return sums / count


class _Builder:
    def __init__(self, members: Sequence[Member], weights: Weights, rows: Callable[[int], torch.Tensor]) -> None:
        self.members, self.rows = members, rows
        self.alpha = blend_weights(weights, members)

    def tensor(self, name: str, part: Part) -> TensorRecipe:
        """The parent's tensor *name*: an expert's, the router's, the idle shared expert's, or blended by α."""
        if part.role != "feed_forward" or part.block is None:
            return blended(name, self.members, self.alpha(name), part.shape)
        expert = re.search(r"(?<!shared_)experts\.(\d+)\.(\w+)\.weight$", part.suffix)
        if expert is not None:
            child = int(expert[1]) % len(self.members)
            source = getattr(self._feed_forward(child, part.block), _PROJECTIONS[expert[2]]).weight
            return copied(name, child, self.members[child].info(source))
        ups = [self._feed_forward(i, part.block).up.weight for i in range(len(self.members))]
        dtype = widest([member.info(up).dtype for member, up in zip(self.members, ups, strict=True)])
        if "shared_expert" in part.suffix:
            return TensorRecipe(name, part.shape, dtype, constant=lambda: torch.zeros(part.shape))
        rows, block = self.rows, part.block
        return TensorRecipe(name, part.shape, dtype, constant=lambda: rows(block))

    def _feed_forward(self, child: int, block: int) -> FeedForward:
        found = self.members[child].anatomy.stacks[0].blocks[block].feed_forward
        assert found is not None
        return found
