"""Bits per byte: the formula, the bytes behind it, and models with different tokenizers side by side."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from ract.data.tokenizer import TextEncoder
from ract.errors import BadInput, RactError
from ract.evaluate.language_modeling import encode_files, evaluate, evaluate_directory
from ract.evaluate.loading import load_causal_lm
from tests.pico import pico
from tests.text_models import TEXT, byte_level_model, word_piece_model


def reference(model: PreTrainedModel, tokens: np.ndarray, block_size: int, separator: int | None) -> tuple[float, int]:
    """Nats and number of scored tokens, one prediction at a time in fp64."""
    total, count = 0.0, 0
    for place in range(1, len(tokens)):
        if tokens[place] == separator:
            continue
        begin = (place - 1) // block_size * block_size
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(tokens[begin:place].astype(np.int64))[None]).logits[0, -1]
        total -= torch.log_softmax(logits.double(), -1)[int(tokens[place])].item()
        count += 1
    return total, count


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return pico("Qwen3")


@pytest.fixture
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 96, size=75).astype(np.uint16)


@pytest.mark.parametrize("separator", [None, 7])
def test_figures_follow_from_the_predictions(model: PreTrainedModel, tokens: np.ndarray, separator: int | None) -> None:
    tokens[[0, 30, 74]] = 7
    nats, count = reference(model, tokens, 8, separator)
    found = evaluate(model, tokens, 211, block_size=8, batch_size=3, separator=separator)
    assert found["tokens"] == count
    assert found["bytes"] == 211
    assert found["nats_per_token"] == pytest.approx(nats / count, rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / 211, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(nats / count), rel=1e-5)


def test_a_limit_counts_the_bytes_of_what_it_leaves(model: PreTrainedModel, tokens: np.ndarray) -> None:
    lengths = np.arange(96)
    found = evaluate(model, tokens, 0, block_size=8, limit_tokens=20, token_bytes=lengths)
    assert found["tokens"] == 20
    assert found["bytes"] == lengths[tokens[1:21]].sum()
    assert found["nats_per_token"] == pytest.approx(reference(model, tokens[:21], 8, None)[0] / 20, rel=1e-5)
    assert evaluate(model, tokens, 300, block_size=8, limit_tokens=10**9)["bytes"] == 300
    with pytest.raises(ValueError, match="token_bytes is needed"):
        evaluate(model, tokens, 300, block_size=8, limit_tokens=20)


def test_the_batch_size_does_not_matter_and_the_mode_is_kept(model: PreTrainedModel, tokens: np.ndarray) -> None:
    model.train()
    one, many = (evaluate(model, tokens, 200, block_size=8, batch_size=size)["nats_per_token"] for size in (1, 20))
    assert model.training
    model.eval()
    assert one == pytest.approx(many, rel=1e-6)


def test_nothing_to_score_and_a_broken_model(model: PreTrainedModel, tokens: np.ndarray) -> None:
    with pytest.raises(BadInput, match="no text to evaluate on"):
        evaluate(model, tokens[:1], 0, block_size=8)
    broken = pico("Qwen3")
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    with pytest.raises(RactError, match=r"not finite.*NaN") as caught:
        evaluate(broken, tokens, 200, block_size=8)
    assert caught.value.exit_code == 1


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_level_model(tmp_path_factory.mktemp("model") / "qwen3")


@pytest.fixture
def text(tmp_path: Path) -> list[str]:
    (tmp_path / "text.txt").write_text(TEXT[:700] + "\n\n" + TEXT[:500], encoding="utf-8")
    return [str(tmp_path / "text.txt")]


def test_a_directory_is_scored_on_exactly_the_bytes_of_the_text(directory: Path, text: list[str]) -> None:
    found = evaluate_directory(directory, text, document="paragraph", block_size=32)
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    parts = [part.strip("\r\n") for part in Path(text[0]).read_text(encoding="utf-8").split("\n\n") if part.strip()]
    numbers = [tokenizer(part)["input_ids"] for part in parts]
    stream = np.array([0, *(n for part in numbers for n in (*part, 0))])
    nats, count = reference(AutoModelForCausalLM.from_pretrained(directory), stream, 32, 0)
    assert found["bytes"] == sum(len(part.encode()) for part in parts)
    assert found["tokens"] == count == sum(map(len, numbers))
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / found["bytes"], rel=1e-5)


def test_models_with_different_tokenizers_score_the_same_bytes(
    directory: Path, text: list[str], tmp_path: Path
) -> None:
    other = byte_level_model(tmp_path / "other", "GPT-2", text="quite another text " * 50)
    first, second = (evaluate_directory(path, text, limit_bytes=777) for path in (directory, other))
    assert first["bytes"] == second["bytes"] <= 777
    assert first["tokens"] != second["tokens"]


@pytest.mark.parametrize("limit", [1, 500, 1001])
def test_a_limit_in_bytes_cuts_between_characters(directory: Path, tmp_path: Path, limit: int) -> None:
    (tmp_path / "zh.txt").write_text("a" + "字" * 900, encoding="utf-8")
    stream, n_bytes, separator = encode_files(directory, [str(tmp_path / "zh.txt")], limit_bytes=limit)
    assert limit - 3 < n_bytes <= limit
    assert TextEncoder(directory).token_bytes()[stream].sum() == n_bytes
    assert stream[0] == stream[-1] == separator


def test_a_uniform_model_takes_the_entropy_of_its_vocabulary(directory: Path, text: list[str], tmp_path: Path) -> None:
    model, _ = load_causal_lm(directory)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    shutil.copytree(directory, tmp_path / "zero")
    model.save_pretrained(tmp_path / "zero")
    found = evaluate_directory(tmp_path / "zero", text)
    assert found["nats_per_token"] == pytest.approx(math.log(300), rel=1e-5)
    assert found["perplexity"] == pytest.approx(300, rel=1e-4)


def test_what_is_no_causal_language_model_is_refused(directory: Path, text: list[str], tmp_path: Path) -> None:
    bert = word_piece_model(tmp_path / "bert", "BERT, masked LM")
    with pytest.raises(BadInput, match="is of class BertForMaskedLM, not a causal language model"):
        evaluate_directory(bert, text)
    with pytest.raises(BadInput, match="absent is not a directory"):
        evaluate_directory(tmp_path / "absent", text)
    with pytest.raises(BadInput, match="block_size = 65 is more than the 64 tokens"):
        evaluate_directory(directory, text, block_size=65)


def test_a_checkpoint_with_a_tensor_too_few_is_refused(directory: Path, text: list[str], tmp_path: Path) -> None:
    shutil.copytree(directory, tmp_path / "deeper")
    config = json.loads((directory / "config.json").read_text())
    deeper = {**config, "num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}
    (tmp_path / "deeper" / "config.json").write_text(json.dumps(deeper))
    with pytest.raises(BadInput, match=r"has no usable tensor model.layers.2"):
        evaluate_directory(tmp_path / "deeper", text)


def test_a_tokenizer_of_another_model_is_refused(text: list[str], tmp_path: Path) -> None:
    path = byte_level_model(tmp_path / "small", vocab_size=280)
    with pytest.raises(BadInput, match=r"gives token \d+, but the model has only 280 embeddings"):
        evaluate_directory(path, text)


def test_a_real_model_on_real_text(shared_data: Path) -> None:
    model = shared_data / "checkpoints" / "stories260k"
    stories = evaluate_directory(model, [str(shared_data / "lm" / "stories" / "valid.txt")], limit_bytes=5_000)
    code = evaluate_directory(model, [str(shared_data / "lm" / "code" / "valid.txt")], limit_bytes=5_000)
    assert stories["bytes"] > 4_990
    assert stories["bits_per_byte"] < code["bits_per_byte"]
