"""Quantized exports, ensembles as one graph, and every node of a run: written, opened again, compared."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ract.aggregate.run import aggregate
from ract.errors import BadInput
from ract.export.export import export
from ract.export.onnx_quantize import block_size, quantize
from ract.runtime.engines.base import open_graphs
from ract.runtime.generate import TextGenerator
from tests.conftest import Ract
from tests.plans import plan_text, write_text_corpus
from tests.text_models import byte_level_model

STORY = " named Lily. She loved to play outside in the park."


@given(seed=st.integers(0, 1000), bits=st.sampled_from([4, 8]), blocks=st.integers(1, 3))
def test_the_chosen_scales_are_never_worse_than_the_usual_ones(seed: int, bits: int, blocks: int) -> None:
    weight = np.random.default_rng(seed).normal(size=(3, 32 * blocks)).astype(np.float32)
    weight[0, :32] = 0
    found = quantize(weight, bits)
    assert (found.rows, found.columns) == weight.shape and found.block == block_size(weight.shape[1])
    restored = found.dequantized()
    assert not restored[0, :32].any()
    plain = np.abs(weight).reshape(3, -1, found.block).max(-1) / (2 ** (bits - 1) - 1)
    scale = np.where(plain == 0, 1, plain).repeat(found.block, 1)
    assert ((restored - weight) ** 2).sum() <= ((np.rint(weight / scale) * scale - weight) ** 2).sum() + 1e-6


def test_numbers_on_the_grid_are_kept_exactly() -> None:
    for bits in (4, 8):
        whole = np.random.default_rng(bits).integers(1 - 2 ** (bits - 1), 2 ** (bits - 1), size=(5, 64))
        whole[:, ::16] = 2 ** (bits - 1) - 1  # so that every block's scale is the grid's
        weight = (whole * 0.125).astype(np.float32)
        np.testing.assert_allclose(quantize(weight, bits).dequantized(), weight, atol=1e-6)
    assert block_size(40) is None
    with pytest.raises(ValueError, match="no multiple of 16"):
        quantize(np.zeros((2, 40), np.float32), 8)


@pytest.fixture(scope="module")
def story(shared_data: Path) -> Path:
    return shared_data / "checkpoints" / "stories260k"


@pytest.mark.slow
def test_the_known_story_in_every_precision(story: Path, tmp_path: Path) -> None:
    texts = {}
    for precision in ("fp32", "int8", "int4"):
        made = export(story, tmp_path / precision, precision=precision)
        assert made.measured["kl"] < {"fp32": 1e-9, "int8": 0.01, "int4": 0.3}[precision]
        texts[precision] = "".join(
            TextGenerator(made.path).stream(
                "Once upon a time, there was a little girl", max_new_tokens=24, temperature=0
            )
        )
    assert texts["fp32"].startswith(STORY) and texts["int8"].startswith(STORY)
    sizes = [sum(f.stat().st_size for f in (tmp_path / p).iterdir()) for p in ("fp32", "int8", "int4")]
    assert sizes[0] > 2 * sizes[1] > 2 * sizes[2]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["logits", "probabilities"])
def test_an_ensemble_of_decoders_is_one_graph(tmp_path: Path, mode: str) -> None:
    members = [byte_level_model(tmp_path / str(seed), "Qwen3", seed=seed, head_dim=16) for seed in (0, 1)]
    aggregate(members, tmp_path / "both", method="ensemble", weights=[0.3, 0.7], mode=mode)
    made = export(tmp_path / "both", tmp_path / "out")
    assert made.measured["same"] and made.measured["greedy"] == made.measured["greedy_of"]
    together = TextGenerator(made.path)
    expected = "".join(TextGenerator(tmp_path / "both").stream("def f", max_new_tokens=20, temperature=0))
    assert "".join(together.stream("def f", max_new_tokens=20, temperature=0)) == expected


@pytest.mark.slow
def test_rows_are_independent_and_a_state_can_be_shortened(story: Path, tmp_path: Path) -> None:
    model = open_graphs(export(story, tmp_path / "out").path)
    ids = torch.randint(3, 500, (3, 9), generator=torch.Generator().manual_seed(0)).numpy()
    together, state = model.scores(ids, model.begin())
    alone = [model.scores(row[None], model.begin())[0][0] for row in ids]
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-4)
    again, state = model.scores(ids[:, 4:], state.shortened(4))
    np.testing.assert_allclose(again, together[:, 4:], atol=1e-4)
    chosen = np.array([2, 0, 2])
    after, _ = model.step(ids[chosen, :1], state.reordered(chosen))
    expected, _ = model.step(ids[:, :1], state)
    np.testing.assert_allclose(after, expected[chosen], atol=1e-4)
    long = np.full((1, 300), 5)
    np.testing.assert_allclose(  # past the room the cache has at first
        model.step(long[:, :1], model.scores(long, model.begin())[1])[0],
        model.step(np.full((1, 301), 5), model.begin())[0],
        atol=1e-3,
    )


def test_an_unknown_format_or_precision_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r'format "onxx"\. Did you mean "onnx"|onnx'):
        export(tmp_path, tmp_path / "out", format="onxx")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="int8"):
        export(tmp_path, tmp_path / "out", precision="int9")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_every_useful_node_of_a_run_is_exported_and_what_is_there_is_kept(tmp_path: Path, ract: Ract) -> None:
    from ract.runtime.choose import Limits, choose, exports_in, forms_of
    from ract.tree.forms import export_tree, worthwhile

    quick_run = tmp_path / "run"
    plan = tmp_path / "plan.toml"
    plan.write_text(plan_text(write_text_corpus(tmp_path / "corpus.txt")), encoding="utf-8")
    assert ract("build", plan, "-o", quick_run)[0] == 0
    made = export_tree(quick_run, precisions=("fp32", "int8"))
    assert len(made) == 2 * len(worthwhile(quick_run)) and exports_in(quick_run) == sorted(made)
    before = {path: (path / "manifest.json").stat().st_mtime_ns for path in made}
    (made[-1] / "decode.onnx").write_bytes(b"damaged")
    export_tree(quick_run, precisions=("fp32", "int8"))
    after = {path: (path / "manifest.json").stat().st_mtime_ns for path in made}
    assert [path for path in made if before[path] != after[path]] == [made[-1]]
    forms = forms_of(made)
    smallest = min(form.measured.size_bytes for form in forms)
    chosen = choose(forms, Limits(size_bytes=smallest))
    assert chosen[0].measured.size_bytes == smallest
    text = "".join(TextGenerator(quick_run, limits=Limits(size_bytes=smallest)).stream("def", max_new_tokens=5))
    assert isinstance(text, str)
    shutil.rmtree(quick_run / "data")
    with pytest.raises(BadInput, match=r"prepared data of .* are gone"):
        export_tree(quick_run)
