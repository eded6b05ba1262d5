"""``ract inspect A B``: whether two models can be merged, what that would cost, and what to do instead.

The test that decides is the loss along the straight line between the two (Frankle et al. 2020, arXiv:1912.05671): where
it rises above the line between the ends, by the *barrier*, the average is worse than its parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from ract.aggregate import ensemble, upcycle
from ract.aggregate.align import aligned
from ract.aggregate.inputs import same_tokenizers
from ract.aggregate.loaded import Batch, Parameters, Progress, between, load, mean_loss, parameters
from ract.aggregate.match import match
from ract.checkpoint.directory import ModelDirectory, open_model
from ract.checkpoint.lineage import content_hash, read_lineage
from ract.checkpoint.tensors import TensorReader
from ract.errors import BadInput, RactError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Recommendation = Literal["merge", "align", "upcycle", "ensemble", "none"]
# A barrier below this share of the ends' mean loss is within what a few batches can tell.
_TOLERANCE = 0.02
# Fine-tuned copies of one model stay far above this cosine, models from different seeds near 0.
_RELATED = 0.5


@dataclass(frozen=True)
class Line:
    """Mean losses in nats at the points *t* (0 is the first model, 1 the second), with both models' own at the ends."""

    t: tuple[float, ...]
    loss: tuple[float, ...]

    @property
    def barrier(self) -> float:
        """How far the loss rises above the straight line between its ends, at most; negative where it only sags."""
        first, last = self.loss[0], self.loss[-1]
        inner = list(zip(self.t, self.loss, strict=True))[1:-1]
        return max(loss - (1 - t) * first - t * last for t, loss in inner)

    @property
    def best(self) -> tuple[float, float]:
        """``(t, loss)`` of the lowest point."""
        return min(zip(self.t, self.loss, strict=True), key=lambda point: point[1])


@dataclass(frozen=True)
class Comparison:
    """Whether *second* can be merged with *first*.

    *obstacle* says what forbids it, "" if nothing does. *ancestor* is the common one named in the lineages, "" if none.
    *distance* is ``‖θ₂ − θ₁‖ / ‖θ₁‖`` and *cosine* the angle's, over all matrices. *line* needs data; *aligned* is the
    line to the second model after alignment, taken where a barrier stands between models without a common ancestor.
    """

    first: Path
    second: Path
    obstacle: str
    ancestor: str
    distance: float | None
    cosine: float | None
    line: Line | None
    aligned: Line | None
    recommendation: Recommendation
    reason: str

    @property
    def mergeable(self) -> bool:
        """Whether the tensors and configs allow it (not: whether it is wise)."""
        return not self.obstacle


def compare(
    first: Path,
    second: Path,
    *,
    batches: Sequence[Batch] = (),
    points: int = 11,
    seed: int = 0,
    progress: Progress | None = None,
) -> Comparison:
    """Compare two models; with *batches* (labels included) measure the loss at *points* of the line between them.

    Raises BadInput: not model directories, different tokenizers (nothing that is aggregated from them could read its
    input), fewer than three points.
    """
    if points < 3:
        raise BadInput(f"{points} points make no line with a middle", "Give at least 3")
    models = [open_model(first), open_model(second)]
    same_tokenizers(models)
    obstacle = _obstacle(models)
    if obstacle:
        recommendation, reason = _without_merge(models, obstacle)
        return Comparison(first, second, obstacle, "", None, None, None, None, recommendation, reason)
    distance, cosine = _distance(models)
    ancestor = _common_ancestor(first, second)
    related = bool(ancestor) or cosine > _RELATED
    line = after = None
    if batches:
        live = load(first)
        other = load(second)
        line = _line(live, parameters(other), batches, points, progress)
        if _is_high(line) and not related:
            after = _aligned_line(live, other, (first, second), batches, points, seed, progress)
    kin = f"both come from {ancestor}" if ancestor else f"their matrices have a cosine of {cosine:.2f}"
    if line is not None:
        recommendation, reason = _judge(models, kin if related else "", line, after)
    elif related:
        recommendation, reason = "merge", f"{kin}; give --data to measure the line between them"
    else:
        recommendation = "align"
        reason = f"no common ancestor is known and {kin}; give --data to see whether alignment is enough"
    return Comparison(first, second, "", ancestor, distance, cosine, line, after, recommendation, reason)


def _obstacle(models: Sequence[ModelDirectory]) -> str:
    try:
        match(models)
    except BadInput as error:
        return error.problem
    return ""


def _distance(models: Sequence[ModelDirectory]) -> tuple[float, float]:
    """``(relative distance, cosine)`` over all floating-point matrices, a tensor at a time."""
    products = torch.zeros(3, dtype=torch.float64)
    with TensorReader.of(models[0]) as one, TensorReader.of(models[1]) as two:
        for pair in match(models):
            if pair.is_float and len(pair.shape) > 1:
                a, b = one.read(pair.names[0]).float().flatten(), two.read(pair.names[1]).float().flatten()
                products += torch.stack([torch.dot(a, a), torch.dot(b, b), torch.dot(a, b)]).double()
    aa, bb, ab = products.tolist()
    distance = max(0.0, aa + bb - 2 * ab) ** 0.5 / aa**0.5 if aa else 0.0
    return distance, ab / (aa * bb) ** 0.5 if aa and bb else 0.0


