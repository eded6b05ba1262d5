"""One training run: a leaf, a branch, a healing or a baseline; data-parallel under ``torchrun``.

A run is a pure function of its model, its spec and its data: batches follow from the step number alone, so a run that
was killed and started again ends in the same weights as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ract.data.example_batches import Batch
from ract.errors import NonFiniteLoss
from ract.machine import freed_memory_kept
from ract.plan.graph import TrainSpec
from ract.train.attention import prefers_plain_attention, use_plain_attention
from ract.train.device import autocast_dtype
from ract.train.dropout import DrawnDropout, draws_at_random, residual_dropout
from ract.train.kept import KeptAnswers
from ract.train.losses import distillation_loss, squared_norm, teachers_mixture
from ract.train.objective import Objective
from ract.train.optim import build_optimizers, optimizer_tensors, restore_optimizers, set_lr, wsd_multiplier
from ract.train.replay import ReplayedPass, can_be_replayed
from ract.train.rounded import RoundedRows
from ract.train.state import Progress, load_checkpoint, save_checkpoint
from ract.train.threads import ThreadedPass, parts_of

Report = Callable[[str, int, int], None]
# Tensors of many sizes leave holes that the next ones do not fit: memory kept for longer only grows.
_STEPS_WITH_FREED_MEMORY = 16


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
    """Train *model* in place on *objective* as *spec* says; its held-out batches decide early stopping.

    *work* is the folder for checkpoints (None: none are written), one every *checkpoint_seconds*. *report* is called as
    ``report("train", tokens done, tokens in all)`` and may raise to stop the run.

    Raises NonFiniteLoss when the loss or a gradient is not finite: nothing of that state was saved.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: TrainSpec,
        objective: Objective,
        *,
        teachers: Teachers | None = None,
        work: Path | None = None,
        checkpoint_seconds: float = 20.0,
        report: Report | None = None,
    ) -> None:
        self.spec, self.objective = spec, objective
        self.valid_batches = objective.valid_batches()
        self.teachers = teachers or Teachers()
        self.work, self.checkpoint_seconds, self.report = work, checkpoint_seconds, report
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self.device = self.accelerator.device
        self.dtype = autocast_dtype(spec.precision, self.device)
        self.plain = model.to(self.device)
        if prefers_plain_attention(self.device, self.dtype, spec.block_size):
            use_plain_attention(model, *self.teachers.models)
        for teacher in self.teachers.models:
            teacher.to(self.device).eval().requires_grad_(False)
        self.model = self.accelerator.prepare(model) if self.accelerator.num_processes > 1 else model
        self.optimizers = build_optimizers(self.plain, spec)
        averaging = spec.ema > 0
        self.average = AveragedModel(self.plain, multi_avg_fn=get_ema_multi_avg_fn(spec.ema)) if averaging else None
        self.best: dict[str, torch.Tensor] = {}
        self.progress = Progress()
        alone = self.device.type == "cuda" and self.accelerator.num_processes == 1
        self._replays = alone and objective.one_shape and can_be_replayed(self.plain, *self.teachers.models)
        self._pass: ReplayedPass | None = None
        self.draws = spec.dropout > 0 or draws_at_random(self.plain)
        parts = 1 if self.draws or self.device.type != "cpu" or self.accelerator.num_processes > 1 else parts_of(spec)
        self._threaded = ThreadedPass(self.plain, self._objective, parts) if parts > 1 else None

    def run(self) -> Outcome:
        """Train to the end (or to an early stop), from the newest checkpoint if there is one."""
        self._resume()
        with freed_memory_kept() as hand_back:
            if self.spec.teacher_tokens and self.teachers.models:
                self._keep_what_teachers_say()
            self._steps(hand_back)
        self._keep_what_is_best()
        return Outcome(self.progress, self.progress.step * self.spec.batch_tokens)

    def _steps(self, hand_back: Callable[[], None]) -> None:
        self.model.train()
        saved, started, before = time.monotonic(), time.monotonic(), self.progress.seconds
        while self.progress.step < self.spec.steps and not self.progress.stopped_early:
            with residual_dropout(self.plain, self.spec.dropout):
                loss = self.step(self.progress.step)
            self.progress.step += 1
            if not self.objective.one_shape and self.progress.step % _STEPS_WITH_FREED_MEMORY == 0:
                hand_back()
            self.progress.seconds = before + time.monotonic() - started
            if self.progress.step % self._interval() == 0 or self.progress.step == self.spec.steps:
                self._evaluate(loss)
            if time.monotonic() - saved > self.checkpoint_seconds:
                self._save()
                saved = time.monotonic()
            if self.report and self.accelerator.is_main_process:
                self.report("train", self.progress.step * self.spec.batch_tokens, self.spec.tokens)

    def step(self, step: int) -> float:
        """One optimizer step; the mean training loss in nats per token."""
        spec = self.spec
        lr = spec.lr * wsd_multiplier(step, spec.steps, spec.warmup, spec.decay)
        set_lr(self.optimizers, lr)
        with self._drawing(step) if self.draws else nullcontext():
            total = self._gradients(step) if self._threaded is None else self._threaded(self.objective, step)
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

    def _drawing(self, step: int) -> AbstractContextManager[object]:
        """What dropout draws in *step* follows from the step, so that a resumed run draws the same."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        seed = ((self.spec.order_seed << 32) ^ (step * world + rank + 1)) % (1 << 63)
        torch.manual_seed(seed)
        return DrawnDropout(seed) if self.device.type == "cpu" else nullcontext()

    def _gradients(self, step: int) -> float:
        """Make the gradients of step *step*; the mean loss of this process's part."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        batches, targets = self.objective.micro_batches(step, rank, world)
        weight = world / targets  # for the mean over the targets of all: among processes, gradients are averaged
        if not batches:  # fewer examples than processes: join the averaging with nothing of one's own
            batches, weight = self.objective.micro_batches(step)[0][:1], 0.0
        total = 0.0
        for number, batch in enumerate(map(self._on_device, batches), start=1):
            if self._replays and len(batches) == 1:
                loss = self._replayed(batch, weight)
            else:
                with self.accelerator.no_sync(self.model) if number < len(batches) else nullcontext():
                    objective, loss = self._objective(batch)
                    self.accelerator.backward(objective * weight)
            total += loss.item() * weight
        return total

    def _replayed(self, batch: Batch, weight: float) -> torch.Tensor:
        """The cross-entropy of *batch*; its gradients are made by replaying one captured pass."""
        if self._pass is None:
            state = torch.get_rng_state(), torch.cuda.get_rng_state(self.device)
            self._pass = ReplayedPass(self.plain, self._objective, batch, weight)
            torch.set_rng_state(state[0])
            torch.cuda.set_rng_state(state[1], self.device)
        return self._pass(batch)

    def _objective(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """What is minimised on *batch*, summed over its targets, and its cross-entropy alone in nats, summed."""
        spec, targets = self.spec, self.objective.targets(batch)
        with self._computing():
            logits = self.objective.logits(self.model, batch)
            loss = self.objective.loss_sum(logits, targets, training=True)
        objective = loss
        if spec.distill > 0 and self.teachers.models:
            learned = distillation_loss(logits, self._mixture(batch), spec.temperature) * len(targets)
            objective = (1 - spec.distill) * loss + spec.distill * learned
        if spec.l2_penalty > 0:
            objective = objective + spec.l2_penalty * len(targets) * squared_norm(self.plain)
        return objective, loss.detach()

    @torch.no_grad()
    def _mixture(self, batch: Batch) -> torch.Tensor:
        """The α-mixture of the teachers' distributions at the targets of *batch*: (targets, classes)."""
        if "taught" in batch:
            return batch["taught"]
        with self._computing():
            taught = [self.objective.logits(teacher, batch) for teacher in self.teachers.models]
        return teachers_mixture(taught, self.teachers.alpha, self.spec.temperature)

    def _keep_what_teachers_say(self) -> None:
        """Ask the teachers once, in the same order in a resumed run: it then has the same numbers to the last bit."""
        pieces = self.objective.pieces()
        kept = KeptAnswers(pieces, self.objective.target_counts())
        for number, piece in enumerate(pieces, start=1):
            kept.add(self._mixture(self._on_device(self.objective.batch(piece))))
            if self.report and self.accelerator.is_main_process:
                self.report("teach", number, len(pieces))
        self.objective.kept = kept

    def _evaluate(self, train_loss: float) -> None:
        """Note the losses; remember the best weights and stop early where the valid loss no longer falls."""
        row = {
            "step": self.progress.step,
            "tokens": self.progress.step * self.spec.batch_tokens,
            "train_loss": train_loss,
            "seconds": self.progress.seconds,
        }
        if self.valid_batches:
            row["valid_loss"] = valid_loss = self._valid_loss(self.valid_batches)
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
    def _valid_loss(self, batches: Sequence[Batch]) -> float:
        """Mean cross-entropy in nats per target, without smoothing."""
        model = self._result()
        model.eval()
        total = count = 0.0
        for batch in map(self._on_device, batches):
            targets = self.objective.targets(batch)
            with self._computing():
                logits = self.objective.logits(model, batch)
                total += self.objective.loss_sum(logits, targets, training=False).item()
            count += len(targets)
        self.model.train()
        return total / count

    def _on_device(self, batch: Batch) -> Batch:
        return {key: value.to(self.device) for key, value in batch.items()}

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

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """In it models are run: in the precision of the spec, and on shapes that come again."""
        rounds = self.device.type == "cpu" and self.dtype is not None and not self.objective.one_shape
        with (
            torch.autocast(self.device.type, dtype=self.dtype or torch.float32, enabled=self.dtype is not None),
            RoundedRows() if rounds else nullcontext(),
        ):
            yield

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
