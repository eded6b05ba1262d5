"""Commands that use a model on text: generate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ract.cli.app import app


@app.command("generate")
def generate_command(
    model: Annotated[Path, typer.Argument(metavar="DIR", help="A model directory.")],
    prompt: Annotated[str, typer.Argument(help="The text to continue; - reads standard input.")] = "",
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", min=1, help="Most tokens to write.")] = 200,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, help="0 always takes the likeliest token.")
    ] = 0.8,
    top_p: Annotated[float, typer.Option("--top-p", help="Smallest set of tokens with this probability.")] = 0.95,
    top_k: Annotated[int, typer.Option("--top-k", min=0, help="Only so many likeliest tokens; 0: all.")] = 0,
    seed: Annotated[int, typer.Option("--seed", help="The same seed gives the same text.")] = 0,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="End before this text. Repeatable.")] = None,
    echo: Annotated[bool, typer.Option("--echo/--no-echo", help="Print the prompt too.")] = True,
) -> None:
    """Continue a text, streaming."""
    from ract.errors import needs_extra

    with needs_extra("ract generate on a model directory", "train"):
        from ract.runtime.generate import generate

    text = sys.stdin.read() if prompt == "-" else prompt
    pieces = generate(
        model,
        text,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        stop=stop or (),
    )
    if echo:
        sys.stdout.write(text)
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
