"""``aggregate`` from end to end on tiny real architectures: α, checks before and after, lineage, refusals."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ract.aggregate import run as run_module
from ract.aggregate import verify as verify_module
from ract.aggregate.inputs import Average
from ract.aggregate.recipe import Recipe
from ract.aggregate.run import aggregate
from ract.checkpoint.directory import open_model, verify_files
from ract.checkpoint.lineage import content_hash, read_lineage
from ract.checkpoint.tensors import TensorReader
from ract.errors import BadInput, RactError
from tests import pico
from tests.checkpoints import bits, checkpoint, fingerprint, random_tensors, stored

Usage = namedtuple("Usage", "total used free")


def plain(folder: Path, count: int = 2, **tensors: torch.Tensor) -> list[Path]:
    return [checkpoint(folder / f"m{i}", {**random_tensors(i), **tensors}).path for i in range(count)]


def average(paths: list[Path], alpha: list[float], out: Path, **options: Any) -> dict[str, torch.Tensor]:
    aggregate(paths, out, weights=alpha, verify=False, **options)
    return stored(out)


def with_tokenizer(model: Path, words: dict[str, int], **settings: Any) -> Path:
    content = {
        "version": "1.0",
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "a"},
        "added_tokens": [],
        **settings,
    }
    (model / "tokenizer.json").write_text(json.dumps(content))
    return model


# Architectures, among them those that mergekit 0.1.5 fails on: bare BERT (TypeError), BERT for masked LM (demands a
# pooler it lacks), T5 with the original feed-forward, GPT-NeoX (demands a bias it lacks).
@pytest.mark.parametrize("name", pico.ZOO)
def test_every_architecture_is_merged_loaded_and_run(name: str, tmp_path: Path) -> None:
    children = pico.children(tmp_path, name)
    result = aggregate(children, tmp_path / "out", weights=[0.25, 0.75])
    assert result.verification is not None and result.verification.max_error <= 1
    merged = pico.load(tmp_path / "out").state_dict()
    a, b = (pico.load(path).state_dict() for path in children)
    assert set(stored(tmp_path / "out")) == set(stored(children[0]))
    for key, tensor in merged.items():
        assert torch.equal(tensor, (0.25 * a[key].double() + 0.75 * b[key].double()).to(tensor.dtype)), key


def test_equal_children_have_the_childs_logits(tmp_path: Path) -> None:
    child = pico.children(tmp_path, "Llama", 1)[0]
    aggregate([child] * 3, tmp_path / "out")
    assert torch.equal(pico.output(pico.load(tmp_path / "out")), pico.output(pico.load(child)))


def test_bf16_is_not_added_in_bf16(tmp_path: Path) -> None:
    # FusionBench 0.2.33 adds in the storage dtype: 2.5 times the error of one rounding.
    tensors = [{"w": torch.randn(5000, generator=torch.Generator().manual_seed(i)).bfloat16()} for i in range(4)]
    children = [checkpoint(tmp_path / str(i), own).path for i, own in enumerate(tensors)]
    alpha = [0.1, 0.2, 0.3, 0.4]
    result = average(children, alpha, tmp_path / "out")["w"]
    exact = sum(a * own["w"].double() for a, own in zip(alpha, tensors, strict=True))
    in_bf16 = sum(a * own["w"] for a, own in zip(alpha, tensors, strict=True))
    assert isinstance(exact, torch.Tensor) and isinstance(in_bf16, torch.Tensor)
    assert torch.equal(result, exact.bfloat16())
    assert (result.double() - exact).abs().max() < 0.6 * (in_bf16.double() - exact).abs().max()


def test_inputs_are_never_touched(tmp_path: Path) -> None:
    # FusionBench writes over its first model unless told not to.
    children = plain(tmp_path)
    before = [fingerprint(path) for path in children]
    average(children, [0.5, 0.5], tmp_path / "out")
    for out in (children[0], children[0] / "inside", tmp_path):
        with pytest.raises(BadInput, match="are one directory"):
            average(children, [0.5, 0.5], out, force=True)
    assert [fingerprint(path) for path in children] == before


def test_a_changed_recipe_gives_a_changed_result(tmp_path: Path) -> None:
    # mergekit-multi takes the stale output of an edited recipe for finished.
    children = plain(tmp_path)
    first = average(children, [1.0, 0.0], tmp_path / "out")
    with pytest.raises(BadInput, match="exists already"):
        average(children, [0.0, 1.0], tmp_path / "out")
    assert bits(stored(tmp_path / "out")["a.weight"]) == bits(first["a.weight"])
    second = average(children, [0.0, 1.0], tmp_path / "out", force=True)
    assert bits(second["a.weight"]) == bits(random_tensors(1)["a.weight"])
    lineage = read_lineage(tmp_path / "out")
    assert lineage is not None and lineage.weights == [0.0, 1.0]


@pytest.mark.parametrize(
    ("weights", "options", "reason"),
    [
        ([1.0, -1.0], {"affine": True}, "sum to zero"),  # mergekit divides by the sum: inf, and no error
        ([1.0, -1.0], {"affine": True, "normalize": True}, "sum to zero"),
        ([0.0, 0.0], {}, "sum to zero"),
        (".6,.6", {}, "sum to 1.2, not 1"),
        ([2.0, -1.0], {}, "is negative"),
        ([float("nan"), 1.0], {}, "not all finite"),
        ([0.2, 0.3, 0.5], {}, "3 weights were given for 2 models"),
        ("half,half", {}, "are not numbers"),
        ("learned", {}, "need held-out data"),
        ("learned", {"method": "slerp"}, "learned for merge, not for slerp"),
        ({"a.weight": [0.9, 0.9]}, {}, "sum to 1.8"),
    ],
)
def test_alpha_that_makes_no_average_is_refused(
    tmp_path: Path, weights: Any, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(BadInput, match=reason):
        aggregate(plain(tmp_path), tmp_path / "out", weights=weights, verify=False, **options)
    assert not (tmp_path / "out").exists()


def test_alpha_by_text_normalised_affine_and_a_millionth_off(tmp_path: Path) -> None:
    children = plain(tmp_path)
    a, b = (random_tensors(i)["a.weight"].double() for i in range(2))
    texts: list[tuple[Any, dict[str, bool], list[float]]] = [
        (".6, .4", {}, [0.6, 0.4]),
        ([3.0, 1.0], {"normalize": True}, [0.75, 0.25]),
        ([1.5, -0.5], {"affine": True}, [1.5, -0.5]),
    ]
    for number, (weights, options, meant) in enumerate(texts):
        aggregate(children, tmp_path / str(number), weights=weights, verify=False, **options)  # type: ignore[arg-type]
        assert torch.equal(stored(tmp_path / str(number))["a.weight"], (meant[0] * a + meant[1] * b).float())
    equal = [children[0]] * 3
    result = average(equal, [0.3333333] * 3, tmp_path / "near")
    assert bits(result["a.weight"]) == bits(random_tensors(0)["a.weight"])


def test_learned_alpha_finds_the_better_child_and_reports_what_it_is_worth(tmp_path: Path) -> None:
    children = pico.children(tmp_path, "GPT-2")
    teacher = pico.load(children[1])
    ids = teacher.generate(torch.arange(3, 27).reshape(12, 2), max_new_tokens=12, do_sample=False, pad_token_id=0)
    data = [{"input_ids": rows, "labels": rows} for rows in ids.split(2)]
    result = aggregate(children, tmp_path / "out", weights="learned", data=data, max_batches=None)
    learned = result.learned
    assert learned is not None and learned.held_out_loss is not None
    assert learned.loss <= min(learned.loss_uniform, *learned.loss_children)
    assert isinstance(result.weights, list) and sum(result.weights) == pytest.approx(1.0, abs=1e-12)
    assert result.weights[1] > result.weights[0]
    lineage = read_lineage(tmp_path / "out")
    assert lineage is not None
    assert lineage.metrics_after["loss"] == learned.loss
    assert lineage.metrics_before["loss_children"] == learned.loss_children


def test_tokenizers_that_differ_are_refused_with_the_token(tmp_path: Path) -> None:
    a, b, c = plain(tmp_path, 3)
    with_tokenizer(a, {"a": 0, "b": 1})
    with_tokenizer(b, {"a": 0, "b": 1}, truncation={"max_length": 5}, padding={"pad_id": 0})
    with_tokenizer(c, {"a": 0, "c": 1})
    aggregate([a, b], tmp_path / "out", verify=False)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (a / "tokenizer.json").read_bytes()
    with pytest.raises(BadInput, match="different tokenizers: the token 'b' is id 1 in one and absent in the other"):
        aggregate([a, c], tmp_path / "bad", verify=False)
    with_tokenizer(c, {"a": 0, "b": 1}, normalizer={"type": "Lowercase"})
    with pytest.raises(BadInput, match="different tokenizers: their normalizer differ"):
        aggregate([a, c], tmp_path / "bad", verify=False)


def test_a_config_that_contradicts_its_weights_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    children = pico.children(tmp_path, "OPT")
    config = json.loads((children[1] / "config.json").read_text())
    for change, reason in (
        ({"num_hidden_layers": 1}, "layers.1"),
        ({"num_hidden_layers": 3}, "missing"),
        ({"vocab_size": 97}, "97"),
    ):
        (children[1] / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(BadInput, match=f"child1.*{reason}"):
            aggregate(children, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_stacking_opt_says_its_new_depth(tmp_path: Path) -> None:
    # mergekit stacks OPT 2 + 2 and leaves a config that says 2.
    children = pico.children(tmp_path, "OPT")
    aggregate(children, tmp_path / "out", method="stack")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 4
    assert len(pico.load(tmp_path / "out").model.decoder.layers) == 4


def test_a_method_whose_config_does_not_fit_its_tensors_is_caught(tmp_path: Path) -> None:
    child = open_model(pico.children(tmp_path, "Llama", 1)[0])
    from ract.aggregate import merge

    recipe = merge.recipe([child], [1.0])
    wrong = Recipe("test", {**recipe.config, "num_hidden_layers": 3}, recipe.tensors, [1.0])
    with pytest.raises(RactError, match="is missing"):
        verify_module.check_recipe(wrong)


def test_numbers_that_are_not_the_formula_are_caught(tmp_path: Path) -> None:
    children = [open_model(path) for path in pico.children(tmp_path, "Llama")]
    from ract.aggregate import engine, merge

    recipe = merge.recipe(children, [0.5, 0.5])
    (tmp_path / "out").mkdir()
    engine.execute(recipe, children, tmp_path / "out")
    assert verify_module.verify(tmp_path / "out", recipe, children, samples=100).max_error <= 1
    other = merge.recipe(children, [0.5001, 0.4999])
    with pytest.raises(RactError, match="roundings away from its formula"):
        verify_module.verify(tmp_path / "out", other, children)
    tensors = stored(tmp_path / "out")
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], 3e38)
    save_file(tensors, tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RactError, match="NaN or infinities in a forward pass"):
        verify_module.verify(tmp_path / "out", recipe, children)
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RactError, match=r"missing keys: model\.norm\.weight"):
        verify_module.verify(tmp_path / "out", recipe, children)


def test_the_lineage_multiplies_nested_coefficients(tmp_path: Path) -> None:
    a, b, c = plain(tmp_path, 3)
    aggregate([a, b], tmp_path / "ab", weights=[0.25, 0.75], verify=False)
    aggregate([tmp_path / "ab", c], tmp_path / "abc", weights=[0.5, 0.5], verify=False, seed=7)
    lineage = read_lineage(tmp_path / "abc")
    assert lineage is not None
    assert lineage.leaves == pytest.approx({content_hash(a): 0.125, content_hash(b): 0.375, content_hash(c): 0.5})
    assert [parent.content for parent in lineage.parents] == [content_hash(tmp_path / "ab"), content_hash(c)]
    assert (lineage.level, lineage.method, lineage.weights, lineage.seed) == (2, "merge", [0.5, 0.5], 7)
    assert verify_files(tmp_path / "abc")


def test_an_average_of_averages_is_one_pass_over_the_leaves(tmp_path: Path) -> None:
    a, b, c = plain(tmp_path, 3)
    result = aggregate(
        [Average([a, Average([b])], [0.25, 0.75]), c], tmp_path / "out", weights=[0.5, 0.5], verify=False
    )
    parts = [random_tensors(i)["a.weight"].double() for i in range(3)]
    exact = 0.125 * parts[0] + 0.375 * parts[1] + 0.5 * parts[2]
    assert torch.equal(stored(tmp_path / "out")["a.weight"], exact.float())
    lineage = read_lineage(tmp_path / "out")
    assert lineage is not None and lineage.weights == result.weights == [0.125, 0.375, 0.5]
    assert [parent.name for parent in lineage.parents] == ["m0", "m1", "m2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m0", "m1", "m2", "out"]
    with pytest.raises(BadInput, match="are one directory"):
        aggregate([Average([a, b]), c], a, verify=False, force=True)


def test_a_dry_run_writes_nothing_and_says_what_it_would_take(tmp_path: Path) -> None:
    children = plain(tmp_path)
    result = aggregate(children, tmp_path / "out", weights="learned", verify=False, dry_run=True)
    assert result.path is None and result.lineage is None
    assert result.estimate.bytes_read == 2 * 164 and result.estimate.bytes_written > 164
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m0", "m1"]


def test_a_disk_too_small_is_refused_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    children = plain(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40, 1 << 40, 1000))
    monkeypatch.setattr(run_module, "execute", lambda *a, **k: pytest.fail("started all the same"))
    with pytest.raises(BadInput, match=r"needs 0\.00 GB of disk, 0\.00 GB are free"):
        aggregate(children, tmp_path / "out", verify=False)
    assert not (tmp_path / "out").exists()


def test_too_little_memory_is_refused_before_the_start(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="too few to work in"):
        aggregate(plain(tmp_path), tmp_path / "out", verify=False, max_memory=10)


def test_pickled_weights_only_by_permission_and_only_tensors(tmp_path: Path) -> None:
    children = pico.children(tmp_path, "Llama", tie_word_embeddings=True)
    expected = average(children, [0.5, 0.5], tmp_path / "expected")
    weights = dict(pico.load(children[1]).state_dict())
    assert weights["lm_head.weight"].data_ptr() == weights["model.embed_tokens.weight"].data_ptr()
    torch.save(weights, children[1] / "pytorch_model.bin")
    (children[1] / "model.safetensors").unlink()
    before = fingerprint(children[1])
    with pytest.raises(BadInput, match="only pickled weights"):
        aggregate(children, tmp_path / "out")
    result = aggregate(children, tmp_path / "out", weights=[0.5, 0.5], allow_pickle=True)
    assert {n: bits(t) for n, t in stored(tmp_path / "out").items()} == {n: bits(t) for n, t in expected.items()}
    assert result.lineage is not None and result.lineage.parents[1].path == str(children[1])
    assert result.lineage.parents[1].content == content_hash(children[1])
    assert set(result.lineage.files) == {"config.json", "generation_config.json", "model.safetensors"}
    assert fingerprint(children[1]) == before


class Hostile:
    """Runs code when unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path(__file__).with_name("hostile-was-here"),))


