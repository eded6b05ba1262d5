"""The values of a training run that a plan leaves open, by what is trained, and a stage's table as a TrainSpec."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ract.plan.graph import TrainSpec
from ract.plan.tables import TrainTable

TRAIN_DEFAULTS: dict[str, Any] = {
    "lr": 3e-3,
    "optimizer": "muon",
    "batch_tokens": 4096,
    "micro_batch_tokens": 4096,
    "block_size": 256,
    "weight_decay": 0.1,
    "l2_penalty": 0.0,
    "warmup": 0.05,
    "grad_clip": 1.0,
    "ema": 0.0,
    "label_smoothing": 0.0,
    "class_weights": "none",
    "token_splits": 0.0,
    "token_dropout": 0.0,
    "dropout": 0.0,
    "patience": 3,
    "evaluations": 0,  # none given: as often as is cheap
    "precision": "auto",
}
# What differs from it. Micro-batches count padded tokens, so they hold a whole batch of well-bucketed texts.
_OBJECTIVE_DEFAULTS: dict[str, dict[str, Any]] = {
    "next-token": {},
    "masked": {"block_size": 128, "lr": 2e-3},
    "classification": {"lr": 1e-3, "batch_tokens": 2048, "block_size": 128, "micro_batch_tokens": 8192},
    "translation": {"batch_tokens": 2048, "block_size": 64, "micro_batch_tokens": 8192, "label_smoothing": 0.1},
}
# A trained checkpoint is changed gently: the usual values for fine-tuning BERT-like models (Devlin et al., 1810.04805).
_FINE_TUNING_DEFAULTS: dict[str, Any] = {"lr": 1e-4, "optimizer": "adamw", "weight_decay": 0.01, "warmup": 0.1}
FINAL_DECAY = 0.4
TOKENS_PER_PARAMETER = 20
# Epochs of a stage without a length of its own, where examples and not FLOPs are what is scarce.
EPOCHS: dict[str, dict[str, float]] = {
    "masked": {"pretrain": 3.0},
    "classification": {"leaf": 5.0, "branch": 2.0, "heal": 2.0, "last": 3.0, "student": 6.0},
    "translation": {"leaf": 20.0, "branch": 5.0, "heal": 5.0, "last": 10.0, "student": 20.0},
}
_FINE_TUNING_SHARE = 0.4
# The valid loss is measured at most so often in a run, and once in so many tokens, so that it costs a small share.
_EVALUATIONS, _TOKENS_PER_EVALUATION = 10, 65_536


def default_train_spec(*, tokens: int) -> TrainSpec:
    """A run of *tokens* tokens with every default: what a plan without a [train] table means."""
    return whole_steps(TrainSpec(tokens=tokens, decay=FINAL_DECAY, **TRAIN_DEFAULTS))


def values_for(objective: str, *tables: TrainTable | Any, fine_tuning: bool = False, decay: float) -> dict[str, Any]:
    """Every value of a run of *objective* but its length: the defaults, overridden by *tables*, the last one first."""
    values = {**TRAIN_DEFAULTS, **_OBJECTIVE_DEFAULTS[objective], "decay": decay, "objective": objective}
    if fine_tuning:
        values |= _FINE_TUNING_DEFAULTS
    for table in tables:
        values |= {
            key: getattr(table, key)
            for key in type(table).model_fields
            if key in TRAIN_DEFAULTS | {"decay": 0} and getattr(table, key) is not None
        }
    return values


def default_epochs(objective: str, share: str, *, fine_tuning: bool) -> float:
    """Epochs of a stage for which the plan gives no length."""
    return EPOCHS[objective][share] * (_FINE_TUNING_SHARE if fine_tuning else 1.0)


def whole_steps(spec: TrainSpec) -> TrainSpec:
    """Batches of whole windows, micro-batches that divide them, at least one step. Examples need no windows."""
    if spec.reads_windows:
        windows = max(1, round(spec.batch_tokens / spec.block_size))
        micro = max(1, min(windows, spec.micro_batch_tokens // spec.block_size))
        micro = next(m for m in range(micro, 0, -1) if windows % m == 0)
        spec = replace(spec, batch_tokens=windows * spec.block_size, micro_batch_tokens=micro * spec.block_size)
    tokens = max(1, round(spec.tokens / spec.batch_tokens)) * spec.batch_tokens
    evaluations = spec.evaluations or min(_EVALUATIONS, max(1, tokens // _TOKENS_PER_EVALUATION))
    return replace(spec, tokens=tokens, evaluations=evaluations)
