"""ract compress: steps that are measured and refused, students, and the search within limits, with real exports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ract.checkpoint.crashpoints import VARIABLE
from ract.checkpoint.directory import verify_files
from ract.checkpoint.lineage import content_hash, read_lineage
from ract.compress.compress import Options, compress
from ract.compress.distill import Lesson, Teacher, class_names, student_shape
from ract.compress.judge import Judge, Limits, Trial, held_out
from ract.data.tokens import Corpus
from ract.errors import BadInput
from ract.export.source import load_source
from ract.runtime.classify import TextClassifier
from ract.runtime.generate import TextGenerator
from ract.runtime.manifest import read_manifest
from ract.tree.leaf import train
from tests import examples, task_models
from tests.conftest import Ract
from tests.pico import load
from tests.plans import plan_text, write_text_corpus


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """Three blocks, trained for a few seconds: with random weights any change may be for the better."""
    folder = tmp_path_factory.mktemp("decoder")
    plan = plan_text(text, leaf_tokens=25_600).replace("num_hidden_layers = 2", "num_hidden_layers = 3")
    (folder / "plan.toml").write_text(plan, encoding="utf-8")
    return train(folder / "plan.toml", folder / "model", threads=1)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_corpus(tmp_path_factory.mktemp("text") / "text.txt", documents=300)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    return task_models.classifier(folder / "model", examples.classification(folder))


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("translator")
    return task_models.translator(folder / "model", examples.translation(folder))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({}, "nothing was asked for"),
        ({"format": "none"}, "the model would stay as it is"),
        ({"format": "onx"}, 'no format "onx"'),
        ({"quantize": "int3"}, 'no precision "int3"'),
        ({"quantize": "int8", "format": "none", "prune_blocks": 1}, "only an export is quantized"),
        ({"prune_neurons": 1.0}, "out of range"),
        ({"prune_blocks": -1}, "out of range"),
        ({"prune_blocks": 1, "student_layers": 1, "train": ["t"]}, "a student is not pruned"),
        ({"student_parameters": "1M"}, "a student learns from text"),
        ({"quantize": "int8", "train": ["t"]}, "there is nothing to train"),
        ({"prune_blocks": 1, "tokens": "2M"}, "tokens and lr are for training"),
        ({"prune_blocks": 1, "max_latency_ms": 5.0}, "latency and memory are those of an export"),
        ({"target_size": "8 apples"}, 'target-size "8 apples" must be a size'),
        ({"target_size": 0}, "target-size is 0"),
        ({"max_memory_mb": float("nan")}, "max-memory-mb is nan"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(BadInput, match=problem):
        Options(**options).check()


def test_an_unknown_option_and_an_output_that_exists_are_refused_first(decoder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r'no option "quantise".*"quantize"'):
        compress(decoder, tmp_path / "out", data=["absent.txt"], quantise="int8")
    with pytest.raises(BadInput, match="no held-out data"):
        compress(decoder, tmp_path / "out", data=[], quantize="int8")
    with pytest.raises(BadInput, match="exists already"):
        compress(decoder, tmp_path, data=["absent.txt"], quantize="int8")


def test_choices_and_figures_are_of_different_data(decoder: Path, classifier: Path, text: Path, tmp_path: Path) -> None:
    source = load_source(decoder)
    chosen, reported = held_out(source, [str(text)], [], choose=True)
    whole = held_out(source, [str(text)], [], choose=False)[1]
    rows = [torch.cat([batch["input_ids"] for batch in part]) for part in (chosen, reported, whole)]
    assert torch.equal(torch.cat(rows[:2]), rows[2])
    train = write_text_corpus(tmp_path / "train.txt", documents=12)
    chosen, reported = held_out(source, [str(text)], [str(train)], choose=True)
    assert torch.equal(torch.cat([batch["input_ids"] for batch in reported]), rows[2])
    ordered = sorted(examples.reviews(64), key=lambda row: row["label"])  # as files often are
    file = examples.write_rows(tmp_path / "rows.jsonl", ordered)
    for part in held_out(load_source(classifier), [file], [], choose=True):
        assert len(torch.cat([batch["labels"] for batch in part]).unique()) == 2
    (tmp_path / "line.txt").write_text("One line.", encoding="utf-8")
    with pytest.raises(BadInput, match="too little held-out data"):
        held_out(source, [str(tmp_path / "line.txt")], [], choose=True)


def test_limits_are_named_where_they_are_broken(decoder: Path, text: Path) -> None:
    source = load_source(decoder)
    reported = held_out(source, [str(text)], [], choose=False)[1]
    judge = Judge(source, reported, Limits(1000, 1.0, 1000, 0.01))
    loss = judge.original.loss
    assert loss is not None and judge.model("same", decoder).breaks == ("size above 1 kB",)
    assert judge.model("same", decoder, final=False).fits
    trial = Trial("x", 1500, loss * 1.1, None, 2.0, 1500)
    assert judge.distance(trial) == pytest.approx(0.5 + 1.0 + 0.5 + (1.1 / 1.01 - 1))
    assert judge.estimate("x", 1100) is None and judge.estimate("x", 1200) is not None


def test_a_pruned_model_is_a_model_directory_with_its_lineage(decoder: Path, text: Path, tmp_path: Path) -> None:
    made = compress(decoder, tmp_path / "out", data=[str(text)], prune_blocks=1, prune_neurons=0.5)
    model, lineage = load(tmp_path / "out"), read_lineage(tmp_path / "out")
    assert (model.config.num_hidden_layers, model.config.intermediate_size) == (2, 48)
    assert lineage is not None and lineage.method == "prune" and verify_files(tmp_path / "out")
    assert lineage.parents[0].content == content_hash(decoder)
    assert lineage.plan["cut"] == {"blocks": 1, "neurons": 0.5, "heads": 0.0}
    assert lineage.metrics_before["loss"] == made.trials[0].loss
    assert lineage.metrics_after["loss"] == made.trial.loss
    assert [path.name for path in (tmp_path).iterdir()] == ["out"]


def test_what_costs_too_much_is_refused_and_nothing_is_written(
    decoder: Path, text: Path, tmp_path: Path, ract: Ract
) -> None:
    arguments = ["--data", text, "--prune-blocks", 2, "--max-loss-increase", "0.01%"]
    code, out, err = ract("compress", decoder, "-o", tmp_path / "out", *arguments)
    assert code == 1 and err.startswith("ract: refused: 2 blocks less: loss +") and "Traceback" not in err
    assert "2 blocks less" in out and not list(tmp_path.iterdir())


def test_the_command_says_what_is_no_share(decoder: Path, tmp_path: Path, ract: Ract) -> None:
    code, _, err = ract("compress", decoder, "-o", tmp_path / "out", "--data", "x", "--prune-neurons", "a quarter")
    assert code == 2 and '--prune-neurons "a quarter" is not a share' in err


def test_cut_short_it_goes_on_where_it_was(
    decoder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was pruned and healed is neither pruned nor healed again, and the result is that of one go."""
    options: dict[str, Any] = {"data": [str(text)], "train": [str(text)], "tokens": 4096, "prune_blocks": 1}
    whole = compress(decoder, tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        patch.setattr("ract.compress.compress.write_lineage", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compress(decoder, tmp_path / "out", **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.compress", "whole"]
    with monkeypatch.context() as patch:
        patch.setattr("ract.compress.workshop.prune", interrupted)
        patch.setattr(Teacher, "heal", interrupted)
        with pytest.raises(KeyboardInterrupt):  # another lesson is another model
            compress(decoder, tmp_path / "out", **{**options, "tokens": 8192})
        made = compress(decoder, tmp_path / "out", **options)
    assert made.trials == whole.trials
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "whole")]
    assert files[0] == files[1] and sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def interrupted(*arguments: Any, **options: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_killed_after_every_candidate_it_ends_as_without(decoder: Path, text: Path, tmp_path: Path) -> None:
    arguments = ["--data", text, "--prune-blocks", 1, "--quantize", "int8", "--json"]

    def run(name: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ract", "compress", decoder, "-o", tmp_path / name, *arguments]
        given = {**os.environ, **environment}
        return subprocess.run(list(map(str, command)), env=given, capture_output=True, text=True, check=False)

    for left in (1, 2):  # the pruned model; its export
        killed = run("out", **{VARIABLE: "candidate-kept"})
        assert killed.returncode == -signal.SIGKILL and not (tmp_path / "out").exists()
        assert len(list((tmp_path / ".out.compress").glob("*/record.json"))) == left
    done, whole = run("out", **{VARIABLE: "candidate-kept"}), run("whole")
    assert done.returncode == whole.returncode == 0, done.stderr
    results = [json.loads(one.stdout) for one in (done, whole)]
    assert [[t["loss"] for t in one["tried"]] for one in results] == [[t["loss"] for t in results[1]["tried"]]] * 2
    files = [(tmp_path / name / "decode.onnx.data").read_bytes() for name in ("out", "whole")]
    assert files[0] == files[1] and not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_healing_teaches_what_pruning_lost(decoder: Path, text: Path, tmp_path: Path) -> None:
    """A pruned model that learns from the original ends closer to the text than it was."""
    options = {"prune_blocks": 2, "data": [str(text)], "train": [str(text)]}
    worse = compress(decoder, tmp_path / "pruned", data=[str(text)], prune_blocks=2).trial
    healed = compress(decoder, tmp_path / "healed", tokens=64_000, **options).trial
    assert healed.loss is not None and worse.loss is not None and healed.loss < worse.loss - 0.1
    lineage = read_lineage(tmp_path / "healed")
    assert lineage is not None and lineage.cost.tokens > 0 and lineage.cost.flops > 0
    assert healed.name == "2 blocks less, healed" and lineage.plan["train"] == [str(text)]


def test_a_student_of_a_decoder_shares_its_tokenizer(decoder: Path, text: Path, tmp_path: Path) -> None:
    made = compress(
        decoder, tmp_path / "out", data=[str(text)], train=[str(text)], tokens=8192, student_hidden=32, student_layers=1
    )
    model = load(tmp_path / "out")
    assert (model.config.hidden_size, model.config.num_hidden_layers, model.config.vocab_size) == (32, 1, 300)
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (decoder / "tokenizer.json").read_bytes()
    lineage = read_lineage(tmp_path / "out")
    assert lineage is not None and lineage.method == "distill" and lineage.plan["student"]["hidden_size"] == 32
    assert made.trial.loss is not None and made.trial.name.startswith("student of ")


def test_a_classifier_learns_its_own_classes_whatever_the_data_calls_them(classifier: Path, tmp_path: Path) -> None:
    """The data's order of classes is not the model's: numbers and names are both understood."""
    source = load_source(classifier)
    assert class_names(source) == ("bad", "good")
    rows = [{**row, "label": "1" if row["label"] == "good" else "bad"} for row in examples.reviews(200)]
    teacher = Teacher(source, Lesson((examples.write_rows(tmp_path / "r.jsonl", rows),)), tmp_path / "work")
    assert not isinstance(teacher.data, Corpus)
    kept = teacher.data.rows("train")
    expected = [int(any(word in row["text"].split() for word in examples.GOOD)) for row in kept]
    assert teacher.data.label_ids["train"].tolist() == expected
    one = examples.write_rows(tmp_path / "one.jsonl", [row for row in rows if row["label"] == "1"])
    with pytest.raises(BadInput, match="nothing to tell apart"):
        Teacher(source, Lesson((one,)), tmp_path / "other")


@pytest.mark.slow
def test_a_classifier_is_pruned_healed_and_quantized(classifier: Path, tmp_path: Path) -> None:
    train = examples.write_rows(tmp_path / "train.jsonl", examples.reviews(300, seed=1))
    held = examples.write_rows(tmp_path / "held.jsonl", examples.reviews(100, seed=2))
    made = compress(
        classifier, tmp_path / "out", data=[held], prune_neurons=0.5, train=[train], tokens=20_000, quantize="int8"
    )
    assert [trial.name for trial in made.trials] == [
        "original", "50% neurons less, healed", "50% neurons less, healed, int8"
    ]  # fmt: skip
    assert made.trial.accuracy is not None and made.trial.latency_ms is not None and made.trial.latency_ms > 0
    (found,) = TextClassifier(tmp_path / "out").classify(["a lovely film"])
    assert found.label in ("good", "bad")
    lineage, manifest = read_lineage(tmp_path / "out"), read_manifest(tmp_path / "out")
    assert lineage is not None and lineage.plan["precision"] == manifest.precision == "int8"
    assert manifest.held_out is not None and manifest.held_out.loss == made.trial.loss


@pytest.mark.slow
def test_an_ensemble_is_distilled_into_one_model(classifier: Path, tmp_path: Path) -> None:
    both = task_models.ensemble(tmp_path / "both", [classifier, classifier])
    rows = examples.write_rows(tmp_path / "rows.jsonl", examples.reviews(200))
    options = {"student_hidden": 32, "student_layers": 1, "train": [rows], "tokens": 4096}
    made = compress(both, tmp_path / "one", data=[rows], **options)
    assert load(tmp_path / "one").config.id2label == {0: "bad", 1: "good"}
    lineage = read_lineage(tmp_path / "one")
    assert lineage is not None and lineage.parents[0].content == content_hash(both)
    assert made.trial.size_bytes is not None and made.trial.size_bytes < (made.trials[0].size_bytes or 0)


@pytest.mark.slow
def test_a_translator_is_pruned_and_a_student_learns_to_translate(translator: Path, tmp_path: Path) -> None:
    train = examples.write_pairs(tmp_path, "train", examples.sentences(300, seed=1))
    held = examples.write_pairs(tmp_path, "held", examples.sentences(60, seed=2))
    pruned = compress(translator, tmp_path / "pruned", data=held, prune_neurons=0.25, format="onnx")
    assert pruned.trial.fits and pruned.trial.loss is not None
    assert all(trial.bleu is not None and 0 <= trial.bleu <= 100 for trial in pruned.trials)
    assert pruned.trials[1].bleu == pytest.approx(pruned.trial.bleu, abs=0.1)  # the pruned model and its export
    student = compress(
        translator, tmp_path / "student", data=held, train=train, student_hidden=32, student_layers=1, tokens=4096
    )
    config = json.loads((tmp_path / "student/config.json").read_text())
    assert (config["source_language"], config["target_language"]) == ("en", "de")
    assert student.trial.loss is not None and load(tmp_path / "student").config.encoder_layers == 1


@pytest.mark.slow
def test_the_search_stops_at_the_mildest_that_fits(decoder: Path, text: Path, tmp_path: Path) -> None:
    free = compress(decoder, tmp_path / "free", data=[str(text)], max_memory_mb=4000)
    names = [trial.name for trial in free.trials]
    assert names == ["original", "original, fp32", "original, int8", "original, int4"]
    losses = [trial.loss for trial in free.trials[1:]]
    assert free.trial.loss == min(loss for loss in losses if loss is not None)
    size = free.trials[3].size_bytes
    assert size is not None
    tight = compress(decoder, tmp_path / "tight", data=[str(text)], target_size=size - 1000)
    assert tight.trial.fits and (tight.trial.size_bytes or 0) < size
    assert tight.trial.name.startswith(("25% neurons less", "1 block less", "50% neurons less"))
    assert list(TextGenerator(tmp_path / "tight").stream("def read", max_new_tokens=4, temperature=0))


@pytest.mark.slow
def test_a_search_that_finds_nothing_names_the_closest_and_writes_nothing(
    decoder: Path, text: Path, tmp_path: Path, ract: Ract
) -> None:
    code, out, err = ract("compress", decoder, "-o", tmp_path / "out", "--data", text, "--max-memory-mb", 1)
    assert code == 1 and "nothing fits; the closest is" in err and "memory above 1 MB" in err
    assert "25% neurons less, int8" in out and "50% neurons less, int4" in out and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_limit_on_the_loss_alone_finds_the_smallest(decoder: Path, text: Path, tmp_path: Path, ract: Ract) -> None:
    code, out, _ = ract(
        "compress", decoder, "-o", tmp_path / "out", "--data", text, "--max-loss-increase", "50%", "--json"
    )
    found = json.loads(out)
    assert code == 0
    fitting = [trial for trial in found["tried"][1:] if trial["fits"]]
    assert found["size_bytes"] == min(trial["size_bytes"] for trial in fitting) and len(fitting) > 3


def test_students_that_cannot_be_are_refused(decoder: Path) -> None:
    source = load_source(decoder)
    assert student_shape(source, parameters=40_000).parameters <= 40_000
    with pytest.raises(BadInput, match=r"the student: 100 parameters are too few"):
        student_shape(source, parameters=100)
    with pytest.raises(BadInput, match=r"the student: give parameters or hidden_size, not both"):
        student_shape(source, parameters=40_000, hidden_size=32)
