"""Byte-level BPE (Sennrich et al. 2016; bytes as in GPT-2, Radford et al. 2019): trained here, or taken from a model.

Every text, in any script, round-trips exactly: the alphabet is the 256 bytes, so there is no unknown token.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from ract.data.marian import NUMBERS, SOURCE, TARGET, is_marian, source_tokenizer, target_side
from ract.errors import BadInput, needs_extra

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEPARATOR = "<|endoftext|>"  # stands before and after every document: both the beginning and the end of text
PADDING = (
    "<|pad|>"  # a token of its own, since the usual collators leave padding out of the loss, and the end must stay in
)
SPECIAL_TOKENS = (SEPARATOR, PADDING)
SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)
# What the tokenizer's config calls the special tokens of each kind of model, and how a text is framed by them.
_ROLES: dict[str, dict[str, str]] = {
    "decoder": {"bos_token": SEPARATOR, "eos_token": SEPARATOR, "pad_token": PADDING},
    "encoder": {"pad_token": PADDING, "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"},
    "encoder-decoder": {"pad_token": PADDING, "eos_token": "</s>"},
}
_FRAMES = {"encoder": "[CLS] $A [SEP]", "encoder-decoder": "$A </s>"}
TARGET_FILE = "target_tokenizer.json"  # reads targets, where tokenizer.json reads sources otherwise
_FILES = ("tokenizer.json", TARGET_FILE, "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_PIECE_CHARACTERS = 1 << 14


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    directory: Path,
    kind: str = "decoder",
    *,
    lowercase: bool = False,
    max_tokens: int | None = None,
) -> None:
    """Train byte-level BPE on *texts* (streamed) and save it in *directory* for ``AutoTokenizer.from_pretrained``.

    The vocabulary has at most *vocab_size* entries, fewer where the text has no more pairs to join; the special tokens
    of the *kind* of model (decoder, encoder, encoder-decoder) come first. An encoder's text is framed as
    ``[CLS] text [SEP]``, an encoder-decoder's ends with ``</s>``. With *lowercase*, upper case makes no difference.
    *max_tokens* is noted as the longest text that the model is made for. The same texts give the same file.
    Raises BadInput when *vocab_size* cannot hold the bytes.
    """
    special = tuple(dict.fromkeys(_ROLES[kind].values()))
    if vocab_size < 256 + len(special):
        raise BadInput(
            f"vocab_size = {vocab_size} is too small for byte-level BPE",
            f"It is at least {256 + len(special)}: 256 bytes and {len(special)} special tokens",
        )
    tokenizer = Tokenizer(models.BPE())
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_pieces(texts), trainer)
    if kind in _FRAMES:
        framing = [(token, tokenizer.token_to_id(token)) for token in special if token in _FRAMES[kind]]
        tokenizer.post_processor = processors.TemplateProcessing(single=_FRAMES[kind], special_tokens=framing)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **_ROLES[kind],
        "clean_up_tokenization_spaces": False,
        **({"model_max_length": max_tokens} if max_tokens else {}),
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The fast tokenizer in a model directory; BadInput when there is none that can be read.

    That of a Marian checkpoint is made of its SentencePiece files (:mod:`ract.data.marian`).
    """
    if is_marian(directory):
        return source_tokenizer(directory)
    with needs_extra("Reading a model's tokenizer", "train"):
        from transformers import AutoTokenizer
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInput(f"{directory} has no readable tokenizer ({reason})", "Copy tokenizer.json into it") from error
    if not tokenizer.is_fast:
        raise BadInput(f"{directory} has only a slow tokenizer", "Convert it to tokenizer.json with transformers")
    return tokenizer


def target_tokenizer(directory: Path) -> Tokenizer | None:
    """What the model in *directory* reads targets with, where that is another tokenizer than the one for sources."""
    if is_marian(directory):
        return target_side(directory)
    file = directory / TARGET_FILE
    return Tokenizer.from_file(str(file)) if file.is_file() else None


def tokenizer_hashes(directory: Path) -> dict[str, str]:
    """SHA-256 of the tokenizer files in *directory*, by name: what names data that were tokenized with them."""
    pieces = [directory / name for name in (SOURCE, TARGET, NUMBERS)] if is_marian(directory) else []
    files = sorted(f for f in (*directory.glob("*token*"), *pieces) if f.is_file())
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def copy_tokenizer(source: Path, directory: Path) -> None:
    """Put the tokenizer of the model directory *source* into *directory*, byte for byte where it is a fast one."""
    tokenizer = load_tokenizer(source)
    directory.mkdir(parents=True, exist_ok=True)
    if not (source / "tokenizer.json").is_file():
        tokenizer.save_pretrained(directory)
        target = target_tokenizer(source)
        if target is not None:
            target.save(str(directory / TARGET_FILE))
        return
    for name in _FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)


