"""``ract aggregate``: resolve α, write the recipe, carry it out, check the result, record it, publish it."""

from __future__ import annotations

import inspect
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ract.aggregate import methods
from ract.aggregate.alpha import Alpha, Asked, Batches, held_out_batches, learned, resolve
from ract.aggregate.collapse import Child, collapse, representative
from ract.aggregate.engine import Estimate, Progress, estimate, execute
from ract.aggregate.inputs import Average, PathLike, open_inputs, same_tokenizers
from ract.aggregate.recipe import Recipe
from ract.aggregate.record import lineage
from ract.checkpoint.crashpoints import crash_point
from ract.checkpoint.directory import ModelDirectory, open_model, publish, write_lineage
from ract.checkpoint.lineage import Lineage, content_hash
from ract.checkpoint.writer import DEFAULT_SHARD_BYTES
from ract.errors import BadInput, nearest

if TYPE_CHECKING:
    from ract.aggregate.verify import Verification
    from ract.aggregate.weights import LearnedWeights


@dataclass(frozen=True)
class AggregateResult:
    """What an aggregation did or, after a dry run (*path* is None), would do."""

    path: Path | None
    method: str
    weights: Alpha
    estimate: Estimate
    learned: LearnedWeights | None = None
    verification: Verification | None = None
    lineage: Lineage | None = None
    seconds: float = 0.0


