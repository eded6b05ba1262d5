"""Attention as training on a CPU computes it: what transformers computes, for every architecture that uses it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from ract.train.attention import _PLAIN_ATTENTION, PLAIN, use_plain_attention
from tests.pico import ZOO, inputs, pico

NAMES = [name for name in ZOO if pico(name).config.model_type in _PLAIN_ATTENTION]


def computed(model: PreTrainedModel, *, bf16: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The output and the gradients of its square for a batch with padding."""
    given = inputs(model)
    given["attention_mask"][1, 4:] = 0
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        result = model(**given, use_cache=False) if "CausalLM" in type(model).__name__ else model(**given)
    found = (result.logits if "logits" in result else result.last_hidden_state).float()
    model.zero_grad()
    found.square().mean().backward()
    return found.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found - exact).norm() / exact.norm().clamp_min(1e-6))


@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_attention_of_transformers(name: str) -> None:
    model = pico(name)
    model.set_attn_implementation("eager")
    exact, slopes = computed(model, bf16=False)
    rounded, _ = computed(model, bf16=True)
    use_plain_attention(model)
    assert model.config._attn_implementation == PLAIN
    ours, ours_slopes = computed(model, bf16=False)
    torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-5)
    for key, slope in slopes.items():
        torch.testing.assert_close(ours_slopes[key], slope, rtol=1e-3, atol=1e-5)
    assert error(computed(model, bf16=True)[0], exact) < 2 * error(rounded, exact) + 1e-3


def test_a_row_that_sees_nothing_is_finite() -> None:
    model = pico("BERT, classification")
    use_plain_attention(model)
    given = inputs(model)
    given["attention_mask"][1] = 0
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(model(**given).logits).all()


def test_what_it_is_computed_with_is_not_saved(tmp_path: Path) -> None:
    model = pico("Qwen3")
    use_plain_attention(model)
    model.save_pretrained(tmp_path)
    assert PLAIN not in (tmp_path / "config.json").read_text(encoding="utf-8")
