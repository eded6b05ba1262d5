"""The graphs of fixed shapes of a model, for LiteRT and ExecuTorch: phones want to know every size beforehand.

Every graph is for one text. A classifier has one for each of a few lengths, shorter texts are filled up; a decoder one
for a single token and one for a block of them (:mod:`ract.export.step_graph`), both with a cache of a fixed size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ract.errors import BadInput
from ract.export.source import Source
from ract.export.step_graph import step_graph

BLOCK = 32  # new tokens at once, for prompts
_LENGTHS = (32, 128)  # of texts that are classified, below the longest
_LONGEST_TEXT, _LONGEST_CACHE = 512, 1024

Graphs = dict[str, tuple[nn.Module, dict[str, Tensor]]]


def limit_of(source: Source) -> int:
    """The most tokens that the graphs of *source* look at. Raises BadInput for an encoder-decoder."""
    if source.kind == "encoder-decoder":
        raise BadInput(
            f"{source.directory} is an encoder-decoder, and the graphs of fixed shapes are for models with one stack",
            "Use --format onnx or openvino",
        )
    longest = _LONGEST_CACHE if source.kind == "decoder" else _LONGEST_TEXT
    return min(source.limit or longest, longest)


@contextmanager
def fixed_graphs(source: Source, ids: torch.dtype) -> Iterator[Graphs]:
    """The graphs of *source* by name, each with inputs to trace it with, whose token numbers are of type *ids*.

    They are ``classify_<length>``, or ``decode``, the first, and ``prefill``; trace them within the context. Raises
    ValueError for a decoder with an attention of its own.
    """
    limit = limit_of(source)
    if source.kind == "decoder":
        with step_graph(source.model, limit, ids) as step:
            yield {"decode": (step, step.sample(1)), "prefill": (step, step.sample(min(BLOCK, limit)))}
        return
    classifier = _Classifier(source.model).eval()
    graphs: Graphs = {}
    for length in [*(length for length in _LENGTHS if length < limit), limit]:
        ones = torch.ones(1, length, dtype=ids)
        graphs[f"classify_{length}"] = (classifier, {"input_ids": ones, "attention_mask": torch.ones_like(ones)})
    yield graphs


class _Classifier(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        return {"logits": self.model(input_ids=input_ids, attention_mask=attention_mask).logits}


def first_line(error: BaseException) -> str:
    """The first line of what *error* says: converters write pages."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