def aggregate(
    models: Sequence[PathLike | Average],
    out: PathLike,
    *,
    method: str = "merge",
    weights: Asked = "uniform",
    per: str = "model",
    data: Sequence[str] | Batches | None = None,
    task: str | None = None,
    max_batches: int | None = 48,
    base: PathLike | None = None,
    force: bool = False,
    max_memory: int | None = None,
    max_shard: int = DEFAULT_SHARD_BYTES,
    dry_run: bool = False,
    normalize: bool = False,
    affine: bool = False,
    verify: bool = True,
    allow_pickle: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> AggregateResult:
    """Aggregate *models* into the model directory *out*, which appears whole or not at all.

    *weights* is ``"uniform"``, ``"learned"`` (*per* model, layer or tensor), α as ``".6,.4"`` or a list, or
    ``{group: α}``. *data* is held-out text, files for *task* (by default what the first model is made for), or batches:
    learned α and data-driven methods need it. At most *max_batches* are used, and a third of those is kept to report
    how the choice generalises. *base* is the common ancestor, for methods that need it. *max_memory* bounds, in bytes,
    what is taken above the process itself. *options* are the method's own. A model may be an :class:`Average`, which is
    not written: its leaves are read instead.

    Raises BadInput for what the user can mend: models that do not fit together, α that does not sum to 1, damaged
    files, a config that contradicts its weights, too little disk or memory, an existing *out* without *force*.
    """
    started = time.monotonic()
    chosen = methods.method(method)
    target = Path(out)
    _keep_inputs_apart(models, base, target)
    if not models:
        raise BadInput("no models were given", "Give at least one model directory")
    with _workspace(target, force, dry_run) as staging:
        inputs = _opened(chosen, models, base, staging / ".converted" if allow_pickle else None)
        if verify:
            inputs.check_configs()
        learning = weights == "learned"
        if learning and chosen.name != "merge":
            raise BadInput(f"α can be learned for merge, not for {chosen.name}", "Give the weights, or use uniform")
        batches, held_out = held_out_batches(None if dry_run else data, task, inputs.stand_ins[0], max_batches)
        gained = None
        if learning and not dry_run:
            alpha, gained = learned(
                inputs.stand_ins, batches, held_out, per=per, affine=affine, seed=seed, progress=progress
            )
        else:  # for a dry run any α will do: all read and write the same bytes
            alpha = resolve("uniform" if learning else weights, inputs.stand_ins, normalize=normalize, affine=affine)
        extra: dict[str, Any] = {"base": inputs.base} if chosen.needs_base else {}
        extra |= {"batches": batches} if chosen.needs_data else {}
        recipe = _recipe(chosen, inputs.stand_ins, alpha, {**options, **extra}, seed)
        recipe, leaves = collapse(recipe, inputs.children)
        expected = estimate(recipe, leaves, max_memory_bytes=max_memory)
        if dry_run:
            return AggregateResult(None, chosen.name, recipe.weights, expected)
        _enough_disk(staging, expected)
        paths = [inputs.given.get(leaf.path, leaf.path) for leaf in leaves]
        with ThreadPoolExecutor(1, thread_name_prefix="hash") as pool:
            hashes = [pool.submit(content_hash, path) for path in paths]
            limits = {"max_memory_bytes": max_memory, "max_shard_bytes": max_shard}
            seen = _carry_out(recipe, leaves, staging, verify=verify, progress=progress, limits=limits)
            contents = [future.result() for future in hashes]
        shutil.rmtree(staging / ".converted", ignore_errors=True)
        record = lineage(
            target.name, chosen, recipe, list(zip(paths, contents, strict=True)), learned=gained, seen=seen
        )
        cost = record.cost.model_copy(update={"seconds": time.monotonic() - started})
        record = write_lineage(staging, record.model_copy(update={"seed": seed, "cost": cost}))
        crash_point("before-publish")
    seconds = time.monotonic() - started
    return AggregateResult(target, chosen.name, recipe.weights, expected, gained, seen, record, seconds)


@dataclass(frozen=True)
class _Inputs:
    """The children (the base last), a model directory that stands for each but the base, and the paths as given."""

    children: list[Child]
    stand_ins: list[ModelDirectory]
    base: ModelDirectory | None
    given: dict[Path, Path]

    def check_configs(self) -> None:
        """BadInput for a config that contradicts its weights."""
        from ract.aggregate.verify import check_config

        for model in {one.path: one for one in map(representative, self.children)}.values():
            check_config(model)


def _opened(
    chosen: methods.Method, models: Sequence[PathLike | Average], base: PathLike | None, scratch: Path | None
) -> _Inputs:
    children, converted = open_inputs(models, scratch)
    stand_ins = [representative(child) for child in children]
    if not chosen.needs_base:
        return _Inputs(children, stand_ins, None, converted)
    if base is None:
        raise BadInput(f"{chosen.name} needs the model that all were fine-tuned from", "Give it as base (--base DIR)")
    opened = open_model(base)
    same_tokenizers([stand_ins[0], opened])
    return _Inputs([*children, opened], stand_ins, opened, converted)


def _carry_out(
    recipe: Recipe,
    leaves: Sequence[ModelDirectory],
    staging: Path,
    *,
    verify: bool,
    progress: Progress | None,
    limits: dict[str, Any],
) -> Verification | None:
    if not verify:
        execute(recipe, leaves, staging, progress=progress, **limits)
        return None
    from ract.aggregate import verify as checks

    checks.check_recipe(recipe)
    execute(recipe, leaves, staging, progress=progress, **limits)
    return checks.verify(staging, recipe, leaves)


@contextmanager
def _workspace(target: Path, force: bool, dry_run: bool) -> Iterator[Path]:
    """The folder that becomes *target*; for a dry run one that is thrown away."""
    if dry_run:
        with tempfile.TemporaryDirectory(prefix="ract-") as folder:
            yield Path(folder)
    else:
        with publish(target, force=force) as staging:
            yield staging


def _keep_inputs_apart(models: Sequence[PathLike | Average], base: PathLike | None, target: Path) -> None:
    """BadInput when *target* is, holds or lies in one of the inputs: an input is never overwritten, force or not."""
    for model in [*models, *([base] if base is not None else [])]:
        if isinstance(model, Average):
            _keep_inputs_apart(model.models, None, target)
            continue
        source, end = Path(model).resolve(), target.resolve()
        if source == end or source in end.parents or end in source.parents:
            raise BadInput(
                f"the output {target} and the input {model} are one directory", "Choose another output folder"
            )


def _recipe(
    chosen: methods.Method, children: Sequence[ModelDirectory], alpha: Any, settings: dict[str, Any], seed: int
) -> Recipe:
    known = inspect.signature(chosen.recipe).parameters
    if "seed" in known:
        settings.setdefault("seed", seed)
    unknown = [name for name in settings if name not in known]
    if unknown:
        possible = set(known) - {"children", "weights", "base", "batches"}
        raise BadInput(f'{chosen.name} has no option "{unknown[0]}"', nearest(unknown[0], possible))
    return chosen.recipe(children, alpha, **settings)


def _enough_disk(staging: Path, expected: Estimate) -> None:
    free = shutil.disk_usage(staging).free
    if expected.disk_needed > free:
        raise BadInput(
            f"the result needs {expected.disk_needed / 1e9:.2f} GB of disk, {free / 1e9:.2f} GB are free",
            "Free some space or choose an output folder on another disk",
        )
