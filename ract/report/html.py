"""The HTML report: one file without scripts that loads nothing, drawn from a run's record alone."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from ract.plan.quantities import show_count, show_size, show_time
from ract.report.figures import NARROW, loss_figure, quality_figure
from ract.report.metrics import COLUMNS, FAILURES, LOSS_OF
from ract.report.schema import NodeRecord, Record
from ract.report.style import COLORS, as_svg, color_name, figure_style
from ract.report.task_figures import confusion_figure, domains_figure
from ract.report.tree_figure import FINAL, tree_figure

_DARK = {
    "ink": "#e6e9ed",
    "muted": "#9ba5b0",
    "grid": "#2e353d",
    "surface": "#15181c",
    "box": "#1e2329",
    "leaf": "#4fa3dd",
    "branch": "#8ccbf2",
    "aggregate": "#2fbf95",
    "heal": "#f08a45",
    "baseline": "#a3a3ad",
}


def render(record: Record) -> str:
    """The report as the text of an HTML file; whatever the record holds is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "count": show_count,
        "size": show_size,
        "time": show_time,
        "formatted": format,
        "colour": color_name,
    }
    template = environment.from_string(files("ract.report").joinpath("template.html").read_text(encoding="utf-8"))
    with figure_style():
        tree = tree_figure(record)
        figures = {
            "tree": inline_svg(tree, "tree"),
            "loss": inline_svg(loss_figure(record), "loss"),
            "loss_narrow": inline_svg(loss_figure(record, NARROW), "loss-narrow"),
            "quality": inline_svg(quality_figure(record), "quality"),
            "quality_narrow": inline_svg(quality_figure(record, NARROW), "quality-narrow"),
            "confusion": inline_svg(confusion_figure(record), "confusion") if record.confusion else "",
            "domains": inline_svg(domains_figure(record), "domains") if record.domains else "",
        }
    return template.render(
        record=record,
        figures=figures,
        tree_width=_pixels(tree)[0],
        final_at=_place_of_final(tree),
        light=COLORS,
        dark=_DARK,
        verdict=list(verdict(record)),
        alphas=[_alpha(record, node) for node in record.tree if node.weights and len(node.parents) > 1],
        samples=_samples(record),
        commands=commands(record),
        metric=record.metric,
        columns=COLUMNS[record.task],
        target=LOSS_OF[record.task],
        failures=FAILURES,
        has_curves=any(node.history for node in record.nodes),
    )


def verdict(record: Record) -> Iterator[str]:
    """What the run came to, in sentences: the final node against the baseline, its leaves and the references."""
    final, metric = record[record.final], record.metric
    assert final.quality is not None
    if metric.higher_is_better:
        yield (
            f"The final node, {final.name}, reaches {metric.show(final.quality)} {metric.label} on {record.examples:,} "
            f"{record.split} examples, after {show_count(final.train_flops)} training FLOPs in all."
        )
    else:
        yield (
            f"The final node, {final.name}, needs {metric.show(final.quality)} {metric.label} of {record.split} text, "
            f"after {show_count(final.train_flops)} training FLOPs in all."
        )
    baseline = record[record.baseline] if record.baseline is not None else None
    if baseline is not None and baseline.quality is not None:
        worse = metric.is_clearly_better(baseline.quality, final.quality)
        yield (
            f"{_compared(record, final, baseline)} the baseline, one model of {show_count(baseline.parameters)} "
            f"parameters (the final node has {show_count(final.parameters)}) trained from "
            f"{_beginning(record, baseline)} ({_at(record, baseline)})"
            f"{': here the single model is the better one.' if worse else '.'}"
        )
    yield from _against_branches(record, final)
    leaves = [leaf for leaf in record.leaves if leaf.name != final.name and leaf.method != "base"]
    if leaves:
        best = metric.best([leaf.quality or 0.0 for leaf in leaves])
        leaf = next(leaf for leaf in leaves if leaf.quality == best)
        which = "its leaf" if len(leaves) == 1 else f"the best of its {len(leaves)} leaves, {leaf.name}"
        yield f"{_compared(record, final, leaf)} {which} ({_at(record, leaf)})."
    for reference in record.references:
        worse = metric.is_clearly_better(reference.quality, final.quality)
        shown = metric.show(reference.quality)
        yield (
            f"{reference.name}, which needs no transformer at all, reaches {shown} on the same examples"
            f"{': it is the better one here.' if worse else '.'}"
        )
    yield "This is one build with one seed; only builds with other seeds tell how much of a difference is chance."


def _against_branches(record: Record, final: NodeRecord) -> Iterator[str]:
    """Where branches were trained on a domain each: how good they are there on average, and the final node."""
    own = [
        (node.by_domain[node.domain], final.by_domain[node.domain])
        for node in record.tree
        if node.method == "branch" and node.domain and node.domain in node.by_domain and node.domain in final.by_domain
    ]
    if not own:
        return
    theirs, ours = (sum(values) / len(own) for values in zip(*own, strict=True))
    better = ": here the specialists are better" if record.metric.is_clearly_better(theirs, ours) else ""
    yield (
        f"The {len(own)} branches reach {record.metric.show(theirs)} on average, each on its own domain; "
        f"the final node {record.metric.show(ours)} on the same{better}."
    )


