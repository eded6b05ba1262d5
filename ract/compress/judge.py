"""What a compressed model costs and what it still knows: loss on held-out data, size, latency, memory; and the limits.

Choices are made on calibration data, figures are of data that no choice has seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ract.aggregate.loaded import mean_loss
from ract.checkpoint.lineage import FILE_NAME
from ract.checkpoint.live import load_model
from ract.compress.distill import TASKS
from ract.data.heldout import Batch, load_batches
from ract.errors import BadInput
from ract.evaluate.translation import scores, translate
from ract.export.export import Exported
from ract.export.source import Source
from ract.plan.quantities import show_size
from ract.runtime.engines.base import open_graphs
from ract.runtime.engines.text import ExportedTranslator
from ract.runtime.measure import measure

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BLOCK = 256
_ROOM = 0.9  # what an estimated size may be wrong by before something is not even tried
_CALIBRATION = {"decoder": 16, "encoder": 64, "encoder-decoder": 32}  # batches of eight at most
_BEAMS = 4
_TRANSLATING: dict[str, Any] = {"max_new_tokens": None, "batch_size": 16}
_REPORTED = {"decoder": 32, "encoder": 256, "encoder-decoder": 32}


@dataclass(frozen=True)
class Limits:
    """What the result may be and cost; None: anything. *loss_increase* is a share of the original's loss."""

    size_bytes: int | None = None
    latency_ms: float | None = None
    memory_bytes: int | None = None
    loss_increase: float | None = None

    @property
    def any_of_cost(self) -> bool:
        """Whether size, latency or memory is limited."""
        return any(limit is not None for limit in (self.size_bytes, self.latency_ms, self.memory_bytes))


