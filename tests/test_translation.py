"""Figures of translators: sacrebleu's own, the references' loss, and the ways in which translations go wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import torch

from ract.data.examples import Examples
from ract.data.tokenizer import load_tokenizer
from ract.errors import BadInput
from ract.evaluate import translation
from ract.evaluate.translation import _loops, bleu_tokenizer, evaluate_translator, reference_loss, scores, translate
from tests import examples
from tests.pico import load
from tests.task_models import ensemble, translator

LANGUAGES: dict[str, Any] = {"source_language": "en", "target_language": "de"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    return examples.translation(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def directory(data: Examples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return translator(tmp_path_factory.mktemp("model") / "one", data)


@pytest.fixture(scope="module")
def pair(directory: Path) -> tuple[Any, Any]:
    return load(directory), load_tokenizer(directory)


@pytest.mark.parametrize(
    ("language", "name"),
    [("de", "13a"), ("en_US", "13a"), ("zh", "zh"), ("zh-Hans", "zh"), ("yue", "zh"), ("th", "char"), ("ZH_TW", "zh")],
)
def test_the_tokenizer_of_bleu_follows_the_language(language: str, name: str) -> None:
    assert bleu_tokenizer(language) == name


@pytest.mark.parametrize("language", ["ja", "ko"])
def test_japanese_and_korean_are_cut_as_well_as_what_is_installed_can(
    language: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(translation.importlib.util, "find_spec", lambda name: None)
    assert bleu_tokenizer(language) == "char"
    monkeypatch.setattr(translation.importlib.util, "find_spec", lambda name: object())
    assert bleu_tokenizer(language) == f"{language}-mecab"


def test_scores_are_sacrebleus_with_signatures_that_name_the_tokenizer() -> None:
    outputs = ["Der alte Hund schläft auf dem Sofa.", "Ein rotes Haus am See"]
    references = ["Der alte Hund schläft auf der Couch.", "Ein rotes Haus am kleinen See"]
    found = scores(outputs, references, "de")
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(outputs, [references]).score)
    assert found["chrf"] == pytest.approx(sacrebleu.corpus_chrf(outputs, [references]).score)
    assert "tok:13a" in found["bleu_signature"] and "nc:6" in found["chrf_signature"]
    chinese = scores(["这本书很好看。"], ["这本书很好看。"], "zh")
    assert chinese["bleu"] == pytest.approx(100) and "tok:zh" in chinese["bleu_signature"]
    assert scores(["", ""], references, "de")["bleu"] == 0


@pytest.mark.parametrize(
    ("text", "loops"),
    [
        ("ein ein ein ein", True),
        ("und dann und dann und dann und dann", True),
        ("ha ha ha", False),
        ("好好好好", True),
        ("a normal sentence that ends", False),
        ("", False),
        ("ein Hund und ein Hund", False),
    ],
)
def test_loops_at_the_end(text: str, loops: bool) -> None:
    assert _loops(text) is loops


def test_what_went_wrong_is_counted(pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = ["", "the dog", "ja ja ja ja ja", "Der rote Hund"]
    monkeypatch.setattr(translation, "translate", lambda *a, **k: (outputs, [False, False, True, False]))
    found = evaluate_translator(
        *pair, ["the cat", "the dog", "yes", "the red dog"], ["Katze", "Hund", "ja", "Der rote Hund"], **LANGUAGES,
        domains=["x", "y", "y", "x"],
    )  # fmt: skip
    assert [found[key] for key in ("empty", "copies", "too_long", "repeated", "examples")] == [1, 1, 1, 1, 4]
    assert found["length_ratio"] == pytest.approx((7 + 14 + 13) / (5 + 4 + 2 + 13))
    assert found["outputs"][3] == {"source": "the red dog", "reference": "Der rote Hund", "output": "Der rote Hund"}
    assert {name: one["examples"] for name, one in found["by_domain"].items()} == {"x": 2, "y": 2}
    assert found["languages"] == "en-de"


def test_a_translator_is_measured_as_it_translates(data: Examples, pair: tuple[Any, Any]) -> None:
    rows = data.rows("test")[:12] * 2
    sources, references = [row["source"] for row in rows], [row["target"] for row in rows]
    seen: list[tuple[int, int]] = []
    found = evaluate_translator(
        *pair, sources, references, **LANGUAGES, num_beams=2, batch_size=5, progress=lambda _, *n: seen.append(n)
    )
    outputs, cut = translate(*pair, sources, num_beams=2, batch_size=5)
    assert [one["output"] for one in found["outputs"]] == outputs[:20] and len(found["outputs"]) == 20
    assert found["bleu"] == scores(outputs, references, "de")["bleu"] and found["too_long"] == sum(cut)
    assert found["nats_per_token"] == pytest.approx(reference_loss(*pair, sources, references)) and seen[-1] == (24, 24)


def test_order_and_batches_change_nothing(pair: tuple[Any, Any]) -> None:
    sources = ["the old dog and the new house and the red film", "the tree", "", "the big book"]
    together = translate(*pair, sources, num_beams=3, max_new_tokens=7)[0]
    assert together == [translate(*pair, [text], num_beams=3, max_new_tokens=7)[0][0] for text in sources]
    assert translate(*pair, sources[::-1], num_beams=3, max_new_tokens=7)[0] == together[::-1]


def test_the_limit_is_said_to_be_hit_and_only_then(pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = pair
    assert translate(model, tokenizer, ["the dog"], num_beams=1, max_new_tokens=3)[1] == [True]
    ended = torch.tensor([[0, 9, 9, tokenizer.eos_token_id]])
    monkeypatch.setattr(model, "generate", lambda **options: ended)
    assert translate(model, tokenizer, ["the dog"])[1] == [False]


def test_the_loss_of_the_references_is_the_models_own_per_token(data: Examples, pair: tuple[Any, Any]) -> None:
    model, tokenizer = pair
    rows = data.rows("test")[:9]
    sources, references = [row["source"] for row in rows], [row["target"] for row in rows]
    total = count = 0.0
    for source, reference in zip(sources, references, strict=True):
        labels = tokenizer(text_target=reference, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            inputs = tokenizer(source, return_tensors="pt")["input_ids"]
            total += float(model(input_ids=inputs, labels=labels).loss) * labels.numel()
        count += labels.numel()
    for size in (1, 4):
        assert reference_loss(model, tokenizer, sources, references, batch_size=size) == pytest.approx(total / count)


def test_an_ensemble_is_measured_like_any_translator(data: Examples, directory: Path, tmp_path: Path) -> None:
    members = [directory, translator(tmp_path / "other", data, seed=1)]
    both = ensemble(tmp_path / "both", members)
    rows = data.rows("test")[:6]
    given = ([row["source"] for row in rows], [row["target"] for row in rows])
    found = evaluate_translator(load(both), load_tokenizer(both), *given, **LANGUAGES, num_beams=3)
    losses = [reference_loss(load(path), load_tokenizer(path), *given) for path in members]
    assert found["examples"] == 6 and found["nats_per_token"] <= sum(losses) / 2 + 1e-4  # convex in the logits


def test_nothing_to_measure_and_broken_weights_are_said(pair: tuple[Any, Any], directory: Path) -> None:
    with pytest.raises(BadInput, match="no sentences to evaluate"):
        evaluate_translator(*pair, [], [], **LANGUAGES)
    broken = load(directory)
    with torch.no_grad():
        broken.final_logits_bias.fill_(float("nan"))
    with pytest.raises(BadInput, match="not finite"):
        reference_loss(broken, pair[1], ["the dog"], ["der Hund"])
