"""Commands that make a model smaller or write it in another format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ract.cli.app import Force, Json, Out, app, print_json, print_table
from ract.cli.limits import say_progress
from ract.cli.text import Model
from ract.errors import needs_extra


@app.command("export")
def export_command(
    model: Model,
    out: Out,
    form: Annotated[
        str, typer.Option("--format", help="onnx, openvino, gguf, ctranslate2, litert or executorch.")
    ] = "onnx",
    precision: Annotated[
        str | None, typer.Option("--precision", help="Of the weights: fp32 (default), int8 or int4.")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option("--data", help="Held-out texts to compare on. Default: what the model writes.")
    ] = None,
    whole: Annotated[
        bool, typer.Option("--all", help="Of a run: every node worth it, in every precision, measured on its own data.")
    ] = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write a model for machines without torch; the result is loaded again and compared."""
    with needs_extra("ract export", "train"):
        from ract.export.export import export
    if whole:
        _export_all(model, out, form, precision, as_json)
        return
    chosen: Any = {"format": form, "precision": precision or "fp32"}  # checked there
    made = export(model, out, data=data or (), force=force, **chosen)
    if as_json:
        print_json({"path": str(made.path), "size_bytes": made.size_bytes, **made.measured})
        return
    print(f"{made.path}: {made.size_bytes / 1e6:.1f} MB; {_comparison(made.measured)}")


def _export_all(run: Path, out: Path, form: str, precision: str | None, as_json: bool) -> None:
    from ract.runtime.manifest import read_manifest
    from ract.tree.forms import PRECISIONS, export_tree

    chosen: Any = {"format": form, "precisions": (precision,) if precision else PRECISIONS}
    found = []
    for path in export_tree(run, out, report=say_progress, **chosen):
        manifest = read_manifest(path, verify=False)
        assert manifest.held_out is not None
        size = sum(record.size_bytes for record in manifest.files.values())
        found.append((path, manifest.node, manifest.precision, size, manifest.held_out.loss))
    if as_json:
        names = ("path", "node", "precision", "size_bytes", "loss")
        print_json([dict(zip(names, (str(row[0]), *row[1:]), strict=True)) for row in found])
        return
    rows = [[str(path), node, kind, f"{size / 1e6:.2f} MB", f"{loss:.4f}"] for path, node, kind, size, loss in found]
    print_table(["path", "node", "precision", "size", "held-out loss"], rows, left=["path", "node", "precision"])


def _comparison(measured: dict[str, Any]) -> str:
    parts = [f"KL to the original {measured['kl']:.1e} nats", f"the same first choice in {measured['top1']:.1%}"]
    if "loss" in measured:
        change = measured["loss_exported"] / measured["loss"] - 1
        parts.append(f"loss {measured['loss']:.4f} → {measured['loss_exported']:.4f} ({change:+.2%})")
    if "greedy" in measured:
        parts.append(f"{measured['greedy']} of {measured['greedy_of']} greedy tokens the same")
    return ", ".join(parts)
