"""``ract init``: a commented plan that fits a size and a time."""

from __future__ import annotations

from pathlib import Path

from ract.checkpoint.directory import write_text
from ract.data.corpus import CorpusSpec
from ract.errors import BadInput, nearest
from ract.tree import init_language, init_tasks
from ract.tree.init_language import RECIPES
from ract.tree.machine import processors, training_speed

_ASSUMED_FLOPS_PER_SECOND = 5e10
_MEMBERS, _LEAVES = 2, 4
_USUAL_WIDTH = 128


def init(
    directory: str | Path = ".",
    *,
    task: str = "language-modeling",
    languages: str | None = None,
    data: list[str] | None = None,
    target_size: int | None = None,
    precision: str = "fp32",
    minutes: float = 10.0,
    members: int | None = None,
    recipe: str | None = None,
    name: str | None = None,
    force: bool = False,
) -> Path:
    """Write ``plan.toml`` for *task* into *directory* and return its path; *languages* of a translation: "en-zh".

    The final model's weights take at most *target_size* bytes at *precision* (default 20 MB), fewer where the budget
    could not train so many. The budget is what this machine does in about *minutes*, the baseline counted in.
    *recipe*, of a language model: ``grow``, ``single`` or ``distil``; by default by what is scarce, compute or text.
    *members* of an ensemble: 4 leaves of a language model, else 2, by default.
    Raises BadInput for a target below the smallest model (and says which that is), for data that is not there, and
    for a plan that exists already.
    """
    folder = Path(directory)
    file = folder / "plan.toml"
    if file.exists() and not force:
        raise BadInput(f"{file} exists already", "Give --force to replace it, or another folder")
    known = ("language-modeling", "classification", "translation")
    if task not in known:
        raise BadInput(f'there is no task "{task}"', nearest(task, known))
    if recipe is not None and (recipe not in RECIPES or task != "language-modeling"):
        raise BadInput(f'there is no recipe "{recipe}" for {task}', nearest(recipe, RECIPES))
    sources = data or (["stdlib"] if task == "language-modeling" else [])
    listed = "[" + ", ".join(_quoted(s) for s in sources) + "]"
    target = target_size or 20_000_000
    own = name or _name_for(folder)
    given = (file, own, listed, minutes)
    if task != "language-modeling":
        found = init_tasks.plan_for(task, sources, languages, target, precision, members or _MEMBERS)
        flops = _flops_within(minutes, found.leaf.hidden_size)
        text = init_tasks.filled(found, flops, members or _MEMBERS, *given)
    else:
        text_bytes, flops = CorpusSpec(train=tuple(sources)).size_bytes(), _flops_within(minutes, _USUAL_WIDTH)
        choice = init_language.choose(target, precision, text_bytes, flops, recipe)
        text = init_language.filled(choice, members or _LEAVES, *given)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(file, text)
    return file


def _flops_within(minutes: float, width: int) -> float:
    """FLOPs that all processors do in *minutes*, half of them for the baseline, at the speed of about *width*."""
    speed = training_speed(1)
    nearest_width = min(speed, key=lambda w: abs(int(w) - width)) if speed else ""
    each = speed[nearest_width] if speed else _ASSUMED_FLOPS_PER_SECOND
    return each * processors() * minutes * 60 / 2


def _name_for(folder: Path) -> str:
    letters = [c if (c.isalnum() and c.isascii()) or c in "._-" else "-" for c in folder.resolve().name]
    return "".join(letters).strip("._-") or "plan"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
