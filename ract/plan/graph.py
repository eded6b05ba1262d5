"""A plan as a graph of nodes: every model of the tree, what it is made from and what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ract.cost import AnyShape

# Learning α takes this many steps of one small batch each, then one pass over all its tokens per candidate.
LEARN_STEPS = 20
LEARN_BATCH_TOKENS = 2048
WEIGHTS_BLOCK = 128
_NEUTRAL_AT_ZERO = ("token_splits", "token_dropout", "dropout", "teacher_tokens")


def kept_bytes(tokens: int, classes: int) -> int:
    """What a teacher's probabilities of *classes* take in memory, kept for *tokens* tokens at most: in fp16."""
    return 2 * tokens * classes


@dataclass(frozen=True)
class DataSize:
    """How much there is to train on: *tokens* of the train split, of each of its *domains*, and of the text for
    masked-LM pre-training (*text_tokens*); *labels* is the number of classes.
    """

    tokens: int
    domains: Mapping[str, int] = field(default_factory=dict)
    text_tokens: int = 0
    labels: int = 0


@dataclass(frozen=True)
class Origin:
    """A checkpoint that takes the leaf's place: its directory, content hash and shape."""

    path: str
    content: str
    shape: AnyShape


@dataclass(frozen=True)
class ModelSettings:
    """What models are made with beside their shape; dropout None is that of the checkpoint they come from."""

    max_position_embeddings: int = 1024
    dropout: float | None = 0.0


@dataclass(frozen=True)
class TrainSpec:
    """One training run with every value filled in. *tokens* is a whole number of steps of *batch_tokens*.

    The windows of the train split are read in the order of *order_seed*, starting after *start_tokens* (what the node's
    ancestors have read already), and only those of *shard* (index, count) and, where given, of *domain*.

    *objective*: "next-token", "masked" (masked language modelling), "classification" or "translation". For the last two
    *batch_tokens* are the tokens of a batch's texts without padding.

    *teacher_tokens*, where there are several epochs of a small text: its teachers say what they have to say on so many
    tokens once, and it is kept. 0: on every token whenever it is read.
    """

    tokens: int
    lr: float
    optimizer: str
    batch_tokens: int
    micro_batch_tokens: int
    block_size: int
    weight_decay: float
    l2_penalty: float
    warmup: float
    decay: float
    grad_clip: float
    ema: float
    patience: int
    evaluations: int
    precision: str
    distill: float = 0.0
    temperature: float = 1.0
    start_tokens: int = 0
    order_seed: int = 0
    shard: tuple[int, int] = (0, 1)
    objective: str = "next-token"
    domain: str = ""
    label_smoothing: float = 0.0
    class_weights: str = "none"
    token_splits: float = 0.0
    token_dropout: float = 0.0
    dropout: float = 0.0
    teacher_tokens: int = 0

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        return self.tokens // self.batch_tokens

    @property
    def reads_windows(self) -> bool:
        """Whether batches are windows of *block_size* tokens, all of one length, and not examples of any length."""
        return self.objective in ("next-token", "masked")

    def content(self) -> dict[str, Any]:
        """Every value, without those that leave the run as it was before they were known: nodes keep their names."""
        return {key: value for key, value in asdict(self).items() if value or key not in _NEUTRAL_AT_ZERO}


@dataclass(frozen=True)
class AggregateSpec:
    """One aggregation: the method, α (or how to find it), and the valid tokens that α is learned on."""

    method: str
    weights: str | tuple[float, ...]
    per: str
    weights_tokens: int
    copies: int = 1


@dataclass(frozen=True)
class Node:
    """One model of the tree. Either trained (*train*) or aggregated (*aggregate*) from its *parents*, given by name.

    *method* is what a reader calls it: base (a checkpoint taken as it is), pretrain, leaf, branch, merge, stack,
    upcycle, ensemble, heal, distill or baseline. *source* is the content hash of a base's checkpoint.
    """

    name: str
    level: int
    method: str
    parents: tuple[str, ...]
    shape: AnyShape
    seed: int
    train: TrainSpec | None = None
    aggregate: AggregateSpec | None = None
    teachers: tuple[str, ...] = ()
    source: str = ""

    def content(self) -> dict[str, Any]:
        """What decides this node's weights, apart from its parents and the data: for naming it by hash."""
        return {
            "method": self.method,
            "shape": self.shape.as_dict(),
            "seed": self.seed,
            "train": self.train.content() if self.train else None,
            "aggregate": asdict(self.aggregate) if self.aggregate else None,
            "source": self.source,
        }


@dataclass(frozen=True)
class Graph:
    """The nodes of a plan, parents before children. *final* is the last level's node, *baseline* the single model."""

    nodes: tuple[Node, ...]
    final: str
    baseline: str | None
    _by_name: dict[str, Node] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_name", {node.name: node for node in self.nodes})

    def __getitem__(self, name: str) -> Node:
        return self._by_name[name]

    def ancestry(self, name: str) -> set[str]:
        """*name* and every node below it."""
        found, waiting = set(), [name]
        while waiting:
            current = waiting.pop()
            if current not in found:
                found.add(current)
                waiting.extend(self[current].parents + self[current].teachers)
        return found

    def own_flops(self, name: str) -> float:
        """FLOPs that making this one node takes: its training, its teachers' forward passes, its search for α."""
        node = self[name]
        if node.train is not None:
            spec = node.train
            each = node.shape.train_flops_per_token(spec.block_size, spec.batch_tokens, spec.optimizer)
            flops = spec.tokens * each
            if spec.distill > 0:
                taught = sum(self[t].shape.forward_flops_per_token(spec.block_size) for t in node.teachers)
                flops += (spec.teacher_tokens or spec.tokens) * taught
            return flops
        if node.aggregate is not None and node.aggregate.weights == "learned":
            children = len(node.parents)
            candidates = children + 2  # every child, uniform, learned
            candidates += children - 1 if children > 2 else 0  # what the greedy soup tries
            tokens = 3 * LEARN_STEPS * LEARN_BATCH_TOKENS + candidates * node.aggregate.weights_tokens
            return node.shape.forward_flops_per_token(WEIGHTS_BLOCK) * tokens
        return 0.0

    def total_flops(self, name: str) -> float:
        """FLOPs of the node and of everything below it, each node counted once."""
        return sum(self.own_flops(n) for n in self.ancestry(name))

    def beside(self, name: str) -> int:
        """How many nodes may be under way at once while *name* is: itself and those neither above nor below it.

        A property of the plan, not of what happens to be left to do: the threads a node gets, and with them the order
        of its floating-point sums, are the same in an undisturbed run and in a resumed one.
        """
        mine = self.ancestry(name)
        rivals = [n.name for n in self.nodes if n.name not in mine and name not in self.ancestry(n.name)]
        heads = [r for r in rivals if not any(r in self.ancestry(o) and o != r for o in rivals)]
        return 1 + len(heads)

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)
