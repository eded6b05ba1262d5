"""Pico classifiers and translators with a tokenizer, in directories as a build writes them."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from ract.aggregate.run import aggregate
from ract.cost import derive_encoder_decoder_shape, derive_encoder_shape
from ract.data.examples import Examples
from ract.data.tokenizer import copy_tokenizer, load_tokenizer
from ract.model.compact_encoder import new_encoder, new_encoder_decoder
from ract.model.origin import TaskLabels
from ract.plan.graph import ModelSettings
from tests import examples
from tests.text_models import byte_level_model

SETTINGS = ModelSettings(64, 0.0)


def classifier(folder: Path, data: Examples, seed: int = 0) -> Path:
    """A classifier of *data*'s classes whose weights are drawn from *seed*, far enough apart to have opinions."""
    shape = derive_encoder_shape(data.vocab_size, 32, 1, num_labels=len(data.labels))
    task = TaskLabels(data.labels)
    model = new_encoder(shape, load_tokenizer(data.tokenizer_dir), seed=seed, settings=SETTINGS, task=task)
    return _saved(model, folder, data, seed)


def translator(folder: Path, data: Examples, seed: int = 0, target_language: str = "de") -> Path:
    """A translator whose weights are drawn from *seed*."""
    shape = derive_encoder_decoder_shape(data.vocab_size, 32, 1)
    model = new_encoder_decoder(shape, load_tokenizer(data.tokenizer_dir), seed=seed, settings=SETTINGS)
    model.config.source_language, model.config.target_language = "en", target_language
    return _saved(model, folder, data, seed)


def ensemble(folder: Path, members: list[Path]) -> Path:
    """*members* side by side."""
    aggregate(members, folder, method="ensemble")
    return folder


def of_every_kind(folder: Path) -> dict[str, Path]:
    """A decoder, a classifier and a translator below *folder*, by what ``ract export`` calls them."""
    reviews, pairs = reviews_and_pairs(folder)
    return {
        "decoder": byte_level_model(folder / "decoder"),
        "encoder": classifier(folder / "encoder", reviews),
        "encoder-decoder": translator(folder / "both", pairs),
    }


def reviews_and_pairs(folder: Path) -> tuple[Examples, Examples]:
    """Prepared reviews and prepared sentence pairs."""
    for name in ("reviews", "pairs"):
        (folder / name).mkdir()
    return examples.classification(folder / "reviews"), examples.translation(folder / "pairs")


def _saved(model: PreTrainedModel, folder: Path, data: Examples, seed: int) -> Path:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):  # not Marian's sinusoids
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    copy_tokenizer(data.tokenizer_dir, folder)
    return folder
