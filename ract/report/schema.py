"""``report.json``: what a run came to, node by node. Figures and the HTML report are drawn from this file alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ract.errors import BadInput
from ract.report.metrics import METRICS, Metric

FILE_NAME = "report.json"
FORMAT = 1

Weights = list[float] | dict[str, list[float]]


class Strict(BaseModel):
    """Base of the records here: unknown keys are errors, instances do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Point(Strict):
    """One row of a training run's history; losses in nats per token, *tokens* and *seconds* since the run began."""

    step: int
    tokens: int
    train_loss: float
    seconds: float
    valid_loss: float | None = None


class WeightsSearch(Strict):
    """Learned α: mean losses (nats per token) on the data it was learned on, and on data never looked at before.

    *chosen* says which candidate won: "learned", "uniform" or a single child.
    """

    chosen: str
    loss: float
    loss_uniform: float
    loss_children: list[float]
    held_out_loss: float | None = None
    held_out_uniform: float | None = None
    held_out_children: list[float] | None = None


class NodeRecord(Strict):
    """One model of the tree. *key* names it by content; *path* is relative to the run's folder.

    *size_bytes* counts the weight files. *own_flops*, *tokens* and *seconds* are what making it took; *train_flops*
    counts everything below it too, each node once. *weights* is α, one number per parent or per copy, by tensor group
    where it differs by group; *leaves* maps names to effective coefficients where merges are nested. *quality* is the
    task's metric on held-out data (None where the node does not do the task yet), *measures* what else was measured,
    *by_domain* the metric in each domain, *domain* the one whose examples a branch was trained on. *vs_baseline*: see
    :meth:`ract.report.metrics.Metric.against`.
    """

    name: str
    key: str
    level: int
    method: str
    path: str
    parameters: int
    size_bytes: int
    own_flops: float
    train_flops: float
    tokens: int
    seconds: float
    quality: float | None = None
    measures: dict[str, float] = {}
    by_domain: dict[str, float] = {}
    domain: str = ""
    parents: list[str]
    teachers: list[str] = []
    weights: Weights | None = None
    leaves: dict[str, float] = {}
    weights_search: WeightsSearch | None = None
    history: list[Point] = []
    stopped_early: bool = False
    vs_baseline: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_format_1(cls, value: Any) -> Any:
        """Records of before there were tasks: their quality is bits per byte."""
        if not isinstance(value, dict) or "bits_per_byte" not in value:
            return value
        given = dict(value)
        measures = {key: given.pop(key, None) for key in ("nats_per_token", "perplexity")}
        kept = {key: number for key, number in measures.items() if number is not None}
        return {"quality": given.pop("bits_per_byte"), "measures": kept, **given}

    @model_validator(mode="after")
    def _consistent(self) -> NodeRecord:
        groups = self.weights.values() if isinstance(self.weights, dict) else [self.weights] if self.weights else []
        losses = [self.weights_search.loss_children] if self.weights_search else []
        if self.weights_search and self.weights_search.held_out_children is not None:
            losses.append(self.weights_search.held_out_children)
        several = len(self.parents) > 1  # copies of one parent have a weight each
        if any(len(given) != len(self.parents) for given in losses) or (
            several and any(len(given) != len(self.parents) for given in groups)
        ):
            raise ValueError(f"{self.name} has {len(self.parents)} parents and another number of weights or losses")
        return self


class Sample(Strict):
    """What *node* (called *key* by its content) wrote after *prompt*."""

    node: str
    key: str
    prompt: str
    text: str


class Sampling(Strict):
    """How the samples were drawn."""

    max_new_tokens: int = 64
    temperature: float = 0.7
    seed: int = 0


class Translated(Strict):
    """One sentence of the held-out data as the final node translates it."""

    source: str
    reference: str
    output: str


class ClassRecord(Strict):
    """How well the final node knows one class."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


class Reference(Strict):
    """Something that is no node of the run but was measured on the same data: TF-IDF with logistic regression."""

    name: str
    quality: float
    measures: dict[str, float] = {}
    by_domain: dict[str, float] = {}
    note: str = ""


class CorpusRecord(Strict):
    """The size of the text, per split (train, valid, test)."""

    tokens: dict[str, int]
    bytes: dict[str, int]
    documents: dict[str, int]
    sources: dict[str, list[str]]


class Record(Strict):
    """A whole run. *nodes* lists parents before children and the baseline last; *split* is what they were measured on.

    *scored_bytes* of that split were scored, or *examples*: the same for every node. *confusion* (rows: true classes)
    and *classes* are the final classifier's, *translations* the final translator's, *signature* says how BLEU was made.
    """

    format: int = Field(default=FORMAT, ge=FORMAT, le=FORMAT)
    name: str
    ract: str
    final: str
    baseline: str | None = None
    task: Literal["language-modeling", "classification", "translation"] = "language-modeling"
    split: str
    scored_bytes: int = 0
    examples: int = 0
    domains: list[str] = []
    references: list[Reference] = []
    confusion: list[list[int]] = []
    classes: list[ClassRecord] = []
    translations: list[Translated] = []
    signature: str = ""
    failures: dict[str, int] = {}
    data: str = ""
    corpus: CorpusRecord | None = None
    plan: str
    nodes: list[NodeRecord] = Field(min_length=1)
    sampling: Sampling = Sampling()
    samples: list[Sample] = []

    @model_validator(mode="after")
    def _consistent(self) -> Record:
        seen: set[str] = set()
        for node in self.nodes:
            _require_known(node.parents, seen, f"{node.name} has the parent")
            if node.name in seen:
                raise ValueError(f"two nodes are called {node.name}")
            seen.add(node.name)
        _require_known([self.final, *([self.baseline] if self.baseline else [])], seen, "the record names")
        _require_known([sample.node for sample in self.samples], seen, "a sample is by")
        return self

    def __getitem__(self, name: str) -> NodeRecord:
        return next(node for node in self.nodes if node.name == name)

    @property
    def metric(self) -> Metric:
        """What the task is judged by."""
        return METRICS[self.task]

    @property
    def measured(self) -> list[NodeRecord]:
        """The nodes that do the task."""
        return [node for node in self.nodes if node.quality is not None]

    @property
    def tree(self) -> list[NodeRecord]:
        """Every node but the baseline."""
        return [node for node in self.nodes if node.name != self.baseline]

    @property
    def leaves(self) -> list[NodeRecord]:
        """The compact models that do the task and had no parent or teacher that does: the bottom of the tree."""
        able = {node.name for node in self.measured}
        return [node for node in self.tree if node.name in able and not able.intersection(node.parents + node.teachers)]


def read_record(run: Path) -> Record:
    """The record of the run in the folder *run*.

    Raises BadInput when *run* is not the folder of a build, or ``report.json`` is missing, damaged or of a later ract.
    """
    file = run / FILE_NAME
    if not file.is_file():
        if (run / "plan.toml").is_file():
            raise BadInput(f"{file} does not exist", "Run ract build on its plan again: finished nodes are kept")
        raise BadInput(f"{run} is not a run", "Give the folder that ract build wrote (it holds report.json and nodes/)")
    try:
        return Record.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise BadInput(
            f"{file} is damaged: {where}: {first['msg']}", "Run ract build on its plan again: the record is made anew"
        ) from error


def _require_known(names: Iterable[str], known: set[str], what: str) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{what} {name}, which is not listed before")
