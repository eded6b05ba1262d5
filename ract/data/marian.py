"""The tokenizers of a Marian checkpoint (OPUS-MT) as ``tokenizer.json``: two SentencePiece files and a list of numbers.

Such a checkpoint reads with ``source.spm``, writes with ``target.spm`` and numbers the pieces of both by ``vocab.json``
(``MarianTokenizer`` in transformers, which needs the sentencepiece package wherever the model is used). Here each side
becomes a Unigram model (Kudo 2018) over the numbers of ``vocab.json``: the same numbers for the same text. A piece that
only the other side knows stands behind a mark, so that no text can match it, and is written without the mark; single
characters are read, as ``MarianTokenizer`` looks them up too (it makes one unknown token of several in a row).
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer, decoders, models, processors

from ract.errors import BadInput, needs_extra

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SOURCE, TARGET, NUMBERS = "source.spm", "target.spm", "vocab.json"
_MARK = "\ue000"  # of the private use area: no text has it
_UNIGRAM = 1  # TrainerSpec.ModelType of SentencePiece


def is_marian(directory: Path) -> bool:
    """Whether *directory* holds SentencePiece files of a Marian checkpoint and no ``tokenizer.json``."""
    return (directory / SOURCE).is_file() and not (directory / "tokenizer.json").is_file()


def source_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """The tokenizer that reads sources and writes translations. Raises BadInput for files that it cannot be made of."""
    with needs_extra("Reading SentencePiece files", "train"):
        from transformers import PreTrainedTokenizerFast
    file = directory / "tokenizer_config.json"
    config: dict[str, Any] = _read(file) if file.is_file() else {}
    names = {key: _word(config.get(key, default)) for key, default in _NAMES.items()}
    limit = {"model_max_length": config["model_max_length"]} if "model_max_length" in config else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=_unigram(directory, SOURCE),
        name_or_path=str(directory),
        clean_up_tokenization_spaces=False,
        **names,
        **limit,
    )


def target_side(directory: Path) -> Tokenizer:
    """The tokenizer that targets are read with. Raises BadInput as above."""
    return _unigram(directory, TARGET)


_NAMES = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{file} is not JSON ({error})", "Copy it again from the checkpoint") from error


def _word(token: Any) -> str:
    return token["content"] if isinstance(token, dict) else token


def _unigram(directory: Path, side: str) -> Tokenizer:
    with needs_extra("Reading SentencePiece files", "train"):
        from transformers.convert_slow_tokenizer import SpmConverter
    for name in (SOURCE, TARGET, NUMBERS):
        if not (directory / name).is_file():
            raise BadInput(
                f"{directory} has no {name}, which its tokenizer is made of", "Copy the whole checkpoint again"
            )
    try:
        converter = SpmConverter(SimpleNamespace(vocab_file=str(directory / side), add_prefix_space=True))
    except Exception as error:  # the protobuf library raises its own
        raise BadInput(f"{directory / side} is not a readable SentencePiece file ({error})", "Copy it again") from error
    proto = converter.proto
    if proto.trainer_spec.model_type != _UNIGRAM:
        raise BadInput(f"{directory / side} is not a Unigram model", "Convert it to tokenizer.json with transformers")
    words = _numbered(directory / NUMBERS)
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == 1}  # 1: a normal piece
    codes = [word for word in words if word.startswith(">>") and word.endswith("<<")]
    plain = {*_NAMES.values(), *codes}
    unknown = min(scores.values()) - 10  # what SentencePiece charges for a character without a piece
    # Such a character is looked up in vocab.json all the same, where the other side's pieces stand.
    readable = {word for word in words if word in scores or word in plain or len(word) == 1}
    vocabulary = [(word if word in readable else _MARK + word, scores.get(word, unknown)) for word in words]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=words.index("<unk>"), byte_fallback=False))
    tokenizer.normalizer = converter.normalizer(proto)
    tokenizer.pre_tokenizer = converter.pre_tokenizer("▁", True)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(_MARK, ""), converter.decoder("▁", True)])
    special = [AddedToken(word, normalized=False, special=True) for word in _NAMES.values() if word in words]
    tokenizer.add_tokens([*special, *(AddedToken(word, normalized=False, special=False) for word in codes)])
    end = ("</s>", words.index("</s>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[end])
    return tokenizer


def _numbered(file: Path) -> list[str]:
    """The pieces in the order of their numbers."""
    found: dict[str, int] = _read(file)
    words = sorted(found, key=found.__getitem__)
    if [found[word] for word in words] != list(range(len(words))) or not {"</s>", "<unk>"} <= found.keys():
        problem = f"{file} does not number its pieces from 0 on, or lacks </s> or <unk>"
        raise BadInput(problem, "Copy it again from the checkpoint")
    return words
