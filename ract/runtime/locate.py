"""Which model a path stands for: a model directory itself, or the final node of a finished run."""

from __future__ import annotations

from pathlib import Path

from ract.checkpoint.directory import read_json
from ract.errors import BadInput


def model_at(path: str | Path) -> Path:
    """*path*, or where it is the folder of a run, its final model.

    Raises BadInput for a run that has no report yet (it was not finished), or whose final model is gone.
    """
    folder = Path(path)
    if (folder / "config.json").is_file() or not (folder / "nodes").is_dir():
        return folder
    if not (folder / "report.json").is_file():
        raise BadInput(f"{folder} is a run that is not finished", "Finish it with ract build, or name one of its nodes")
    report = read_json(folder / "report.json")
    try:
        final = next(node["path"] for node in report["nodes"] if node["name"] == report["final"])
    except (KeyError, TypeError, StopIteration) as error:
        raise BadInput(f"{folder / 'report.json'} names no final model", "Run ract build again") from error
    if not (folder / final).is_dir():
        raise BadInput(f"the final model {folder / final} is gone", "Run ract build again: it makes what is missing")
    return folder / final
