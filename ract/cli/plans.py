"""Commands about plans: init, check, build, train, plot."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ract.cli.app import Force, Json, Out, PlanFile, app, print_json, print_table
from ract.errors import BadInput
from ract.plan.quantities import parse_size, show_count, show_size, show_time

Workers = Annotated[
    int | None, typer.Option("--workers", metavar="N", help="Nodes made at a time (default: one per processor).")
]


@app.command("init")
def init_command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write plan.toml.")] = Path(),
    task: Annotated[
        str, typer.Option("--task", help="language-modeling, classification or translation.")
    ] = "language-modeling",
    languages: Annotated[
        str | None, typer.Option("--languages", metavar="FROM-TO", help="Translation: the two languages, like en-zh.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="SOURCE", help="Text: a file, a glob, a folder, hf:NAME or stdlib. Repeatable."),
    ] = None,
    target_size: Annotated[
        str | None,
        typer.Option("--target-size", metavar="SIZE", help="Largest size of the final weights, such as 20MB."),
    ] = None,
    precision: Annotated[
        str, typer.Option("--precision", help="What the size counts: fp32, bf16, int8 or int4.")
    ] = "fp32",
    minutes: Annotated[float, typer.Option("--minutes", help="How long the build may take on this machine.")] = 10.0,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", help="Of a language model: grow, single or distil (default: by what is scarce)."),
    ] = None,
    members: Annotated[
        int | None, typer.Option("--members", help="Models of an ensemble (default: 4 of a language model, else 2).")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="The plan's name (default: the folder's).")] = None,
    force: Force = False,
) -> None:
    """Write a commented plan.toml that fits a size and a time."""
    from ract.cost import BYTES_PER_PARAMETER
    from ract.errors import nearest
    from ract.tree.init import init

    if precision not in BYTES_PER_PARAMETER:
        raise BadInput(f'--precision "{precision}" is not known', nearest(precision, BYTES_PER_PARAMETER))
    try:
        size = parse_size(target_size) if target_size else None
    except ValueError as error:
        raise BadInput(f"--target-size {error}", "Write it like 20MB") from error
    if minutes <= 0 or (members is not None and members < 2):
        raise BadInput("--minutes must be above 0 and --members at least 2", "Change them")
    file = init(
        directory,
        task=task,
        languages=languages,
        data=data,
        target_size=size,
        precision=precision,
        minutes=minutes,
        members=members,
        recipe=recipe,
        name=name,
        force=force,
    )
    print(f"Wrote {file}. Next: ract check {file}, then ract build {file}")


@app.command("check")
def check_command(plan: PlanFile, workers: Workers = None, as_json: Json = False) -> None:
    """Validate a plan and print what each level costs."""
    from ract.tree.check import check

    found = check(plan, workers=workers)
    if as_json:
        print_json(found.as_dict())
        return
    columns = [
        "level",
        "node",
        "models",
        "parameters",
        "fp32",
        "bf16",
        "int8",
        "int4",
        "tokens",
        "FLOPs",
        "time",
        "memory",
    ]
    rows = [
        [
            str(row.level), row.method, str(row.members), show_count(row.parameters),
            *(show_size(row.size_bytes[p]) for p in ("fp32", "bf16", "int8", "int4")),
            show_count(row.tokens) if row.tokens else "–", show_count(row.train_flops) if row.train_flops else "–",
            show_time(row.seconds) if row.seconds is not None else "?", show_size(row.peak_memory_bytes),
        ]
        for row in found.rows
    ]  # fmt: skip
    print_table(columns, rows, left=["node"])
    single = found.single
    wall = f"about {show_time(found.seconds)}" if found.seconds is not None else "unknown (needs ract[train])"
    print(
        f"{found.name}: {show_count(found.total_flops)} FLOPs for the tree, {wall} with {found.workers} worker(s), "
        f"about {show_count(found.train_tokens)} training tokens."
    )
    print(
        f"The same FLOPs would train one model of the final size on {show_count(single['tokens'])} tokens, "
        f"or, at 20 tokens per parameter, one of {show_count(single['compute_optimal_parameters'])} parameters on "
        f"{show_count(single['compute_optimal_tokens'])} tokens."
    )


@app.command("build")
def build_command(
    plan: PlanFile,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="RUN", help="The folder of the run (default: runs/NAME).")
    ] = None,
    workers: Workers = None,
    checkpoint_seconds: Annotated[
        float, typer.Option("--checkpoint-seconds", min=0.0, help="How often a training run is saved.")
    ] = 20.0,
    as_json: Json = False,
) -> None:
    """Run a plan's recursion; started again, it goes on where it stopped."""
    from ract.cli.progress import BuildDisplay
    from ract.report.build import build
    from ract.report.metrics import METRICS
    from ract.report.schema import read_record

    with BuildDisplay() as display:
        run = build(plan, out, workers=workers, checkpoint_seconds=checkpoint_seconds, watcher=display)
    record = read_record(run.path).model_dump(mode="json")
    if as_json:
        print_json(record)
        return
    print_nodes(record)
    for reference in record["references"]:
        print(f"{reference['name']}: {METRICS[record['task']].show(reference['quality'])}")
    sample = next((s for s in record["samples"] if s["node"] == record["final"]), None)
    if sample:
        print(f"{sample['prompt']}{sample['text']}\n")
    print(f"Report: {run.path / 'report.html'}")
    verb, text = _TO_TRY[record["task"]]
    print(f'Try:    ract {verb} {run.final} "{sample["prompt"] if sample else text}"')


_TO_TRY = {
    "language-modeling": ("generate", "Once"),
    "classification": ("classify", "A text of yours."),
    "translation": ("translate", "A text of yours."),
}


def print_nodes(record: dict[str, Any]) -> None:
    """The table that ends a build: every node and the baseline."""
    from ract.report.metrics import COLUMNS, METRICS

    metric, further = METRICS[record["task"]], COLUMNS[record["task"]]
    further = () if record["task"] == "language-modeling" else further
    rows = [
        [
            node["name"], str(node["level"]), show_count(node["parameters"]), show_size(node["size_bytes"]),
            show_count(node["own_flops"]) if node["own_flops"] else "–", show_count(node["train_flops"]), _alpha(node),
            metric.show(node["quality"]),
            *(format(node["measures"][key], form) if key in node["measures"] else "–" for key, _, form in further),
        ]
        for node in record["nodes"]
    ]  # fmt: skip
    columns = ["node", "level", "parameters", "size", "FLOPs", "FLOPs in all", "α", metric.short]
    print_table([*columns, *(heading for _, heading, _ in further)], rows, left=["node", "α"])


def _alpha(node: dict[str, Any]) -> str:
    """α as a cell of the table; copies of one model share equal weights, which says nothing."""
    if isinstance(node["weights"], dict):
        return "by group"
    return ", ".join(f"{a:.2f}" for a in node["weights"] or [] if len(node["parents"]) > 1)


@app.command("train")
def train_command(
    plan: PlanFile,
    out: Out,
    threads: Annotated[
        int | None, typer.Option("--threads", help="Threads of this process (default: all processors).")
    ] = None,
    force: Force = False,
) -> None:
    """Train one leaf of a plan (data-parallel under torchrun -m ract train)."""
    from ract.cli.progress import one_bar
    from ract.tree.leaf import train

    with one_bar() as report:
        path = train(plan, out, force=force, threads=threads, report=report)
    print(path)


@app.command("plot")
def plot_command(run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a build.")]) -> None:
    """Draw a run's figures and its HTML report again, from its records."""
    from ract.report.record import redraw

    print(redraw(run), file=sys.stdout)