def _common_ancestor(first: Path, second: Path) -> str:
    """The nearest model that both lineages name (or that one of them is), by name; "" if there is none."""
    mine, yours = _ancestors(first), _ancestors(second)
    return next((name for content, name in mine.items() if content in yours), "")


def _ancestors(path: Path) -> dict[str, str]:
    """Content hash → name of the model and of all it was made from, as far as the directories still exist."""
    found: dict[str, str] = {}
    queue = [(path, content_hash(path), path.name)]
    while queue:
        place, content, name = queue.pop(0)
        if content in found:
            continue
        found[content] = name
        lineage = read_lineage(place) if place.is_dir() else None
        queue += [(Path(p.path or "."), p.content, p.name) for p in lineage.parents] if lineage else []
    return found


def _line(
    model: PreTrainedModel, other: Parameters, batches: Sequence[Batch], points: int, progress: Progress | None
) -> Line:
    own = parameters(model)
    places = [i / (points - 1) for i in range(points)]
    losses = []
    for done, t in enumerate(places, start=1):
        losses.append(mean_loss(model, batches, between(own, other, t)))
        if progress:
            progress("measure the line", done, points)
    return Line(tuple(places), tuple(losses))


def _aligned_line(
    model: PreTrainedModel,
    other: PreTrainedModel,
    paths: tuple[Path, Path],
    batches: Sequence[Batch],
    points: int,
    seed: int,
    progress: Progress | None,
) -> Line | None:
    try:
        found = aligned(model, other, paths, batches=batches, seed=seed, progress=progress)
    except RactError:  # an architecture whose units cannot be permuted
        return None
    return _line(model, found.parameters, batches, points, progress)


def _is_high(line: Line) -> bool:
    return not line.barrier <= _TOLERANCE * (line.loss[0] + line.loss[-1]) / 2


def _judge(models: Sequence[ModelDirectory], kin: str, line: Line, after: Line | None) -> tuple[Recommendation, str]:
    """What to do with two models of one shape, and why; *kin* says how they are related, "" if they are not."""
    barrier = f"the barrier between them is {line.barrier:.3f} nats"
    if not _is_high(line):
        return (
            "merge",
            f"{barrier} (losses {line.loss[0]:.3f} and {line.loss[-1]:.3f}, best between {line.best[1]:.3f})",
        )
    if kin and _fits(upcycle, models):
        return "upcycle", f"{kin}, but {barrier}: keep both feed-forwards as experts"
    if kin:
        return "ensemble", f"{kin}, but {barrier}, and there are no dense feed-forwards to make experts of"
    if after is None:
        return "ensemble", f"{barrier}, and the units of this architecture cannot be permuted"
    if not _is_high(after):
        return "align", f"{barrier}; after alignment it is {after.barrier:.3f}"
    return "ensemble", f"{barrier}; alignment only changes it to {after.barrier:.3f}"


def _without_merge(models: Sequence[ModelDirectory], obstacle: str) -> tuple[Recommendation, str]:
    if _fits(ensemble, models):
        return "ensemble", f"{obstacle}; their outputs can still be added"
    return "none", f"{obstacle}, and their outputs do not correspond either"


def _fits(method: object, models: Sequence[ModelDirectory]) -> bool:
    """Whether *method* accepts *models*: it is asked for its recipe, which reads headers only."""
    try:
        method.recipe(models, [1.0 / len(models)] * len(models))  # type: ignore[attr-defined]
    except RactError:
        return False
    return True


def plot(comparison: Comparison, out: Path) -> Path:
    """Draw the loss along the line, before and after alignment, as a PNG (or what *out* ends in).

    Raises BadInput when the comparison was made without data.
    """
    if comparison.line is None:
        raise BadInput("there is no line to draw", "Give --data, and models of one shape")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    line = comparison.line
    axes.plot(line.t, line.loss, "o-", color="#c44e52", label=f"as they are (barrier {line.barrier:.3f})")
    if comparison.aligned is not None:
        label = f"after alignment (barrier {comparison.aligned.barrier:.3f})"
        axes.plot(comparison.aligned.t, comparison.aligned.loss, "s-", color="#4c72b0", label=label)
    axes.plot([0, 1], [line.loss[0], line.loss[-1]], "--", color="0.5", label="between the ends")
    axes.set_xlabel(f"0 = {comparison.first.name},  1 = {comparison.second.name}")
    axes.set_ylabel("held-out loss (nats)")
    axes.set_title("Loss along the line between two models")
    figure.legend(frameon=False, loc="outside lower center", ncols=2)  # inside it would lie on the hump of some line
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=150)
    return out
