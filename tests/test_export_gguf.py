"""GGUF: llama.cpp computes what transformers computes, and reads and writes text as tokenizer.json does."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from ract.errors import BadInput
from ract.export.export import Exported, export
from ract.runtime.generate import TextGenerator
from ract.runtime.manifest import Precision
from tests.pico import pico, save
from tests.text_models import TEXT, byte_level_model, word_piece_model

pytest.importorskip("llama_cpp", reason="needs the extra gguf")
pytest.importorskip("gguf", reason="needs the extra gguf")

from ract.export import gguf_tokenizer
from ract.runtime.engines.gguf import FILE_NAME, GgufModel, LlamaFile

WIDE: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64}  # rows of whole blocks
BITS: tuple[Precision, ...] = ("int8", "int4")
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
ARCHITECTURES: list[tuple[str, dict[str, Any]]] = [
    ("Llama", {}),
    ("Llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False, "rope_parameters": LLAMA3}),
    ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 7777.0, "factor": 2.0}}),
    ("Mistral", {}),
    ("Mixtral", {}),
    ("Qwen2", {"head_dim": 4}),
    ("Qwen3", {"tie_word_embeddings": False}),
    ("GPT-2", {}),
]
STORY = ", there was a little girl named Lily. She loved to play outside in the park."


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes = {**WIDE, "max_position_embeddings": 1024}
    return byte_level_model(tmp_path_factory.mktemp("model") / "qwen3", "Qwen3", **changes)


@pytest.fixture(scope="module")
def exported(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(model, tmp_path_factory.mktemp("exported") / "fp32", format="gguf")


def test_a_compact_decoder_is_the_same_model(model: Path, exported: Exported) -> None:
    assert exported.measured["kl"] < 1e-9 and exported.measured["top1"] == 1.0
    assert exported.measured["greedy"] == exported.measured["greedy_of"] == 50
    torch_, llama = TextGenerator(model), TextGenerator(exported.path)
    for options in ({"temperature": 0}, {"seed": 3, "top_k": 5, "top_p": 0.9}):
        expected = "".join(torch_.stream("def read", max_new_tokens=40, **options))
        assert "".join(llama.stream("def read", max_new_tokens=40, **options)) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("name", "changes"), ARCHITECTURES)
def test_every_architecture_is_the_same_model(tmp_path: Path, name: str, changes: dict[str, Any]) -> None:
    found = export(byte_level_model(tmp_path / "model", name, **changes), tmp_path / "out", format="gguf").measured
    assert found["kl"] < 1e-6 and found["top1"] == 1.0 and found["greedy"] == found["greedy_of"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Qwen3", "Llama"])
def test_an_upcycled_mixture_is_the_same_model(tmp_path: Path, name: str) -> None:
    from ract.aggregate.run import aggregate

    children = [byte_level_model(tmp_path / str(seed), name, seed=seed) for seed in range(2)]
    aggregate(children, tmp_path / "mixture", method="upcycle")
    found = export(tmp_path / "mixture", tmp_path / "out", format="gguf").measured
    assert found["kl"] < 1e-6 and found["greedy"] == found["greedy_of"] > 0


def test_fewer_bits_are_smaller_and_near(model: Path, exported: Exported, tmp_path: Path) -> None:
    found = {bits: export(model, tmp_path / bits, format="gguf", precision=bits) for bits in BITS}
    sizes = [(one.path / FILE_NAME).stat().st_size for one in (exported, found["int8"], found["int4"])]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 3
    assert 0 < found["int8"].measured["kl"] < 1e-3 < found["int4"].measured["kl"] < 0.1


def test_the_known_story_word_for_word_by_llama_cpp_alone(shared_data: Path, tmp_path: Path) -> None:
    out = export(shared_data / "checkpoints" / "stories260k", tmp_path / "out", format="gguf").path
    assert STORY in "".join(TextGenerator(out).stream("Once upon a time", max_new_tokens=40, temperature=0))
    engine = GgufModel(out)
    written = gguf_tokenizer._tokenize(engine.file, "Once upon a time")
    logits, state = engine.step(np.array([written]), engine.begin())
    for _ in range(40):
        written.append(int(logits[0].argmax()))
        logits, state = engine.step(np.array([written[-1:]]), state)
    assert STORY in gguf_tokenizer._written(engine.file, written)


def test_states_may_be_shortened_repeated_and_mixed(exported: Exported) -> None:
    engine = GgufModel(exported.path)
    ids = np.random.default_rng(0).integers(2, 300, (2, 700))  # more than one chunk, more than the first room
    every, _ = engine.scores(ids, engine.begin())
    first, state = engine.step(ids[:, :600], engine.begin())
    np.testing.assert_allclose(first, every[:, 599], atol=1e-4)
    rest, _ = engine.scores(ids[:, 600:], state)
    np.testing.assert_allclose(rest, every[:, 600:], atol=1e-4)
    again, _ = engine.scores(ids[:, 600:610], state)  # the same state once more
    np.testing.assert_allclose(again, every[:, 600:610], atol=1e-4)
    short = state.shortened(100)
    assert short.tokens == 100
    np.testing.assert_allclose(engine.step(ids[:, 100:103], short)[0], every[:, 102], atol=1e-4)
    swapped = state.reordered(np.array([1, 0, 1]))
    np.testing.assert_allclose(engine.step(ids[[1, 0, 1], 600:601], swapped)[0], every[[1, 0, 1], 600], atol=1e-4)


def test_threads_share_an_engine(exported: Exported) -> None:
    engine = GgufModel(exported.path)

    def continued(first: int) -> list[int]:
        written, state, feed = [], engine.begin(), np.array([[first]])
        for _ in range(20):
            logits, state = engine.step(feed, state)
            written.append(int(logits[0].argmax()))
            feed = np.array([[written[-1]]])
        return written

    alone = [continued(first) for first in range(2, 8)]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(continued, range(2, 8))) == alone


def split(tokenizer: Tokenizer, how: Any, normalizer: Any = None) -> Tokenizer:
    """*tokenizer* trained on the text split by *how*."""
    tokenizer.pre_tokenizer, tokenizer.normalizer = how, normalizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|pad|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT, "12345 67890 don't DON'T 2024-01-01\r\n\r\n  x" * 20], trainer)
    return tokenizer


def with_tokenizer(folder: Path, tokenizer: Tokenizer) -> Path:
    save(pico("Qwen3", vocab_size=410, eos_token_id=0, bos_token_id=0), folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **roles}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def bytes_only(*, use_regex: bool = False) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def by_pattern(number: int) -> Any:
    pattern = list(gguf_tokenizer._PATTERNS)[number][0]
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), bytes_only()])


SPLITS: dict[str, tuple[Any, bool, Any]] = {
    "trillion": (bytes_only(use_regex=True), False, None),
    "qwen2": (by_pattern(0), False, normalizers.NFC()),
    "smaug-bpe": (by_pattern(1), False, None),
    "llama-bpe": (by_pattern(2), True, None),
    "smollm": (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), bytes_only(use_regex=True)]), False,
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SPLITS)
def test_vocabularies_of_ones_own_are_read_alike(tmp_path: Path, name: str) -> None:
    import gguf

    how, ignore, normalizer = SPLITS[name]
    tokenizer = split(Tokenizer(models.BPE(ignore_merges=ignore)), how, normalizer)
    tokenizer.add_tokens(["<tool>"])
    source = with_tokenizer(tmp_path / "model", tokenizer)
    out = export(source, tmp_path / "out", format="gguf").path
    fields = gguf.GGUFReader(out / FILE_NAME).fields
    assert fields["tokenizer.ggml.pre"].contents() == name
    opened = LlamaFile(out / FILE_NAME, vocab_only=True)
    tokenizer.encode_special_tokens = True
    for text in ("don't DON'T 12345", "小猫  sat\r\n\r\n\t🙂", " <tool>{1}<tool> <|endoftext|>"):
        assert gguf_tokenizer._tokenize(opened, text) == tokenizer.encode(text).ids


def test_a_text_is_framed_as_the_tokenizer_frames_it(tmp_path: Path) -> None:
    tokenizer = split(Tokenizer(models.BPE()), bytes_only(use_regex=True))
    frame = [("<|endoftext|>", 0)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<|endoftext|> $A", special_tokens=frame)
    out = export(with_tokenizer(tmp_path / "model", tokenizer), tmp_path / "out", format="gguf").path
    found = gguf_tokenizer._tokenize(LlamaFile(out / FILE_NAME, vocab_only=True), "a cat")
    assert found == tokenizer.encode("a cat").ids and found[0] == 0


def test_a_pattern_that_splits_otherwise_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = with_tokenizer(tmp_path / "model", split(Tokenizer(models.BPE()), bytes_only(use_regex=True)))
    monkeypatch.setattr(gguf_tokenizer, "_GPT2", "qwen2")
    with pytest.raises(BadInput, match=r"llama.cpp reads .* as"):
        export(source, tmp_path / "out", format="gguf")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("how", "normalizer", "reason"),
    [
        (pre_tokenizers.Whitespace(), None, "no pattern that splits texts as this tokenizer does"),
        (bytes_only(use_regex=True), normalizers.Lowercase(), r"does not normalize .*\(Lowercase\)"),
    ],
)
def test_tokenizers_that_llama_cpp_has_not_are_refused(tmp_path: Path, how: Any, normalizer: Any, reason: str) -> None:
    source = with_tokenizer(tmp_path / "model", split(Tokenizer(models.BPE()), how, normalizer))
    with pytest.raises(BadInput, match=reason):
        export(source, tmp_path / "out", format="gguf")


def test_what_llama_cpp_does_not_compute_is_refused(tmp_path: Path) -> None:
    cases: list[tuple[str, dict[str, Any], Precision, str]] = [
        ("Qwen3", {}, "int8", "hidden_size = 16 is no multiple"),
        ("Qwen2", {}, "fp32", "num_attention_heads × head_dim = hidden_size"),
        ("Mistral", {"sliding_window": 8}, "fp32", r"no sliding window \(8 tokens\)"),
        ("GPT-2", {"activation_function": "relu"}, "fp32", "activation relu"),
        ("Gemma", {}, "fp32", r"not for gemma \(decoder\)"),
        ("T5", {"decoder_start_token_id": 1, "pad_token_id": 1}, "fp32", r"not for t5 \(encoder-decoder\)"),
    ]
    for number, (name, changes, precision, reason) in enumerate(cases):
        source = byte_level_model(tmp_path / str(number), name, **changes)
        with pytest.raises(BadInput, match=reason):
            export(source, tmp_path / "out", format="gguf", precision=precision)
    with pytest.raises(BadInput, match="WordPiece tokenizer"):
        export(word_piece_model(tmp_path / "words", "Qwen3"), tmp_path / "out", format="gguf")


def test_a_damaged_file_never_reaches_llama_cpp(exported: Exported, tmp_path: Path) -> None:
    content = (exported.path / FILE_NAME).read_bytes()
    places = [0, 5, 9, 100, len(content) // 2, len(content) - 1]
    damaged = [content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :] for place in places]
    damaged += [content[:place] for place in places]
    copy = tmp_path / "copy"
    shutil.copytree(exported.path, copy)
    for one in damaged:
        (copy / FILE_NAME).write_bytes(one)
        with pytest.raises(BadInput, match=r"missing or damaged"):
            GgufModel(copy)
    (copy / FILE_NAME).write_bytes(b"no GGUF at all")
    with pytest.raises(BadInput, match=r"not a model that llama.cpp opens"):
        GgufModel(copy, verify=False)


def test_probes_hold_many_scripts() -> None:
    texts = gguf_tokenizer.probes()
    assert len(texts) == 200 and len(set(texts)) > 190
    joined = "".join(texts)
    assert all(part in joined for part in ("小猫", "🙂", "\r\n", "\t", "3.14", "def f", "Привет", "שלום"))


def test_four_bits_are_nearer_than_by_rule_of_thumb() -> None:
    import gguf

    from ract.export.gguf_quantize import quantized

    kind = gguf.GGMLQuantizationType.Q4_0
    values = np.random.default_rng(0).normal(size=(6, 5, 64)).astype(np.float32)
    values[0, 0] = 0.0  # a block of zeros
    values[1, 0, :32] = np.arange(-8, 24) % 16 - 8  # representable
    rule, ours = gguf.quants.quantize(values, kind), quantized(values, kind)
    assert ours.shape == rule.shape and ours.dtype == rule.dtype
    error = [np.square(gguf.quants.dequantize(one, kind) - values).reshape(6, 5, 2, 32).sum(-1) for one in (rule, ours)]
    assert (error[1] <= error[0] + 1e-6).all() and error[1].sum() < 0.95 * error[0].sum()
    assert error[1][0, 0].max() == 0.0 and error[1][1, 0, 0] == 0.0


def test_rotated_rows_are_neighbours_for_llama_cpp() -> None:
    from ract.export.gguf import _interleaved

    values = np.arange(8, dtype=np.float32)[:, None] * np.ones((1, 3), dtype=np.float32)
    assert _interleaved(values, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