def _beginning(record: Record, baseline: NodeRecord) -> str:
    """What the baseline's training went on from."""
    if not baseline.parents:
        return "scratch"
    start = record[baseline.parents[0]]
    if start.method == "base":
        return "the same checkpoint"
    shared = any(start.name in node.parents for node in record.tree)
    return "the same pre-trained model" if shared else "a pre-trained model of its own"


def _compared(record: Record, final: NodeRecord, other: NodeRecord) -> str:
    ours, theirs = final.quality or 0.0, other.quality or 0.0
    change = record.metric.against(ours, theirs)
    if not record.metric.higher_is_better:
        if record.metric.is_tie(change):
            return "It needs as many bits as"
        return f"It needs {abs(change):.1%} {'fewer' if change < 0 else 'more'} bits than"
    if record.metric.is_tie(change):
        return "It is as good as"
    unit = " BLEU" if record.metric.key == "bleu" else ""
    return f"It is {record.metric.show_size_of(change)}{unit} {'above' if change > 0 else 'below'}"


def _at(record: Record, node: NodeRecord) -> str:
    return f"{record.metric.show(node.quality)} {record.metric.label} after {show_count(node.train_flops)} FLOPs"


def commands(record: Record) -> list[tuple[str, str]]:
    """What to try next, as (sentence, command); to be run in the folder that holds the report."""
    final = record[record.final]
    prompts = [sample.prompt for sample in record.samples if "\n" not in sample.prompt] or ["Once"]
    model = shlex.quote(final.path)
    if record.task == "classification":
        return [
            ("Let the final node classify a text of yours", f"ract classify {model} 'A TEXT OF YOURS'"),
            ("Classify the lines of a file", f"ract classify {model} --file FILE"),
            ("See what is in it and where it comes from", f"ract inspect {model}"),
        ]
    if record.task == "translation":
        return [
            ("Let the final node translate a text of yours", f"ract translate {model} 'A TEXT OF YOURS'"),
            ("Translate the lines of a file", f"ract translate {model} --file FILE"),
            ("See what is in it and where it comes from", f"ract inspect {model}"),
        ]
    compared = [final, *([record[record.baseline]] if record.baseline else [])]
    models = shlex.join(node.path for node in compared)
    return [
        ("Let the final node go on with a text of yours", f"ract generate {model} {shlex.quote(prompts[0])}"),
        ("Measure it on a text of yours", f"ract evaluate {models} --data FILE"),
        ("See what is in it and where it comes from", f"ract inspect {model}"),
    ]


def inline_svg(figure: Figure, name: str) -> Markup:
    """*figure* as an ``<svg>`` element for the page: its colours are the page's variables, its ids *name*-…."""
    text = as_svg(figure)
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", text[text.index("<svg") :], flags=re.S)
    body = text[text.index(">") + 1 :]
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'(href="|url\()#', rf"\1#{name}-", body)
    for key, color in COLORS.items():
        body = body.replace(f": {color}", f": var(--{key})")
    width, height = _pixels(figure)
    box = " ".join(f"{inches * 72:g}" for inches in figure.get_size_inches())
    body = re.sub(r"\n\s*", "\n", body)
    return Markup(
        f'<svg viewBox="0 0 {box}" width="{width}" height="{height}" role="img" aria-labelledby="{name}-caption">{body}'
    )


def _pixels(figure: Figure) -> tuple[int, int]:
    """Width and height in CSS pixels."""
    width, height = figure.get_size_inches()
    return round(width * 96), round(height * 96)


def _place_of_final(tree: Figure) -> float:
    """Where the middle of the final node's box is, as a share of the width: a wide tree is first seen there."""
    box = next(patch for patch in tree.axes[0].patches if patch.get_gid() == FINAL).get_window_extent()
    return (box.x0 + box.x1) / 2 / tree.bbox.width


def _alpha(record: Record, node: NodeRecord) -> dict[str, Any]:
    """One aggregated node for the section on α."""
    weights = node.weights or []
    by_group = isinstance(weights, dict)
    groups = weights if isinstance(weights, dict) else {"all": weights}
    shown = []
    for index, parent in enumerate(node.parents):
        values = [alpha[index] for alpha in groups.values()]
        low, high = min(values), max(values)
        shown.append((parent, f"{low:.3f} to {high:.3f}" if by_group else f"{low:.3f}"))
    return {"node": node, "shown": shown, "groups": groups if by_group else None, "search": _search_rows(node)}


def _search_rows(node: NodeRecord) -> list[tuple[str, float, float | None]]:
    """The candidates for α with their losses: where α was learned, and on data that was held out."""
    search = node.weights_search
    if search is None:
        return []
    held_out: Sequence[float | None] = search.held_out_children or [None] * len(search.loss_children)
    children = zip(node.parents, search.loss_children, held_out, strict=True)
    single = dict(zip((f"child {i}" for i in range(len(node.parents))), node.parents, strict=True))
    return [
        (f"chosen ({single.get(search.chosen, search.chosen)})", search.loss, search.held_out_loss),
        ("uniform", search.loss_uniform, search.held_out_uniform),
        *((f"{name} alone", loss, held) for name, loss, held in children),
    ]


def _samples(record: Record) -> list[tuple[str, list[tuple[NodeRecord, str]]]]:
    """Prompt → (node, continuation), in the order of the record."""
    found: dict[str, list[tuple[NodeRecord, str]]] = {}
    for sample in record.samples:
        found.setdefault(sample.prompt, []).append((record[sample.node], sample.text))
    return list(found.items())
