"""The engine: chunks, layouts, dtypes, memory, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ract.aggregate import engine, merge
from ract.aggregate.collapse import Nested, collapse, leaf_coefficients
from ract.aggregate.recipe import Recipe, TensorRecipe, Term
from ract.aggregate.segments import segments
from ract.checkpoint.directory import ModelDirectory, open_model
from ract.checkpoint.tensors import TensorReader
from ract.checkpoint.writer import write_tensors
from ract.errors import BadInput, RactError
from tests.checkpoints import DTYPES, bits, checkpoint, random_tensors, stored


def recipe_of(*tensors: TensorRecipe) -> Recipe:
    return Recipe("test", {"model_type": "plain"}, tensors, [1.0])


def run(recipe: Recipe, children: list[ModelDirectory], out: Path, **limits: int) -> dict[str, torch.Tensor]:
    out.mkdir()
    engine.execute(recipe, children, out, **limits)  # type: ignore[arg-type]
    return stored(out)


def two(tmp_path: Path, dtype: str = "F32") -> list[ModelDirectory]:
    return [checkpoint(tmp_path / str(i), random_tensors(i, dtype)) for i in range(2)]


def test_identical_layouts_are_one_flat_pass(tmp_path: Path) -> None:
    children = two(tmp_path)
    recipe = merge.recipe(children, [0.5, 0.5])
    readers = [TensorReader.of(child) for child in children]
    passes = segments(recipe, readers, engine.plan_output(recipe, readers, tmp_path))
    assert len(passes) == 1
    assert passes[0].count == 7 * 5 + 5 + 1
    assert [passes[0].name_at(i) for i in (0, 34, 35, 39, 40)] == [
        "a.weight",
        "a.weight",
        "b.bias",
        "b.bias",
        "c.scale",
    ]


def test_other_orders_shards_and_dtypes_give_the_same_numbers(tmp_path: Path) -> None:
    a, b = random_tensors(0), random_tensors(1)
    plain = [checkpoint(tmp_path / "a", a), checkpoint(tmp_path / "b", b)]
    (tmp_path / "odd").mkdir()
    save_file({"b.bias": b["b.bias"]}, tmp_path / "odd" / "x.safetensors")
    save_file({n: t for n, t in reversed(b.items()) if n != "b.bias"}, tmp_path / "odd" / "a.safetensors")
    (tmp_path / "odd" / "config.json").write_text((tmp_path / "a" / "config.json").read_text())
    odd = [plain[0], open_model(tmp_path / "odd")]
    one = run(merge.recipe(plain, [0.3, 0.7]), plain, tmp_path / "one")
    other = run(merge.recipe(odd, [0.3, 0.7]), odd, tmp_path / "other", max_shard_bytes=60)
    assert len(list((tmp_path / "other").glob("*.safetensors"))) > 1
    assert {n: bits(t) for n, t in one.items()} == {n: bits(t) for n, t in other.items()}


def test_tensors_in_another_order_in_the_file_are_found(tmp_path: Path) -> None:
    a, b = ({f"t{k}": torch.full((4,), 10.0 * i + k) for k in range(3)} for i in (1, 2))
    children = [checkpoint(tmp_path / "a", a), checkpoint(tmp_path / "b", b)]
    (children[1].path / "model.safetensors").unlink()
    write_tensors(children[1].path, dict(reversed(b.items())))
    result = run(merge.recipe(children, [0.5, 0.5]), children, tmp_path / "out")
    assert {name: t.unique().tolist() for name, t in result.items()} == {f"t{k}": [15.0 + k] for k in range(3)}


def test_neighbours_with_other_alphas_are_not_run_together(tmp_path: Path) -> None:
    tensors = [random_tensors(i) for i in range(3)]
    children = [checkpoint(tmp_path / str(i), own) for i, own in enumerate(tensors)]
    alpha = {
        "a.weight": [0.5, 0.5, 0.0],
        "b.bias": [0.5, 0.25, 0.25],
        "c.scale": [1.0, 0.0, 0.0],
        "d.none": [0.0, 0.0, 1.0],
    }
    result = run(merge.recipe(children, alpha), children, tmp_path / "out")
    for name, weights in alpha.items():
        exact = sum(w * own[name].double() for w, own in zip(weights, tensors, strict=True))
        assert isinstance(exact, torch.Tensor) and torch.equal(result[name], exact.float()), name


def test_mixed_precisions_are_added_exactly_and_written_in_the_widest(tmp_path: Path) -> None:
    a, b = random_tensors(0, "BF16"), random_tensors(1, "F16")
    children = [checkpoint(tmp_path / "a", a, dtype="bfloat16"), checkpoint(tmp_path / "b", b, dtype="bfloat16")]
    result = run(merge.recipe(children, [0.25, 0.75]), children, tmp_path / "out")
    for name, tensor in result.items():
        assert torch.equal(tensor, (0.25 * a[name].double() + 0.75 * b[name].double()).float())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize("dtype", DTYPES)
def test_chunks_of_any_size_meet_at_their_edges(tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [{"a": torch.randn(10_001, generator=torch.Generator().manual_seed(i)).to(DTYPES[dtype])} for i in (0, 1)]
    children = [checkpoint(tmp_path / str(i), own) for i, own in enumerate(tensors)]
    whole = run(merge.recipe(children, [0.4, 0.6]), children, tmp_path / "whole")
    monkeypatch.setattr(engine, "CHUNK_ELEMENTS", 127)
    pieces = run(merge.recipe(children, [0.4, 0.6]), children, tmp_path / "pieces")
    assert bits(whole["a"]) == bits(pieces["a"])


def test_integers_and_booleans_are_taken_over_when_all_agree_and_refused_otherwise(tmp_path: Path) -> None:
    ids, mask = torch.arange(5), torch.tensor([True, False])
    a = checkpoint(tmp_path / "a", {"ids": ids, "mask": mask, "w": torch.ones(2)})
    b = checkpoint(tmp_path / "b", {"ids": ids, "mask": mask, "w": torch.zeros(2)})
    result = run(merge.recipe([a, b], [0.5, 0.5]), [a, b], tmp_path / "out")
    assert torch.equal(result["ids"], ids) and torch.equal(result["mask"], mask)
    c = checkpoint(tmp_path / "c", {"ids": ids + 1, "mask": mask, "w": torch.ones(2)})
    with pytest.raises(BadInput, match="tensor ids holds I64 and differs"):
        run(merge.recipe([a, c], [0.5, 0.5]), [a, c], tmp_path / "bad")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.0, 1.0]])
def test_a_tensor_that_is_not_finite_is_named_with_its_file(tmp_path: Path, value: float, weights: list[float]) -> None:
    bad = random_tensors(1)
    bad["b.bias"][3] = value
    children = [checkpoint(tmp_path / "good", random_tensors(0)), checkpoint(tmp_path / "bad", bad)]
    with pytest.raises(BadInput, match=r"tensor b\.bias of .*bad/model\.safetensors holds NaN or infinities"):
        run(merge.recipe(children, weights), children, tmp_path / "out")


def test_a_sum_beyond_the_dtype_is_refused_and_the_largest_number_is_not(tmp_path: Path) -> None:
    large = {"a": torch.tensor([65504.0, -65504.0]).half()}
    children = [checkpoint(tmp_path / "large", large)] * 5
    assert [*accumulate([65504.0 * 0.2] * 5)][-1] > 65504.0, "the fp64 sum is a bit too large, its rounding is not"
    assert bits(run(merge.recipe(children, [0.2] * 5), children, tmp_path / "ok")["a"]) == bits(large["a"])
    other = checkpoint(tmp_path / "other", {"a": -large["a"]})
    with pytest.raises(BadInput, match="sum for tensor a is too large for F16"):
        run(merge.recipe([children[0], other], [2.0, -1.0]), [children[0], other], tmp_path / "out")


def test_functions_take_whole_tensors_in_fp32_and_constants_fill_in(tmp_path: Path) -> None:
    children = two(tmp_path, "BF16")

    def largest(terms: list[torch.Tensor]) -> torch.Tensor:
        assert all(term.dtype == torch.float32 for term in terms)
        return torch.maximum(*terms)

    terms = (Term(0, "a.weight"), Term(1, "a.weight"))
    recipe = recipe_of(
        TensorRecipe("max", (7, 5), "BF16", terms, function=largest),
        TensorRecipe("router", (2, 3), "F32", constant=lambda: torch.full((2, 3), 0.5)),
        TensorRecipe("copy", (5,), "BF16", (Term(1, "b.bias"),)),
    )
    result = run(recipe, children, tmp_path / "out")
    a, b = (random_tensors(i, "BF16") for i in (0, 1))
    assert torch.equal(result["max"], torch.maximum(a["a.weight"], b["a.weight"]))
    assert torch.equal(result["router"], torch.full((2, 3), 0.5))
    assert bits(result["copy"]) == bits(b["b.bias"])


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (TensorRecipe("x", (5,), "F32", (Term(0, "absent"),)), "has no tensor absent"),
        (TensorRecipe("x", (6,), "F32", (Term(0, "b.bias"),)), r"b\.bias of .* has the shape \(5,\), not \(6,\)"),
        (TensorRecipe("x", (5,), "I64", (Term(0, "b.bias"),)), "dtypes that cannot be averaged: F32, I64"),
        (TensorRecipe("x", (5,), "F32"), "has no terms"),
        (TensorRecipe("x", (5,), "F32", (Term(0, "b.bias"),), lambda t: t[0][:2]), r"gives the shape \(2,\)"),
        (TensorRecipe("x", (5,), "F16", (Term(0, "b.bias"),), lambda t: t[0] * 1e9), "too large for F16"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(tmp_path: Path, tensor: TensorRecipe, reason: str) -> None:
    with pytest.raises(RactError, match=reason):
        run(recipe_of(tensor), two(tmp_path), tmp_path / "out")


def test_a_tensor_written_twice_is_refused(tmp_path: Path) -> None:
    one = TensorRecipe("x", (5,), "F32", (Term(0, "b.bias"),))
    with pytest.raises(RactError, match="writes a tensor twice: x"):
        run(recipe_of(one, one), two(tmp_path), tmp_path / "out")


def test_the_estimate_is_what_happens(tmp_path: Path) -> None:
    children = two(tmp_path)
    recipe = merge.recipe(children, [0.5, 0.5])
    expected = engine.estimate(recipe, children)
    run(recipe, children, tmp_path / "out")
    written = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert expected.bytes_written == written
    assert expected.bytes_read == 2 * 4 * (35 + 5 + 1)
    assert expected.disk_needed >= sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    one_hot = engine.estimate(merge.recipe(children, [1.0, 0.0]), children)
    assert one_hot.bytes_read == expected.bytes_read / 2, "a child with weight 0 is not read"


def test_memory_is_bounded_by_what_is_allowed(tmp_path: Path) -> None:
    children = two(tmp_path)
    linear = merge.recipe(children, [0.5, 0.5])
    for allowed in (1 << 20, 5 << 20, 1 << 30):
        assert engine.estimate(linear, children, max_memory_bytes=allowed).peak_memory <= allowed
    assert engine.estimate(linear, children).peak_memory <= 64 << 20
    with pytest.raises(BadInput, match="too few to work in"):
        engine.estimate(linear, children, max_memory_bytes=1000)
    whole = recipe_of(TensorRecipe("x", (7, 5), "F32", (Term(0, "a.weight"),), function=lambda t: t[0]))
    with pytest.raises(BadInput, match=r"MiB of memory for tensor x"):
        engine.estimate(whole, children, max_memory_bytes=500)


def test_progress_counts_every_byte_once(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    lock = threading.Lock()

    def note(what: str, done: int, total: int) -> None:
        with lock:
            seen.append((what, done, total))

    children = two(tmp_path)
    (tmp_path / "out").mkdir()
    engine.execute(merge.recipe(children, [0.5, 0.5]), children, tmp_path / "out", progress=note)
    assert seen[-1] == ("aggregate", 164, 164)


def test_the_thread_count_of_torch_is_left_as_it_was(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        children = two(tmp_path)
        run(merge.recipe(children, [0.5, 0.5]), children, tmp_path / "out")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_tokenizer_and_generation_files_come_from_the_first_child(tmp_path: Path) -> None:
    children = two(tmp_path)
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
        "generation_config.json",
        "chat_template.jinja",
    ):
        (children[0].path / name).write_text("{}")
    for name in ("README.md", "training_args.bin", "lineage.json", "optimizer.pt"):
        (children[0].path / name).write_text("{}")
    run(merge.recipe(children, [0.5, 0.5]), children, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt",
        "generation_config.json", "chat_template.jinja",
    }  # fmt: skip


def test_a_leaf_met_twice_in_a_tree_is_read_once(tmp_path: Path) -> None:
    a, b = two(tmp_path)
    pair = merge.recipe([a, b], [0.5, 0.5])
    recipe, leaves = collapse(merge.recipe([a, a], [0.25, 0.75]), [Nested(pair, [a, b]), Nested(pair, [b, a])])
    assert [leaf.path for leaf in leaves] == [a.path, b.path]
    assert recipe.weights == [0.5, 0.5]
    assert all(len(tensor.terms) == 2 for tensor in recipe.tensors)
    assert leaf_coefficients(recipe.tensors, 2) == [0.5, 0.5]


def test_levels_that_are_not_linear_do_not_collapse_into_a_sum(tmp_path: Path) -> None:
    a, b = two(tmp_path)
    inner = recipe_of(TensorRecipe("b.bias", (5,), "F32", (Term(0, "b.bias"),), function=lambda t: t[0].abs()))
    copy = recipe_of(TensorRecipe("b.bias", (5,), "F32", (Term(0, "b.bias"),)))
    recipe, leaves = collapse(copy, [Nested(inner, [b])])
    assert torch.equal(run(recipe, leaves, tmp_path / "out")["b.bias"], random_tensors(1)["b.bias"].abs())
    total = recipe_of(TensorRecipe("b.bias", (5,), "F32", (Term(0, "b.bias", 0.5), Term(1, "b.bias", 0.5))))
    with pytest.raises(RactError, match="not linear in the level below"):
        collapse(total, [Nested(inner, [b]), a])
    with pytest.raises(RactError, match="is a sum in the level below"):
        collapse(inner, [Nested(total, [a, b])])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="anonymous memory is read from /proc")
def test_memory_does_not_grow_with_the_size_or_the_number_of_the_models(tmp_path: Path) -> None:
    child = checkpoint(tmp_path / "child", {f"w{i}": torch.ones(1 << 21) for i in range(6)})  # 50 MB
    script = """
import sys, threading, time
from pathlib import Path
from ract.aggregate import engine, merge
from ract.checkpoint.directory import open_model
def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
children = [open_model(sys.argv[1])] * 6
Path(sys.argv[2]).mkdir()
base, peak, done = anonymous(), [], threading.Event()
def sample():
    while not done.is_set():
        peak.append(anonymous())
        time.sleep(0.002)
sampler = threading.Thread(target=sample)
sampler.start()
engine.execute(merge.recipe(children, [0.1, 0.1, 0.1, 0.2, 0.2, 0.3]), children, Path(sys.argv[2]))
done.set()
sampler.join()
print(max(peak) - base)
"""
    arguments = [sys.executable, "-c", script, str(child.path), str(tmp_path / "out")]
    grown = int(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)
    assert grown < 64 << 10, f"{grown} KiB for 300 MB of children"
