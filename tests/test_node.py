"""One training run: what it minimises, that a kill changes nothing, that a diverged state is never kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ract.cost import derive_shape
from ract.errors import NonFiniteLoss, StoppedByParent
from ract.model.compact import new_compact_transformer
from ract.plan.defaults import default_train_spec
from ract.plan.graph import TrainSpec
from ract.train.losses import distillation_loss, squared_norm, teachers_mixture
from ract.train.node import Teachers, TrainingRun
from ract.train.objectives import NextToken
from ract.train.replay import can_be_replayed
from ract.train.state import load_checkpoint
from tests.pico import pico

SHAPE = derive_shape(64, 32, 2)


def spec(**changes: object) -> TrainSpec:
    base = replace(
        default_train_spec(tokens=256 * 8), batch_tokens=256, micro_batch_tokens=256, block_size=32, tokens=2048
    )
    return replace(base, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    """A stream that can be learned: each token follows from the one before it, with some noise."""
    generator = np.random.default_rng(0)
    stream = np.cumsum(generator.choice([1, 3], size=20_000, p=[0.9, 0.1])) % 64
    return stream.astype(np.uint16)


def model(seed: int = 0) -> torch.nn.Module:
    return new_compact_transformer(SHAPE, seed=seed)


def weights(m: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in m.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def training(
    m: torch.nn.Module, settings: TrainSpec, tokens: np.ndarray, valid: np.ndarray | None = None, **options: Any
) -> TrainingRun:
    return TrainingRun(m, settings, NextToken(settings, tokens, valid), **options)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_training_learns(tokens: np.ndarray, optimizer: str) -> None:
    m = model()
    outcome = training(m, spec(tokens=256 * 40, optimizer=optimizer, evaluations=2), tokens[2000:], tokens[:2000]).run()
    history = outcome.progress.history
    assert history[-1]["valid_loss"] < 0.75 * np.log(64)
    assert outcome.tokens == 256 * 40


@pytest.mark.parametrize(
    "changes",
    [{}, {"optimizer": "adamw"}, {"ema": 0.9}, {"patience": 2, "evaluations": 4}, {"dropout": 0.2, "ema": 0.5}],
)
def test_a_killed_run_ends_in_the_weights_of_an_undisturbed_one(
    tmp_path: Path, tokens: np.ndarray, changes: dict[str, object]
) -> None:
    undisturbed = model()
    training(undisturbed, spec(**changes), tokens[2000:], tokens[:2000]).run()

    def stop_at_five(what: str, done: int, total: int) -> None:
        if done == 5 * 256:
            raise StoppedByParent("killed here")

    killed = training(
        model(), spec(**changes), tokens[2000:], tokens[:2000], work=tmp_path, checkpoint_seconds=0, report=stop_at_five
    )
    with pytest.raises(StoppedByParent):
        killed.run()
    found = load_checkpoint(tmp_path)
    assert found is not None and found[0].step == 5
    resumed = model(seed=9)  # the checkpoint alone decides
    outcome = training(resumed, spec(**changes), tokens[2000:], tokens[:2000], work=tmp_path).run()
    assert same(weights(undisturbed), weights(resumed))
    assert outcome.progress.step == 8


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, tokens: np.ndarray) -> None:
    run = training(model(), spec(), tokens, work=tmp_path, checkpoint_seconds=0)
    run.run()
    newest, older = sorted(tmp_path.glob("*.safetensors"), reverse=True)
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    found = load_checkpoint(tmp_path)
    assert found is not None and f"{found[0].step:08d}" in older.name
    older.write_bytes(older.read_bytes()[:-10])
    assert load_checkpoint(tmp_path) is None


def test_gradient_accumulation_is_the_same_step(tokens: np.ndarray) -> None:
    whole, parts = model(), model()
    settings = {"optimizer": "adamw", "precision": "fp32", "tokens": 256}
    training(whole, spec(**settings), tokens).run()
    training(parts, spec(**settings, micro_batch_tokens=64), tokens).run()
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], value, rtol=1e-3, atol=2e-5)


def test_a_diverged_run_stops_with_the_step_and_saves_nothing_of_it(tmp_path: Path, tokens: np.ndarray) -> None:
    m = model()

    def poison(what: str, done: int, total: int) -> None:
        if done == 3 * 256:
            with torch.no_grad():
                m.model.layers[0].mlp.up_proj.weight.fill_(float("nan"))  # type: ignore[union-attr,index]

    run = training(m, spec(), tokens, work=tmp_path, checkpoint_seconds=0, report=poison)
    with pytest.raises(NonFiniteLoss, match=r"step 4 of 8 \(learning rate .*lower lr"):
        run.run()
    found = load_checkpoint(tmp_path)
    assert found is not None and all(t.isfinite().all() for t in found[1].values())


def test_an_overfitting_run_stops_early_and_keeps_its_best_weights(tokens: np.ndarray) -> None:
    short = tokens[:300]  # nine windows, read again and again
    m = model()
    outcome = training(
        m,
        spec(tokens=256 * 100, lr=1e-2, weight_decay=0.0, patience=2, evaluations=20, decay=0.0),
        short,
        tokens[5000:5600],
    ).run()
    assert outcome.progress.stopped_early and outcome.progress.step < 100
    best = min(row["valid_loss"] for row in outcome.progress.history)
    run = training(m, spec(), tokens, tokens[5000:5600])
    assert run._valid_loss(run.objective.valid_batches()) == pytest.approx(best, abs=1e-5)


def test_the_literal_penalty_is_lambda_times_the_squared_norm(tokens: np.ndarray) -> None:
    m = model()
    run = training(m, spec(l2_penalty=0.5, precision="fp32"), tokens)
    (batch,), targets = run.objective.micro_batches(0)
    objective, loss = run._objective(batch)
    assert objective.item() / targets == pytest.approx(loss.item() / targets + 0.5 * squared_norm(m).item(), rel=1e-6)


def test_distillation_is_zero_against_oneself_and_positive_otherwise() -> None:
    logits = torch.randn(6, 7, generator=torch.Generator().manual_seed(0))
    other = torch.randn(6, 7, generator=torch.Generator().manual_seed(1))
    assert distillation_loss(logits, teachers_mixture([logits, logits], [0.3, 0.7], 2.0), 2.0).abs().item() < 1e-6
    assert distillation_loss(logits, teachers_mixture([other], [1.0], 1.0), 1.0).item() > 0.1


def test_a_taught_run_moves_towards_its_teacher(tokens: np.ndarray) -> None:
    teacher = model()
    training(teacher, spec(tokens=256 * 30), tokens).run()
    plain = replace(spec(tokens=256 * 12), decay=0.0)
    distances = []
    for share in (0.0, 0.9):
        student = model(seed=5)
        training(student, replace(plain, distill=share), tokens, teachers=Teachers([teacher], [1.0])).run()
        windows = torch.from_numpy(tokens[:64].astype(np.int64))[None]
        with torch.no_grad():
            mixture = teachers_mixture([teacher(windows).logits[0]], [1.0], 1.0)
            distances.append(distillation_loss(student(windows).logits[0], mixture, 1.0).item())
    assert distances[1] < distances[0]


def test_teachers_are_asked_once_a_window_and_say_the_same(tokens: np.ndarray) -> None:
    few = tokens[: 10 * 32 + 1]  # ten windows, read 6.4 times
    settings = spec(precision="fp32", distill=0.9, temperature=2.0, micro_batch_tokens=64)
    asked, learned = [], []
    for kept in (0, 320):
        teachers = [model(seed=3), model(seed=4)]
        seen: list[torch.Size] = []
        teachers[0].register_forward_hook(lambda _, args, made, seen=seen: seen.append(made.logits.shape))
        student = model(seed=5)
        run = training(student, replace(settings, teacher_tokens=kept), few, teachers=Teachers(teachers, [0.3, 0.7]))
        run.run()
        asked.append(sum(rows * block for rows, block, _ in seen))
        untrained = model(seed=6).eval()
        batches = [batch for step in range(3) for batch in run.objective.micro_batches(step)[0]]
        assert all(("taught" in batch) is bool(kept) for batch in batches)
        with torch.no_grad():
            logits = [run.objective.logits(untrained, batch) for batch in batches]
            losses = [
                distillation_loss(one, run._mixture(batch), 2.0) for one, batch in zip(logits, batches, strict=True)
            ]
        learned.append(torch.stack(losses))
    assert asked == [settings.tokens, 320]
    assert learned[0].min() > 0.005
    torch.testing.assert_close(learned[0], learned[1], rtol=1e-2, atol=0)


def test_a_killed_run_with_kept_teachers_ends_in_the_weights_of_an_undisturbed_one(
    tmp_path: Path, tokens: np.ndarray
) -> None:
    few, settings = tokens[: 10 * 32 + 1], spec(distill=0.9, teacher_tokens=320)
    options: dict[str, Any] = {"teachers": Teachers([model(seed=3)], [1.0])}
    undisturbed, resumed = model(), model(seed=9)
    training(undisturbed, settings, few, **options).run()

    def stop_at_five(what: str, done: int, total: int) -> None:
        if (what, done) == ("train", 5 * 256):
            raise StoppedByParent("killed here")

    options["work"] = tmp_path
    with pytest.raises(StoppedByParent):
        training(model(), settings, few, checkpoint_seconds=0, report=stop_at_five, **options).run()
    training(resumed, settings, few, **options).run()
    assert same(weights(undisturbed), weights(resumed))


def test_only_models_without_routing_are_replayed() -> None:
    assert can_be_replayed(model(), pico("Llama"))
    assert not can_be_replayed(model(), pico("Mixtral"))
