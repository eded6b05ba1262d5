"""Held-out batches: the model's own loss on them is the figure they are for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from torch.nn import functional as F

from ract.data.heldout import load_batches
from ract.errors import BadInput
from tests.text_models import TEXT, byte_level_model, word_piece_model


def loaded(path: Path) -> transformers.PreTrainedModel:
    name = json.loads((path / "config.json").read_text())["architectures"][0]
    return getattr(transformers, name).from_pretrained(path, local_files_only=True).eval()


@pytest.fixture
def text(tmp_path: Path) -> list[str]:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return [str(tmp_path / "text.txt")]


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    rows = [{"text": TEXT[: 20 + 7 * n], "label": n % 3} for n in range(10)]
    path = tmp_path / "reviews.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_a_causal_model_predicts_the_next_tokens(tmp_path: Path, text: list[str]) -> None:
    path = byte_level_model(tmp_path / "model")
    batches = load_batches(path, "language-modeling", text, block_size=32, batch_size=4, limit=3)
    assert [batch["input_ids"].shape for batch in batches] == [(4, 32)] * 3
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    shown = tokenizer.decode(torch.cat([batch["input_ids"].flatten() for batch in batches]))
    assert shown.startswith("<|endoftext|>def read_json(path):")
    model = loaded(path)
    with torch.no_grad():
        out = model(**batches[0])
        expected = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), batches[0]["input_ids"][:, 1:].flatten())
    torch.testing.assert_close(out.loss, expected)


def test_a_masked_model_predicts_what_was_masked(tmp_path: Path, text: list[str]) -> None:
    path = word_piece_model(tmp_path / "model", "BERT, masked LM")
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    batches = load_batches(path, "language-modeling", text, block_size=64, batch_size=4)
    inputs, labels = (torch.cat([b[key] for b in batches if len(b["labels"]) == 4]) for key in ("input_ids", "labels"))
    chosen = labels != -100
    assert 0.12 < chosen.float().mean() < 0.18
    assert chosen.any(1).all()
    assert 0.7 < (inputs[chosen] == tokenizer.mask_token_id).float().mean() < 0.9
    assert (inputs[:, 0] == tokenizer.cls_token_id).all()
    assert (inputs[:, -1] == tokenizer.sep_token_id).all()
    restored = torch.where(chosen, labels, inputs)
    assert (restored != tokenizer.mask_token_id).all()
    assert "once upon a time there was a cat" in tokenizer.decode(restored[0])
    again = load_batches(path, "language-modeling", text, block_size=64, batch_size=4)
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(batches, again, strict=True))
    other = load_batches(path, "language-modeling", text, block_size=64, batch_size=4, seed=1)
    assert not torch.equal(batches[0]["labels"], other[0]["labels"])
    with torch.no_grad():
        assert torch.isfinite(loaded(path)(**batches[0]).loss)


def test_a_text_shorter_than_a_block_is_one_short_block(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("def f", encoding="utf-8")
    path = byte_level_model(tmp_path / "model")
    (batch,) = load_batches(path, "language-modeling", [str(tmp_path / "short.txt")])
    assert 2 < batch["input_ids"].shape[1] < 10


def test_blocks_fit_what_the_model_can_look_at(tmp_path: Path, text: list[str]) -> None:
    path = byte_level_model(tmp_path / "model", max_position_embeddings=16)
    assert load_batches(path, "language-modeling", text, limit=1)[0]["input_ids"].shape == (8, 16)


def test_classification(tmp_path: Path, reviews: Path) -> None:
    path = word_piece_model(tmp_path / "model", "BERT, classification")
    batches = load_batches(path, "classification", [str(reviews)], block_size=32, batch_size=4)
    assert [len(batch["labels"]) for batch in batches] == [4, 4, 2]
    assert torch.cat([batch["labels"] for batch in batches]).tolist() == [n % 3 for n in range(10)]
    assert all(batch["input_ids"].shape[1] <= 32 for batch in batches)
    model = loaded(path)
    with torch.no_grad():
        out = model(**batches[0])
        lengths = batches[0]["attention_mask"].sum(1).tolist()
        alone = [model(input_ids=batches[0]["input_ids"][i : i + 1, :length]) for i, length in enumerate(lengths)]
    torch.testing.assert_close(out.logits, torch.cat([one.logits for one in alone]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.loss, F.cross_entropy(out.logits, batches[0]["labels"]))


def test_without_a_task_it_is_the_models_own(tmp_path: Path, reviews: Path, text: list[str]) -> None:
    classifier = word_piece_model(tmp_path / "classifier", "BERT, classification")
    decoder, masked = byte_level_model(tmp_path / "decoder"), word_piece_model(tmp_path / "masked", "BERT, masked LM")
    for path, task, files in (
        (classifier, "classification", [str(reviews)]),
        (decoder, "language-modeling", text),
        (masked, "language-modeling", text),
    ):
        (own, *_), (asked, *_) = load_batches(path, None, files), load_batches(path, task, files)
        assert own.keys() == asked.keys() and all(torch.equal(own[key], asked[key]) for key in own)


def test_labels_by_name(tmp_path: Path) -> None:
    path = word_piece_model(tmp_path / "model", "BERT, classification")
    config = json.loads((path / "config.json").read_text())
    names = {"id2label": {"0": "bad", "1": "fair", "2": "good"}, "label2id": {"bad": 0, "fair": 1, "good": 2}}
    (path / "config.json").write_text(json.dumps(config | names))
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a", "label": "good"}\n{"text": "b", "label": "1"}\n{"text": "c", "label": 0}\n')
    (batch,) = load_batches(path, "classification", [str(rows)])
    assert batch["labels"].tolist() == [2, 1, 0]


def test_translation_from_two_files_and_from_jsonl(tmp_path: Path) -> None:
    path = word_piece_model(tmp_path / "model", "T5")
    english, french = ["a cat sat", "", "once upon a time there"], ["une jolie", "", "je suis"]
    (tmp_path / "x.en").write_text("\n".join(english) + "\n", encoding="utf-8")
    (tmp_path / "x.fr").write_text("\n".join(french) + "\n", encoding="utf-8")
    rows = [json.dumps({"source": s, "target": t}) for s, t in zip(english, french, strict=True) if s]
    (tmp_path / "x.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (two,) = load_batches(path, "translation", [str(tmp_path / "x.en"), str(tmp_path / "x.fr")])
    (one,) = load_batches(path, "translation", [str(tmp_path / "x.jsonl")])
    assert one.keys() == two.keys() == {"input_ids", "attention_mask", "labels"}
    assert all(torch.equal(one[key], two[key]) for key in one)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    assert tokenizer.decode(two["input_ids"][0], skip_special_tokens=True) == "a cat sat"
    wanted = two["labels"][0]
    assert tokenizer.decode(wanted[wanted != -100], skip_special_tokens=True) == "une jolie"
    with torch.no_grad():
        assert torch.isfinite(loaded(path)(**two).loss)


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


HEADLESS = "is of class BertModel, which"


@pytest.mark.parametrize(
    ("zoo", "task", "files", "message"),
    [
        ("BERT", "language-modeling", lambda d: [write(d / "a.txt", TEXT)], f"{HEADLESS} predicts no tokens"),
        ("T5", "language-modeling", lambda d: [write(d / "a.txt", TEXT)], "of class T5ForConditionalGeneration, which"),
        ("BERT", "clasification", lambda d: [], 'no task "clasification". Did you mean "classification"'),
        ("BERT", "classification", lambda d: [write(d / "a.jsonl", "{}")], f"{HEADLESS} classifies no texts"),
        ("BERT", "translation", lambda d: [write(d / "a.jsonl", "{}")], f"{HEADLESS} translates no texts"),
        ("BERT, classification", "classification", lambda d: [write(d / "a.txt", "x")], "a.txt has no rows"),
        ("BERT, classification", "classification", lambda d: [write(d / "a.jsonl", "\n")], "a.jsonl holds no rows"),
        ("BERT, classification", "classification", lambda d: [str(d / "none.jsonl")], "none.jsonl does not exist"),
        (
            "BERT, classification", "classification",
            lambda d: [write(d / "a.jsonl", '{"text": "x", "label": 3}')], "line 1: the model has no label .3.*0 ",
        ),
        (
            "BERT, classification", "classification",
            lambda d: [write(d / "a.jsonl", '{"text": "x", "label": "good"}')], "the model has no label .good.",
        ),
        (
            "BERT, classification", "classification",
            lambda d: [write(d / "a.jsonl", '{"text": "x", "stars": 3}')], 'line 1 has no label.*text, stars',
        ),
        ("T5", "translation", lambda d: [write(d / "a.en", "x")], "a.en has no file beside it"),
        (
            "T5", "translation",
            lambda d: [write(d / "a.en", "x\ny\n"), write(d / "a.fr", "x\n")], "a.en and .* the same number of lines",
        ),
        ("T5", "translation", lambda d: [write(d / "a.en", "x"), str(d / "a.fr")], "a.fr does not exist"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(
    tmp_path: Path, zoo: str, task: str, files: Callable[[Path], list[str]], message: str
) -> None:
    path = word_piece_model(tmp_path / "model", zoo)
    with pytest.raises(BadInput, match=message) as caught:
        load_batches(path, task, files(tmp_path))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_real_data(shared_data: Path) -> None:
    path = shared_data / "checkpoints" / "stories260k"
    (batch,) = load_batches(path, "language-modeling", [str(shared_data / "lm" / "stories" / "valid.txt")], limit=1)
    with torch.no_grad():
        assert 2.5 < loaded(path)(**batch).loss.item() < 4.5