@dataclass(frozen=True)
class Trial:
    """One model that was tried: what it is, its figures, and which limits it breaks (*breaks*; none: it fits).

    *loss* is in nats a token or text; *accuracy* is a classifier's, *bleu* (0–100) a translator's, with four beams, on
    sentences as its tokenizer reads them. *latency_ms* and *memory_bytes* are those of
    :func:`ract.runtime.measure.measure`, None for a model that is not exported. *made* is False where nothing was made:
    the size follows from the shape, or *breaks* says why it cannot be.
    """

    name: str
    size_bytes: int | None = None
    loss: float | None = None
    accuracy: float | None = None
    latency_ms: float | None = None
    memory_bytes: int | None = None
    bleu: float | None = None
    made: bool = True
    breaks: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether it was made and keeps within all limits."""
        return self.made and not self.breaks


@dataclass
class Judge:
    """Measures models and exports on *reported* batches, the latter with so many *threads* of one operation, and holds
    them to *limits*.
    """

    source: Source
    reported: list[Batch]
    limits: Limits
    threads: int = 1
    original: Trial = field(init=False)

    def __post_init__(self) -> None:
        self.original = self._of_model("original", self.source.directory, self.source.model)

    def model(self, name: str, directory: Path, *, final: bool = True) -> Trial:
        """The figures of the model directory *directory*; one that is not *final* is held to its loss alone."""
        found = self._of_model(name, directory, load_model(directory, dtype=torch.float32))
        return self.held(found, self.limits if final else Limits(loss_increase=self.limits.loss_increase))

    def export(self, name: str, exported: Exported) -> Trial:
        """The figures of *exported*, which was compared on the reported batches."""
        accuracy = bleu = None
        if self.source.kind == "encoder-decoder":
            engine = ExportedTranslator(exported.path)
            bleu = self._bleu(lambda texts: engine.translate(texts, num_beams=_BEAMS, **_TRANSLATING))
        if self.source.kind == "encoder":
            graphs = open_graphs(exported.path, verify=False)
            given = [(batch["input_ids"].numpy(), batch["attention_mask"].numpy()) for batch in self.reported]
            accuracy = self._accuracy([graphs.logits(*one) for one in given])
        cost = measure(exported.path, threads=self.threads)
        trial = Trial(
            name,
            size_of(exported.path),
            float(exported.measured["loss_exported"]),
            accuracy,
            cost.latency_ms,
            cost.peak_memory_bytes or None,
            bleu,
        )
        return self.held(trial)

    def estimate(self, name: str, size_bytes: float) -> Trial | None:
        """A trial that need not be made, since about *size_bytes* are too many; None where it may fit."""
        limit = self.limits.size_bytes
        if limit is None or _ROOM * size_bytes <= limit:
            return None
        return Trial(name, round(size_bytes), made=False, breaks=(f"size above {show_size(limit)}",))

    def distance(self, trial: Trial) -> float:
        """How far *trial* is from fitting: by how much it exceeds each limit, as shares of the limits, summed."""
        assert trial.loss is not None and self.original.loss is not None
        pairs = [
            (trial.size_bytes, self.limits.size_bytes),
            (trial.latency_ms, self.limits.latency_ms),
            (trial.memory_bytes, self.limits.memory_bytes),
        ]
        if self.limits.loss_increase is not None:
            pairs.append((trial.loss, (1 + self.limits.loss_increase) * self.original.loss))
        return sum(max(0.0, have / limit - 1) for have, limit in pairs if have is not None and limit)

    def _of_model(self, name: str, directory: Path, model: PreTrainedModel) -> Trial:
        accuracy = bleu = None
        if self.source.kind == "encoder-decoder":
            bleu = self._bleu(lambda texts: translate(model, self.source.tokenizer, texts, num_beams=_BEAMS)[0])
        if self.source.kind == "encoder":
            with torch.inference_mode():
                given = [{key: b[key] for key in b if key != "labels"} for b in self.reported]
                accuracy = self._accuracy([model(**one).logits.numpy() for one in given])
        return Trial(name, size_of(directory), mean_loss(model, self.reported), accuracy, bleu=bleu)

    def _accuracy(self, logits: Sequence[np.ndarray]) -> float:
        right = np.concatenate([batch["labels"].numpy() for batch in self.reported])
        return float((np.concatenate([one.argmax(-1) for one in logits]) == right).mean())

    def _bleu(self, translated: Callable[[list[str]], list[str]]) -> float:
        rows = [(b["input_ids"], b["labels"]) for b in self.reported]
        sources, references = (
            [self.source.tokenizer.decode(row[row >= 0], skip_special_tokens=True) for batch in part for row in batch]
            for part in zip(*rows, strict=True)
        )
        language = str(getattr(self.source.model.config, "target_language", "") or "")
        return float(scores(translated(sources), references, language)["bleu"])

    def held(self, trial: Trial, limits: Limits | None = None) -> Trial:
        """*trial* with what it breaks of *limits*; default: all of them."""
        return replace(trial, breaks=tuple(self._broken(trial, limits or self.limits)))

    def _broken(self, trial: Trial, limits: Limits) -> list[str]:
        found = []
        assert trial.loss is not None and self.original.loss is not None
        increase = trial.loss / self.original.loss - 1
        if limits.loss_increase is not None and not increase <= limits.loss_increase:
            found.append(f"loss {increase:+.1%}, allowed {limits.loss_increase:+.1%}")
        if limits.size_bytes is not None and (trial.size_bytes or 0) > limits.size_bytes:
            found.append(f"size above {show_size(limits.size_bytes)}")
        if limits.latency_ms is not None and trial.latency_ms is not None and trial.latency_ms > limits.latency_ms:
            found.append(f"latency above {limits.latency_ms:g} ms")
        if limits.memory_bytes is not None and (trial.memory_bytes or 0) > limits.memory_bytes:
            found.append(f"memory above {show_size(limits.memory_bytes)}")
        return found


def size_of(directory: Path) -> int:
    """Bytes of all files of a model directory or an export but its lineage."""
    return sum(file.stat().st_size for file in directory.iterdir() if file.is_file() and file.name != FILE_NAME)


def held_out(
    source: Source, data: Sequence[str], train: Sequence[str], *, choose: bool
) -> tuple[list[Batch], list[Batch]]:
    """``(calibration, reported)`` batches: to choose on, and to measure on.

    With *train* text, the beginning of it is what is chosen on. Without, the held-out *data* are divided: plain text in
    the middle, rows, which may stand in an order, alternately. Where nothing is to be chosen, all is reported.
    Raises BadInput for data of another form, or too little to divide.
    """
    task, kind = TASKS[source.kind], source.kind

    def load(files: Sequence[str], batches: int) -> list[Batch]:
        return load_batches(source.directory, task, files, block_size=_BLOCK, limit=batches)

    if not choose:
        return [], load(data, _REPORTED[kind])
    if train:
        return load(train, _CALIBRATION[kind]), load(data, _REPORTED[kind])
    every = load(data, 2 * _REPORTED[kind])
    if len(every) == 1:
        (only,) = every
        half = len(only["input_ids"]) // 2
        if not half:
            raise BadInput(
                f"{', '.join(data)}: there is too little held-out data to choose on one half and report the other",
                "Give more, or text to choose on: --train",
            )
        return [{k: v[:half] for k, v in only.items()}], [{k: v[half:] for k, v in only.items()}]
    if kind == "decoder":
        half = len(every) // 2
        return every[:half][: _CALIBRATION[kind]], every[half:]
    return every[::2][: _CALIBRATION[kind]], every[1::2]
