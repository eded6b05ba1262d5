"""One training run: a leaf, a branch, a healing or a baseline; data-parallel under ``torchrun``.

A run is a pure function of its model, its spec and its data: batches follow from the step number alone, so a run that
was killed and started again ends in the same weights as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ract.data.batches import training_batch, window_count
from ract.errors import BadInput, NonFiniteLoss
from ract.plan.graph import TrainSpec
from ract.train.device import autocast_dtype, prefers_plain_attention
from ract.train.losses import distillation_loss, next_token_loss, squared_norm
from ract.train.optim import build_optimizers, optimizer_tensors, restore_optimizers, set_lr, wsd_multiplier
from ract.train.state import Progress, load_checkpoint, save_checkpoint

VALID_TOKENS = 16_384
_PLAIN_ATTENTION = ("qwen3", "qwen3_moe", "llama", "mixtral")

Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Teachers:
    """Models whose α-mixture of distributions a healing run learns from."""

    models: Sequence[nn.Module] = ()
    alpha: Sequence[float] = ()


@dataclass(frozen=True)
class Outcome:
    """What a run ended with: the averaged or best weights are already in the model it was given."""

    progress: Progress
    tokens: int


class TrainingRun:
    """Train *model* in place on *tokens* as *spec* says; *valid* decides early stopping and is never trained on.

    *work* is the folder for checkpoints (None: none are written), one every *checkpoint_seconds*. *report* is called as
    ``report("train", tokens done, tokens in all)`` and may raise to stop the run.

    Raises NonFiniteLoss when the loss or a gradient is not finite: nothing of that state was saved.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: TrainSpec,
        tokens: np.ndarray,
        valid: np.ndarray | None = None,
        *,
        teachers: Teachers | None = None,
        work: Path | None = None,
        checkpoint_seconds: float = 20.0,
        report: Report | None = None,
    ) -> None:
        self.spec, self.tokens, self.valid = spec, tokens, valid
        self.teachers = teachers or Teachers()
        self.work, self.checkpoint_seconds, self.report = work, checkpoint_seconds, report
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self.device = self.accelerator.device
        self.dtype = autocast_dtype(spec.precision, self.device)
        self.plain = model.to(self.device)
        if prefers_plain_attention(self.device, self.dtype, spec.block_size):
            _use_plain_attention(model, *self.teachers.models)
        for teacher in self.teachers.models:
            teacher.to(self.device).eval().requires_grad_(False)
        self.model = self.accelerator.prepare(model) if self.accelerator.num_processes > 1 else model
        self.optimizers = build_optimizers(self.plain, spec)
        averaging = spec.ema > 0
        self.average = AveragedModel(self.plain, multi_avg_fn=get_ema_multi_avg_fn(spec.ema)) if averaging else None
        self.best: dict[str, torch.Tensor] = {}
        self.progress = Progress()
        self.rows = self._rows_of_this_process()

    def run(self) -> Outcome:
        """Train to the end (or to an early stop), from the newest checkpoint if there is one."""
        self._resume()
        self.model.train()
        saved, started, before = time.monotonic(), time.monotonic(), self.progress.seconds
        while self.progress.step < self.spec.steps and not self.progress.stopped_early:
            loss = self.step(self.progress.step)
            self.progress.step += 1
            self.progress.seconds = before + time.monotonic() - started
            if self.progress.step % self._interval() == 0 or self.progress.step == self.spec.steps:
                self._evaluate(loss)
            if time.monotonic() - saved > self.checkpoint_seconds:
                self._save()
                saved = time.monotonic()
            if self.report and self.accelerator.is_main_process:
                self.report("train", self.progress.step * self.spec.batch_tokens, self.spec.tokens)
        self._keep_what_is_best()
        return Outcome(self.progress, self.progress.step * self.spec.batch_tokens)

    def step(self, step: int) -> float:
        """One optimizer step; the mean training loss in nats per token."""
        spec = self.spec
        lr = spec.lr * wsd_multiplier(step, spec.steps, spec.warmup, spec.decay)
        set_lr(self.optimizers, lr)
        batch = training_batch(
            self.tokens,
            step=step + spec.start_tokens // spec.batch_tokens,
            batch_size=spec.batch_tokens // spec.block_size,
            block_size=spec.block_size,
            seed=spec.order_seed,
            shard=spec.shard,
        )
        micro_batches = np.split(batch[self.rows], self._micro_batches())
        total = 0.0
        for number, rows in enumerate(micro_batches, start=1):
            with self.accelerator.no_sync(self.model) if number < len(micro_batches) else nullcontext():
                objective, loss = self._objective(torch.from_numpy(rows).to(self.device))
                self.accelerator.backward(objective / len(micro_batches))
            total += loss / len(micro_batches)
        norm = torch.nn.utils.clip_grad_norm_(self.plain.parameters(), spec.grad_clip or math.inf)
        if not math.isfinite(total) or not torch.isfinite(norm):
            raise NonFiniteLoss(
                f"the loss is no longer finite at step {step + 1} of {spec.steps} (learning rate {lr:.2g})",
                'Try a lower lr, a longer warmup, a smaller grad_clip, or precision = "fp32"',
            )
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.plain)
        return total

    def _objective(self, windows: torch.Tensor) -> tuple[torch.Tensor, float]:
        """What is minimised on *windows* (rows, block + 1), and its cross-entropy alone in nats per token."""
        spec, inputs, targets = self.spec, windows[:, :-1], windows[:, 1:]
        with self._autocast():
            logits = self.model(input_ids=inputs, use_cache=False).logits
            loss = next_token_loss(logits, targets)
        objective = loss
        if spec.distill > 0 and self.teachers.models:
            with self._autocast(), torch.no_grad():
                taught = [teacher(input_ids=inputs, use_cache=False).logits for teacher in self.teachers.models]
            learned = distillation_loss(logits, taught, self.teachers.alpha, spec.temperature)
            objective = (1 - spec.distill) * loss + spec.distill * learned
        if spec.l2_penalty > 0:
            objective = objective + spec.l2_penalty * squared_norm(self.plain)
        return objective, loss.item()

    def _evaluate(self, train_loss: float) -> None:
        """Note the losses; remember the best weights and stop early where the valid loss no longer falls."""
        row = {
            "step": self.progress.step,
            "tokens": self.progress.step * self.spec.batch_tokens,
            "train_loss": train_loss,
            "seconds": self.progress.seconds,
        }
        if self.valid is not None and len(self.valid) > 1:
            row["valid_loss"] = valid_loss = self._valid_loss()
            if not math.isfinite(valid_loss):
                raise NonFiniteLoss(
                    f"the valid loss is not finite after step {self.progress.step}", "Try a lower lr or a longer warmup"
                )
            if self.progress.best_loss is None or valid_loss < self.progress.best_loss:
                self.progress.best_loss, self.progress.best_step = valid_loss, self.progress.step
                if self.spec.patience:
                    self.best = {k: v.detach().clone() for k, v in self._result().named_parameters()}
            elif self.spec.patience:
                since = (self.progress.step - self.progress.best_step) / self._interval()
                self.progress.stopped_early = since >= self.spec.patience
        self.progress.history.append(row)

    @torch.no_grad()
    def _valid_loss(self) -> float:
        model = self._result()
        model.eval()
        total = count = 0.0
        for batch in self._valid_batches():
            windows = torch.from_numpy(batch).to(self.device)
            with self._autocast():
                logits = model(input_ids=windows[:, :-1], use_cache=False).logits
            total += next_token_loss(logits, windows[:, 1:]).item() * windows[:, 1:].numel()
            count += windows[:, 1:].numel()
        self.model.train()
        return total / count

    def _valid_batches(self) -> list[np.ndarray]:
        """Windows from all over the valid split, the same in every evaluation."""
        assert self.valid is not None
        block = min(self.spec.block_size, len(self.valid) - 1)
        count = min(window_count(self.valid, block), max(1, VALID_TOKENS // block))
        windows = training_batch(self.valid, step=0, batch_size=count, block_size=block, seed=0)
        rows = max(1, self.spec.micro_batch_tokens // block)
        return [windows[i : i + rows] for i in range(0, count, rows)]

    def _result(self) -> nn.Module:
        """The model whose weights count: the average where one is kept."""
        return self.average.module if self.average is not None else self.plain

    def _keep_what_is_best(self) -> None:
        with torch.no_grad():
            result = self.best or dict(self._result().named_parameters())
            for name, parameter in self.plain.named_parameters():
                parameter.copy_(result[name])
        self.plain.eval()

    def _interval(self) -> int:
        """Steps between evaluations."""
        return max(1, round(self.spec.steps / self.spec.evaluations))

    def _micro_batches(self) -> int:
        return max(1, len(self.rows) * self.spec.block_size // self.spec.micro_batch_tokens)

    def _rows_of_this_process(self) -> np.ndarray:
        rows, processes = self.spec.batch_tokens // self.spec.block_size, self.accelerator.num_processes
        if rows % processes or (rows // processes) % max(
            1, rows // processes * self.spec.block_size // self.spec.micro_batch_tokens
        ):
            raise BadInput(
                f"a batch of {rows} windows does not divide among {processes} processes",
                "Change batch_tokens or the number of processes",
            )
        return np.arange(rows)[self.accelerator.process_index :: processes]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.dtype or torch.float32, enabled=self.dtype is not None)

    def _save(self) -> None:
        if self.work is None or not self.accelerator.is_main_process:
            return
        tensors: dict[str, torch.Tensor] = {f"model|{k}": v for k, v in self.plain.named_parameters()}
        tensors |= {f"optimizer|{k}": v for k, v in optimizer_tensors(self.plain, self.optimizers).items()}
        tensors |= {f"best|{k}": v for k, v in self.best.items()}
        if self.average is not None:
            tensors |= {f"average|{k}": v for k, v in self.average.module.named_parameters()}
            tensors["averaged"] = self.average.n_averaged
        save_checkpoint(self.work, self.progress, tensors)

    @torch.no_grad()
    def _resume(self) -> None:
        found = load_checkpoint(self.work) if self.work is not None else None
        if found is None:
            return
        self.progress, tensors = found
        parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "optimizer": {}, "best": {}, "average": {}}
        for key, value in tensors.items():
            if "|" in key:
                part, name = key.split("|", 1)
                parts[part][name] = value
        for name, parameter in self.plain.named_parameters():
            parameter.copy_(parts["model"][name])
        restore_optimizers(self.plain, self.optimizers, parts["optimizer"])
        self.best = {k: v.to(self.device) for k, v in parts["best"].items()}
        if self.average is not None:
            for name, parameter in self.average.module.named_parameters():
                parameter.copy_(parts["average"][name])
            self.average.n_averaged.copy_(tensors["averaged"])


def _use_plain_attention(*models: nn.Module) -> None:
    """A choice for this process only: it is not part of what ``save_pretrained`` writes."""
    for model in models:
        if getattr(getattr(model, "config", None), "model_type", "") in _PLAIN_ATTENTION:
            model.set_attn_implementation("eager")  # type: ignore[operator]
