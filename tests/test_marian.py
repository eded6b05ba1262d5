"""Checkpoints that come with two SentencePiece files, as OPUS-MT's do, and prefixes that stand before every source."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import sentencepiece
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, MarianConfig, MarianMTModel, MarianTokenizer

import ract
from ract.checkpoint.live import load_model
from ract.data.examples import ExampleSpec, prepare_examples
from ract.data.tokenizer import copy_tokenizer, load_tokenizer, put_prefix, target_tokenizer, tokenizer_hashes
from ract.errors import BadInput
from ract.evaluate.translation import reference_loss
from ract.export.export import export
from ract.runtime.open import open_engine
from tests import examples

ROOT = Path(__file__).parent.parent
ODD = [
    "",
    "two  spaces",
    " ends ",
    "tab\there",
    "漢",
    "emoji 😀 x",
    ">>de<< the red dog",
    "a </s> b",
    "e\u0301",
    "שלום",
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pico Marian whose tokenizer was made by SentencePiece itself, one file for each side."""
    folder = tmp_path_factory.mktemp("opus")
    words: dict[str, int] = {"</s>": 0, "<unk>": 1, ">>de<<": 2}
    for side, text in (("source", "docs/guide.md"), ("target", "docs/guide.zh-CN.md")):
        options = {"vocab_size": 1200, "character_coverage": 1.0, "minloglevel": 2}
        sentencepiece.SentencePieceTrainer.train(
            input=str(ROOT / text), model_prefix=str(folder / side), hard_vocab_limit=False, **options
        )
        (folder / f"{side}.model").rename(folder / f"{side}.spm")
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / f"{side}.spm"))
        for piece in range(pieces.get_piece_size()):
            if not (pieces.is_control(piece) or pieces.is_unknown(piece)):
                words.setdefault(pieces.id_to_piece(piece), len(words))
    words["<pad>"] = len(words)
    (folder / "vocab.json").write_text(json.dumps(words), encoding="utf-8")
    described = {"tokenizer_class": "MarianTokenizer", "source_lang": "en", "target_lang": "de", "model_max_length": 48}
    (folder / "tokenizer_config.json").write_text(json.dumps(described), encoding="utf-8")
    _model(len(words)).save_pretrained(folder)
    return folder


def _model(vocabulary: int) -> MarianMTModel:
    pad = vocabulary - 1
    ends = {"pad_token_id": pad, "decoder_start_token_id": pad, "eos_token_id": 0, "forced_eos_token_id": 0}
    sizes = {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in _SIZES.items()}
    torch.manual_seed(0)
    return MarianMTModel(MarianConfig(vocab_size=vocabulary, d_model=32, max_position_embeddings=64, **sizes, **ends))


_SIZES = {"layers": 1, "attention_heads": 2, "ffn_dim": 32}


@pytest.fixture(scope="module")
def original(checkpoint: Path) -> MarianTokenizer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it recommends another package
        return MarianTokenizer.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def texts() -> list[tuple[str, str]]:
    return [(f"{a}.", f"{b}.") for a, b in examples.sentences(120, seed=3)]


def test_both_sides_read_as_transformers_does(
    checkpoint: Path, original: MarianTokenizer, texts: list[tuple[str, str]]
) -> None:
    ours, targets = load_tokenizer(checkpoint), target_tokenizer(checkpoint)
    assert targets is not None and ours.model_max_length == 48
    for source, target in [*texts, *zip(ODD, ODD, strict=True)]:
        assert ours(source)["input_ids"] == original(source)["input_ids"], source
        assert targets.encode(target).ids == original(text_target=target)["input_ids"], target
    assert [source for source, _ in texts] != [target for _, target in texts]


def test_it_writes_what_transformers_writes(checkpoint: Path, original: MarianTokenizer) -> None:
    ours = load_tokenizer(checkpoint)
    draw = torch.Generator().manual_seed(0)
    for _ in range(100):
        numbers = torch.randint(len(original), (12,), generator=draw).tolist()
        expected = original.decode(numbers, skip_special_tokens=True)
        assert ours.decode(numbers, skip_special_tokens=True) == expected


def test_a_copy_is_one_that_transformers_opens(checkpoint: Path, original: MarianTokenizer, tmp_path: Path) -> None:
    copy_tokenizer(checkpoint, tmp_path)
    text = "the old house and the red dog."
    assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == original(text)["input_ids"]
    again = target_tokenizer(tmp_path)
    assert again is not None and again.encode("Hund ist rot.").ids == original(text_target="Hund ist rot.")["input_ids"]
    assert {"source.spm", "target.spm", "vocab.json"} <= tokenizer_hashes(checkpoint).keys()


