"""A plan is read strictly: every mistake is one line that names the key and what would be right."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from ract.errors import BadInput
from ract.plan.schema import load_plan, parse_plan

GOOD: dict[str, Any] = {
    "name": "p",
    "data": {"train": ["stdlib"]},
    "compact": {"hidden_size": 64, "num_hidden_layers": 2, "train": {"tokens": "2M"}},
    "level": [{"method": "merge", "members": 2, "branch": {"tokens": "0.5M"}, "weights": [0.25, 0.75]}],
}


def changed(path: str, value: Any) -> dict[str, Any]:
    plan = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    place: Any = plan
    for part in parents:
        place = place[int(part)] if part.isdigit() else place.setdefault(part, {})
    place[int(last) if last.isdigit() else last] = value
    return plan


def test_quantities_are_read_as_people_write_them() -> None:
    plan = parse_plan(GOOD)
    assert plan.compact.train is not None and plan.compact.train.tokens == 2_000_000
    assert plan.level[0].branch is not None and plan.level[0].branch.tokens == 500_000


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("nam", "x", 'unknown key "nam". Did you mean "name"?'),
        ("data.documnt", "file", 'unknown key "documnt" in [data]. Did you mean "document"?'),
        ("level.0.branch.tokns", 1, 'unknown key "tokns" in [level[0].branch]. Did you mean "tokens"?'),
        ("compact.train.lr", "1e-3", "compact.train.lr"),
        ("train.lr", float("nan"), "train.lr"),
        ("train.lr", -1.0, "train.lr"),
        ("data.train", "stdlib", "data.train"),
        ("data.train", [], "name at least one training source"),
        ("data.task", "translation", "translation needs source_language"),
        ("data.domains", {"a": {"train": ["a.txt"]}}, "domains is for classification"),
        ("compact.dropout", 0.1, "compact.dropout is for encoders"),
        ("compact.from", "a/checkpoint", "and from cannot both be given"),
        ("compact.fro", "a/checkpoint", 'Did you mean "from"?'),
        ("level.0.student", {"epochs": 1.0}, "student belongs to distill"),
        ("compact.hidden_size", "12Q", "compact.hidden_size: must be a whole number"),
        ("compact.hidden_size", True, "compact.hidden_size"),
        ("compact.kind", "encodr", "compact.kind"),
        ("level.0.method", "merg", "'merge', 'stack', 'upcycle', 'ensemble' or 'distill'"),
        ("level.0.weights", [0.5, 0.6], "α must sum to 1, not 1.1"),
        ("level.0.weights", [float("inf"), 0.0], "finite"),
        ("level.0.weights", [1.0, 0.0, 0.0], "3 weights for 2 members"),
        ("level.0.weights", "lerned", "level[0].weights"),
        ("level.0.members", 1, "at least 2"),
        ("level.0.copies", 2, "either members or copies"),
        ("level.0.branch", None, "shared ancestor"),
        ("level.0", {"method": "stack", "copies": 2, "weights": "learned"}, "copies of one model are equal"),
        ("level.0", {"method": "ensemble", "members": 2, "weights": "learned"}, "learned for merge"),
        ("level.0.branch.epochs", 1.0, "not both"),
        ("level.0.branch.each", {"lr": [1e-3]}, "1 values for 2 members"),
        ("tree", {"compact_models": 4}, "not both"),
        ("name", "a/b", "name"),
        ("seed", -1, "seed"),
    ],
)
def test_a_mistake_is_one_line_naming_the_key(path: str, value: Any, says: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_plan(changed(path, value), "plan.toml")
    message = str(caught.value)
    assert says in message and "plan.toml" in message and "\n" not in message
    assert caught.value.exit_code == 2


def test_a_missing_table_is_named() -> None:
    plan = copy.deepcopy(GOOD)
    del plan["data"]
    with pytest.raises(BadInput, match='the key "data" is missing'):
        parse_plan(plan)


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"name = \n", "not valid TOML"), (b'name = "\xff"', "not UTF-8"), (None, "does not exist")],
)
def test_unreadable_files_are_explained(tmp_path: Any, content: bytes | None, says: str) -> None:
    file = tmp_path / "plan.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(BadInput, match=says):
        load_plan(file)
