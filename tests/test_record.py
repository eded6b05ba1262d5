"""The record of a run: complete, consistent, from the lineages alone; a report made again needs nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ract.checkpoint.directory import write_lineage
from ract.checkpoint.lineage import read_lineage
from ract.errors import BadInput, RactError
from ract.report import samples as samples_module
from ract.report.record import describe, redraw, write_report
from ract.report.samples import beginning, sampled_nodes
from ract.report.schema import Record, Sample, read_record
from tests.report_runs import SIXTEEN_LEAVES, expected_total, synthetic_record, synthetic_run


@pytest.mark.parametrize("levels", ["small", "sixteen"])
def test_every_node_of_the_graph_is_recorded_after_its_parents_and_the_baseline_last(
    tmp_path: Path, levels: str
) -> None:
    run = synthetic_run(tmp_path / "run", SIXTEEN_LEAVES) if levels == "sixteen" else synthetic_run(tmp_path / "run")
    record = describe(run)
    names = [node.name for node in record.nodes]
    assert names == [node.name for node in run.graph] and names[-1] == record.baseline == "baseline"
    assert len(record.leaves) == (16 if levels == "sixteen" else 1)
    for index, node in enumerate(record.nodes):
        assert set(node.parents) <= set(names[:index])
        assert (run.path / node.path / "lineage.json").is_file() and not Path(node.path).is_absolute()
        assert node.size_bytes == (run.path / node.path / "model.safetensors").stat().st_size
        assert node.parameters == run.graph[node.name].shape.parameters


def test_flops_add_up_over_everything_below_each_node_once(tmp_path: Path) -> None:
    run = synthetic_run(tmp_path / "run")
    record = describe(run)
    own = {node.name: node.own_flops for node in record.nodes}
    for node in record.nodes:
        assert node.own_flops <= node.train_flops == pytest.approx(expected_total(run.graph, node.name, own))
        lineage = read_lineage(run.directories[node.name])
        assert lineage is not None and node.train_flops == pytest.approx(lineage.cost.total_flops)
    branches = [node for node in record.nodes if node.method == "branch"]
    merge = record["level-1-merge"]
    shared = record["leaf"].own_flops  # under both branches, counted once
    assert merge.train_flops == pytest.approx(merge.own_flops + shared + sum(branch.own_flops for branch in branches))


def test_a_run_that_stopped_early_counts_what_it_took_and_teachers_are_counted(tmp_path: Path) -> None:
    levels = '[[level]]\nmethod = "ensemble"\nmembers = 2\nheal = { tokens = 8192, distill = 0.5 }\n'
    run = synthetic_run(tmp_path / "run", levels)
    planned = describe(run)["level-1-heal"]
    directory = run.directories["level-1-heal"]
    lineage = read_lineage(directory)
    assert lineage is not None and planned.teachers == planned_parents(describe(run))
    spec = run.graph["level-1-heal"].train
    assert spec is not None
    without_teachers = run.graph["level-1-heal"].shape.train_flops_per_token(64, 256, "muon") * spec.tokens
    assert planned.own_flops > without_teachers
    cost = lineage.cost.model_copy(update={"tokens": lineage.cost.tokens // 4})
    metrics = {**lineage.metrics_after, "stopped_early": True}
    write_lineage(directory, lineage.model_copy(update={"cost": cost, "metrics_after": metrics}))
    shorter = describe(run)["level-1-heal"]
    assert shorter.stopped_early and shorter.own_flops == pytest.approx(planned.own_flops / 4)
    assert shorter.train_flops == pytest.approx(planned.train_flops - 0.75 * planned.own_flops)


def planned_parents(record: Record) -> list[str]:
    return record["level-1-ensemble"].parents


def test_weights_their_search_and_the_comparison_with_the_baseline_are_recorded(tmp_path: Path) -> None:
    record = synthetic_record(tmp_path / "run")
    merge, baseline = record["level-1-merge"], record["baseline"]
    assert merge.weights == [0.5, 0.5]
    assert merge.leaves == {"level-1-branch-1": 0.5, "level-1-branch-2": 0.5}
    assert merge.weights_search is not None and merge.weights_search.loss < merge.weights_search.loss_uniform
    assert baseline.vs_baseline is None
    for node in record.tree:
        assert node.vs_baseline == pytest.approx(node.quality / baseline.quality - 1)


def test_the_corpus_is_the_one_that_the_nodes_were_made_from(tmp_path: Path) -> None:
    run = synthetic_run(tmp_path / "run")
    corpus = describe(run).corpus
    assert corpus is not None and corpus.tokens["train"] == 100_000
    (run.path / "data" / "corpus-1" / "corpus.json").unlink()
    assert describe(run).corpus is None


def test_a_node_without_measures_is_named(tmp_path: Path) -> None:
    run = synthetic_run(tmp_path / "run")
    (run.directories["leaf"] / "lineage.json").unlink()
    with pytest.raises(RactError, match=r"leaf-\w+ has no lineage with its measures"):
        describe(run)


def test_what_is_returned_is_what_is_written_and_drawing_again_needs_the_record_alone(tmp_path: Path) -> None:
    run = synthetic_run(tmp_path / "run")
    record = write_report(run, samples=False)
    assert json.loads((run.path / "report.json").read_text(encoding="utf-8")) == record
    assert set(record["nodes"][0]) >= {"name", "level", "method", "path", "parameters", "train_flops", "quality"}
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "report.json").write_bytes((run.path / "report.json").read_bytes())
    assert redraw(alone) == alone / "report.html"
    drawn = sorted(p.relative_to(alone) for p in alone.rglob("*") if p.is_file())
    assert [p.name for p in drawn if p.parts[0] == "figures"] == sorted(
        f"{name}{suffix}" for name in ("tree", "loss", "quality") for suffix in (".png", ".svg")
    )
    for file in drawn:
        assert (alone / file).read_bytes() == (run.path / file).read_bytes(), file


def test_samples_are_made_for_the_nodes_that_tell_the_story_and_kept_while_nodes_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = synthetic_run(tmp_path / "run")
    written: list[str] = []

    class Writer:
        def __init__(self, path: Path) -> None:
            self.path = path

        def stream(self, prompt: str, **how: object) -> list[str]:
            written.append(self.path.name)
            return [f" by {self.path.name}", f" after {prompt}"]

    monkeypatch.setattr("ract.runtime.generate.TextGenerator", Writer)
    monkeypatch.setattr("ract.report.record.redraw", lambda run: None)
    record = write_report(run)
    assert [s["node"] for s in record["samples"][::2]] == ["leaf", "level-2-stack", "level-2-heal", "baseline"]
    assert [s["prompt"] for s in record["samples"][:2]] == ["once", "upon a time"]
    assert len(written) == 8 and record["samples"][1]["text"] == f" by {run.directories['leaf'].name} after upon a time"
    assert write_report(run) == record and len(written) == 8
    earlier = json.loads((run.path / "report.json").read_text(encoding="utf-8"))
    earlier["samples"][0]["key"] = "another model"
    (run.path / "report.json").write_text(json.dumps(earlier), encoding="utf-8")
    assert write_report(run) == record and len(written) == 9


def test_a_plan_without_healing_or_levels_has_fewer_models_to_show(tmp_path: Path) -> None:
    plain = synthetic_record(tmp_path / "plain", '[[level]]\nmethod = "stack"\ncopies = 2\n')
    assert sampled_nodes(plain) == ["leaf", "level-1-stack", "baseline"]
    leaf = synthetic_record(tmp_path / "leaf", "")
    assert leaf.baseline is None and sampled_nodes(leaf) == ["leaf"]


def test_default_prompts_begin_as_test_documents_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ract.data.corpus import CorpusSpec
    from ract.data.tokens import prepare
    from tests.plans import write_text_corpus

    text = write_text_corpus(tmp_path / "text.txt")
    corpus = prepare(
        CorpusSpec(train=(str(text),), document="paragraph"), tmp_path / "data", vocab_size=300, block_size=64
    )
    monkeypatch.setattr(samples_module, "find_data", lambda run: corpus.path)
    found = samples_module.default_prompts(synthetic_run(tmp_path / "run"))
    lines = text.read_text(encoding="utf-8").splitlines()
    assert len(found) == 2 and all(any(line.startswith(prompt) for line in lines) for prompt in found)
    monkeypatch.setattr(samples_module, "find_data", lambda run: None)
    assert samples_module.default_prompts(synthetic_run(tmp_path / "other")) == [""]


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("\n\n  one two  three four five six seven eight nine ten", "one two three four five six seven eight"),
        ("从前有一只猫" * 20, ("从前有一只猫" * 20)[:48]),
        ("short\nsecond line", "short"),
        ("cut off \ufffd", "cut off"),
        (" \n ", ""),
    ],
)
def test_a_prompt_is_the_first_words_of_the_first_line(text: str, prompt: str) -> None:
    assert beginning(text) == prompt


def damaged(value: dict, what: str) -> str | bytes:
    """``report.json`` with one thing wrong."""
    if what == "cut short":
        return json.dumps(value)[:-40]
    if what == "not text":
        return b"\xff\xfe\x00"
    if what == "a list":
        return "[]"
    if what == "a later format":
        return json.dumps({**value, "format": 2})
    if what == "no nodes":
        return json.dumps({**value, "nodes": []})
    if what == "an unknown parent":
        value["nodes"][1]["parents"] = ["nobody"]
    if what == "an unknown final node":
        value["final"] = "nobody"
    if what == "not a number":
        value["nodes"][0]["quality"] = float("nan")
    if what == "a weight too many":
        next(n for n in value["nodes"] if n["method"] == "merge")["weights"].append(0.1)
    return json.dumps(value)


@pytest.mark.parametrize(
    "what",
    [
        "cut short", "not text", "a list", "a later format", "no nodes", "an unknown parent", "an unknown final node",
        "not a number", "a weight too many",
    ],
)  # fmt: skip
def test_a_damaged_record_is_one_line_that_names_the_file(tmp_path: Path, what: str) -> None:
    value = json.loads(synthetic_record(tmp_path / "run").model_dump_json())
    content = damaged(value, what)
    file = tmp_path / "report.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadInput, match=r"report\.json is damaged") as error:
        redraw(tmp_path)
    assert "\n" not in str(error.value) and "ract build" in error.value.remedy
    assert not (tmp_path / "report.html").exists() and not (tmp_path / "figures").exists()


def test_a_folder_that_is_no_run_or_has_no_report_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is not a run"):
        redraw(tmp_path)
    (tmp_path / "plan.toml").write_text("", encoding="utf-8")
    with pytest.raises(BadInput, match=r"report\.json does not exist.*ract build"):
        redraw(tmp_path)
    with pytest.raises(BadInput, match="is not a run"):
        read_record(tmp_path / "absent")


def test_a_sample_by_nobody_is_refused(tmp_path: Path) -> None:
    record = synthetic_record(tmp_path / "run")
    value = record.model_dump()
    value["samples"] = [Sample(node="nobody", key="k", prompt="p", text="t").model_dump()]
    with pytest.raises(ValueError, match="nobody"):
        Record.model_validate(value)
