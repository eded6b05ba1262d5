"""Commands that make a model smaller or write it in another format."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ract.cli.app import Force, Json, Out, app, print_json
from ract.cli.text import Model
from ract.errors import needs_extra


@app.command("export")
def export_command(
    model: Model,
    out: Out,
    form: Annotated[
        str, typer.Option("--format", help="onnx, openvino, gguf, ctranslate2, litert or executorch.")
    ] = "onnx",
    precision: Annotated[str, typer.Option("--precision", help="Of the weights: fp32, int8 or int4.")] = "fp32",
    data: Annotated[
        list[str] | None, typer.Option("--data", help="Held-out texts to compare on. Default: what the model writes.")
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write a model for machines without torch; the result is loaded again and compared."""
    with needs_extra("ract export", "train"):
        from ract.export.export import export

    made = export(model, out, format=form, precision=precision, data=data or (), force=force)
    if as_json:
        print_json({"path": str(made.path), "size_bytes": made.size_bytes, **made.measured})
        return
    print(f"{made.path}: {made.size_bytes / 1e6:.1f} MB; {_comparison(made.measured)}")


def _comparison(measured: dict[str, Any]) -> str:
    parts = [f"KL to the original {measured['kl']:.1e} nats", f"the same first choice in {measured['top1']:.1%}"]
    if "loss" in measured:
        change = measured["loss_exported"] / measured["loss"] - 1
        parts.append(f"loss {measured['loss']:.4f} → {measured['loss_exported']:.4f} ({change:+.2%})")
    if "greedy" in measured:
        parts.append(f"{measured['greedy']} of {measured['greedy_of']} greedy tokens the same")
    return ", ".join(parts)
