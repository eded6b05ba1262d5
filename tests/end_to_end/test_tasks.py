"""Classification and translation as the main job does them: pico plans through the real pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, AutoTokenizer

import ract
from ract.checkpoint.lineage import Lineage, content_hash, read_lineage
from ract.checkpoint.live import load_model
from ract.errors import BadInput
from ract.plan.schema import CompactTable, Plan
from ract.plan.tables import DataTable, TokenizerTable
from ract.report.record import write_report
from ract.tree.build import Run, build
from ract.tree.check import check
from ract.tree.data import prepare_data, remarks
from tests import examples
from tests.text_models import word_piece_model

DOMAINS = """
name = "pico-reviews"
[data]
task = "classification"
max_tokens = 32
valid_fraction = 0.2
test_fraction = 0.2
[data.domains.one]
train = ["{folder}/one.jsonl"]
[data.domains.two]
train = ["{folder}/two.jsonl"]
[tokenizer]
vocab_size = 400
[train]
batch_tokens = 256
block_size = 32
lr = 5e-3
[compact]
hidden_size = 32
num_hidden_layers = 1
pretrain = {{ tokens = 2048 }}
train = {{ epochs = 2 }}
[[level]]
method = "merge"
members = 2
branch = {{ epochs = 1, vary = ["domain"] }}
weights = "learned"
per = "layer"
[[level]]
method = "stack"
copies = 2
heal = {{ epochs = 1 }}
"""
STUDENT = """
name = "pico-pairs"
[data]
task = "translation"
source_language = "en"
target_language = "de"
train = ["{folder}/train.en", "{folder}/train.de"]
max_tokens = 48
valid_fraction = 0.2
test_fraction = 0.2
test_examples = 20
[tokenizer]
vocab_size = 400
[train]
batch_tokens = 256
lr = 1e-2
[compact]
hidden_size = 32
num_hidden_layers = 1
train = {{ epochs = 1 }}
[[level]]
method = "ensemble"
members = 2
[[level]]
method = "distill"
student = {{ epochs = 1 }}
"""


def written(folder: Path, text: str) -> Path:
    plan = folder / "plan.toml"
    plan.write_text(text.format(folder=folder), encoding="utf-8")
    return plan


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("reviews")
    for seed, name in enumerate(("one", "two")):
        examples.write_rows(folder / f"{name}.jsonl", examples.reviews(150, seed))
    return ract.build(written(folder, DOMAINS), folder / "run", workers=2)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("pairs")
    examples.write_pairs(folder, "train", examples.sentences(150))
    return build(written(folder, STUDENT), folder / "run", workers=2)


def lineage(run: Run, name: str) -> Lineage:
    found = read_lineage(run.directories[name])
    assert found is not None
    return found


def test_every_classifier_opens_in_plain_transformers_with_its_class_names(reviews: Run) -> None:
    for node in reviews.graph:
        if node.method == "pretrain":
            continue
        model, info = AutoModelForSequenceClassification.from_pretrained(
            reviews.directories[node.name], output_loading_info=True, local_files_only=True
        )
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert model.config.id2label == {0: "bad", 1: "good"}
        assert sum(p.numel() for p in model.parameters()) == node.shape.parameters


def test_a_run_built_in_python_is_finished_as_one_of_the_command_is(reviews: Run) -> None:
    assert (reviews.path / "report.html").is_file()
    texts = ["the old house", "a red dog"]
    assert ract.classify(reviews.path, texts) == ract.classify(reviews.final, texts)


def test_classifiers_are_measured_by_domain_beside_the_baseline(reviews: Run) -> None:
    for name in (reviews.graph.final, "level-1-merge", "baseline"):
        measured = lineage(reviews, name).metrics_after
        assert measured["task"] == "classification" and set(measured["by_domain"]) == {"one", "two"}
        assert measured["examples"] == sum(sum(row) for row in measured["confusion"])
    references = json.loads((reviews.path / "references.json").read_text(encoding="utf-8"))
    assert 0 <= references["TF-IDF + logistic regression"]["accuracy"] <= 1
    assert lineage(reviews, "pretrain").metrics_after["task"] == "masked-language-modeling"


def test_branches_go_on_from_pre_training_each_on_its_domain(reviews: Run) -> None:
    domains = [node.train.domain for node in reviews.graph if node.method == "branch" and node.train]
    assert domains == ["one", "two"]
    start, leaf = (
        AutoModelForSequenceClassification.from_pretrained(reviews.directories[name]) for name in ("pretrain", "leaf")
    )
    assert start.model.layers[0].attn.Wqkv.weight.shape == leaf.model.layers[0].attn.Wqkv.weight.shape
    weights = lineage(reviews, "level-1-merge").weights
    assert isinstance(weights, dict) and all(abs(sum(alpha) - 1) < 1e-6 for alpha in weights.values())


def test_every_translator_opens_in_plain_transformers_and_the_student_is_a_leaf_again(pairs: Run) -> None:
    for node in pairs.graph:
        if node.method == "ensemble":
            continue
        directory = pairs.directories[node.name]
        model = AutoModelForSeq2SeqLM.from_pretrained(directory, local_files_only=True).eval()
        inputs = AutoTokenizer.from_pretrained(directory)("the old tree", return_tensors="pt")
        with torch.inference_mode():
            assert model.generate(**inputs, max_new_tokens=4).shape[0] == 1
    shapes = {node.name: node.shape for node in pairs.graph}
    assert shapes["level-2-distill"] == shapes["leaf-of-1"]
    assert pairs.graph["level-2-distill"].teachers == ("level-1-ensemble",)


def test_translators_are_measured_by_bleu_with_its_signature(pairs: Run) -> None:
    for node in pairs.graph:
        measured = lineage(pairs, node.name).metrics_after
        assert 0 <= measured["bleu"] <= 100 and "tok:13a" in measured["bleu_signature"]
        assert measured["examples"] == 20 == len(measured["outputs"])
    ensemble, leaf = (
        lineage(pairs, name).metrics_after["nats_per_token"] for name in ("level-1-ensemble", "leaf-of-1")
    )
    assert ensemble < leaf + 0.5


@pytest.mark.slow
def test_a_second_build_makes_nothing_and_one_in_another_folder_the_same(pairs: Run, tmp_path: Path) -> None:
    plan = pairs.path.parent / "plan.toml"
    before = {name: path.stat().st_mtime_ns for name, path in pairs.directories.items()}
    again = build(plan, pairs.path)
    assert {name: path.stat().st_mtime_ns for name, path in again.directories.items()} == before
    other = build(plan, tmp_path / "other", workers=2)
    for name, path in other.directories.items():
        assert content_hash(path) == content_hash(pairs.directories[name]), name


@pytest.mark.slow
def test_a_checkpoint_is_a_leaf_whose_branches_learn_the_task(tmp_path: Path) -> None:
    checkpoint = word_piece_model(tmp_path / "bert", "BERT")
    examples.write_rows(tmp_path / "one.jsonl", examples.reviews(120))
    text = f"""
