"""Examples on disk: every row once, in its split, framed for its model; what cannot be learned from is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ract.data.examples import Examples, ExampleSpec, open_examples, prepare_examples
from ract.data.tokenizer import load_tokenizer
from ract.errors import BadInput
from tests import examples

SPLITS = ("train", "valid", "test")


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    return examples.classification(tmp_path_factory.mktemp("reviews"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    return examples.translation(tmp_path_factory.mktemp("pairs"))


def test_every_review_is_in_one_split_as_the_tokenizer_frames_it(reviews: Examples) -> None:
    rows = [row for split in SPLITS for row in reviews.rows(split)]
    given = examples.reviews(300)
    assert sorted(row["text"] for row in rows) == sorted(row["text"] for row in given)
    assert reviews.labels == ("bad", "good") and all(reviews.count(split) for split in SPLITS)
    tokenizer = load_tokenizer(reviews.tokenizer_dir)
    for split in SPLITS:
        for number, row in enumerate(reviews.rows(split)):
            assert tokenizer(row["text"])["input_ids"] == reviews.tokens[split][number].tolist()
            assert reviews.labels[reviews.label_ids[split][number]] == row["label"]
    framed = reviews.tokens["train"][0]
    assert framed[0] == tokenizer.cls_token_id and framed[-1] == tokenizer.sep_token_id
    assert tokenizer.decode(framed, skip_special_tokens=True) == reviews.rows("train")[0]["text"]


def test_the_stream_holds_the_texts_between_separators(reviews: Examples) -> None:
    separator = load_tokenizer(reviews.tokenizer_dir).sep_token_id
    for split in ("train", "valid"):
        assert (reviews.stream[split] == separator).sum() == reviews.count(split) + 1


def test_a_sample_is_from_all_over_the_split(reviews: Examples) -> None:
    rows = reviews.rows("train")
    some = reviews.sample("train", 50)
    places = [rows.index(row) for row in some]
    assert len(set(places)) == 50 and places == sorted(places) and min(places) < 30 and max(places) > len(rows) - 30
    assert reviews.sample("train", 10**6) == rows


def test_pairs_end_with_the_end_of_the_sentence(pairs: Examples) -> None:
    tokenizer = load_tokenizer(pairs.tokenizer_dir)
    for split in SPLITS:
        for number, row in enumerate(pairs.rows(split)):
            for kind, side in ((pairs.tokens, "source"), (pairs.targets, "target")):
                numbers = kind[split][number]
                assert numbers[-1] == tokenizer.eos_token_id
                assert tokenizer.decode(numbers, skip_special_tokens=True) == row[side]
    assert pairs.tokens_in("train") == int(pairs.lengths("train").sum())


def test_long_texts_are_cut_and_counted_blank_ones_skipped_and_counted(tmp_path: Path) -> None:
    rows = [*examples.reviews(60), {"text": "word " * 20_000, "label": "good"}, {"text": " \t ", "label": "good"}]
    spec = ExampleSpec("classification", train=(examples.write_rows(tmp_path / "a.jsonl", rows),), max_tokens=16,
                       valid_fraction=0.2, test_fraction=0.2)  # fmt: skip
    found = prepare_examples(spec, tmp_path, vocab_size=300)
    assert max(found.tokens[split].lengths.max() for split in SPLITS) == 16
    assert sum(found.truncated.values()) >= 1 and sum(found.skipped.values()) == 1


def test_a_pair_is_cut_where_either_side_is(tmp_path: Path) -> None:
    pairs = [*examples.sentences(60), ("short", "lang " * 500), ("long " * 500, "kurz")]
    files = examples.write_pairs(tmp_path, "a", pairs)
    spec = ExampleSpec("translation", train=files, valid=files, test=files, max_tokens=200)
    found = prepare_examples(spec, tmp_path, vocab_size=400)
    assert found.truncated == {"train": 2, "valid": 2, "test": 2}
    assert found.targets["train"][60].size == found.tokens["train"][61].size == 200


def test_texts_of_another_domains_train_split_overlap_too(tmp_path: Path) -> None:
    files = [examples.write_rows(tmp_path / f"{seed}.jsonl", examples.reviews(30, seed)) for seed in range(3)]
    one = {"train": (files[0],), "valid": (files[2],), "test": (files[1],)}
    two = {"train": (files[1],), "valid": (files[2],), "test": (files[2],)}
    spec = ExampleSpec("classification", domains={"one": one, "two": two})
    assert prepare_examples(spec, tmp_path, vocab_size=300).overlap == {"train": 0, "valid": 0, "test": 30}


def test_domains_classes_names_and_overlap(tmp_path: Path) -> None:
    one, two = examples.reviews(40, seed=1), examples.reviews(40, seed=2)
    files = {
        name: {split: (examples.write_rows(tmp_path / f"{name}.{split}.jsonl", rows),) for split in SPLITS}
        for name, rows in (("one", one), ("two", two))
    }
    spec = ExampleSpec("classification", domains=files, label_names={"good": "positive"})
    found = prepare_examples(spec, tmp_path, vocab_size=300)
    assert found.domains == ("one", "two") and found.labels == ("bad", "positive")
    assert np.bincount(found.domain_ids["test"]).tolist() == [40, 40]
    assert found.tokens_in("train", "one") + found.tokens_in("train", "two") == found.tokens_in("train")
    assert found.overlap == {"train": 0, "valid": 80, "test": 80}  # the same files were given for every split


def test_preparing_again_reads_what_is_there_and_a_damaged_set_is_made_anew(tmp_path: Path) -> None:
    first = examples.classification(tmp_path)
    record = first.path / "examples.json"
    before = record.stat().st_mtime_ns
    assert examples.classification(tmp_path).digest == first.digest and record.stat().st_mtime_ns == before
    tokens = first.path / "train.tokens.bin"
    tokens.write_bytes(tokens.read_bytes()[:-4])
    with pytest.raises(BadInput, match="holds no prepared examples"):
        open_examples(first.path)
    assert examples.classification(tmp_path).count("train") == first.count("train")


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"text": f"t{i}", "label": "only"} for i in range(30)], 'only the class "only"'),
        ([{"text": " ", "label": "a"}], "no example"),
        ([{"text": "t", "label": "a"}, {"text": "u", "label": "b"}], "the valid split has no example"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(tmp_path: Path, rows: list[dict[str, str]], says: str) -> None:
    source = examples.write_rows(tmp_path / "a.jsonl", rows)
    spec = ExampleSpec("classification", train=(source,), valid_fraction=0.0, test_fraction=0.0)
    with pytest.raises(BadInput, match=says):
        prepare_examples(spec, tmp_path, vocab_size=300)


def test_a_class_unseen_in_training_names_its_line(tmp_path: Path) -> None:
    train = examples.write_rows(tmp_path / "train.jsonl", examples.reviews(50))
    valid = examples.write_rows(tmp_path / "valid.jsonl", [*examples.reviews(3), {"text": "x", "label": "odd"}])
    spec = ExampleSpec("classification", train=(train,), valid=(valid,))
    with pytest.raises(BadInput, match=r'valid.jsonl line 4: the class "odd" does not occur.*bad, good'):
        prepare_examples(spec, tmp_path, vocab_size=300)


def test_classes_are_numbered_as_their_labels_whatever_they_are_called(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": str(i % 11)} for i in range(200)]
    source = examples.write_rows(tmp_path / "a.jsonl", rows)
    names = {str(i): f"class {chr(ord('z') - i)}" for i in range(11)}  # the names sort the other way round
    found = prepare_examples(
        ExampleSpec("classification", train=(source,), label_names=names), tmp_path, vocab_size=300
    )
    assert found.labels == tuple(names[str(i)] for i in range(11))
