"""``ract inspect``: one model summed up, two compared, and the advice that follows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from ract.aggregate.compare import Line, compare, plot
from ract.aggregate.loaded import parameters
from ract.aggregate.permutation import KINDS, symmetries
from ract.aggregate.run import aggregate
from ract.aggregate.summary import summarize
from ract.checkpoint.directory import write_lineage
from ract.checkpoint.lineage import Lineage, Parent, content_hash
from ract.errors import BadInput
from ract.model.anatomy import anatomy
from tests.pico import children, pico, save

TOKENS = torch.randint(3, 90, (2, 4, 16), generator=torch.Generator().manual_seed(0))
BATCHES = [{"input_ids": t, "labels": t} for t in TOKENS]


def taught(seed: int, steps: int = 25) -> PreTrainedModel:
    """A model that has learned BATCHES, from a seed of its own."""
    model = pico("Qwen3", seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        for batch in BATCHES:
            optimizer.zero_grad()
            model(**batch).loss.backward()
            optimizer.step()
    return model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    base = taught(0)
    paths = {"base": save(base, folder / "base"), "stranger": save(taught(1), folder / "stranger")}
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter, memory_format=torch.contiguous_format))
    paths["branch"] = save(base, folder / "branch")
    own = parameters(base)
    allowed = symmetries(base, anatomy(paths["base"]))
    generator = torch.Generator().manual_seed(0)
    drawn = {g: index for kind in KINDS for g, index in allowed.random(kind, generator).items()}
    base.load_state_dict(allowed.apply(own, drawn), strict=False)
    paths["permuted"] = save(base, folder / "permuted")
    return paths


def test_a_branch_can_be_merged(models: dict[str, Path]) -> None:
    found = compare(models["base"], models["branch"], batches=BATCHES)
    assert found.mergeable and found.recommendation == "merge"
    assert found.cosine is not None and found.cosine > 0.95
    assert found.line is not None and len(found.line.t) == 11 and found.aligned is None
    assert compare(models["base"], models["branch"]).recommendation == "merge"


@pytest.mark.slow
def test_a_permuted_copy_must_be_aligned_first(models: dict[str, Path]) -> None:
    found = compare(models["branch"], models["permuted"], batches=BATCHES, points=5)
    assert found.recommendation == "align"
    assert found.line is not None and found.aligned is not None
    assert found.line.barrier > 0.1
    assert abs(found.aligned.barrier) < 1e-3
    assert compare(models["branch"], models["permuted"]).recommendation == "align"


def test_models_from_different_seeds_are_no_merge(models: dict[str, Path], tmp_path: Path) -> None:
    found = compare(models["base"], models["stranger"], batches=BATCHES, points=5)
    assert found.line is not None and found.line.barrier > 0.1
    assert found.recommendation in ("align", "ensemble") and "barrier" in found.reason
    picture = plot(found, tmp_path / "line.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_relatives_with_a_barrier_are_for_upcycling(models: dict[str, Path], tmp_path: Path) -> None:
    parents = [Parent(name="ancestor", content="a" * 64)]
    for name in ("base", "stranger"):
        save(taught(0 if name == "base" else 1), tmp_path / name)
        write_lineage(tmp_path / name, Lineage(method="train", parents=parents))
    found = compare(tmp_path / "base", tmp_path / "stranger", batches=BATCHES, points=3)
    assert found.ancestor == "ancestor"
    assert found.recommendation == "upcycle"


def test_ancestry_is_read_through_several_lineages(models: dict[str, Path], tmp_path: Path) -> None:
    base = models["base"]
    merged = tmp_path / "merged"
    aggregate([base, models["branch"]], merged)
    assert compare(merged, base).ancestor == "base"
    cousin = save(taught(0, steps=1), tmp_path / "cousin")
    parents = [Parent(name=merged.name, content=content_hash(merged), path=str(merged))]
    write_lineage(cousin, Lineage(method="heal", parents=parents))
    assert compare(cousin, base).ancestor == "base"


def test_models_of_other_shapes_get_an_ensemble(tmp_path: Path) -> None:
    first = save(pico("Qwen3"), tmp_path / "a")
    wider = save(pico("Qwen3", intermediate_size=32), tmp_path / "b")
    found = compare(first, wider, batches=BATCHES)
    assert not found.mergeable and "intermediate_size" in found.obstacle
    assert found.recommendation == "ensemble" and found.line is None
    with pytest.raises(BadInput, match="no line to draw"):
        plot(found, tmp_path / "line.png")
    other_task = save(pico("BERT, classification"), tmp_path / "c")
    assert compare(first, other_task).recommendation == "none"


def test_different_tokenizers_are_refused(tmp_path: Path) -> None:
    from ract.data.tokenizer import train_tokenizer

    for path, text in zip(children(tmp_path, "Qwen3", vocab_size=300), ("aaab" * 50, "xyxy" * 50), strict=True):
        train_tokenizer([text], 262, path)
    with pytest.raises(BadInput, match="different tokenizers"):
        compare(tmp_path / "child0", tmp_path / "child1")


def test_the_barrier_by_hand() -> None:
    assert Line((0.0, 0.5, 1.0), (1.0, 4.0, 2.0)).barrier == pytest.approx(2.5)
    assert Line((0.0, 0.25, 0.5, 1.0), (1.0, 0.5, 1.0, 1.0)).barrier == pytest.approx(0.0)
    assert Line((0.0, 0.25, 1.0), (1.0, 0.5, 1.0)).best == (0.25, 0.5)
    with pytest.raises(BadInput, match="at least 3"):
        compare(Path("a"), Path("b"), points=2)


def test_the_summary_counts_what_is_there(models: dict[str, Path], tmp_path: Path) -> None:
    model = pico("Qwen3")
    found = summarize(models["base"])
    assert found.parameters == sum(p.numel() for p in model.parameters())
    rows = dict(found.rows())
    assert rows["class"] == "Qwen3ForCausalLM" and rows["blocks"] == "2" and rows["vocabulary"] == "96"
    assert rows["lineage"] == "none: not made by ReAct"
    aggregate([models["base"], models["branch"]], tmp_path / "merged", weights=".75,.25")
    rows = dict(summarize(tmp_path / "merged").rows())
    assert rows["method"] == "merge" and rows["weights"] == "0.75, 0.25" and rows["parents"] == "base, branch"
    assert rows["leaves"].startswith("0.75 · ")
    assert dict(summarize(save(pico("T5"), tmp_path / "t5")).rows())["blocks"] == "2 (encoder), 2 (decoder)"
