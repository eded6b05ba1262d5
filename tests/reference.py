"""Carry out a recipe the plain way: every tensor whole, in fp64, rounded once. An independent check of the engine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file

from ract.aggregate.recipe import Recipe
from ract.checkpoint.directory import ModelDirectory
from ract.checkpoint.tensors import DTYPES


def execute(recipe: Recipe, children: Sequence[ModelDirectory], out: Path) -> Path:
    """Write *recipe* over *children* into the new folder *out*."""
    weights = [{k: v for shard in child.shards for k, v in load_file(shard).items()} for child in children]
    tensors = {}
    for one in recipe.tensors:
        assert one.name not in tensors, f"{one.name} is written twice"
        parts = [weights[term.child][term.name] for term in one.terms]
        if one.constant is not None:
            value = one.constant()
        elif one.function is not None:
            value = one.function([part.float() for part in parts])
        else:
            value = sum(term.weight * part.double() for term, part in zip(one.terms, parts, strict=True))
        assert tuple(value.shape) == one.shape, f"{one.name}: {tuple(value.shape)} is not {one.shape}"
        tensors[one.name] = value.to(DTYPES[one.dtype]).contiguous()
    out.mkdir(parents=True)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(recipe.config), encoding="utf-8")
    generation = children[0].path / "generation_config.json"
    if generation.is_file():
        shutil.copyfile(generation, out / generation.name)
    return out