name = "from"
[data]
task = "classification"
train = ["{tmp_path}/one.jsonl"]
max_tokens = 32
valid_fraction = 0.2
test_fraction = 0.2
[compact]
from = "{checkpoint}"
[train]
batch_tokens = 256
[[level]]
method = "merge"
members = 2
branch = {{ epochs = 1, vary = ["seed"] }}
"""
    plan = tmp_path / "plan.toml"
    plan.write_text(text, encoding="utf-8")
    assert check(plan, calibrate=False).rows[0].method == "base"
    run = build(plan, tmp_path / "run", workers=1)
    assert [node.method for node in run.graph] == ["base", "branch", "branch", "merge", "baseline"]
    body = AutoModelForSequenceClassification.from_pretrained(run.directories["base"]).bert.state_dict()
    assert all(torch.equal(body[name], value) for name, value in load_model(checkpoint).state_dict().items())
    content = run.graph["base"].source
    assert content == content_hash(checkpoint)  # another checkpoint is another tree


def test_the_report_of_a_classifier_shows_where_it_errs_and_every_domain(reviews: Run) -> None:
    record = write_report(reviews)
    final = next(node for node in record["nodes"] if node["name"] == record["final"])
    assert record["task"] == "classification" and record["domains"] == ["one", "two"]
    assert sum(map(sum, record["confusion"])) == record["examples"]
    assert sum(row[i] for i, row in enumerate(record["confusion"])) / record["examples"] == final["quality"]
    assert [one["label"] for one in record["classes"]] == ["bad", "good"]
    assert record["references"][0]["name"].startswith("TF-IDF") and set(final["by_domain"]) == {"one", "two"}
    page = (reviews.path / "report.html").read_text(encoding="utf-8")
    for text in ("Where it errs", "By domain", "TF-IDF + logistic regression", f"{final['quality']:.2%} accuracy"):
        assert text in page
    assert {p.stem for p in (reviews.path / "figures").iterdir()} == {"tree", "loss", "quality", "confusion", "domains"}


def test_the_report_of_a_translator_shows_twenty_translations(pairs: Run) -> None:
    record = write_report(pairs)
    assert record["task"] == "translation" and len(record["translations"]) == 20
    page = (pairs.path / "report.html").read_text(encoding="utf-8")
    assert record["signature"] in page.replace("&#43;", "+")
    assert all(one["reference"] in page for one in record["translations"])
    student = next(node for node in record["nodes"] if node["method"] == "distill")
    assert student["teachers"] == ["level-1-ensemble"]


def test_what_is_cut_left_out_or_doubled_is_said(tmp_path: Path) -> None:
    rows = examples.reviews(60)
    odd = [{"text": "word " * 99, "label": "good"}, {"text": " ", "label": "bad"}]
    train = examples.write_rows(tmp_path / "train.jsonl", rows + odd)
    valid = examples.write_rows(tmp_path / "valid.jsonl", rows[:3])
    data = DataTable(task="classification", train=[train], valid=[valid], max_tokens=20, test_fraction=0.0)
    plan = Plan(name="p", data=data, tokenizer=TokenizerTable(vocab_size=300), compact=CompactTable())
    found = remarks(prepare_data(plan, tmp_path))
    assert [text.split(" examples")[0] for text in found[:2]] == ["1 of 61 train", "1 train"]
    assert found[2].startswith("3 of 3 valid texts also stand in train")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({'task = "classification"': 'task = "classification"\nlabel_field = "stars"'}, "no label in the field"),
        ({"one.jsonl": "none.jsonl"}, "none.jsonl does not exist"),
    ],
)
def test_wrong_data_is_one_clear_line_and_nothing_is_built(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    for name in ("one", "two"):
        examples.write_rows(tmp_path / f"{name}.jsonl", examples.reviews(20))
    text = DOMAINS
    for old, new in changes.items():
        text = text.replace(old, new)
    with pytest.raises(BadInput, match=says):
        build(written(tmp_path, text), tmp_path / "run")
    assert not (tmp_path / "run" / "nodes").exists()
