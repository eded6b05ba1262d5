"""The record of classification and translation: the metric of the task, its references, what nodes without it have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ract.checkpoint.directory import write_lineage
from ract.checkpoint.lineage import read_lineage
from ract.errors import BadInput
from ract.report.record import describe, redraw
from ract.report.schema import read_record
from tests.report_runs import DIGEST, DISTILLED, SMALL, TFIDF, synthetic_record, task_run


def test_a_classifier_is_judged_by_accuracy_and_pre_training_by_nothing_of_the_task(tmp_path: Path) -> None:
    run = task_run(tmp_path / "run", "classification")
    record = describe(run)
    assert record.task == "classification" and record.metric.key == "accuracy" and record.metric.higher_is_better
    pretrain = record["pretrain"]
    assert pretrain.quality is None and pretrain.vs_baseline is None and pretrain.history and not pretrain.measures
    assert [node.name for node in record.nodes if node.quality is None] == ["pretrain"]
    baseline = record["baseline"].quality
    for node in record.measured:
        found = read_lineage(run.directories[node.name])
        assert found is not None and node.quality == found.metrics_after["accuracy"]
        assert node.measures == {k: found.metrics_after[k] for k in ("macro_f1", "nats", "ece", "latency_ms")}
        if node.name != "baseline":
            assert node.vs_baseline == pytest.approx(node.quality - baseline)  # points, not a ratio
    final = read_lineage(run.final)
    assert final is not None and record.confusion == final.metrics_after["confusion"]
    assert [one.model_dump() for one in record.classes] == final.metrics_after["per_class"]
    assert (record.examples, record.scored_bytes, record.corpus, record.translations) == (300, 0, None, [])


def test_references_are_recorded_where_there_are_some(tmp_path: Path) -> None:
    run = task_run(tmp_path / "run", "classification", domains=True)
    (reference,) = describe(run).references
    assert (reference.name, reference.quality, reference.note) == (TFIDF, 0.9, "words, C = 3")
    assert reference.measures == {"macro_f1": 0.89, "nats": 0.5, "ece": 0.04}
    assert set(reference.by_domain) == set(describe(run).domains)
    (run.path / "references.json").unlink()
    assert describe(run).references == []


def test_a_translator_is_judged_by_bleu_and_shows_twenty_translations(tmp_path: Path) -> None:
    run = task_run(tmp_path / "run", "translation", SMALL)
    record = describe(run)
    final = read_lineage(run.final)
    assert record.metric.key == "bleu" and final is not None
    assert record[record.final].quality == final.metrics_after["bleu"] and record.measured == record.nodes
    assert [one.model_dump() for one in record.translations] == final.metrics_after["outputs"]
    assert len(record.translations) == 20 and "tok:13a" in record.signature and record.confusion == []


def test_a_translator_may_have_a_baseline_that_gets_nothing_right(tmp_path: Path) -> None:
    run = task_run(tmp_path / "run", "translation", SMALL)
    directory = run.directories["baseline"]
    lineage = read_lineage(directory)
    assert lineage is not None
    write_lineage(directory, lineage.model_copy(update={"metrics_after": {**lineage.metrics_after, "bleu": 0.0}}))
    record = describe(run)
    assert record["leaf"].vs_baseline == record["leaf"].quality


def test_a_student_in_the_middle_of_a_tree_is_no_leaf(tmp_path: Path) -> None:
    levels = DISTILLED + '[[level]]\nmethod = "ensemble"\nmembers = 2\nbranch = { tokens = 1024, vary = ["seed"] }\n'
    record = describe(task_run(tmp_path / "run", "classification", levels))
    students = [node for node in record.nodes if node.method == "distill"]
    assert students and all(node.teachers and record.final != node.name for node in students)
    assert [leaf.method for leaf in record.leaves] == ["leaf"]


def test_the_examples_are_those_that_the_nodes_were_made_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = task_run(tmp_path / "run", "classification")
    for name, digest in (("examples-0", DIGEST), ("examples-1", "0" * 64)):  # the other one is the newer
        folder = run.path / "data" / name
        folder.mkdir(parents=True)
        (folder / "examples.json").write_text(json.dumps({"digest": digest}), encoding="utf-8")
    opened: list[str] = []

    def no_examples(folder: Path) -> None:
        opened.append(folder.name)
        raise BadInput("stop", "here")

    monkeypatch.setattr("ract.data.examples.open_examples", no_examples)
    with pytest.raises(BadInput, match="stop"):
        describe(run)
    assert opened == ["examples-0"]


def test_records_of_before_there_were_tasks_are_read_and_drawn(tmp_path: Path) -> None:
    record = synthetic_record(tmp_path / "run")
    old = json.loads(record.model_dump_json())
    for key in ("task", "examples", "domains", "references", "confusion", "classes", "translations", "signature"):
        del old[key]
    for node in old["nodes"]:
        measures = node.pop("measures")
        del node["by_domain"], node["domain"]
        node |= {"bits_per_byte": node.pop("quality"), **measures}
    for key in ("failures", "data"):
        del old[key]
    (tmp_path / "report.json").write_text(json.dumps(old), encoding="utf-8")
    assert read_record(tmp_path) == record
    assert redraw(tmp_path).is_file()
