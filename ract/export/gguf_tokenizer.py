"""A tokenizer inside a GGUF file, so that llama.cpp alone reads and writes text as ``tokenizer.json`` does.

llama.cpp knows the patterns that split a text before BPE by the name of a model that uses them
(``tokenizer.ggml.pre``, in its ``llama-vocab.cpp``), and refuses a name it does not know; a vocabulary of one's own
takes the name whose pattern is the same. What was written is then compared on :func:`probes`.
"""

from __future__ import annotations

import ctypes
import json
import random
import unicodedata
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
from tokenizers import Tokenizer

from ract.errors import BadInput
from ract.export.source import Source
from ract.export.vocabulary import token_names
from ract.runtime.engines.gguf import LlamaFile

# GPT-2's pattern, which byte-level pre-tokenizers have by default. llama.cpp has it under several names; with most of
# them ("gpt-2" too) llama_detokenize drops the space before a full stop, with this one it gives back the text.
_GPT2 = "trillion"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# (pattern, whether whole words skip the merges) → name
_PATTERNS = {
    (_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST, False): "qwen2",
    (_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST, False): "smaug-bpe",
    (_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST, True): "llama-bpe",
}
_PROBES = 200
_ALPHABETS = (
    "abcdefghijklmnopqrstuvwxyz", "ABCXYZ", "0123456789", "éßñøžąŁ", "αβγдежתשא", "中文模型小猫。，", "ひらカナ한글",
    "🙂👩‍👩‍👧🇩🇪❤️", ".,;:!?'\"()[]{}<>/\\|@#$%^&*-_=+~`", " ", "  ", "\n", "\t", "\r\n", "\u00a0\u3000", "½²Ⅷ٣",
    "'s't're've'm'll'd",
)  # fmt: skip
_LINES = (
    "Once upon a time, there was a little girl named Lily.", "I'll say: it's what they've done , isn't it ?",
    "def f(x):\n    return {k: v for k, v in x.items() if k != 'a'}\n\n\n", "    indented\n\t\ttabs  and   spaces   \n",
    "从前有一只小猫，它坐在垫子上。", "3.14159 + 2,000,000 = 2e6; 12:45, 1999-12-31", "très jolie — naïve façade",
    "Привет, мир! שלום עולם مرحبا بالعالم", "日本語とかな、한국어 텍스트", "🙂👩‍👩‍👧‍👦 🇩🇪 ❤️", "https://example.org/a_b?c=1&d=%20",
    "<|endoftext|> and </s> are text here", " leading", "trailing ", "CamelCaseWORDS and snake_case_words",
)  # fmt: skip


def probes() -> list[str]:
    """Two hundred texts in many scripts, with code, numbers, emoji and every kind of space, in composed form (NFC)."""
    draw = random.Random(0)
    texts = list(_LINES)
    while len(texts) < _PROBES:
        runs = [draw.choice(_ALPHABETS) for _ in range(draw.randint(1, 12))]
        texts.append("".join("".join(draw.choices(run, k=draw.randint(1, 5))) for run in runs))
    return [unicodedata.normalize("NFC", text) for text in texts]


def add_tokenizer(writer: gguf.GGUFWriter, source: Source) -> None:
    """Put the tokenizer of *source* into *writer*.

    Raises BadInput for one that llama.cpp does not compute, with the reason.
    """
    backend = _plain(source)
    description = json.loads(backend.to_str())
    model = description["model"]
    if model["type"] != "BPE":
        raise BadInput(f"llama.cpp has no decoder with a {model['type']} tokenizer", "Use --format onnx")
    merges = [pair if isinstance(pair, list) else pair.split(" ", 1) for pair in model["merges"]]
    names, types = _tokens(source, description["added_tokens"])
    if model.get("byte_fallback"):
        writer.add_tokenizer_model("llama")
        writer.add_add_space_prefix(backend.encode("a", add_special_tokens=False).tokens[0].startswith("▁"))
        rank = {first + second: number for number, (first, second) in reversed(list(enumerate(merges)))}
        writer.add_token_scores([-float(rank.get(name, len(merges))) for name in names])
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_pattern_name(description))
        writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_token_list(names)
    writer.add_token_types(types)
    _add_special_tokens(writer, source, backend)


def check_tokenizer(file: Path, source: Source) -> None:
    """Raise BadInput unless llama.cpp encodes and decodes :func:`probes` with *file* as *source*'s tokenizer does."""
    backend, opened = _plain(source), LlamaFile(file, vocab_only=True)
    added = [token.content for token in backend.get_added_tokens_decoder().values() if not token.special]
    for text in [*probes(), *(f"a {content} b{content}" for content in added)]:
        expected = backend.encode(text).ids
        found = _tokenize(opened, text)
        if found != expected:
            raise BadInput(
                f"llama.cpp reads {text!r} as {found}, the tokenizer of {source.directory} as {expected}",
                "Use --format onnx, which takes any tokenizer along",
            )
        bare = backend.encode(text, add_special_tokens=False).ids
        written, right = _written(opened, bare), backend.decode(bare)
        if written != right:
            raise BadInput(
                f"llama.cpp writes {written!r} for {bare}, the tokenizer of {source.directory} {right!r}",
                "Use --format onnx, which takes any tokenizer along",
            )


