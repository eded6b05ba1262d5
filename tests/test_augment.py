"""What training shows of a text: the same characters in other tokens, the share hidden that was asked for."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ract.data.tokenizer import load_tokenizer, train_tokenizer
from ract.errors import BadInput
from ract.train.augment import Augmentation

TEXTS = ["the film is warm, funny and clever", "影片温暖、有趣而聪明", "an overlong and tiresome film about the film"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS * 3, 400, folder, "encoder")
    return load_tokenizer(folder)


def rows(tokenizer: PreTrainedTokenizerBase) -> list[np.ndarray]:
    return [np.array(tokenizer(text)["input_ids"], dtype=np.uint32) for text in TEXTS]


def changed(
    tokenizer: PreTrainedTokenizerBase, *, seed: int = 0, splits: float = 0.0, dropout: float = 0.0, limit: int = 1000
) -> list[np.ndarray]:
    augmentation = Augmentation(tokenizer, splits=splits, dropout=dropout, max_tokens=limit)
    return augmentation(rows(tokenizer), np.random.default_rng(seed))


@pytest.mark.parametrize("splits", [0.3, 1.0])
def test_divided_tokens_spell_the_same_text(tokenizer: PreTrainedTokenizerBase, splits: float) -> None:
    before, after = rows(tokenizer), changed(tokenizer, splits=splits)
    assert sum(map(len, after)) > sum(map(len, before))
    assert [tokenizer.decode(row, skip_special_tokens=True) for row in after] == TEXTS
    assert all(row[0] == tokenizer.cls_token_id and row[-1] == tokenizer.sep_token_id for row in after)


def test_with_every_token_divided_bytes_are_left(tokenizer: PreTrainedTokenizerBase) -> None:
    assert [len(row) - 2 for row in changed(tokenizer, splits=1.0)] == [len(text.encode()) for text in TEXTS]


def test_the_share_hidden_is_the_one_asked_for_and_special_tokens_stay(tokenizer: PreTrainedTokenizerBase) -> None:
    found = [row for seed in range(200) for row in changed(tokenizer, seed=seed, dropout=0.25)]
    inner = np.concatenate([row[1:-1] for row in found])
    assert 0.23 < (inner == tokenizer.mask_token_id).mean() < 0.27
    assert all(row[0] == tokenizer.cls_token_id and row[-1] == tokenizer.sep_token_id for row in found)


def test_the_share_divided_is_the_one_asked_for(tokenizer: PreTrainedTokenizerBase) -> None:
    word = tokenizer.convert_tokens_to_ids("Ġfilm")
    augmentation = Augmentation(tokenizer, splits=0.2, dropout=0.0, max_tokens=10)
    found = augmentation([np.array([word])] * 5000, np.random.default_rng(0))
    assert 0.18 < np.mean([len(row) > 1 for row in found]) < 0.22


def test_a_text_that_grows_too_long_keeps_its_frame(tokenizer: PreTrainedTokenizerBase) -> None:
    found = changed(tokenizer, splits=1.0, limit=12)
    assert [len(row) for row in found] == [12] * len(TEXTS)
    assert all(row[0] == tokenizer.cls_token_id and row[-1] == tokenizer.sep_token_id for row in found)


def test_what_the_tokenizer_cannot_do_is_refused() -> None:
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "film": 1}, unk_token="[UNK]"))
    plain = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    with pytest.raises(BadInput, match="WordLevel"):
        Augmentation(plain, splits=0.1, dropout=0.0, max_tokens=10)
    with pytest.raises(BadInput, match="mask"):
        Augmentation(plain, splits=0.0, dropout=0.1, max_tokens=10)
