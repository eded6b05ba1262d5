"""OpenVINO: exported models answer as the originals do, in fp32 to the word, in 8 and 4 bits nearly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ract.errors import BadInput
from ract.export.export import Exported, export
from ract.runtime.classify import TextClassifier
from ract.runtime.generate import TextGenerator
from ract.runtime.translate import Translator
from tests import task_models

pytest.importorskip("openvino")
pytestmark = pytest.mark.slow  # tracing a model takes ten seconds and more
PROMPT = "Once upon a time, there was a little girl"
STORY = " named Lily. She loved to play outside in the park."
LINES = ["the old dog", "", "the new house and the red film. the big tree."]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return task_models.of_every_kind(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def made(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    folder = tmp_path_factory.mktemp("exported")
    return {kind: export(path, folder / kind, format="openvino") for kind, path in models.items()}


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
        np.testing.assert_allclose(list(a.probabilities.values()), list(b.probabilities.values()), atol=1e-5)


@pytest.mark.parametrize("beams", [1, 3])
def test_a_translator_searches_as_transformers_does(
    models: dict[str, Path], made: dict[str, Exported], beams: int
) -> None:
    options = {"num_beams": beams, "max_new_tokens": 6, "batch_size": 2}
    expected = Translator(models["encoder-decoder"]).translate(LINES, **options)
    assert Translator(made["encoder-decoder"].path).translate(LINES, **options) == expected


def test_a_state_may_be_used_again_reordered_and_shortened(made: dict[str, Exported]) -> None:
    from ract.runtime.engines.openvino import OpenVinoModel

    model = OpenVinoModel(made["decoder"].path)
    ids = np.array([[5, 6, 7, 8], [9, 10, 11, 12]])
    whole, _ = model.scores(ids, model.begin())
    _, two = model.step(ids[:, :2], model.begin())
    _, four = model.step(ids[:, 2:], two)
    for state, rows in ((two, [0, 1]), (four.shortened(2), [0, 1]), (two.reordered(np.array([1, 1])), [1, 1])):
        again, _ = model.scores(ids[rows][:, 2:], state)
        np.testing.assert_allclose(again, whole[rows][:, 2:], atol=1e-4)
    again, _ = model.scores(ids, four.shortened(0))
    np.testing.assert_allclose(again, whole, atol=1e-4)


def test_no_output_is_an_input_again(made: dict[str, Exported]) -> None:
    from ract.runtime.engines.openvino import openvino

    for file in made["encoder-decoder"].path.glob("*.xml"):
        for port in openvino.Core().read_model(file).outputs:
            assert "encoder_last_hidden_state" not in port.get_names()


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["transformers"] = sys.modules["nncf"] = None  # importing one is an error now
from ract.runtime.generate import generate
print("".join(generate(sys.argv[1], "def f", max_new_tokens=5, temperature=0)))
assert sys.modules["openvino_telemetry"] is None  # OpenVINO would report its use over the network
"""


def test_it_runs_where_torch_cannot_be_imported(made: dict[str, Exported]) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, str(made["decoder"].path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


def test_damaged_and_unsuited_models_are_refused(
    models: dict[str, Path], made: dict[str, Exported], tmp_path: Path
) -> None:
    from ract.runtime.engines.openvino import OpenVinoModel

    folder = made["encoder"].path
    for name in ("model.xml", "model.bin"):
        content = (folder / name).read_bytes()
        try:
            (folder / name).write_bytes(content[: len(content) // 2])
            with pytest.raises(BadInput, match="is missing or damaged"):
                TextClassifier(folder)
            (folder / name).unlink()
            with pytest.raises(BadInput, match="is missing"):
                OpenVinoModel(folder, verify=False)
        finally:
            (folder / name).write_bytes(content)
    (folder / "model.xml").write_text("<net>", encoding="utf-8")
    with pytest.raises(BadInput, match="not a graph that OpenVINO opens"):
        OpenVinoModel(folder, verify=False)
    with pytest.raises(BadInput, match="an ensemble of models that write text"):
        export(task_models.ensemble(tmp_path / "two", [models["decoder"]] * 2), tmp_path / "out", format="openvino")


def test_the_known_story_word_for_word_and_smaller(shared_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    story = shared_data / "checkpoints" / "stories260k"
    sizes = {}
    for precision, most in (("fp32", 1e-9), ("int8", 0.01), ("int4", 0.3)):
        found = export(story, tmp_path / precision, format="openvino", precision=precision)
        assert found.measured["kl"] < most
        sizes[precision] = (found.path / "decode.bin").stat().st_size
        if precision != "int4":
            assert "".join(TextGenerator(found.path).stream(PROMPT, max_new_tokens=30, temperature=0)).startswith(STORY)
    assert sizes["fp32"] > 3 * sizes["int8"] > 3 * sizes["int4"]
