"""Streaming generation: the model's own greedy text, whole characters, exact stops, repeatable draws."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from ract.errors import BadInput
from ract.runtime.generate import TextGenerator, _Detokenizer, cut_at, generate
from ract.runtime.sampling import Sampler
from tests.text_models import TEXT, byte_level_model, word_piece_model

PROMPT = "def read_json(path):"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_level_model(tmp_path_factory.mktemp("model") / "qwen3")


@pytest.fixture(scope="module")
def generator(directory: Path) -> TextGenerator:
    return TextGenerator(directory)


def tokens_of(path: Path, prompt: str, length: int, **options: object) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(path, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    out = model.generate(**inputs, do_sample=False, max_new_tokens=length, pad_token_id=0, **options)
    return out[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("name", ["Qwen3", "Llama", "GPT-2", "OPT", "GPT-NeoX", "Gemma", "Phi", "Mixtral"])
def test_greedy_is_what_transformers_generates(tmp_path: Path, name: str) -> None:
    path = byte_level_model(tmp_path, name)
    expected = AutoTokenizer.from_pretrained(path).decode(tokens_of(path, PROMPT, 24), skip_special_tokens=True)
    assert "".join(generate(path, PROMPT, max_new_tokens=24, temperature=0)) == expected


def test_equal_seeds_draw_equal_texts_and_leave_the_global_generator_alone(generator: TextGenerator) -> None:
    def text(seed: int) -> str:
        return "".join(generator.stream(PROMPT, max_new_tokens=20, seed=seed))

    state = torch.random.get_rng_state()
    first = text(3)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    assert text(3) == first
    assert len({text(seed) for seed in range(5)}) == 5


def test_an_empty_prompt_begins_a_text(generator: TextGenerator, directory: Path) -> None:
    expected = AutoTokenizer.from_pretrained(directory).decode(tokens_of(directory, "<|endoftext|>", 8))
    assert "".join(generator.stream("", max_new_tokens=8, temperature=0)) == expected.replace("<|endoftext|>", "")


def test_it_ends_where_the_model_ends_the_text(directory: Path, tmp_path: Path) -> None:
    third = tokens_of(directory, PROMPT, 6)[2]
    assert third not in tokens_of(directory, PROMPT, 6)[:2]
    model = AutoModelForCausalLM.from_pretrained(directory)
    model.generation_config.eos_token_id = [third, 0]
    model.save_pretrained(tmp_path)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((directory / file).read_bytes())
    ended = TextGenerator(tmp_path)
    assert ended.engine.ends == {third, 0}
    expected = ended.engine.decode(tokens_of(directory, PROMPT, 2))
    assert "".join(ended.stream(PROMPT, max_new_tokens=6, temperature=0)) == expected


def test_it_goes_on_where_the_text_outgrows_the_model(generator: TextGenerator) -> None:
    assert generator.engine.limit == 64
    long = "".join(generator.stream(PROMPT, max_new_tokens=200, seed=1))
    short = "".join(generator.stream(PROMPT, max_new_tokens=40, seed=1))
    assert len(long) > 2 * len(short)
    assert long.startswith(short.rstrip("\ufffd"))


def test_after_sliding_the_next_token_is_that_of_the_last_half(tmp_path: Path) -> None:
    path = byte_level_model(tmp_path, "GPT-2", n_positions=16)
    generator = TextGenerator(path)
    numbers = generator.engine.encode(PROMPT)
    detokenized = "".join(generator.stream(PROMPT, max_new_tokens=17 - len(numbers) + 1, temperature=0))
    seen = [*numbers, *tokens_of(path, PROMPT, 17 - len(numbers))]
    model = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        last = int(model(input_ids=torch.tensor([seen[-8:]])).logits[0, -1].argmax())
    assert detokenized == generator.engine.decode([*seen[len(numbers) :], last])


@given(
    text=st.text(alphabet=st.characters(blacklist_categories=["Cs"], blacklist_characters="\ufffd"), max_size=40),
    prompt=st.sampled_from(["", "def f", "一只"]),
)
def test_the_stream_never_breaks_a_character(generator: TextGenerator, text: str, prompt: str) -> None:
    tokenizer = generator.engine.tokenizer  # type: ignore[attr-defined]
    detokenizer = _Detokenizer(generator.engine.decode, tokenizer(prompt)["input_ids"])
    pieces = [detokenizer.add(number) for number in tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + detokenizer.rest() == text


def test_bytes_that_are_no_character_come_through_at_the_end(generator: TextGenerator) -> None:
    detokenizer = _Detokenizer(generator.engine.decode, [])
    half = generator.engine.encode("字")[0]
    assert detokenizer.add(half) == ""
    assert detokenizer.rest() == "\ufffd"


def in_pieces(text: str, cuts: list[int]) -> Iterator[str]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return (text[a:b] for a, b in pairwise(places))


@given(
    text=st.text(alphabet="ab\n", max_size=30),
    stop=st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 30)),
)
def test_stops_cut_exactly_however_the_text_comes(text: str, stop: list[str], cuts: list[int]) -> None:
    ends = [(end, -len(s)) for s in stop for end in range(len(s), len(text) + 1) if text[:end].endswith(s)]
    expected = text if not ends else text[: sum(min(ends))]
    assert "".join(cut_at(in_pieces(text, cuts), stop)) == expected


def test_nothing_more_is_generated_after_a_stop(generator: TextGenerator) -> None:
    whole = "".join(generator.stream(PROMPT, max_new_tokens=30, temperature=0))
    stop = whole[6:8]
    found = "".join(generator.stream(PROMPT, max_new_tokens=10**6, temperature=0, stop=[stop, "never this"]))
    assert found == whole[: whole.index(stop)]


def test_sampling_keeps_to_its_bounds() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))

    def drawn(**options: float) -> set[int]:
        sampler = Sampler(**{"temperature": 1, "top_p": 1, "top_k": 0, **options}, seed=0)
        return {sampler(logits) for _ in range(300)}

    assert drawn() == {0, 1, 2, 3}
    assert drawn(top_k=2) == drawn(top_p=0.7) == {0, 1}
    assert drawn(temperature=0) == drawn(top_p=0.01) == drawn(temperature=0.01) == {0}
    share = sum(Sampler(1, 1, 0, seed)(logits) == 0 for seed in range(600)) / 600
    assert 0.42 < share < 0.58


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens = 0 writes nothing"),
        ({"temperature": -0.1}, "temperature = -0.1 is out of range"),
        ({"temperature": float("nan")}, "temperature = nan is out of range"),
        ({"top_p": 0}, "top_p = 0 is out of range"),
        ({"top_p": 1.1}, "top_p = 1.1 is out of range"),
        ({"top_k": -1}, "top_k = -1 is out of range"),
        ({"stop": [""]}, "a stop string is empty"),
        ({"prompt": "word " * 200}, r"the prompt has \d+ tokens, and .* can look at 64. Shorten the prompt"),
    ],
)
def test_options_out_of_range_are_said_at_once(directory: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        generate(directory, **options)
    assert caught.value.exit_code == 2


def test_what_cannot_generate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not a causal language model"):
        generate(word_piece_model(tmp_path / "bert", "BERT, masked LM"), "x")
    with pytest.raises(BadInput, match="embeddings"):
        generate(byte_level_model(tmp_path / "small", vocab_size=100), TEXT[:40])


def test_the_known_continuation_of_a_real_model(shared_data: Path) -> None:
    model = shared_data / "checkpoints" / "stories260k"
    pieces = list(
        generate(model, "Once upon a time, there was a little girl", temperature=0, max_new_tokens=30, stop=["\n"])
    )
    assert "".join(pieces).startswith(" named Lily. She loved to play outside in the park.")
    assert len(pieces) > 10
