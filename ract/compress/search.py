"""Search for the model that keeps within the limits and knows the most: from mild changes to harsh ones.

What is tried stands in tiers: the original in each precision; a little pruned; pruned hard; students. The first tier
in which something fits is the last: what is harsher would know less. Sizes are estimated before anything is made, so
that no model is trained that is too large anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ract.compress.distill import student_shape
from ract.compress.judge import Trial
from ract.compress.prune import Cut, depth
from ract.compress.workshop import Change, Made, Workshop
from ract.errors import BadInput, RactError
from ract.runtime.manifest import Precision

_PRECISIONS: tuple[Precision, ...] = ("int8", "int4")
_STUDENTS = (2, 4)  # so many times smaller than the original


def search(shop: Workshop, watch: Callable[[Trial], None]) -> Made:
    """The best of what fits: the one with the lowest held-out loss, or where only the loss is limited the smallest.

    *watch* is told of every trial. Raises RactError, naming what came closest, when nothing fits.
    """
    limited = shop.judge.limits.any_of_cost
    tried: list[Trial] = []
    fitting: list[Made] = []

    def note(trial: Trial) -> None:
        tried.append(trial)
        watch(trial)

    for tier in _tiers(shop, note):
        found = [made for change in tier for made in _attempts(shop, change, note) if made.trial.fits]
        fitting += found
        if bool(found) == limited:
            break
    if not fitting:
        raise _nothing_fits(shop, tried)
    if limited:
        return min(fitting, key=lambda made: (made.trial.loss, made.trial.size_bytes))
    return min(fitting, key=lambda made: (made.trial.size_bytes, made.trial.loss))


def _tiers(shop: Workshop, note: Callable[[Trial], None]) -> Iterator[list[Change]]:
    blocks = depth(shop.source.directory)
    third = max(1, blocks // 3)
    yield [Change()]
    yield [Change(Cut(neurons=0.25)), Change(Cut(blocks=1))]
    yield [Change(Cut(neurons=0.5)), *([Change(Cut(blocks=third))] if third > 1 else [])]
    if shop.teacher is not None:
        yield list(_students(shop, note))


def _students(shop: Workshop, note: Callable[[Trial], None]) -> Iterator[Change]:
    whole = shop.parameters(Change())
    for times in _STUDENTS:
        try:
            yield Change(student=student_shape(shop.source, parameters=whole // times))
        except BadInput as error:
            note(Trial(f"student of 1/{times} of the parameters", made=False, breaks=(error.problem,)))


def _attempts(shop: Workshop, change: Change, note: Callable[[Trial], None]) -> Iterator[Made]:
    """*change* in every precision in which it may fit; what cannot be made is noted with the reason."""
    for precision in _PRECISIONS if change else ("fp32", *_PRECISIONS):
        try:
            made = shop.hopeless(change, precision) or shop.export(change, precision)
        except BadInput as error:
            note(Trial(shop.name(change, precision), made=False, breaks=(error.problem,)))
            continue
        note(made if isinstance(made, Trial) else made.trial)
        if isinstance(made, Made):
            yield made


def _nothing_fits(shop: Workshop, tried: list[Trial]) -> RactError:
    made = [trial for trial in tried if trial.made]
    if not made:
        return RactError(f"nothing small enough can be made: {tried[-1].name}: {tried[-1].breaks[0]}")
    closest = min(made, key=shop.judge.distance)
    remedy = "Allow more" if shop.teacher is not None else "Allow more, or give text to heal and to teach with: --train"
    return RactError(f"nothing fits; the closest is {closest.name}: {', '.join(closest.breaks)}", remedy)
