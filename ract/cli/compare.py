"""Commands that look at models before they are aggregated: inspect, align."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ract.cli.app import Force, Json, Out, app, print_json, print_table
from ract.cli.models import Data, Models, Task
from ract.errors import BadInput, needs_extra

# Held-out batches of 8 × 256 tokens: enough to see a barrier, few enough to wait for.
_BATCHES = 6


@app.command("inspect")
def inspect_command(
    models: Models,
    data: Data = None,
    task: Task = None,
    points: Annotated[int, typer.Option("--points", min=3, help="Points on the line between two models.")] = 11,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Draw the line as a picture.")] = None,
    as_json: Json = False,
) -> None:
    """One model: shapes, size, lineage. Several: can they be merged, and what would it cost."""
    with needs_extra("ract inspect", "train"):
        from ract.aggregate.compare import compare
        from ract.aggregate.compare import plot as draw
        from ract.aggregate.summary import summarize
    from ract.cli.progress import one_bar

    if plot is not None and (len(models) != 2 or not data):
        raise BadInput("--plot draws the line between two models on data", "Give two models and --data FILE")
    if len(models) == 1:
        summary = summarize(models[0])
        if as_json:
            print_json(dict(summary.rows()))
        else:
            print_table(["", str(models[0])], [list(row) for row in summary.rows()], left=["", str(models[0])])
        return
    batches = _batches(models[0], task, data)
    with one_bar() as report:
        found = [compare(models[0], other, batches=batches, points=points, progress=report) for other in models[1:]]
    if as_json:
        print_json([_as_dict(comparison) for comparison in found])
    else:
        for comparison in found:
            _print_comparison(comparison)
    if plot is not None:
        print(draw(found[0], plot))


@app.command("align")
def align_command(
    reference: Annotated[Path, typer.Argument(metavar="REFERENCE", help="The model that stays as it is.")],
    other: Annotated[Path, typer.Argument(metavar="DIR", help="The model whose units are permuted towards it.")],
    out: Out,
    data: Data = None,
    task: Task = None,
    seed: Annotated[int, typer.Option("--seed", help="For the order in which layers are matched.")] = 0,
    force: Force = False,
) -> None:
    """Permute a model's units towards another's, keeping what it computes, so that the two can be merged."""
    with needs_extra("ract align", "train"):
        from ract.aggregate.align import align
    from ract.cli.progress import one_bar

    with one_bar() as report:
        print(
            align(
                reference, other, out, batches=_batches(reference, task, data), seed=seed, force=force, progress=report
            )
        )


def _batches(model: Path, task: str | None, data: list[str] | None) -> list[Any]:
    if not data:
        return []
    from ract.data.heldout import load_batches

    return list(load_batches(model, task, data, limit=_BATCHES))


def _print_comparison(found: Any) -> None:
    rows = [
        ["same shape", "yes" if found.mergeable else f"no: {found.obstacle}"],
        ["common ancestor", found.ancestor or "none in their lineage"],
    ]
    if found.distance is not None:
        rows += [["relative distance", f"{found.distance:.4f}"], ["cosine", f"{found.cosine:.4f}"]]
    for label, line in (("barrier", found.line), ("barrier after alignment", found.aligned)):
        if line is not None:
            rows.append([label, f"{line.barrier:+.4f} nats (lowest loss {line.best[1]:.4f} at {line.best[0]:.1f})"])
    rows.append(["recommendation", f"{found.recommendation}: {found.reason}"])
    title = f"{found.first.name} and {found.second.name}"
    print_table(["", title], rows, left=["", title])
    if found.line is not None:
        columns = ["", *(f"{t:.1f}" for t in found.line.t)]
        lines = [["loss on the line", *(f"{x:.3f}" for x in found.line.loss)]]
        if found.aligned is not None:
            lines.append(["after alignment", *(f"{x:.3f}" for x in found.aligned.loss)])
        print_table(columns, lines, left=[""])


def _as_dict(found: Any) -> dict[str, Any]:
    def line(one: Any) -> dict[str, Any] | None:
        return {"t": one.t, "loss": one.loss, "barrier": one.barrier} if one is not None else None

    return {
        "first": str(found.first),
        "second": str(found.second),
        "mergeable": found.mergeable,
        "obstacle": found.obstacle,
        "ancestor": found.ancestor,
        "distance": found.distance,
        "cosine": found.cosine,
        "line": line(found.line),
        "aligned": line(found.aligned),
        "recommendation": found.recommendation,
        "reason": found.reason,
    }