def put_prefix(directory: Path, prefix: str) -> None:
    """Let the tokenizer in *directory* put the tokens of *prefix* before every source; targets are read without it.

    The tokens are part of the frame in ``tokenizer.json``, so that every runtime that reads the file has them too.
    Raises BadInput where the frame is none that a template describes.
    """
    tokenizer = load_tokenizer(directory).backend_tokenizer
    tokens = tokenizer.encode(prefix, add_special_tokens=False)
    description = json.loads(tokenizer.to_str())
    frame = description["post_processor"]
    if not frame or frame["type"] != "TemplateProcessing":
        raise BadInput(f"the tokenizer in {directory} has no template that a prefix fits in", "Leave data.prefix out")
    if not (directory / TARGET_FILE).is_file():
        tokenizer.save(str(directory / TARGET_FILE))
    named = {"id": prefix, "ids": tokens.ids, "tokens": tokens.tokens}
    place = next(i for i, part in enumerate(frame["single"]) if "Sequence" in part)
    frame["single"].insert(place, {"SpecialToken": {"id": prefix, "type_id": 0}})
    frame["special_tokens"][prefix] = named
    Tokenizer.from_str(json.dumps(description)).save(str(directory / "tokenizer.json"))


class TextEncoder:
    """Text to token numbers, for streams of documents: no special tokens are added, and none are read out of the text.

    *separator* is the number of the token that stands between documents, *beginning* that of the one that begins a text
    where the tokenizer has one, *vocab_size* one more than the largest number.
    """

    def __init__(self, directory: Path) -> None:
        tokenizer = load_tokenizer(directory)
        known = [tokenizer.eos_token_id, getattr(tokenizer, "sep_token_id", None), tokenizer.bos_token_id]
        separators = [number for number in known if number is not None]
        if not separators:
            raise BadInput(f"the tokenizer in {directory} has no token that ends a text", "Set its eos_token")
        self.separator: int = separators[0]
        self.beginning: int | None = tokenizer.bos_token_id
        self.backend: Tokenizer = tokenizer.backend_tokenizer
        self.backend.no_truncation()
        self.backend.no_padding()
        self.backend.encode_special_tokens = True  # a document that spells out <|endoftext|> is text like any other
        self.vocab_size = 1 + max(self.backend.get_vocab(with_added_tokens=True).values())

    def encode(self, texts: list[str]) -> list[list[int]]:
        """The token numbers of each text."""
        return [encoding.ids for encoding in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

    def token_bytes(self) -> npt.NDArray[np.int64]:
        """How many UTF-8 bytes of text each token stands for, shape ``(vocab_size,)``; special tokens stand for none.

        Exact for byte-level vocabularies; within a byte per document for SentencePiece, which adds a space in front.
        """
        return token_bytes(self.backend, self.vocab_size)


def token_bytes(backend: Tokenizer, vocab_size: int) -> npt.NDArray[np.int64]:
    """See :meth:`TextEncoder.token_bytes`."""
    description = json.loads(backend.to_str())
    byte_level = "ByteLevel" in _types(description["decoder"])
    added = {entry["id"]: entry for entry in description["added_tokens"]}
    table = np.zeros(vocab_size, dtype=np.int64)
    for piece, number in backend.get_vocab(with_added_tokens=True).items():
        if number in added:
            table[number] = 0 if added[number]["special"] else len(piece.encode())
        elif byte_level:
            table[number] = len(piece)  # in this alphabet each character stands for one byte
        elif re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", piece):
            table[number] = 1
        else:
            table[number] = len(piece.removeprefix("##").replace("▁", " ").encode())
    return table


def _types(decoder: Any) -> set[str]:
    if not decoder:
        return set()
    return {decoder["type"]}.union(*(_types(part) for part in decoder.get("decoders", [])))


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    """The texts cut small: the trainer takes them 256 at a time, and a text may be long."""
    for text in texts:
        for start in range(0, len(text), _PIECE_CHARACTERS):
            yield text[start : start + _PIECE_CHARACTERS]
