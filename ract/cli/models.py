"""Commands about model directories: aggregate, list."""

from __future__ import annotations

import ast
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ract.cli.app import Force, Json, Out, app, print_json, print_table
from ract.errors import BadInput, needs_extra
from ract.plan.quantities import parse_size, show_size, show_time

Models = Annotated[list[Path], typer.Argument(metavar="DIR...", help="Model directories.")]
Data = Annotated[
    list[str] | None,
    typer.Option("--data", metavar="SOURCE", help="Held-out text: a file, a glob, a folder, hf:NAME. Repeatable."),
]
Task = Annotated[
    str | None,
    typer.Option(
        "--task",
        help="language-modeling, classification or translation; by default what the (first) model is made for.",
    ),
]


@app.command("aggregate")
def aggregate_command(
    models: Models,
    out: Out,
    method: Annotated[str, typer.Option("--method", "-m", help="See ract list methods.")] = "merge",
    weights: Annotated[
        str, typer.Option("--weights", "-w", help="uniform, learned, or numbers such as .6,.4.")
    ] = "uniform",
    per: Annotated[str, typer.Option("--per", help="Learned weights per model, layer or tensor.")] = "model",
    data: Data = None,
    task: Task = None,
    base: Annotated[Path | None, typer.Option("--base", metavar="DIR", help="The common ancestor.")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option", "-O", metavar="KEY=VALUE", help="A setting of the method, such as density=0.2. Repeatable."
        ),
    ] = None,
    normalize: Annotated[bool, typer.Option("--normalize", help="Divide given weights by their sum.")] = False,
    affine: Annotated[bool, typer.Option("--affine", help="Allow weights below zero.")] = False,
    max_memory: Annotated[
        str | None, typer.Option("--max-memory", metavar="SIZE", help="Most memory above the process itself.")
    ] = None,
    max_shard: Annotated[str, typer.Option("--max-shard", metavar="SIZE", help="Largest weight file.")] = "5GB",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be read and written; write nothing.")
    ] = False,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Do not open the result again and check it.")] = False,
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="Read .bin weights you trust.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="For learned weights and methods that draw at random.")] = 0,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Make one model of several: merge, stack, upcycle, ensemble and refinements of merge."""
    with needs_extra("ract aggregate", "train"):
        from ract.aggregate.run import aggregate
    from ract.cli.progress import one_bar

    with one_bar() as report:
        result = aggregate(
            models,
            out,
            method=method,
            weights=weights,
            per=per,
            data=data,
            task=task,
            base=base,
            normalize=normalize,
            affine=affine,
            max_memory=size_of(max_memory, "--max-memory") if max_memory else None,
            max_shard=size_of(max_shard, "--max-shard"),
            dry_run=dry_run,
            verify=not no_verify,
            allow_pickle=allow_pickle,
            seed=seed,
            force=force,
            progress=report,
            **_options(option or []),
        )
    if as_json:
        print_json(
            {
                "path": str(result.path) if result.path else None,
                "method": result.method,
                "weights": result.weights,
                "estimate": asdict(result.estimate),
                "learned": asdict(result.learned) if result.learned else None,
                "seconds": result.seconds,
            }
        )
        return
    need = result.estimate
    print(
        f"reads {show_size(need.bytes_read)}, writes {show_size(need.bytes_written)}, needs "
        f"{show_size(need.disk_needed)}"
        f" of disk and at most {show_size(need.peak_memory)} of memory above the process"
    )
    if result.path is None:
        return
    _print_weights(result.weights, models)
    if result.learned is not None:
        _print_learned(result.learned)
    if result.verification is not None:
        print(
            "checked: opened again without missing or unexpected tensors, a forward pass, sampled tensors against fp64"
        )
    print(f"{result.path} ({show_time(result.seconds)})")


def _print_weights(weights: Any, models: list[Path]) -> None:
    if isinstance(weights, dict):
        rows = [[group, *(f"{a:.4f}" for a in alpha)] for group, alpha in weights.items()]
        print_table(["group", *(m.name for m in models)], rows, left=["group"])
    elif len(models) == len(weights):
        print("α: " + ", ".join(f"{m.name} {a:.4f}" for m, a in zip(models, weights, strict=True)))


def _print_learned(learned: Any) -> None:
    children = ", ".join(f"{loss:.4f}" for loss in learned.loss_children)
    print(
        f"loss on the data: {learned.loss:.4f} ({learned.chosen}); uniform {learned.loss_uniform:.4f}; each {children}"
    )
    if learned.held_out_loss is not None:
        children = ", ".join(f"{loss:.4f}" for loss in learned.held_out_children)
        print(
            f"on data no choice saw: {learned.held_out_loss:.4f}; uniform {learned.held_out_uniform:.4f}; "
            f"each {children}"
        )


@app.command("list")
def list_command(what: Annotated[str, typer.Argument(help="methods")] = "methods", as_json: Json = False) -> None:
    """Explain every method of aggregation in a line, with its paper."""
    from ract.aggregate.methods import METHODS

    if what != "methods":
        raise BadInput(f'there is no list of "{what}"', "Known: methods")
    if as_json:
        print_json(
            {
                m.name: {"summary": m.summary, "paper": m.paper, "needs_base": m.needs_base, "needs_data": m.needs_data}
                for m in METHODS.values()
            }
        )
        return
    needs = {
        m.name: ", ".join(n for n, yes in (("--base", m.needs_base), ("--data", m.needs_data)) if yes)
        for m in METHODS.values()
    }
    print_table(
        ["method", "what it does", "needs", "paper"],
        [[m.name.replace("_", "-"), m.summary, needs[m.name], m.paper] for m in METHODS.values()],
        left=["method", "what it does", "needs", "paper"],
    )


def size_of(text: str, option: str) -> int:
    """A size such as 64MB in bytes; BadInput, naming *option*, when it is none."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise BadInput(f'{option} "{text}" {error}', "Write it like 64MB") from error


def _options(pairs: list[str]) -> dict[str, Any]:
    """``KEY=VALUE`` options of a method; values are Python literals where they are, text otherwise."""
    options: dict[str, Any] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key.isidentifier():
            raise BadInput(f'--option "{pair}" is not KEY=VALUE', "Write it like density=0.2")
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = value
    return options
