"""From a finished build to its report: the record (from the nodes' lineages), samples, figures, HTML."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ract import __version__
from ract.checkpoint.directory import publish, read_json, write_text
from ract.checkpoint.lineage import Lineage, content_hash, read_lineage
from ract.errors import BadInput, RactError, disk_errors, needs_extra
from ract.report.metrics import COLUMNS, FAILURES, METRICS, Metric
from ract.report.samples import find_data, samples_of
from ract.report.schema import (
    FILE_NAME,
    ClassRecord,
    CorpusRecord,
    NodeRecord,
    Point,
    Record,
    Reference,
    Sample,
    Sampling,
    Translated,
    WeightsSearch,
    read_record,
)

if TYPE_CHECKING:
    from ract.plan.graph import Graph
    from ract.tree.build import Run

HTML_NAME = "report.html"
FIGURES = "figures"
REFERENCES = "references.json"
_USES = {"train": "train on", "valid": "choose by", "test": "measure on"}


def write_report(run: Run, samples: bool = True) -> dict[str, Any]:
    """Write ``report.json``, ``figures/`` and ``report.html`` in the folder of *run*, and return the record as a dict.

    Everything comes from the nodes' lineages. With *samples*, chosen nodes continue the plan's prompts (or the
    beginnings of two test documents); what an earlier report holds of the same nodes is kept, not made again.

    Raises RactError when a node's directory has no lineage with measures.
    """
    record = describe(run)
    if samples and record.task == "language-modeling":
        made = samples_of(run, record, _earlier_samples(run.path, record.sampling))
        record = record.model_copy(update={"samples": made})
    value = record.model_dump(mode="json")
    write_text(run.path / FILE_NAME, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    redraw(run.path)
    return value


def redraw(run_dir: Path) -> Path:
    """Draw the figures and the HTML report of a run again, from its ``report.json`` alone; the path of the HTML file.

    Raises BadInput as :func:`~ract.report.schema.read_record` does.
    """
    run_dir = Path(run_dir)
    record = read_record(run_dir)
    with needs_extra("The report", "train"):
        from ract.report.figures import draw_all
        from ract.report.html import render
    with disk_errors(run_dir), publish(run_dir / FIGURES, force=True) as staging:
        draw_all(record, staging)
    write_text(run_dir / HTML_NAME, render(record))
    return run_dir / HTML_NAME


def describe(run: Run) -> Record:
    """The record of *run* without samples."""
    graph, task = run.graph, run.plan.data.task
    metric = METRICS[task]
    lineages = {node.name: _lineage(run.directories[node.name]) for node in graph}
    own = {name: _own_flops(graph, name, lineage) for name, lineage in lineages.items()}
    spent = {name: math.fsum(own[n] for n in graph.ancestry(name)) for name in own}
    names = _names_by_content(run)
    baseline = lineages[graph.baseline].metrics_after.get(metric.key) if graph.baseline else None
    nodes = [
        _node(run, node.name, lineages[node.name], own[node.name], spent[node.name], names, baseline) for node in graph
    ]
    final = lineages[graph.final].metrics_after
    if metric.key not in final:
        raise RactError(f"{run.final} has no lineage with its measures", "Delete it and run ract build again")
    return Record(
        name=run.plan.name,
        ract=__version__,
        final=graph.final,
        baseline=graph.baseline,
        task=task,
        split=final["split"],
        scored_bytes=final.get("bytes", 0),
        examples=final.get("examples", 0),
        domains=list(final.get("by_domain", {})),
        references=_references(run, metric),
        confusion=final.get("confusion", []),
        classes=[ClassRecord(**one) for one in final.get("per_class", [])],
        translations=[Translated(**one) for one in final.get("outputs", [])],
        signature="; ".join(final[key] for key in ("bleu_signature", "chrf_signature") if key in final),
        failures={key: int(final[key]) for key in FAILURES if key in final},
        data=_data(run) if task != "language-modeling" else "",
        corpus=_corpus(run) if task == "language-modeling" else None,
        plan=(run.path / "plan.toml").read_text(encoding="utf-8"),
        nodes=nodes,
    )


def _node(
    run: Run,
    name: str,
    lineage: Lineage,
    own_flops: float,
    train_flops: float,
    names: dict[str, str],
    baseline: float | None,
) -> NodeRecord:
    node, found, metric = run.graph[name], lineage.metrics_after, METRICS[run.plan.data.task]
    quality = found.get(metric.key)
    other = None if name == run.graph.baseline else baseline
    return NodeRecord(
        name=name,
        key=lineage.node,
        level=node.level,
        method=node.method,
        path=run.directories[name].relative_to(run.path).as_posix(),
        parameters=node.shape.parameters,
        size_bytes=sum(f.size_bytes for file, f in lineage.files.items() if file.endswith(".safetensors")),
        own_flops=own_flops,
        train_flops=train_flops,
        tokens=lineage.cost.tokens,
        seconds=lineage.cost.seconds,
        quality=quality,
        measures=_measures(found, run.plan.data.task),
        by_domain={domain: one[metric.key] for domain, one in found.get("by_domain", {}).items()},
        domain=node.train.domain if node.train else "",
        parents=list(node.parents),
        teachers=list(node.teachers),
        weights=lineage.weights,
        leaves={names.get(content, content[:12]): share for content, share in lineage.leaves.items()},
        weights_search=WeightsSearch(**found["weights"]) if "weights" in found else None,
        history=[Point(**row) for row in found.get("history", [])],
        stopped_early=found.get("stopped_early", False),
        vs_baseline=metric.against(quality, other) if quality is not None and other is not None else None,
    )


def _data(run: Run) -> str:
    """The examples in a sentence: how many in each split, and what is to be known of them."""
    folder = find_data(run)
    if folder is None:
        return ""
    from ract.data.examples import open_examples
    from ract.tree.data import remarks_on

    data = open_examples(folder)
    counts = ", ".join(f"{data.count(split):,} to {use}" for split, use in _USES.items() if data.count(split))
    return ". ".join([f"Examples: {counts}", *remarks_on(data)]) + "."


def _measures(found: dict[str, Any], task: str) -> dict[str, float]:
    """The further figures of a node that are finite numbers."""
    wanted = (found.get(key) for key, _, _ in COLUMNS[task])
    keys = [key for key, _, _ in COLUMNS[task]]
    return {k: float(v) for k, v in zip(keys, wanted, strict=True) if v is not None and math.isfinite(v)}


def _references(run: Run, metric: Metric) -> list[Reference]:
    file = run.path / REFERENCES
    if not file.is_file():
        return []
    found = {name: one for name, one in read_json(file).items() if isinstance(one, dict) and metric.key in one}
    return [
        Reference(
            name=name,
            quality=one[metric.key],
            measures=_measures(one, run.plan.data.task),
            by_domain={domain: part[metric.key] for domain, part in one.get("by_domain", {}).items()},
            note=one.get("chosen", ""),
        )
        for name, one in found.items()
    ]


def _lineage(directory: Path) -> Lineage:
    lineage = read_lineage(directory)
    if lineage is None:
        raise RactError(f"{directory} has no lineage with its measures", "Delete it and run ract build again")
    return lineage


def _own_flops(graph: Graph, name: str, lineage: Lineage) -> float:
    """What the node really took: its lineage's tokens, a run that stopped early being shorter than planned.

    The rate per token is the plan's, which counts the forward passes of teachers too.
    """
    spec = graph[name].train
    return graph.own_flops(name) * lineage.cost.tokens / spec.tokens if spec else lineage.cost.flops


def _names_by_content(run: Run) -> dict[str, str]:
    """Content hash → node name; of equal models (a merge may choose one child) the first is meant."""
    found: dict[str, str] = {}
    for node in run.graph:
        found.setdefault(content_hash(run.directories[node.name]), node.name)
    return found


def _corpus(run: Run) -> CorpusRecord | None:
    folder = find_data(run)
    if folder is None:
        return None
    record = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
    return CorpusRecord(**{key: record[key] for key in CorpusRecord.model_fields})


def _earlier_samples(run: Path, sampling: Sampling) -> list[Sample]:
    try:
        earlier = read_record(run)
    except BadInput:
        return []
    return earlier.samples if earlier.sampling == sampling else []
