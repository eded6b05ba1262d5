"""The graph of fixed shapes computes what the model does: token by token, in blocks, for every decoder of the zoo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from ract.checkpoint.live import load_model
from ract.export.step_graph import StepGraph, step_graph
from ract.runtime.engines.fixed import FixedDecoder, State, filled_up
from tests.pico import pico
from tests.task_models import ensemble
from tests.text_models import byte_level_model

SLOTS = 24
DECODERS = (
    "GPT-2", "GPT-NeoX", "OPT", "Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma 2", "Gemma 3", "Phi", "Phi-3",
    "Mixtral",
)  # fmt: skip
WINDOWED = {"sliding_window": 6}


@torch.no_grad()
def stepwise(graph: StepGraph, ids: torch.Tensor, pieces: tuple[int, ...]) -> torch.Tensor:
    """Logits (tokens, vocabulary) after each of *ids* (1, tokens), fed in *pieces*, the caches kept by the caller."""
    given, seen, logits = graph.sample(1), 0, []
    for new in pieces:
        given["input_ids"], given["seen"] = ids[:, seen : seen + new].int(), torch.tensor([seen], dtype=torch.int32)
        found = graph(**given)
        for i in range(len(graph.shapes)):
            given[f"k_{i}"][..., seen : seen + new] = found[f"k_{i}"].transpose(-1, -2)
            given[f"v_{i}"][..., seen : seen + new, :] = found[f"v_{i}"]
        logits.append(found["logits"][0])
        seen += new
    return torch.cat(logits)


@torch.no_grad()
def both(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(3, 90, (1, 20), generator=torch.Generator().manual_seed(0))
    expected = model(input_ids=ids).logits[0]
    with step_graph(model, SLOTS) as graph:
        return expected, stepwise(graph, ids, (5, 1, 1, 11, 2))


@pytest.mark.parametrize("name", DECODERS)
def test_it_computes_what_the_model_does(name: str) -> None:
    expected, found = both(pico(name))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("Mistral", WINDOWED),
        ("Phi-3", WINDOWED),
        ("Gemma 2", {**WINDOWED, "layer_types": ["sliding_attention", "full_attention"]}),
        ("Qwen3", {**WINDOWED, "use_sliding_window": True, "layer_types": ["full_attention", "sliding_attention"]}),
    ],
)
def test_what_left_the_window_is_not_seen(name: str, changes: dict[str, Any]) -> None:
    expected, found = both(pico(name, **changes))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    without = pico(name, **{**changes, "sliding_window": 64})
    assert (both(without)[0] - expected).abs().max() > 1e-3, "the window makes no difference here"


def test_an_ensemble_of_ensembles_is_one_graph(tmp_path: Path) -> None:
    names = {"a": "Qwen3", "b": "Llama", "c": "Qwen3"}
    members = [
        byte_level_model(tmp_path / folder, name, seed=seed) for seed, (folder, name) in enumerate(names.items())
    ]
    inner = ensemble(tmp_path / "inner", members[:2])
    expected, found = both(load_model(ensemble(tmp_path / "outer", [inner, members[2]])))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


class InTorch(FixedDecoder):
    """The graph as it is, for the part that all engines of fixed shapes share."""

    def __init__(self, graph: StepGraph, block: int) -> None:
        self.graph, self.given, self.sizes = graph, graph.sample(1), []
        super().__init__({name: tuple(value.shape) for name, value in self.given.items()}, block)

    def cache(self, name: str) -> np.ndarray:
        return self.given[name].numpy()

    @torch.no_grad()
    def call(self, ids: np.ndarray, seen: int) -> dict[str, np.ndarray]:
        self.sizes.append(len(ids))
        new = {"input_ids": torch.from_numpy(ids)[None], "seen": torch.tensor([seen], dtype=torch.int32)}
        return {name: value.numpy() for name, value in self.graph(**{**self.given, **new}).items()}


def test_states_are_read_on_from_wherever_they_were_left() -> None:
    model = pico("Qwen3")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 90, (2, 20), generator=generator)
    with torch.no_grad():
        expected = model(input_ids=ids).logits.numpy()
    with step_graph(model, SLOTS) as graph:
        decoder = InTorch(graph, 8)
        numbers = ids.numpy()
        logits, eleven = decoder.scores(numbers[:, :11], State())
        np.testing.assert_allclose(logits, expected[:, :11], atol=2e-5)
        assert decoder.sizes == [8, 1, 1, 1] * 2, "a block, and what is left one by one"
        for state, start in ((eleven, 11), (eleven.shortened(7), 7), (eleven, 11), (eleven.shortened(0), 0)):
            logits, _ = decoder.scores(numbers[:, start:], state)
            np.testing.assert_allclose(logits, expected[:, start:], atol=2e-5)
        rows = np.array([1, 0, 1])
        logits, _ = decoder.scores(numbers[rows][:, 11:], eleven.reordered(rows))
        np.testing.assert_allclose(logits, expected[rows][:, 11:], atol=2e-5)


def test_a_text_is_filled_up_to_the_next_length() -> None:
    ids, mask = np.array([5, 6, 7, 0, 0]), np.array([1, 1, 1, 0, 0])
    for lengths, length in (([8, 4], 4), ([3], 3), ([2, 64], 64)):
        numbers, shown = filled_up(ids, mask, lengths, 9)
        assert numbers.shape == shown.shape == (1, length) and numbers.dtype == shown.dtype == np.int32
        assert numbers[0].tolist() == [5, 6, 7] + [9] * (length - 3) and shown.sum() == 3
    assert filled_up(ids[:1], np.zeros(1), [4], 9)[1].sum() == 0


def test_the_model_is_as_it_was_afterwards() -> None:
    model = pico("Mixtral")
    before = (model.config._attn_implementation, model.get_experts_implementation())
    with step_graph(model, SLOTS):
        assert model.config._attn_implementation != before[0]
    assert (model.config._attn_implementation, model.get_experts_implementation()) == before


def test_a_model_with_its_own_attention_is_refused() -> None:
    from transformers import BloomConfig, BloomForCausalLM

    model = BloomForCausalLM(BloomConfig(vocab_size=96, hidden_size=16, n_layer=1, n_head=2))
    with pytest.raises(ValueError, match="the attention of a bloom cannot be replaced"), step_graph(model, SLOTS):
        pass
