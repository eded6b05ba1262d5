"""The model that is exported: loaded in fp32, with its tokenizer and what kind of work it does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ract.checkpoint.lineage import content_hash
from ract.checkpoint.live import load_model
from ract.data.tokenizer import load_tokenizer
from ract.errors import BadInput
from ract.evaluate.classification import positions
from ract.runtime.locate import model_at
from ract.runtime.manifest import Engine, Kind, Manifest, Precision

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Source:
    """What every format is made from: *model* in fp32 and evaluation mode, from *directory*."""

    directory: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    kind: Kind

    @property
    def architecture(self) -> str:
        """``model_type`` of the config: qwen3, llama, modernbert, …"""
        return str(self.model.config.model_type)

    @property
    def limit(self) -> int:
        """The most tokens it looks at; 0 where neither model nor tokenizer sets a limit."""
        return positions(self.model, self.tokenizer) or 0

    def manifest(self, engine: Engine, precision: Precision) -> Manifest:
        """The manifest of an export of this model, its files not listed yet."""
        config: Any = self.model.config
        generation = getattr(self.model, "generation_config", None)
        given = getattr(generation, "eos_token_id", None)
        ends = given if isinstance(given, list) else [given, self.tokenizer.eos_token_id]
        begin = self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else self.tokenizer.eos_token_id
        never = getattr(generation, "bad_words_ids", None) or [] if self.kind == "encoder-decoder" else []

        def forced(which: str) -> int | None:
            found = getattr(generation, f"forced_{which}_token_id", None) if self.kind == "encoder-decoder" else None
            return int(found) if isinstance(found, int) else None

        labels = tuple(str(config.id2label[i]) for i in range(config.num_labels)) if self.kind == "encoder" else ()
        return Manifest(
            engine=engine,
            kind=self.kind,
            precision=precision,
            source=content_hash(self.directory),
            limit=self.limit,
            labels=labels,
            source_language=str(getattr(config, "source_language", "") or ""),
            target_language=str(getattr(config, "target_language", "") or ""),
            begin=begin if self.kind == "decoder" else None,
            start=getattr(generation, "decoder_start_token_id", None) if self.kind == "encoder-decoder" else None,
            first=forced("bos"),
            last=forced("eos"),
            ends=tuple(sorted({int(end) for end in ends if end is not None})) if self.kind != "encoder" else (),
            # As transformers does: what ends a text stays possible.
            never=tuple(tuple(map(int, one)) for one in never if list(one) not in [[end] for end in ends]),
            pad=int(self.tokenizer.pad_token_id or 0),
            members=len(getattr(config, "members", [])) or 1,
        )


def load_source(model_dir: str | Path) -> Source:
    """The model at *model_dir* (or the final node of a run). Raises BadInput for one that no format is for."""
    directory = model_at(model_dir)
    model = load_model(directory, dtype=torch.float32)
    return Source(directory, model, load_tokenizer(directory), _kind(model, directory))


def _kind(model: PreTrainedModel, directory: Path) -> Kind:
    name = type(model).__name__
    if name.endswith("ForSequenceClassification"):
        return "encoder"
    if model.config.is_encoder_decoder:
        return "encoder-decoder"
    if model.can_generate():
        return "decoder"
    problem = f"{directory} is of class {name}, which neither writes nor classifies text"
    raise BadInput(problem, "Export a model with a head")
