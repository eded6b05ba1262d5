"""LiteRT: exported models answer as the originals do, in fp32 to the word, in 8 and 4 bits nearly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ract.aggregate.run import aggregate
from ract.errors import BadInput
from ract.export.export import Exported, export
from ract.runtime.classify import TextClassifier
from ract.runtime.engines.base import open_graphs
from ract.runtime.generate import TextGenerator
from tests import task_models
from tests.text_models import byte_level_model

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # the converter warns of itself
PROMPT = "Once upon a time, there was a little girl"
STORY = " named Lily. She loved to play outside in the park."


@pytest.fixture(scope="module", autouse=True)
def _converter() -> None:
    pytest.importorskip("litert_torch", exc_type=ImportError)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return task_models.of_every_kind(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def made(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    folder = tmp_path_factory.mktemp("exported")
    return {kind: export(models[kind], folder / kind, format="litert") for kind in ("decoder", "encoder")}


def test_every_kind_agrees_with_its_original(made: dict[str, Exported]) -> None:
    for kind, one in made.items():
        assert one.measured["kl"] < 1e-6 and one.measured["top1"] == 1.0, kind
        assert kind == "encoder" or one.measured["greedy"] == one.measured["greedy_of"] > 0


def test_texts_come_out_as_in_torch(models: dict[str, Path], made: dict[str, Exported]) -> None:
    ours, torch_ = (TextGenerator(one) for one in (made["decoder"].path, models["decoder"]))
    for options in ({"temperature": 0}, {"seed": 3}):
        expected = "".join(torch_.stream(PROMPT, max_new_tokens=60, **options))  # past what it can look at
        assert "".join(ours.stream(PROMPT, max_new_tokens=60, **options)) == expected
    texts = ["the lovely old film", "", "dull 🙂 שלום", "house " * 80]
    ours, torch_ = (
        TextClassifier(one).classify(texts, batch_size=3) for one in (made["encoder"].path, models["encoder"])
    )
    for a, b in zip(ours, torch_, strict=True):
        assert (a.label, a.truncated) == (b.label, b.truncated)
        np.testing.assert_allclose(list(a.probabilities.values()), list(b.probabilities.values()), atol=1e-5)


def test_a_state_may_be_used_again_reordered_and_shortened(made: dict[str, Exported]) -> None:
    model = open_graphs(made["decoder"].path)
    ids = np.random.default_rng(0).integers(3, 90, (2, 40))
    whole, _ = model.scores(ids, model.begin())
    _, some = model.step(ids[:, :35], model.begin())
    _, all_ = model.step(ids[:, 35:], some)
    for state, rows, start in ((some, [0, 1], 35), (all_.shortened(20), [1, 0], 20), (some, [1, 1], 35)):
        again, _ = model.scores(ids[rows][:, start:], state.reordered(np.array(rows)))
        np.testing.assert_allclose(again, whole[rows][:, start:], atol=1e-4)


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["transformers"] = sys.modules["litert_torch"] = None
from ract.runtime.classify import classify
from ract.runtime.generate import generate
print("".join(generate(sys.argv[1], "def f", max_new_tokens=5, temperature=0)), classify(sys.argv[2], "good")[0].label)
"""


def test_it_runs_where_torch_cannot_be_imported(made: dict[str, Exported]) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, str(made["decoder"].path), str(made["encoder"].path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


def test_damaged_and_unsuited_models_are_refused(
    models: dict[str, Path], made: dict[str, Exported], tmp_path: Path
) -> None:
    from ract.runtime.engines.litert import LiteRtModel

    with pytest.raises(BadInput, match="is an encoder-decoder, and the graphs of fixed shapes"):
        export(models["encoder-decoder"], tmp_path / "out", format="litert")
    file = made["encoder"].path / "model.tflite"
    content = file.read_bytes()
    try:
        file.write_bytes(content[: len(content) // 2])
        with pytest.raises(BadInput, match="is missing or damaged"):
            TextClassifier(made["encoder"].path)
        file.write_bytes(b"no graph")
        with pytest.raises(BadInput, match="not a graph that LiteRT opens"):
            LiteRtModel(file.parent, verify=False)
        file.unlink()
        with pytest.raises(BadInput, match="is missing"):
            LiteRtModel(file.parent, verify=False)
    finally:
        file.write_bytes(content)


def test_an_ensemble_of_decoders_is_one_graph(tmp_path: Path) -> None:
    members = [byte_level_model(tmp_path / name, name, seed=seed) for seed, name in enumerate(("Qwen3", "Llama"))]
    aggregate(members, tmp_path / "both", method="ensemble", weights=[0.3, 0.7])
    found = export(tmp_path / "both", tmp_path / "out", format="litert")
    assert found.measured["same"] and found.measured["greedy"] == found.measured["greedy_of"]


def test_the_known_story_word_for_word_and_smaller(shared_data: Path, tmp_path: Path) -> None:
    story = shared_data / "checkpoints" / "stories260k"
    sizes = {}
    for precision, most in (("fp32", 1e-9), ("int8", 0.01), ("int4", 0.3)):
        found = export(story, tmp_path / precision, format="litert", precision=precision)  # type: ignore[arg-type]
        assert found.measured["kl"] < most
        sizes[precision] = (found.path / "model.tflite").stat().st_size
        if precision != "int4":
            assert "".join(TextGenerator(found.path).stream(PROMPT, max_new_tokens=30, temperature=0)).startswith(STORY)
    assert sizes["fp32"] > 2 * sizes["int8"] > 2 * sizes["int4"]
