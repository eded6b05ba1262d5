"""Byte-level BPE: exact in every script, the same every time, open to transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from ract.data.tokenizer import (
    PADDING,
    SEPARATOR,
    SMALLEST_VOCABULARY,
    TextEncoder,
    copy_tokenizer,
    load_tokenizer,
    train_tokenizer,
)
from ract.errors import BadInput
from tests.text_models import TEXT, word_piece_model


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([TEXT], 330, folder)
    return folder


@given(text=st.text(alphabet=st.characters(blacklist_categories=["Cs"])))
def test_every_text_round_trips(trained: Path, text: str) -> None:
    encoder = TextEncoder(trained)
    numbers = encoder.encode([text])[0]
    assert load_tokenizer(trained).decode(numbers) == text
    assert int(encoder.token_bytes()[numbers].sum()) == len(text.encode())


def test_transformers_opens_it(trained: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(trained, local_files_only=True)
    text = "if x  ==\t'中文' :\r\n\n    naïve 🙂 <|endoftext|>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.eos_token, tokenizer.bos_token, tokenizer.pad_token) == (SEPARATOR, SEPARATOR, PADDING)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, len(tokenizer)) == (0, 1, 330)
    assert tokenizer(["a", "a longer text"], padding=True)["attention_mask"][0][-1] == 0


@pytest.mark.parametrize(("kind", "frame"), [("encoder", ("[CLS]", "[SEP]")), ("encoder-decoder", ("", "</s>"))])
def test_transformers_frames_texts_for_the_kind_of_model(tmp_path: Path, kind: str, frame: tuple[str, str]) -> None:
    train_tokenizer([TEXT], 330, tmp_path, kind, max_tokens=16)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    text = "naïve 🙂 中文"
    numbers = tokenizer(text)["input_ids"]
    assert tokenizer.decode(numbers) == frame[0] + text + frame[1]
    assert tokenizer.decode(numbers, skip_special_tokens=True) == text
    cut = tokenizer("word " * 50, truncation=True)["input_ids"]
    assert len(cut) == tokenizer.model_max_length == 16 and tokenizer.decode(cut[-1]) == frame[1]


def test_without_case_upper_and_lower_are_one(tmp_path: Path) -> None:
    train_tokenizer([TEXT], 330, tmp_path, "encoder", lowercase=True)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer("Ein GROSSES Haus")["input_ids"] == tokenizer("ein grosses haus")["input_ids"]


def test_chinese_is_learned_like_any_other_script(tmp_path: Path) -> None:
    text = "人工智能是计算机科学的一个分支。" * 50
    train_tokenizer([text], 320, tmp_path)
    numbers = TextEncoder(tmp_path).encode(["人工智能"])[0]
    assert len(numbers) < len("人工智能".encode()) / 2


def test_equal_texts_give_an_equal_file(tmp_path: Path, trained: Path) -> None:
    train_tokenizer(iter([TEXT]), 330, tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (trained / "tokenizer.json").read_bytes()


def test_a_text_that_spells_a_special_token_is_only_text(trained: Path) -> None:
    encoder = TextEncoder(trained)
    numbers = encoder.encode([f"before {SEPARATOR} after"])[0]
    assert encoder.separator == 0
    assert 0 not in numbers
    assert load_tokenizer(trained).decode(numbers) == f"before {SEPARATOR} after"


def test_a_vocabulary_too_small_for_the_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=f"vocab_size = 200 .* at least {SMALLEST_VOCABULARY}"):
        train_tokenizer(["text"], 200, tmp_path)
    train_tokenizer(["text"], SMALLEST_VOCABULARY, tmp_path)
    assert TextEncoder(tmp_path).vocab_size == SMALLEST_VOCABULARY


def test_a_short_text_gives_a_smaller_vocabulary(tmp_path: Path) -> None:
    train_tokenizer(["a b"], 5000, tmp_path)
    assert TextEncoder(tmp_path).vocab_size < 300


def test_a_tokenizer_is_copied_from_a_model(trained: Path, tmp_path: Path) -> None:
    copy_tokenizer(trained, tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (trained / "tokenizer.json").read_bytes()
    assert TextEncoder(tmp_path).separator == 0


def test_another_models_tokenizer_adds_nothing_of_its_own(tmp_path: Path) -> None:
    encoder = TextEncoder(word_piece_model(tmp_path, "BERT"))
    tokenizer = load_tokenizer(tmp_path)
    assert encoder.separator == tokenizer.sep_token_id
    assert not set(encoder.encode(["once upon a time"])[0]) & set(tokenizer.all_special_ids)


def test_bytes_of_a_sentence_piece_vocabulary(shared_data: Path) -> None:
    encoder = TextEncoder(shared_data / "checkpoints" / "stories260k")
    text = "Once upon a time, there was a girl.\nNaïve 中"
    numbers = encoder.encode([text])[0]
    assert int(encoder.token_bytes()[numbers].sum()) == len(text.encode()) + 1  # the space in front


def test_a_folder_without_a_tokenizer_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=f"{tmp_path.name} has no readable tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(BadInput, match="has no readable tokenizer"):
        load_tokenizer(tmp_path)
