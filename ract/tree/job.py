"""One node as a job: everything a worker needs to make it, as paths, hashes and numbers; weights never travel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from ract.checkpoint.directory import ModelDirectory, open_model, verify_files
from ract.checkpoint.lineage import digest, read_lineage
from ract.errors import BadInput
from ract.plan.graph import Graph, ModelSettings, Node

# Raised when the same inputs would no longer give the same weights, so that old nodes are not taken for new ones.
FORMAT = 2
CHECKPOINT_SECONDS = 20.0


@dataclass(frozen=True)
class Job:
    """Make *node*, called *key* by its content, from the directories in *parents* (name → path) into *out*.

    *data* is a prepared corpus or set of examples, *origin* the checkpoint that a base is taken from, *work* a folder
    for checkpoints that outlives a kill, *teachers* the directories of the models that teach a healing run or a
    student, in the order of the node's teachers. *own_flops* and *total_flops* are what the plan says this node takes,
    alone and with everything below.
    """

    node: Node
    key: str
    data: str
    out: str
    work: str
    threads: int
    settings: ModelSettings
    test_tokens: int
    test_examples: int
    origin: str = ""
    source_language: str = ""
    target_language: str = ""
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    parents: Mapping[str, str] = field(default_factory=dict)
    teachers: tuple[str, ...] = ()
    own_flops: float = 0.0
    total_flops: float = 0.0

    def to_json(self) -> str:
        """One line that :meth:`from_json` reads back."""
        return _ADAPTER.dump_json(self).decode()

    @staticmethod
    def from_json(text: str) -> Job:
        """Undo :meth:`to_json`."""
        return _ADAPTER.validate_json(text)


_ADAPTER = TypeAdapter(Job)


def node_keys(graph: Graph, data_digest: str, settings: ModelSettings) -> dict[str, str]:
    """Name → content key of every node: a hash of how it is made, from what, and on which data.

    Two plans that agree on a node agree on its key; a change in the plan changes the keys of the nodes it touches and
    of everything above them, and no others.
    """
    keys: dict[str, str] = {}
    for node in graph:
        keys[node.name] = digest(
            {
                "format": FORMAT,
                "node": node.content(),
                "settings": asdict(settings),
                "data": data_digest,
                "parents": [keys[p] for p in node.parents],
                "teachers": [keys[t] for t in node.teachers],
            }
        )
    return keys


def node_directory(run: Path, name: str, key: str) -> Path:
    """Where a node lives: its name for people, the start of its key for truth."""
    return run / "nodes" / f"{name}-{key[:12]}"


def is_finished(directory: Path, key: str) -> bool:
    """Whether *directory* holds the node called *key*, whole: its files have the sizes and hashes of its lineage."""
    if not directory.is_dir():
        return False
    try:
        lineage = read_lineage(directory)
        return lineage is not None and lineage.node == key and verify_files(directory)
    except BadInput:
        return False


def made_from(job: Job) -> list[ModelDirectory]:
    """The parents' directories, opened in the order of the node's parents."""
    return [open_model(job.parents[name]) for name in job.node.parents]