@pytest.mark.parametrize("name", ["target.spm", "vocab.json"])
def test_a_missing_file_is_named(checkpoint: Path, tmp_path: Path, name: str) -> None:
    for file in ("source.spm", "target.spm", "vocab.json"):
        if file != name:
            (tmp_path / file).write_bytes((checkpoint / file).read_bytes())
    with pytest.raises(BadInput, match=name):
        load_tokenizer(tmp_path)


def test_garbage_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    for file in ("source.spm", "target.spm", "vocab.json"):
        (tmp_path / file).write_bytes((checkpoint / file).read_bytes())
    (tmp_path / "source.spm").write_bytes(b"\x00garbage" * 40)
    with pytest.raises(BadInput, match="SentencePiece"):
        load_tokenizer(tmp_path)


@pytest.mark.slow
def test_a_tree_grows_from_such_a_checkpoint(checkpoint: Path, tmp_path: Path, texts: list[tuple[str, str]]) -> None:
    """Branches, a merge, an export: each answers as transformers does with the merged weights."""
    english, german = examples.write_pairs(tmp_path, "train", texts * 2)
    plan = tmp_path / "plan.toml"
    plan.write_text(_PLAN.format(english=english, german=german, checkpoint=checkpoint), encoding="utf-8")
    run = ract.build(plan, tmp_path / "run", workers=1)
    final = run.directories[run.graph.final]
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(final), AutoTokenizer.from_pretrained(final)
    source = "the old house and the red dog."
    ids = tokenizer(source, return_tensors="pt")
    row = model.generate(**ids, num_beams=1, max_new_tokens=12)[0]
    expected = tokenizer.decode(row, skip_special_tokens=True).strip()
    export(final, tmp_path / "onnx", format="onnx")
    for where in (final, tmp_path / "onnx"):
        answer = open_engine(where, "Translator", "translate").translate(
            [source], num_beams=1, max_new_tokens=12, batch_size=1
        )
        assert answer == [expected]


_PLAN = """
name = "opus"
[data]
task = "translation"
source_language = "en"
target_language = "de"
train = ["{english}", "{german}"]
max_tokens = 48
test_examples = 20
valid_fraction = 0.1
test_fraction = 0.1
[compact]
from = "{checkpoint}"
train = {{ epochs = 1 }}
[train]
batch_tokens = 256
[[level]]
method = "merge"
members = 2
branch = {{ epochs = 1 }}
"""


def test_a_prefix_stands_before_sources_alone(checkpoint: Path, original: MarianTokenizer, tmp_path: Path) -> None:
    copy_tokenizer(checkpoint, tmp_path)
    put_prefix(tmp_path, ">>de<<")
    ours, text = AutoTokenizer.from_pretrained(tmp_path), "the old house."
    assert ours(text)["input_ids"] == original(">>de<<" + text)["input_ids"]
    cut = ours("the old house and " * 20, truncation=True, max_length=10)["input_ids"]
    assert len(cut) == 10 and cut[0] == 2 and cut[-1] == 0
    targets = target_tokenizer(tmp_path)
    assert targets is not None and targets.encode("Haus.").ids == original(text_target="Haus.")["input_ids"]


def test_a_prefix_of_words_reads_as_the_words_do(checkpoint: Path, original: MarianTokenizer, tmp_path: Path) -> None:
    """As T5's do: sources are read as if the words stood before each, targets as ever."""
    files = examples.write_pairs(tmp_path, "train", examples.sentences(40))
    spec = ExampleSpec("translation", train=files, valid=files, test=files, prefix="house of: ")
    data = prepare_examples(spec, tmp_path / "cache", tokenizer=checkpoint)
    for number, (source, target) in enumerate(examples.sentences(40)):
        assert data.tokens["train"][number].tolist() == original(f"house of: {source}")["input_ids"]
        assert data.targets["train"][number].tolist() == original(text_target=target)["input_ids"]


def test_the_loss_on_references_reads_them_with_their_own_side(checkpoint: Path, original: MarianTokenizer) -> None:
    model = load_model(checkpoint).eval()
    ids, labels = original("the dog.", return_tensors="pt"), original(text_target="Hund 和.", return_tensors="pt")
    with torch.no_grad():
        expected = model(**ids, labels=labels["input_ids"]).loss.item()
    found = reference_loss(model, load_tokenizer(checkpoint), ["the dog."], ["Hund 和."])
    assert found == pytest.approx(expected, abs=1e-5)
