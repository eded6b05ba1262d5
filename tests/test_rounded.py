"""Linear layers on a round number of rows: torch's results and gradients, whatever the shapes."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from ract.cost import derive_encoder_decoder_shape
from ract.data.tokenizer import load_tokenizer
from ract.model.compact_encoder import new_encoder_decoder
from ract.plan.defaults import values_for, whole_steps
from ract.plan.graph import ModelSettings, TrainSpec
from ract.train.node import TrainingRun
from ract.train.objectives import build_objective
from ract.train.rounded import RoundedRows, rounded
from tests import examples


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 127, 2_048, 2_049, 100_003])
def test_sizes_are_eight_an_octave_and_an_eighth_larger_at_most(rows: int) -> None:
    assert rows <= rounded(rows) <= rows + rows // 8
    assert rounded(rounded(rows)) == rounded(rows)
    assert len({rounded(one) for one in range(1_025, 2_049)}) == 8


@pytest.mark.parametrize(
    ("shape", "out"), [((7, 29, 32), 64), ((7, 29, 32), 32), ((203, 32), 128), ((7, 29, 32), 500), ((3, 5, 32), 8)]
)
@pytest.mark.parametrize("bias", [True, False])
def test_results_and_gradients_are_torchs(shape: tuple[int, ...], out: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer, given = nn.Linear(32, out, bias=bias), torch.randn(shape, requires_grad=True)
    found = {}
    for name in ("torch", "ours"):
        with torch.autocast("cpu", torch.bfloat16), RoundedRows() if name == "ours" else nullcontext():
            made = layer(given)
        assert made.shape == (*shape[:-1], out) and made.dtype is torch.bfloat16
        loss = (made.float() * torch.arange(made.numel()).view(made.shape)).mean()
        found[name] = (made, *torch.autograd.grad(loss, [given, *layer.parameters()]))
    for one, other in zip(found["torch"], found["ours"], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2 * other.abs().max().item())


class Seen(TorchDispatchMode):
    """Notes how many rows every product has, but for those with a side of *head*."""

    def __init__(self, head: int = 0) -> None:
        super().__init__()
        self.rows: set[int] = set()
        self.head = head

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._opname == "mm" and self.head not in {*args[0].shape, *args[1].shape}:
            self.rows.add(len(args[0]))
        return func(*args, **(kwargs or {}))


def test_few_shapes_are_multiplied_where_many_are_given() -> None:
    weight, seen = torch.randn(64, 32), Seen()
    with torch.autocast("cpu", torch.bfloat16), RoundedRows(), seen:
        for rows in range(1_793, 2_049, 17):
            assert len(F.linear(torch.randn(rows, 32), weight)) == rows
    assert seen.rows == {1_920, 2_048}


def test_a_run_on_texts_of_many_lengths_rounds_its_rows(tmp_path: Path) -> None:
    data = examples.translation(tmp_path)
    shape = derive_encoder_decoder_shape(data.vocab_size, 32, 1)
    values = values_for("translation", decay=0.4) | {"batch_tokens": 512, "block_size": 32, "precision": "bf16"}
    spec = whole_steps(TrainSpec(**(values | {"tokens": 512 * 8})))
    model = new_encoder_decoder(
        shape, load_tokenizer(data.tokenizer_dir), seed=0, settings=ModelSettings(64, dropout=0.1)
    )
    run, seen = TrainingRun(model, spec, build_objective(spec, data)), Seen(data.vocab_size)
    for step in range(3):
        with seen:
            run.step(step)
    inside = {rows for rows in seen.rows if rows >= 128}
    assert len(inside) > 1 and all(rows == rounded(rows) for rows in inside)