def _plain(source: Source) -> Tokenizer:
    """A copy of the tokenizer that reads no special tokens out of a text, as exported models do."""
    backend = Tokenizer.from_str(source.tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return backend


def _tokens(source: Source, added: list[dict[str, Any]]) -> tuple[list[str], list[gguf.TokenType]]:
    """Name and type of every token."""
    special = {entry["id"]: entry["special"] for entry in added}
    names, types = [], []
    for number, known in enumerate(token_names(source)):
        name = f"[unused {number}]" if known is None else known
        if known is None:
            kind = gguf.TokenType.UNUSED
        elif number == source.tokenizer.unk_token_id:
            kind = gguf.TokenType.UNKNOWN
        elif number in special:
            kind = gguf.TokenType.CONTROL if special[number] else gguf.TokenType.USER_DEFINED
        else:
            byte = len(name) == len("<0x00>") and name.startswith("<0x")
            kind = gguf.TokenType.BYTE if byte else gguf.TokenType.NORMAL
        names.append(name)
        types.append(kind)
    return names, types


def _pattern_name(description: dict[str, Any]) -> str:
    """llama.cpp's name for how a byte-level tokenizer splits a text; BadInput where it has none."""
    normalizer, ignore = description["normalizer"], bool(description["model"].get("ignore_merges"))
    if normalizer and normalizer["type"] != "NFC":  # llama.cpp normalizes nothing, and nearly all text is NFC
        raise BadInput(f"llama.cpp does not normalize text as this tokenizer does ({normalizer['type']})", "Use ONNX")
    found = description["pre_tokenizer"] or {"type": "none"}
    steps = found["pretokenizers"] if found["type"] == "Sequence" else [found]
    kinds = [step["type"] for step in steps]
    if kinds[-1] == "ByteLevel" and not steps[-1]["add_prefix_space"]:
        if kinds == ["ByteLevel"] and steps[0]["use_regex"] and not ignore:
            return _GPT2
        if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"] and steps[1]["use_regex"] and not ignore:
            return "smollm"
        if kinds == ["Split", "ByteLevel"] and not steps[1]["use_regex"]:
            name = _PATTERNS.get((steps[0]["pattern"].get("Regex", ""), ignore))
            if name:
                return name
    raise BadInput(
        f"llama.cpp has no pattern that splits texts as this tokenizer does ({', '.join(kinds)})", "Use --format onnx"
    )


def _add_special_tokens(writer: gguf.GGUFWriter, source: Source, backend: Tokenizer) -> None:
    manifest, tokenizer = source.manifest("gguf", "fp32"), source.tokenizer
    framed, bare = backend.encode("a").ids, backend.encode("a", add_special_tokens=False).ids
    place = next((i for i in range(len(framed)) if framed[i : i + len(bare)] == bare), 0)
    before, after = framed[:place], framed[place + len(bare) :]
    if before not in ([], [manifest.begin]) or after not in ([], *([end] for end in manifest.ends)):
        raise BadInput(f"llama.cpp frames no text as this tokenizer does ({framed} for 'a')", "Use --format onnx")
    writer.add_add_bos_token(bool(before))
    writer.add_add_eos_token(bool(after))
    ends = [*after, *(end for end in manifest.ends if end not in after)]
    given = {"bos": manifest.begin, "pad": tokenizer.pad_token_id, "unk": tokenizer.unk_token_id}
    given |= dict(zip(("eos", "eot"), ends, strict=False))
    for role, number in given.items():
        if number is not None:
            getattr(writer, f"add_{role}_token_id")(number)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _tokenize(opened: LlamaFile, text: str) -> list[int]:
    encoded = text.encode()
    room = len(encoded) + 8
    numbers = (llama_cpp.llama_token * room)()
    count = llama_cpp.llama_tokenize(opened.vocabulary, encoded, len(encoded), numbers, room, True, False)
    return list(numbers[:count])


def _written(opened: LlamaFile, numbers: list[int]) -> str:
    """The text of *numbers*, token by token, as programs print it."""
    room, pieces = 1024, []
    piece = ctypes.create_string_buffer(room)
    spaced = llama_cpp.llama_vocab_type(opened.vocabulary) == llama_cpp.LLAMA_VOCAB_TYPE_SPM
    for place, number in enumerate(numbers):
        leading = int(spaced and place == 0)  # the space that SentencePiece puts before a text
        count = llama_cpp.llama_token_to_piece(opened.vocabulary, number, piece, room, leading, False)
        pieces.append(piece.raw[: max(count, 0)])
    return b"".join(pieces).decode(errors="replace")
