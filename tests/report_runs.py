"""Finished builds without training: a real graph, and lineages with made-up measures in its node directories."""

from __future__ import annotations

import json
import random
from pathlib import Path

from ract.checkpoint.directory import write_lineage, write_text
from ract.checkpoint.lineage import Cost, Lineage, Parent, content_hash
from ract.plan.derive import build_graph
from ract.plan.graph import DataSize, Graph, Node
from ract.plan.schema import load_plan
from ract.plan.shapes import model_settings
from ract.report.record import describe
from ract.report.schema import Record
from ract.tree.build import Run
from ract.tree.job import node_directory, node_keys

HEAD = """
name = "synthetic"
prompts = ["once", "upon a time"]
[data]
train = ["stdlib"]
[tokenizer]
vocab_size = 300
[train]
batch_tokens = 256
block_size = 64
[compact]
hidden_size = 32
num_hidden_layers = 2
train = { tokens = 8192 }
"""
SMALL = """
[[level]]
method = "merge"
members = 2
branch = { tokens = 1024 }
weights = "learned"
[[level]]
method = "stack"
copies = 2
heal = { tokens = 8192 }
"""
SIXTEEN_LEAVES = (
    """
[[level]]
method = "ensemble"
members = 4
"""
    + 2 * '[[level]]\nmethod = "stack"\nmembers = 2\nheal = { tokens = 4096 }\n'
    + '[[level]]\nmethod = "stack"\ncopies = 2\nheal = { tokens = 8192 }\n'
)
DIGEST = "d" * 64
TASK_HEAD = """
name = "synthetic"
[data]
task = "{task}"
train = ["rows.jsonl"]
{data}
[tokenizer]
vocab_size = 300
[train]
batch_tokens = 256
[compact]
hidden_size = 32
num_hidden_layers = 2
train = {{ tokens = 8192 }}
{compact}
"""
DISTILLED = """
[[level]]
method = "ensemble"
members = 2
branch = { tokens = 1024, vary = ["seed"] }
[[level]]
method = "distill"
student = { tokens = 4096 }
"""
CLASSES = ("positive", "中性", "neither one nor the other")
DOMAINS = ("", "books", "a domain with a long name")
TFIDF = "TF-IDF + logistic regression"


def synthetic_run(folder: Path, levels: str = SMALL, *, extra: str = "", better_baseline: bool = False) -> Run:
    """A run in *folder* whose nodes hold lineages that a build could have written, and tiny files for weights."""
    folder.mkdir(parents=True, exist_ok=True)
    plan_file = folder / "plan.toml"
    plan_file.write_text(HEAD + levels + extra, encoding="utf-8")
    run = _made_up(folder, DataSize(100_000), better_baseline)
    write_corpus(run)
    return run


def task_run(folder: Path, task: str, levels: str = DISTILLED, *, domains: bool = False) -> Run:
    """The same for classification (with masked-LM pre-training and a TF-IDF reference) or translation."""
    folder.mkdir(parents=True, exist_ok=True)
    data = 'source_language = "en"\ntarget_language = "de"\n' if task == "translation" else ""
    data += "".join(f'[data.domains."{name}"]\ntrain = ["{name}.jsonl"]\n' for name in DOMAINS if name and domains)
    compact = "pretrain = { tokens = 4096 }" if task == "classification" else ""
    head = TASK_HEAD.format(task=task, data=data, compact=compact)
    (folder / "plan.toml").write_text(head + levels, encoding="utf-8")
    labels = len(CLASSES) if task == "classification" else 0
    size = DataSize(100_000, {name: 10_000 for name in DOMAINS if name and domains}, 200_000, labels)
    run = _made_up(folder, size)
    if task == "classification":
        reference = {"split": "test", **classified(0.9, domains), "chosen": "words, C = 3"}
        write_text(folder / "references.json", json.dumps({"data": DIGEST, TFIDF: reference}))
    return run


def _made_up(folder: Path, size: DataSize, better_baseline: bool = False) -> Run:
    """The run of the plan in *folder*, every node with measures that follow from how it is made."""
    plan = load_plan(folder / "plan.toml")
    graph = build_graph(plan, size)
    keys = node_keys(graph, DIGEST, model_settings(plan))
    run = Run(folder, plan, graph, {node.name: node_directory(folder, node.name, keys[node.name]) for node in graph})
    draw = random.Random(0)
    loss: dict[str, float] = {}
    for node in graph:
        below = min((loss[p] for p in node.parents), default=3.2 if node.name == graph.baseline else 4.0)
        change = {
            "leaf": 0.0,
            "branch": -0.2,
            "heal": -0.8,
            "stack": 0.3,
            "distill": -0.3,
            "baseline": -1.0 if better_baseline else 0.0,
        }
        loss[node.name] = below + change.get(node.method, -0.1) + draw.gauss(0, 0.02)
        write_node(run, node, keys[node.name], loss[node.name])
    return run


