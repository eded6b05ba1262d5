"""Exported models answer as the originals do, in a process that has neither torch nor transformers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from ract.errors import BadInput
from ract.export.export import Exported, export
from ract.runtime.classify import TextClassifier
from ract.runtime.generate import TextGenerator
from ract.runtime.manifest import read_manifest
from ract.runtime.translate import Translator
from tests import task_models

pytestmark = pytest.mark.slow  # tracing three models takes half a minute
TEXTS = ["the lovely old film", "", "dull 🙂 שלום", "house " * 80]
LINES = ["the old dog", "", "the new house and the red film. the big tree."]
PROMPT = "def read_json(path):"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return task_models.of_every_kind(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def made(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    folder = tmp_path_factory.mktemp("exported")
    return {kind: export(path, folder / kind) for kind, path in models.items()}


@pytest.fixture(scope="module")
def exported(made: dict[str, Exported]) -> dict[str, Path]:
    return {kind: one.path for kind, one in made.items()}


def test_every_kind_agrees_with_its_original(made: dict[str, Exported]) -> None:
    for kind, one in made.items():
        measured = one.measured
        assert measured["kl"] < 1e-6 and measured["top1"] == 1.0, kind
        assert kind == "encoder" or measured["greedy"] == measured["greedy_of"] > 0


def test_a_decoder_continues_as_in_torch(models: dict[str, Path], exported: dict[str, Path]) -> None:
    torch_, onnx = TextGenerator(models["decoder"]), TextGenerator(exported["decoder"])
    for options in ({"temperature": 0}, {"seed": 3}, {"seed": 4, "top_k": 5, "top_p": 0.9, "temperature": 0.7}):
        expected = "".join(torch_.stream(PROMPT, max_new_tokens=80, **options))  # past what it can look at
        assert "".join(onnx.stream(PROMPT, max_new_tokens=80, **options)) == expected
    assert "".join(onnx.stream("", max_new_tokens=5, seed=1)) == "".join(torch_.stream("", max_new_tokens=5, seed=1))


@pytest.mark.parametrize("windows", [False, True])
def test_a_classifier_gives_the_same_probabilities(
    models: dict[str, Path], exported: dict[str, Path], windows: bool
) -> None:
    torch_, onnx = (
        TextClassifier(d["encoder"]).classify(TEXTS, batch_size=3, windows=windows) for d in (models, exported)
    )
    for a, b in zip(torch_, onnx, strict=True):
        assert (a.label, a.truncated) == (b.label, b.truncated)
        np.testing.assert_allclose(list(a.probabilities.values()), list(b.probabilities.values()), atol=1e-5)


@pytest.mark.parametrize(("beams", "limit"), [(1, 6), (4, 6), (3, None)])
def test_a_translator_searches_as_transformers_does(
    models: dict[str, Path], exported: dict[str, Path], beams: int, limit: int | None
) -> None:
    options = {"num_beams": beams, "max_new_tokens": limit, "batch_size": 2}
    expected = Translator(models["encoder-decoder"]).translate(LINES, **options)
    assert Translator(exported["encoder-decoder"]).translate(LINES, **options) == expected


@pytest.mark.parametrize("beams", [1, 4])
def test_what_must_not_be_generated_is_not(models: dict[str, Path], beams: int, tmp_path: Path) -> None:
    """As OPUS's models forbid their padding; and a sequence of tokens. What ends a text cannot be forbidden."""
    options = {"num_beams": beams, "max_new_tokens": 8, "batch_size": 2}
    folder = shutil.copytree(models["encoder-decoder"], tmp_path / "model")
    file = folder / "generation_config.json"
    given = json.loads(file.read_text())
    written = [row.tolist() for row in generated(folder, **options)]
    first, second, third = written[0][1:4]
    given["bad_words_ids"] = [[first], [second, third], [given["eos_token_id"]]]
    file.write_text(json.dumps(given))
    out = export(folder, tmp_path / "out").path
    assert read_manifest(out).never == ((first,), (second, third))
    expected = Translator(folder).translate(LINES, **options)
    assert Translator(out).translate(LINES, **options) == expected
    assert expected != Translator(models["encoder-decoder"]).translate(LINES, **options)


@pytest.mark.parametrize("beams", [1, 4])
def test_what_must_stand_first_and_last_does(models: dict[str, Path], beams: int, tmp_path: Path) -> None:
    """As mBART and NLLB name the language first, and BART ends at the limit."""
    options = {"num_beams": beams, "max_new_tokens": 5, "batch_size": 2}
    folder = shutil.copytree(models["encoder-decoder"], tmp_path / "model")
    file = folder / "generation_config.json"
    given = json.loads(file.read_text())
    file.write_text(json.dumps({**given, "forced_bos_token_id": 300, "forced_eos_token_id": given["eos_token_id"]}))
    out = export(folder, tmp_path / "out").path
    assert (read_manifest(out).first, read_manifest(out).last) == (300, given["eos_token_id"])
    written = generated(folder, **options)[0].tolist()
    assert written[1] == 300 and written[5] == given["eos_token_id"]
    expected = Translator(folder).translate(LINES, **options)
    assert Translator(out).translate(LINES, **options) == expected
    assert expected != Translator(models["encoder-decoder"]).translate(LINES, **options)


def generated(folder: Path, num_beams: int, max_new_tokens: int, batch_size: int) -> list[Any]:
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    given = tokenizer([LINES[0]], return_tensors="pt")
    return list(model.generate(**given, num_beams=num_beams, max_new_tokens=max_new_tokens, do_sample=False))


WITHOUT_TORCH = """
import json, sys
sys.modules["torch"] = sys.modules["transformers"] = None  # importing either is an error now
from ract.runtime.classify import classify
from ract.runtime.generate import generate
from ract.runtime.translate import translate
decoder, encoder, both = sys.argv[1:]
print(json.dumps(["".join(generate(decoder, "def f", max_new_tokens=5, temperature=0)),
                  classify(encoder, "a lovely film")[0].label, translate(both, "the old dog", max_new_tokens=5)]))
"""


def test_exported_models_run_where_torch_cannot_be_imported(exported: dict[str, Path]) -> None:
    paths = [str(exported[kind]) for kind in ("decoder", "encoder", "encoder-decoder")]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *paths], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    text, label, lines = json.loads(done.stdout)
    assert isinstance(text, str) and label in ("bad", "good") and len(lines) == 1


def test_the_manifest_names_every_file_and_a_damaged_one_is_refused(exported: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    source = exported["encoder"]
    manifest = read_manifest(source)
    assert set(manifest.files) == {p.name for p in source.iterdir()} - {"manifest.json"}
    for name in [*manifest.files, "manifest.json"]:
        copy = tmp_path / f"damaged-{name}"
        shutil.copytree(source, copy)
        content = bytearray((copy / name).read_bytes())
        for place in (0, len(content) // 2):
            content[place] ^= 0xFF
        (copy / name).write_bytes(content)
        with pytest.raises(BadInput, match=r"Export the model again|Copy it again"):
            TextClassifier(copy).classify(["a"])


def test_what_cannot_be_exported_or_run_is_said(
    models: dict[str, Path], exported: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="is an exported encoder, which continues no text"):
        TextGenerator(exported["encoder"])
    with pytest.raises(BadInput, match="which classifies no texts"):
        TextClassifier(exported["decoder"])
    with pytest.raises(BadInput, match="exists already"):
        export(models["encoder"], exported["encoder"])
    with pytest.raises(BadInput, match="an ensemble of models that write text"):
        export(task_models.ensemble(tmp_path / "two", [models["decoder"]] * 2), tmp_path / "out")
