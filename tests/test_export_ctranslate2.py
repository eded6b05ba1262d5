"""CTranslate2 computes what transformers computes: decoders, translators with its own beam search, classifiers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ract.errors import BadInput
from ract.export.export import Exported, export
from ract.runtime.beam import beam_search
from ract.runtime.classify import TextClassifier
from ract.runtime.generate import TextGenerator
from ract.runtime.manifest import Precision
from ract.runtime.translate import Translator
from tests import examples, task_models
from tests.pico import DISTILBERT, LABELS, SIZE, ZOO
from tests.text_models import byte_level_model, word_piece_model

pytest.importorskip("ctranslate2", reason="needs the extra ctranslate2")

from ract.runtime.engines import ctranslate2 as engine_module
from ract.runtime.engines.ctranslate2 import CTranslate2Model

SQUARE = {"hidden_size": 32, "head_dim": 8}  # four heads of it
PAIRED = {"decoder_start_token_id": 1, "pad_token_id": 1}
ARCHITECTURES: list[tuple[str, dict[str, Any]]] = [
    ("Llama", SQUARE),
    ("Llama", {**SQUARE, "rope_parameters": {"rope_type": "linear", "rope_theta": 7777.0, "factor": 2.0}}),
    ("Llama", {**SQUARE, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
    ("Mistral", {}),
    ("Qwen2", SQUARE),
    ("Qwen3", {"rope_parameters": {"rope_type": "default", "rope_theta": 7777.0}}),
    ("GPT-2", {}),
    ("Marian", PAIRED),
    ("BART", PAIRED),
    ("T5", PAIRED),
]
CLASSIFIERS = ("BERT, classification", "RoBERTa, classification", "DistilBERT, classification", "XLM-R, classification")
STORY = ", there was a little girl named Lily. She loved to play outside in the park."


class Stepwise:
    """An engine that can only step."""

    def __init__(self, engine: CTranslate2Model) -> None:
        self.step = engine.step


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_level_model(tmp_path_factory.mktemp("model") / "qwen3", "Qwen3")


@pytest.fixture(scope="module")
def exported(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(model, tmp_path_factory.mktemp("exported") / "fp32", format="ctranslate2")


def test_a_compact_decoder_is_the_same_model(model: Path, exported: Exported) -> None:
    assert exported.measured["kl"] < 1e-9 and exported.measured["top1"] == 1.0
    assert exported.measured["greedy"] == exported.measured["greedy_of"] > 0
    torch_, ct2 = TextGenerator(model), TextGenerator(exported.path)
    for options in ({"temperature": 0}, {"seed": 3, "top_k": 5, "top_p": 0.9}):
        expected = "".join(torch_.stream("def read", max_new_tokens=30, **options))
        assert "".join(ct2.stream("def read", max_new_tokens=30, **options)) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("name", "changes"), ARCHITECTURES)
def test_every_architecture_is_the_same_model(tmp_path: Path, name: str, changes: dict[str, Any]) -> None:
    found = export(byte_level_model(tmp_path / "model", name, **changes), tmp_path / "out", format="ctranslate2")
    assert found.measured["kl"] < 1e-9 and found.measured["top1"] == 1.0
    assert found.measured["greedy"] == found.measured["greedy_of"] > 0


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_give_the_same_probabilities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    fields = ("DistilBertForSequenceClassification", "DistilBertConfig", {**DISTILBERT, **LABELS})
    monkeypatch.setitem(ZOO, "DistilBERT, classification", fields)
    fields = ("XLMRobertaForSequenceClassification", "XLMRobertaConfig", {**SIZE, **LABELS})
    monkeypatch.setitem(ZOO, "XLM-R, classification", fields)
    source = word_piece_model(tmp_path / "model", name)
    out = export(source, tmp_path / "out", format="ctranslate2").path
    texts = ["once upon a time", "", "a cat sat on the mat " * 20, "🙂"]
    for a, b in zip(TextClassifier(source).classify(texts), TextClassifier(out).classify(texts), strict=True):
        assert a.truncated == b.truncated
        np.testing.assert_allclose(list(a.probabilities.values()), list(b.probabilities.values()), atol=1e-5)


def test_eight_bits_are_smaller_and_near(model: Path, exported: Exported, tmp_path: Path) -> None:
    found = export(model, tmp_path / "int8", format="ctranslate2", precision="int8")
    sizes = [(one.path / "model.bin").stat().st_size for one in (exported, found)]
    assert sizes[1] < 0.6 * sizes[0] and 0 < found.measured["kl"] < 1e-3
    again = export(model, tmp_path / "fp32", format="ctranslate2")  # quantizing left the original as it was
    assert again.measured["kl"] == exported.measured["kl"]


def test_the_known_story_word_for_word(shared_data: Path, tmp_path: Path) -> None:
    out = export(shared_data / "checkpoints" / "stories260k", tmp_path / "out", format="ctranslate2").path
    assert STORY in "".join(TextGenerator(out).stream("Once upon a time", max_new_tokens=40, temperature=0))


def test_steps_are_answered_ahead_only_while_greedy(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = CTranslate2Model(exported.path)
    searches: list[int] = []
    guess = CTranslate2Model._guess

    def counted(self: CTranslate2Model, written: Any, source: Any, count: int) -> Any:
        searches.append(count)
        return guess(self, written, source, count)

    monkeypatch.setattr(engine_module.CTranslate2Model, "_guess", counted)
    ids = np.array([[5, 6, 7]])
    logits, state = engine.step(ids, engine.begin())
    for _ in range(20):
        ids = np.concatenate([ids, [[int(logits[0].argmax())]]], 1)
        logits, state = engine.step(ids[:, -1:], state)
        np.testing.assert_allclose(logits, engine.scores(ids, engine.begin())[0][:, -1], atol=1e-4)
    assert len(searches) <= 5 and searches[:3] == [1, 3, 9]
    unlikely = np.array([[int(logits[0].argmin())]])
    logits, _ = engine.step(unlikely, state)
    assert searches[-1] == 1
    other = np.concatenate([ids, unlikely], 1)
    np.testing.assert_allclose(logits, engine.scores(other, engine.begin())[0][:, -1], atol=1e-4)
    short = state.shortened(4)
    assert short.tokens == 4
    np.testing.assert_allclose(
        engine.step(ids[:, 4:6], short)[0], engine.scores(ids[:, :6], engine.begin())[0][:, -1], atol=1e-4
    )


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("translator")
    _, pairs = task_models.reviews_and_pairs(folder)
    source = task_models.translator(folder / "model", pairs)
    return source, export(source, folder / "out", format="ctranslate2").path


@pytest.mark.parametrize("beams", [1, 4])
def test_its_own_search_finds_what_ours_finds(translator: tuple[Path, Path], beams: int) -> None:
    source, out = translator
    engine, model = CTranslate2Model(out), Translator(out)
    lines = [english for english, _ in examples.sentences(20, seed=5)]
    options: dict[str, Any] = {"num_beams": beams, "max_new_tokens": 12, "batch_size": 4}
    assert model.translate(lines, **options) == Translator(source).translate(lines, **options)
    ids = np.array([[5, 6, 7, 8], [9, 10, 11, 0]])
    state = engine.begin(ids, (ids > 0).astype(np.int64))
    search: dict[str, Any] = {"start": engine.manifest.start, "ends": engine.manifest.ends, "num_beams": beams}
    found = engine.search(state, 2, **search, max_new_tokens=12)
    assert found == beam_search(Stepwise(engine), state, 2, **search, max_new_tokens=12)
    never = [found[0][:1], found[1][1:3]]
    other = engine.search(state, 2, **search, max_new_tokens=12, never=never)
    assert other == beam_search(Stepwise(engine), state, 2, **search, max_new_tokens=12, never=never) != found
    forced = {"first": 300, "last": engine.manifest.ends[0]}
    other = engine.search(state, 2, **search, max_new_tokens=12, **forced)
    ours = beam_search(Stepwise(engine), state, 2, **search, max_new_tokens=12, **forced)
    assert [engine_.index(300) for engine_ in other] == [0, 0]
    assert [[t for t in row if t not in engine.manifest.ends] for row in ours] == other


def test_what_it_does_not_compute_is_refused(tmp_path: Path) -> None:
    llama3 = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }  # fmt: skip
    cases: list[tuple[str, dict[str, Any], Precision, str]] = [
        ("Qwen3", {}, "int4", "no 4-bit weights"),
        ("Llama", {}, "fp32", "head_dim = hidden_size"),
        ("Llama", {**SQUARE, "rope_parameters": llama3}, "fp32", r"positions .* \(llama3\)"),
        ("Mistral", {"sliding_window": 8}, "fp32", r"sliding window \(8 tokens\)"),
        ("GPT-2", {"activation_function": "tanh"}, "fp32", "lacks what this model needs: tanh"),
        ("Mixtral", {}, "fp32", "no mixtral among its kinds of decoder"),
    ]
    for number, (name, changes, precision, reason) in enumerate(cases):
        source = byte_level_model(tmp_path / str(number), name, **changes)
        with pytest.raises(BadInput, match=reason):
            export(source, tmp_path / "out", format="ctranslate2", precision=precision)


def test_a_damaged_file_never_reaches_it(exported: Exported, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(exported.path, copy)
    for name in ("model.bin", "vocabulary.json", "config.json"):
        content = (copy / name).read_bytes()
        for one in (content[:-1], content[: len(content) // 2], b"", bytes([content[0] ^ 0xFF]) + content[1:]):
            (copy / name).write_bytes(one)
            with pytest.raises(BadInput, match=r"missing or damaged"):
                CTranslate2Model(copy)
        (copy / name).write_bytes(content)
    (copy / "model.bin").unlink()
    with pytest.raises(BadInput, match="not a model that CTranslate2 opens"):
        CTranslate2Model(copy, verify=False)
