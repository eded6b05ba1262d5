"""Objectives: the right targets, sums that do not depend on how a batch is cut, runs that a kill does not change."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from ract.cost import derive_encoder_decoder_shape, derive_encoder_shape
from ract.data.example_batches import IGNORED
from ract.data.examples import Examples
from ract.data.tokenizer import load_tokenizer
from ract.errors import StoppedByParent
from ract.model.compact_encoder import new_encoder, new_encoder_decoder
from ract.model.origin import TaskLabels
from ract.plan.defaults import values_for, whole_steps
from ract.plan.graph import ModelSettings, TrainSpec
from ract.train.node import Teachers, TrainingRun
from ract.train.objective import Objective
from ract.train.objectives import build_objective
from tests import examples

KINDS = ("masked", "classification", "translation")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Examples]:
    reviews = examples.classification(tmp_path_factory.mktemp("reviews"))
    return {
        "masked": reviews,
        "classification": reviews,
        "translation": examples.translation(tmp_path_factory.mktemp("pairs")),
    }


def spec(objective: str, **changes: Any) -> TrainSpec:
    values = values_for(objective, decay=0.4) | {"batch_tokens": 256, "block_size": 32, "evaluations": 2}
    return whole_steps(TrainSpec(**(values | {"tokens": 256 * 8} | changes)))


def model(objective: str, data: Examples, *, seed: int = 0, dropout: float = 0.1) -> torch.nn.Module:
    tokenizer = load_tokenizer(data.tokenizer_dir)
    settings = ModelSettings(64, dropout)
    if objective == "translation":
        shape = derive_encoder_decoder_shape(data.vocab_size, 32, 1)
        return new_encoder_decoder(shape, tokenizer, seed=seed, settings=settings)
    labels = len(data.labels) if objective == "classification" else 0
    shape = derive_encoder_shape(data.vocab_size, 32, 1, num_labels=labels)
    return new_encoder(shape, tokenizer, seed=seed, settings=settings, task=TaskLabels(data.labels))


def training(objective: str, data: Examples, m: torch.nn.Module, *, settings: TrainSpec, **options: Any) -> TrainingRun:
    return TrainingRun(m, settings, build_objective(settings, data), **options)


@pytest.mark.parametrize("kind", KINDS)
def test_targets_and_logits_correspond_and_a_cut_batch_sums_to_the_whole(data: dict[str, Examples], kind: str) -> None:
    m = model(kind, data[kind]).eval()

    def total(objective: Objective, world: int) -> tuple[float, int, int]:
        loss, seen = 0.0, 0
        for rank in range(world):
            batches, targets = objective.micro_batches(3, rank, world)
            for batch in batches:
                logits, answers = objective.logits(m, batch), objective.targets(batch)
                assert len(logits) == len(answers)
                loss += objective.loss_sum(logits, answers, training=True).item()
                seen += len(answers)
        return loss, seen, targets

    changed = {"token_splits": 0.3, "token_dropout": 0.3} if kind == "classification" else {}
    whole = total(build_objective(spec(kind, micro_batch_tokens=10**6, **changed), data[kind]), 1)
    cut = total(build_objective(spec(kind, micro_batch_tokens=64, **changed), data[kind]), 2)
    assert whole[1] == whole[2] == cut[1] == cut[2]
    assert cut[0] == pytest.approx(whole[0], rel=1e-4)


def test_masks_follow_from_the_step_and_cover_their_share(data: dict[str, Examples]) -> None:
    objective = build_objective(spec("masked", batch_tokens=2048), data["masked"])
    (one,), targets = objective.micro_batches(0)
    (again,), _ = objective.micro_batches(0)
    (other,), _ = objective.micro_batches(1)
    assert torch.equal(one["input_ids"], again["input_ids"]) and not torch.equal(one["labels"], other["labels"])
    chosen = one["labels"] != IGNORED
    assert targets == int(chosen.sum()) and 0.2 < chosen.float().mean() < 0.4
    mask = load_tokenizer(data["masked"].tokenizer_dir).mask_token_id
    assert 0.7 < (one["input_ids"][chosen] == mask).float().mean() < 0.9


def test_texts_are_changed_in_training_alone_and_anew_in_every_step(data: dict[str, Examples]) -> None:
    own = data["classification"]
    settings = spec("classification", batch_tokens=10**6, token_splits=0.5, token_dropout=0.2)
    plain, objective = build_objective(spec("classification"), own), build_objective(settings, own)
    (one, *_), _ = objective.micro_batches(0)
    (again, *_), _ = objective.micro_batches(0)
    (later, *_), _ = objective.micro_batches(1)
    assert torch.equal(one["input_ids"], again["input_ids"])
    assert one["input_ids"].shape != later["input_ids"].shape or not torch.equal(one["input_ids"], later["input_ids"])
    for a, b in zip(plain.valid_batches(), objective.valid_batches(), strict=True):
        assert torch.equal(a["input_ids"], b["input_ids"])


def test_balanced_classes_have_the_same_share(tmp_path: Path) -> None:
    from ract.data.examples import ExampleSpec, prepare_examples

    rows = [row for row in examples.reviews(200) if row["label"] == "good"]
    rows += [row for row in examples.reviews(200) if row["label"] == "bad"][:15]
    source = examples.write_rows(tmp_path / "a.jsonl", rows)
    few = prepare_examples(ExampleSpec("classification", train=(source,), valid=(source,)), tmp_path, vocab_size=300)
    objective = build_objective(spec("classification", class_weights="balanced"), few)
    counts = np.bincount(few.label_ids["train"])
    weights = objective.weights.numpy()  # type: ignore[attr-defined]
    np.testing.assert_allclose(counts * weights, counts.sum() / 2, rtol=1e-5)


@pytest.mark.parametrize(("kind", "share"), [("masked", 0.95), ("classification", 0.9), ("translation", 0.8)])
def test_training_learns(data: dict[str, Examples], kind: str, share: float) -> None:
    m = model(kind, data[kind], dropout=0.0)
    settings = spec(kind, tokens=256 * 60, lr=1e-2, patience=0)
    history = training(kind, data[kind], m, settings=settings).run().progress.history
    chance = np.log(2) if kind == "classification" else np.log(data[kind].vocab_size)
    assert history[-1]["valid_loss"] < share * chance


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_with_dropout_ends_in_the_weights_of_an_undisturbed_one(
    tmp_path: Path, data: dict[str, Examples], kind: str
) -> None:
    settings = spec(kind, **({"token_splits": 0.3, "token_dropout": 0.1} if kind == "classification" else {}))
    undisturbed = model(kind, data[kind])
    training(kind, data[kind], undisturbed, settings=settings).run()

    def stop(what: str, done: int, total: int) -> None:
        if done == 5 * settings.batch_tokens:
            raise StoppedByParent("killed here")

    options: dict[str, Any] = {"settings": settings, "work": tmp_path}
    killed = training(kind, data[kind], model(kind, data[kind]), **options, checkpoint_seconds=0, report=stop)
    with pytest.raises(StoppedByParent):
        killed.run()
    torch.manual_seed(99)
    resumed = model(kind, data[kind], seed=9)
    training(kind, data[kind], resumed, **options).run()
    for (name, a), (_, b) in zip(undisturbed.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(a, b), name


class _SecondOfTwo:
    """Stands for the second of two processes, where there is only this one."""

    num_processes, process_index, is_main_process = 2, 1, False

    def __init__(self) -> None:
        self.passes = 0

    def no_sync(self, model: torch.nn.Module) -> nullcontext[None]:
        return nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        self.passes += 1
        loss.backward()


def test_a_process_without_an_example_takes_part_and_changes_nothing(data: dict[str, Examples]) -> None:
    settings = spec("classification", batch_tokens=1, tokens=1000, weight_decay=0.0)
    m = model("classification", data["classification"], dropout=0.0)
    run = training("classification", data["classification"], m, settings=settings)
    alone = next(step for step in range(1000) if not run.objective.micro_batches(step, 1, 2)[0])
    second = _SecondOfTwo()
    run.accelerator = second  # type: ignore[assignment]
    before = [p.detach().clone() for p in m.parameters()]
    assert run.step(alone) == 0.0 and second.passes == 1  # the others wait for its gradients
    assert all(torch.equal(a, b) for a, b in zip(before, m.parameters(), strict=True))


@pytest.mark.parametrize(
    "architecture", ["marian", "bart", "mbart", "pegasus", "plbart", "blenderbot", "m2m_100", "t5"]
)
def test_a_translators_loss_and_gradients_are_those_of_transformers(
    data: dict[str, Examples], architecture: str
) -> None:
    pairs = data["translation"]
    # One of these names is what the config of each architecture calls it.
    sizes = {"vocab_size": pairs.vocab_size, "d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 1, "num_heads": 4}
    for side in ("encoder", "decoder"):
        sizes |= {f"{side}_layers": 1, f"{side}_attention_heads": 4, f"{side}_ffn_dim": 64}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0}
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **sizes, **tokens, init_std=0.3)
    m = AutoModelForSeq2SeqLM.from_config(config).eval()
    if hasattr(m, "final_logits_bias"):
        m.final_logits_bias.normal_()
    objective = build_objective(spec("translation"), pairs)
    batch = objective.batch(np.arange(8))
    assert (batch["labels"] == IGNORED).any() and (batch["attention_mask"] == 0).any()  # of different lengths

    ours = objective.loss_sum(objective.logits(m, batch), objective.targets(batch), training=False)
    weights = [p for p in m.parameters() if p.requires_grad]  # not Marian's sinusoids
    slopes = torch.autograd.grad(ours, weights)
    exact = m(**{key: batch[key] for key in ("input_ids", "attention_mask", "labels")}).loss * len(
        objective.targets(batch)
    )
    torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-5)
    for found, right in zip(slopes, torch.autograd.grad(exact, weights), strict=True):
        torch.testing.assert_close(found, right, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["classification", "translation"])
def test_what_teachers_say_is_kept_for_the_right_targets(data: dict[str, Examples], kind: str) -> None:
    teachers = Teachers([model(kind, data[kind], seed=seed) for seed in (3, 4)], [0.3, 0.7])
    settings = spec(kind, tokens=256 * 30, distill=0.9, temperature=2.0, teacher_tokens=data[kind].tokens_in("train"))
    asked: list[int] = []
    inner = teachers.models[0].base_model
    inner.register_forward_hook(lambda _, args, made: asked.append(len(made.last_hidden_state)))
    run = training(kind, data[kind], model(kind, data[kind], seed=5), settings=settings, teachers=teachers)
    run.run()
    assert sum(asked) == data[kind].count("train")
    for step in range(8):
        for batch in run.objective.micro_batches(step)[0]:
            kept = run._mixture(batch).float()
            assert len(kept) == len(run.objective.targets(batch))
            said = run._mixture({key: value for key, value in batch.items() if key != "taught"})
            torch.testing.assert_close(kept, said, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["classification", "translation"])
def test_a_student_moves_towards_its_teacher(data: dict[str, Examples], kind: str) -> None:
    teacher = model(kind, data[kind], dropout=0.0)
    training(kind, data[kind], teacher, settings=spec(kind, tokens=256 * 10, lr=3e-3)).run()  # unsure yet
    objective = build_objective(spec(kind), data[kind])
    (batch, *_), _ = objective.micro_batches(0)
    distances = []
    for share in (0.0, 1.0):
        student = model(kind, data[kind], seed=5, dropout=0.0)
        settings = replace(spec(kind, tokens=256 * 30, lr=1e-2, patience=0), distill=share)
        training(kind, data[kind], student, settings=settings, teachers=Teachers([teacher], [1.0])).run()
        with torch.no_grad():
            gap = objective.logits(student, batch).softmax(-1) - objective.logits(teacher, batch).softmax(-1)
        distances.append(gap.abs().mean().item())
    assert distances[1] < distances[0]