@pytest.mark.parametrize("content", ["hostile", "text", "list", "truncated"])
def test_hostile_pickles_do_not_run(content: str, tmp_path: Path) -> None:
    (model,) = plain(tmp_path, 1)
    (model / "model.safetensors").unlink()
    file = model / "pytorch_model.bin"
    if content == "hostile":
        torch.save({"w": Hostile()}, file)
    elif content == "text":
        file.write_bytes(pickle.dumps("no tensors", protocol=2))
    elif content == "list":
        torch.save([torch.ones(2)], file)
    else:
        torch.save({"w": torch.ones(2000)}, file)
        file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(BadInput, match=re.escape(str(file))):
        aggregate([model], tmp_path / "out", verify=False, allow_pickle=True)
    assert not Path(__file__).with_name("hostile-was-here").exists()
    assert not (tmp_path / "out").exists()


def test_an_unknown_method_or_option_names_the_nearest(tmp_path: Path) -> None:
    children = plain(tmp_path)
    with pytest.raises(BadInput, match=r'no method "merg".*"merge"'):
        aggregate(children, tmp_path / "out", method="merg")
    with pytest.raises(BadInput, match=r'ties has no option "densty".*"density"'):
        aggregate(children, tmp_path / "out", method="ties", base=children[0], verify=False, densty=0.1)
    with pytest.raises(BadInput, match="ties needs the model that all were fine-tuned from"):
        aggregate(children, tmp_path / "out", method="ties", verify=False)
    with pytest.raises(BadInput, match="no models"):
        aggregate([], tmp_path / "out")


def test_a_plain_merge_does_not_wait_for_transformers(tmp_path: Path) -> None:
    script = (
        "import sys; from ract.aggregate.run import aggregate; aggregate(sys.argv[1:3], sys.argv[3], verify=False);"
        "sys.exit('transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, *map(str, plain(tmp_path)), str(tmp_path / "out")], check=True)


def test_large_outputs_are_sharded_and_load(tmp_path: Path) -> None:
    children = pico.children(tmp_path, "Qwen3")
    aggregate(children, tmp_path / "out", max_shard=5000)
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 2
    aggregate([tmp_path / "out"] * 2, tmp_path / "again")
    assert {n: bits(t) for n, t in stored(tmp_path / "again").items()} == {
        n: bits(t) for n, t in stored(tmp_path / "out").items()
    }
    with TensorReader.of(open_model(tmp_path / "out")) as reader:
        assert len(reader.infos) == len(stored(children[0]))
