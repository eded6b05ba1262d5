"""ExecuTorch: exported models answer as the originals do, in fp32 to the word, in 8 and 4 bits nearly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ract.errors import BadInput
from ract.export.export import Exported, export
from ract.runtime.classify import TextClassifier
from ract.runtime.engines.base import open_graphs
from ract.runtime.generate import TextGenerator
from tests import task_models
from tests.text_models import byte_level_model

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # the exporter warns of itself
PROMPT = "Once upon a time, there was a little girl"
STORY = " named Lily. She loved to play outside in the park."


@pytest.fixture(scope="module", autouse=True)
def _exporter() -> None:
    pytest.importorskip("executorch")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return task_models.of_every_kind(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def made(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    folder = tmp_path_factory.mktemp("exported")
    return {kind: export(models[kind], folder / kind, format="executorch") for kind in ("decoder", "encoder")}


def test_every_kind_agrees_with_its_original(made: dict[str, Exported]) -> None:
    for kind, one in made.items():
        assert one.measured["kl"] < 1e-6 and one.measured["top1"] == 1.0, kind
        assert kind == "encoder" or one.measured["greedy"] == one.measured["greedy_of"] > 0


def test_texts_come_out_as_in_torch(models: dict[str, Path], made: dict[str, Exported]) -> None:
    ours, torch_ = (TextGenerator(one) for one in (made["decoder"].path, models["decoder"]))
    expected = "".join(torch_.stream(PROMPT, max_new_tokens=60, seed=3))  # past what it can look at
    assert "".join(ours.stream(PROMPT, max_new_tokens=60, seed=3)) == expected
    texts = ["the lovely old film", "", "house " * 80]
    ours, torch_ = (TextClassifier(one).classify(texts) for one in (made["encoder"].path, models["encoder"]))
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


def test_damaged_and_unsuited_models_are_refused(
    models: dict[str, Path], made: dict[str, Exported], tmp_path: Path
) -> None:
    from ract.runtime.engines.executorch import ExecuTorchModel

    with pytest.raises(BadInput, match="is an encoder-decoder, and the graphs of fixed shapes"):
        export(models["encoder-decoder"], tmp_path / "out", format="executorch")
    file = made["encoder"].path / "model.pte"
    content = file.read_bytes()
    try:
        file.write_bytes(content[: len(content) // 2])
        with pytest.raises(BadInput, match="is missing or damaged"):
            TextClassifier(made["encoder"].path)
        file.write_bytes(b"no program" * 100)
        with pytest.raises(BadInput, match="not a program that ExecuTorch opens"):
            ExecuTorchModel(file.parent, verify=False)
        file.unlink()
        with pytest.raises(BadInput, match="is missing"):
            ExecuTorchModel(file.parent, verify=False)
    finally:
        file.write_bytes(content)


def test_weights_of_fewer_bits_make_it_smaller_and_nearly_the_same(tmp_path: Path) -> None:
    model = byte_level_model(tmp_path / "model", hidden_size=64, intermediate_size=64, num_hidden_layers=1)
    found = {p: export(model, tmp_path / p, format="executorch", precision=p) for p in ("int8", "int4")}
    assert found["int8"].measured["kl"] < 1e-3 and found["int4"].measured["kl"] < 0.1
    assert found["int8"].size_bytes > found["int4"].size_bytes


def test_the_known_story_word_for_word(shared_data: Path, tmp_path: Path) -> None:
    found = export(shared_data / "checkpoints" / "stories260k", tmp_path / "story", format="executorch")
    assert found.measured["kl"] < 1e-9
    assert "".join(TextGenerator(found.path).stream(PROMPT, max_new_tokens=30, temperature=0)).startswith(STORY)