def write_node(run: Run, node: Node, key: str, nats: float) -> None:
    """The directory of *node* with a lineage that says it was measured at *nats* per token."""
    directory = run.directories[node.name]
    directory.mkdir(parents=True)
    (directory / "model.safetensors").write_bytes(key.encode() * (node.shape.parameters // 1000))
    (directory / "config.json").write_text("{}", encoding="utf-8")
    parents = [run.directories[p] for p in node.parents]
    alpha = None
    metrics = measures(run, node, nats)
    if node.train is not None:
        metrics |= {"history": history(node.train.tokens, nats), "best_step": 1, "stopped_early": False}
    if node.aggregate is not None:
        count = len(parents) * node.aggregate.copies
        alpha = [1 / count] * count
        if node.aggregate.weights == "learned":
            each = [nats + 0.1] * len(parents)
            metrics["weights"] = {"chosen": "learned", "loss": nats, "loss_uniform": nats + 0.05, "loss_children": each}
            metrics["weights"] |= {"held_out_loss": nats, "held_out_uniform": nats, "held_out_children": each}  # type: ignore[operator]
    write_lineage(
        directory,
        Lineage(
            name=node.name,
            node=key,
            level=node.level,
            method=node.method,
            weights=alpha,
            parents=[Parent(name=p.name, content=content_hash(p)) for p in parents],
            leaves={content_hash(p): a for p, a in zip(parents, alpha, strict=True)}
            if alpha and node.method == "merge"
            else {},
            plan=node.content(),
            cost=Cost(
                tokens=node.train.tokens if node.train else 0,
                flops=run.graph.own_flops(node.name),
                seconds=2.5,
                total_flops=run.graph.total_flops(node.name),
            ),
            metrics_after=metrics,
        ),
    )


def measures(run: Run, node: Node, nats: float) -> dict[str, object]:
    """What the evaluation of *node* could have found at *nats* a token or text."""
    task, domains = run.plan.data.task, bool(run.plan.data.domains)
    if node.method == "pretrain":
        return {"task": "masked-language-modeling", "split": "valid"}
    if task == "classification":
        found = {**classified(1 - nats / 10, domains), "nats": nats, "latency_ms": 1.25}
    elif task == "translation":
        found = {**translated(50 - 10 * nats, domains), "nats_per_token": nats, "latency_ms": 20.5}
    else:
        found = {"nats_per_token": nats, "perplexity": 2.718**nats, "bits_per_byte": nats / 2}
        found |= {"tokens": 1024, "bytes": 2890}
    return {"task": task, "split": "test", **found}


def classified(accuracy: float, domains: bool) -> dict[str, object]:
    """A classifier that is right on *accuracy* of each of the classes and takes the next one otherwise."""
    count = len(CLASSES)
    right = round(100 * accuracy)
    confusion = [
        [right if i == j else 100 - right if j == (i + 1) % count else 0 for j in range(count)] for i in range(count)
    ]
    share = right / 100
    classes = [{"label": c, "precision": share, "recall": share, "f1": share, "support": 100} for c in CLASSES]
    found = {"accuracy": share, "macro_f1": share - 0.01, "nats": 0.5, "ece": 0.04, "examples": 100 * count}
    parts = {"by_domain": {d: {"accuracy": share - i / 50, "examples": 100} for i, d in enumerate(DOMAINS)}}
    return {**found, "confusion": confusion, "per_class": classes, **(parts if domains else {})}


def translated(bleu: float, domains: bool) -> dict[str, object]:
    """A translator of 40 sentences, the first twenty of which are kept."""
    texts = [{"source": f"<b>one</b> {i}", "reference": f"eins {i}", "output": f"ein {i} שלום"} for i in range(20)]
    found = {"bleu": bleu, "chrf": bleu + 10, "bleu_signature": "nrefs:1|tok:13a", "examples": 40}
    parts = {"by_domain": {d: {"bleu": bleu - i, "examples": 13} for i, d in enumerate(DOMAINS)}}
    return {**found, "outputs": texts, **(parts if domains else {})}


def history(tokens: int, nats: float) -> list[dict[str, float]]:
    """Eight rows that fall to *nats*."""
    return [
        {
            "step": i,
            "tokens": tokens * i // 8,
            "train_loss": nats + 1 - i / 8,
            "valid_loss": nats + 2 * (1 - i / 8) ** 2,
            "seconds": i / 4,
        }
        for i in range(1, 9)
    ]


def write_corpus(run: Run) -> None:
    """Two corpora, one of them that of the nodes, as an edited plan leaves them behind."""
    for name, digest, tokens in (("corpus-0", "0" * 64, 7), ("corpus-1", DIGEST, 100_000)):
        per_split = {"train": tokens, "valid": 10, "test": 10}
        record = {"digest": digest, "tokens": per_split, "bytes": per_split, "documents": per_split}
        folder = run.path / "data" / name
        folder.mkdir(parents=True)
        write_text(
            folder / "corpus.json", json.dumps({**record, "sources": {s: ["stdlib"] for s in per_split}, "format": 1})
        )


def with_long_names(record: Record, length: int = 40) -> Record:
    """*record* with every node's name made *length* characters long."""
    value = json.loads(record.model_dump_json())
    new = {node["name"]: f"{node['name']}-{'x' * length}"[:length] for node in value["nodes"]}
    assert len(set(new.values())) == len(new)
    for node in value["nodes"]:
        node |= {"name": new[node["name"]], "parents": [new[p] for p in node["parents"]]}
    value |= {"final": new[value["final"]], "baseline": value["baseline"] and new[value["baseline"]]}
    return Record.model_validate(value)


def synthetic_record(folder: Path, levels: str = SMALL) -> Record:
    """The record of :func:`synthetic_run`."""
    return describe(synthetic_run(folder, levels))


def expected_total(graph: Graph, name: str, own: dict[str, float]) -> float:
    """FLOPs of *name* and everything below, each node once, counted by walking the parents."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        current = waiting.pop()
        if current not in seen:
            seen.add(current)
            waiting += [*graph[current].parents, *graph[current].teachers]
    return sum(own[n] for n in seen)
