"""What may be merged, under which names, with which α."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ract.aggregate import engine, merge
from ract.aggregate.match import match
from ract.checkpoint.directory import ModelDirectory, open_model
from ract.errors import BadInput
from tests import pico
from tests.checkpoints import checkpoint, random_tensors, stored


def pair(tmp_path: Path, **config: Any) -> list[ModelDirectory]:
    return [checkpoint(tmp_path / str(i), random_tensors(i), **config) for i in range(2)]


def rewrite(model: ModelDirectory, tensors: dict[str, torch.Tensor]) -> ModelDirectory:
    save_file(tensors, model.path / "model.safetensors", metadata={"format": "pt"})
    return open_model(model.path)


def opened(folder: Path, name: str, **changes: Any) -> list[ModelDirectory]:
    return [open_model(path) for path in pico.children(folder, name, **changes)]


def test_every_tensor_is_the_weighted_sum(tmp_path: Path) -> None:
    children = pair(tmp_path)
    recipe = merge.recipe(children, [0.25, 0.75])
    assert {t.name for t in recipe.tensors} == set(random_tensors(0))
    assert all([(term.child, term.weight) for term in t.terms] == [(0, 0.25), (1, 0.75)] for t in recipe.tensors)
    assert recipe.weights == [0.25, 0.75]


def test_the_dtype_can_be_chosen(tmp_path: Path) -> None:
    children = pair(tmp_path, dtype="float32")
    recipe = merge.recipe(children, [0.5, 0.5], dtype="bfloat16")
    assert {t.dtype for t in recipe.tensors} == {"BF16"}
    assert recipe.config["dtype"] == "bfloat16"
    with pytest.raises(BadInput, match=r'written as "bflaot16"\. Did you mean "bfloat16"'):
        merge.recipe(children, [0.5, 0.5], dtype="bflaot16")


@pytest.mark.parametrize("weights", [[1.0], [0.2, 0.3, 0.5], {"all": [1.0]}, {}])
def test_one_weight_per_child(tmp_path: Path, weights: Any) -> None:
    with pytest.raises(BadInput, match=r"weights were given for 2 models"):
        merge.recipe(pair(tmp_path), weights)


@pytest.mark.parametrize(
    ("key", "a", "b"),
    [("num_attention_heads", 2, 4), ("hidden_act", "gelu", "relu"), ("rope_theta", 1e4, 1e6), ("model_type", "a", "b")],
)
def test_models_that_compute_differently_are_refused_though_their_shapes_agree(
    tmp_path: Path, key: str, a: Any, b: Any
) -> None:
    children = [checkpoint(tmp_path / str(i), random_tensors(i), **{key: v}) for i, v in enumerate((a, b))]
    with pytest.raises(BadInput, match=f"says {key} = "):
        merge.recipe(children, [0.5, 0.5])


def test_provenance_and_training_settings_may_differ(tmp_path: Path) -> None:
    children = [
        checkpoint(
            tmp_path / str(i), random_tensors(i), _name_or_path=str(i), attention_dropout=i / 10, use_cache=bool(i)
        )
        for i in range(2)
    ]
    assert len(merge.recipe(children, [0.5, 0.5]).tensors) == 4


def test_another_shape_is_named(tmp_path: Path) -> None:
    children = pair(tmp_path)
    rewrite(children[1], {**random_tensors(1), "b.bias": torch.zeros(6)})
    with pytest.raises(BadInput, match=r"tensor b\.bias has the shape \(5,\) in .* and \(6,\) in"):
        merge.recipe(children, [0.5, 0.5])


def test_a_tensor_that_one_model_lacks_is_named(tmp_path: Path) -> None:
    a, b = opened(tmp_path, "Llama")
    tensors = stored(b.path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    b = rewrite(b, tensors)
    with pytest.raises(BadInput, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        merge.recipe([a, b], [0.5, 0.5])


def test_the_files_of_the_bare_model_and_of_older_versions_are_understood(tmp_path: Path) -> None:
    a, b = opened(tmp_path, "GPT-2")
    older = {name.removeprefix("transformer."): t for name, t in stored(b.path).items()}
    older["h.0.attn.bias"] = torch.ones(1, 1, 64, 64, dtype=torch.bool)
    b = rewrite(b, older)
    recipe = merge.recipe([a, b], [0.5, 0.5])
    assert {t.name for t in recipe.tensors} == set(stored(a.path))
    assert {term.name for t in recipe.tensors for term in t.terms if term.child == 1} == set(older) - {"h.0.attn.bias"}


def test_a_tied_head_that_one_model_stores_twice_is_written_once(tmp_path: Path) -> None:
    a, b = opened(tmp_path, "Llama", tie_word_embeddings=True)
    tensors = stored(b.path)
    assert "lm_head.weight" not in tensors
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    b = rewrite(b, tensors)
    for children in ([a, b], [b, a], [b, b]):
        recipe = merge.recipe(children, [0.5, 0.5])
        assert {t.name for t in recipe.tensors} == set(stored(a.path))


def test_shared_embeddings_of_t5_are_written_once(tmp_path: Path) -> None:
    a, b = opened(tmp_path, "T5")
    tensors = stored(b.path)
    for alias in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"):
        tensors[alias] = tensors["shared.weight"].clone()
    b = rewrite(b, tensors)
    (tmp_path / "out").mkdir()
    engine.execute(merge.recipe([a, b], [0.5, 0.5]), [a, b], tmp_path / "out")
    assert set(stored(tmp_path / "out")) == set(stored(a.path))


def test_alpha_per_layer_and_per_tensor(tmp_path: Path) -> None:
    children = opened(tmp_path, "Qwen3")
    by_layer = {"embeddings": [1.0, 0.0], "decoder.0": [0.5, 0.5], "decoder.1": [0.25, 0.75], "head": [0.0, 1.0]}
    recipe = merge.recipe(children, by_layer)
    found = {t.name: [term.weight for term in t.terms] for t in recipe.tensors}
    assert found["model.embed_tokens.weight"] == [1.0]
    assert found["model.layers.0.mlp.up_proj.weight"] == [0.5, 0.5]
    assert found["model.layers.1.mlp.up_proj.weight"] == [0.25, 0.75]
    assert recipe.weights == by_layer
    names = {one.name: [0.5, 0.5] for one in match(children)} | {"model.norm.weight": [0.1, 0.9]}
    assert {t.name: [w.weight for w in t.terms] for t in merge.recipe(children, names).tensors} == names
    with pytest.raises(BadInput, match=r"no weights are given for the group decoder\.1"):
        merge.recipe(children, {k: v for k, v in by_layer.items() if k != "decoder.1"})


def test_a_damaged_index_is_seen_before_anything_is_read(tmp_path: Path) -> None:
    children = pair(tmp_path)
    (children[1].path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"x": "model.safetensors"}})
    )
    with pytest.raises(BadInput, match="puts tensor x in"):
        merge.recipe([children[0], open_model(children[1].path)], [0.5, 0.5])
