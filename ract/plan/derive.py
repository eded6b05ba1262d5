"""From a plan to its graph: shapes from dials, levels from dials, lengths from a budget, and every default.

The defaults follow what was measured (docs/log.md): growth late and in the stable phase of the schedule, in one hop, at
an unchanged learning rate; the learning rate decays once, at the end of the last training run of a chain.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import Any

from ract.cost import Shape, derive_shape, shape_for_parameters
from ract.errors import BadInput
from ract.plan.graph import AggregateSpec, Graph, Node, TrainSpec
from ract.plan.schema import BranchTable, HealTable, LevelTable, Plan, StageTable, TrainTable

TRAIN_DEFAULTS: dict[str, Any] = {
    "lr": 3e-3,
    "optimizer": "muon",
    "batch_tokens": 4096,
    "micro_batch_tokens": 4096,
    "block_size": 256,
    "weight_decay": 0.1,
    "l2_penalty": 0.0,
    "warmup": 0.05,
    "grad_clip": 1.0,
    "ema": 0.0,
    "patience": 3,
    "evaluations": 0,  # none given: as often as is cheap
    "precision": "auto",
}
FINAL_DECAY = 0.4
WEIGHTS_TOKENS = 16_384
TOKENS_PER_PARAMETER = 20
# The valid loss is measured at most so often in a run, and once in so many tokens, so that it costs a small share.
_EVALUATIONS, _TOKENS_PER_EVALUATION = 10, 65_536

# How stages without a length of their own share a budget of FLOPs: the cheap small models first, most for the last one.
_SHARE = {"leaf": 3.0, "branch": 2.0, "heal": 2.0, "last": 13.0}


def default_train_spec(*, tokens: int) -> TrainSpec:
    """A run of *tokens* tokens with every default: what a plan without a [train] table means."""
    return _whole_steps(TrainSpec(tokens=tokens, decay=FINAL_DECAY, **TRAIN_DEFAULTS))


def leaf_shape(plan: Plan) -> Shape:
    """The shape of the compact transformer. Raises BadInput where the dials contradict each other."""
    compact, vocab = plan.compact, plan.tokenizer.vocab_size
    try:
        if compact.parameters is not None and compact.hidden_size is None:
            depth = compact.num_hidden_layers or (2 if any(level.method == "stack" for level in levels(plan)) else None)
            return shape_for_parameters(vocab, compact.parameters, depth)
        if compact.parameters is not None:
            raise ValueError("give parameters or hidden_size, not both")
        return derive_shape(
            vocab,
            compact.hidden_size or 192,
            compact.num_hidden_layers or 2,
            num_attention_heads=compact.num_attention_heads,
            num_key_value_heads=compact.num_key_value_heads,
            head_dim=compact.head_dim,
            intermediate_size=compact.intermediate_size,
        )
    except ValueError as error:
        raise BadInput(f"[compact]: {error}", "Change one of the two") from error


def levels(plan: Plan) -> list[LevelTable]:
    """The plan's levels, as written or from the dials: merges of branches below, one growth in depth on top."""
    if plan.tree is None:
        return list(plan.level)
    factors = _factors(plan.tree.compact_models, plan.tree.depth)
    if factors is None:
        asked, depth = plan.tree.compact_models, plan.tree.depth
        near = sorted(range(2, asked + 2 ** (depth + 1)), key=lambda n: abs(n - asked))
        close = sorted(islice((n for n in near if _factors(n, depth)), 3))
        raise BadInput(
            f"[tree]: {plan.tree.compact_models} compact models do not divide into {plan.tree.depth} levels",
            f"Use a number that does, such as {', '.join(map(str, close))}, or another depth",
        )
    *below, top = factors
    merges = [LevelTable(method="merge", members=m, branch=BranchTable(), weights="learned") for m in below]
    return [*merges, LevelTable(method="stack", copies=top, heal=HealTable())]


def _factors(number: int, parts: int) -> list[int] | None:
    """*number* as *parts* factors ≥ 2, as even as possible, the smallest first; None where impossible."""
    if parts == 1:
        return [number] if number >= 2 else None
    root = round(number ** (1 / parts))
    for first in sorted(range(2, number // 2 + 1), key=lambda f: (abs(f - root), f)):
        if number % first == 0:
            rest = _factors(number // first, parts - 1)
            if rest:
                return sorted([first, *rest])
    return None


def build_graph(plan: Plan, train_tokens: int) -> Graph:
    """The graph of *plan* for a train split of *train_tokens* tokens (which lengths in epochs refer to)."""
    builder = _Builder(plan, train_tokens)
    final = builder.node_of(len(builder.levels), ())
    graph = Graph(tuple(builder.nodes), final.name, None)
    if not plan.baseline.enabled or not builder.levels:
        return graph
    baseline = _baseline(plan, graph, builder)
    return Graph((*graph.nodes, baseline), final.name, baseline.name)


class _Builder:
    """Walks the levels from the top and lists nodes from the bottom. *path* tells whole trees of a level apart."""

    def __init__(self, plan: Plan, train_tokens: int) -> None:
        self.plan = plan
        self.train_tokens = train_tokens
        self.levels = levels(plan)
        self.leaf = leaf_shape(plan)
        self.nodes: list[Node] = []
        self.read: dict[str, int] = {}  # tokens that a node and its ancestors have read
        last_heal = bool(self.levels) and self.levels[-1].heal is not None
        self.shares = (
            _SHARE["leaf"]
            + sum(
                (_SHARE["branch"] if level.branch else 0.0) + (_SHARE["heal"] if level.heal else 0.0)
                for level in self.levels
            )
            + (_SHARE["last"] - _SHARE["heal"] if last_heal else 0.0)
        )

    def node_of(self, level: int, path: tuple[int, ...]) -> Node:
        if level == 0:
            return self._leaf(path)
        table = self.levels[level - 1]
        members = self._members(level, table, path)
        aggregated = self._aggregated(level, table, members, path)
        return self._healed(level, table, aggregated, path) if table.heal else aggregated

    def _leaf(self, path: tuple[int, ...]) -> Node:
        stage = self.plan.compact.train or StageTable()
        spec = self._spec(stage, self.leaf, "leaf", last=not self._trained_above(0))
        return self._add(
            Node(
                _name("leaf", path),
                0,
                "leaf",
                (),
                self.leaf,
                self._seed(path),
                train=replace(spec, order_seed=self._seed(path)),
            )
        )

    def _members(self, level: int, table: LevelTable, path: tuple[int, ...]) -> list[Node]:
        if table.copies is not None:
            return [self.node_of(level - 1, path)]
        if table.branch is None:
            return [self.node_of(level - 1, (*path, i)) for i in range(table.size)]
        below = self.node_of(level - 1, path)
        spec = self._spec(
            table.branch,
            below.shape,
            "branch",
            last=not self._trained_above(level - 1, branch_done=True),
            among=table.size,
        )
        return [self._branch(level, table, below, spec, index, path) for index in range(table.size)]

    def _branch(
        self, level: int, table: LevelTable, below: Node, spec: TrainSpec, index: int, path: tuple[int, ...]
    ) -> Node:
        branch = table.branch
        assert branch is not None
        own = {key: values[index] for key, values in branch.each.items()}
        seed = self._seed(path) + (1 + index if "seed" in branch.vary else 0)
        by_data = "data" in branch.vary
        spec = replace(
            spec,
            shard=(index, table.size) if by_data else (0, 1),
            order_seed=self._seed(path) if by_data else seed,
            start_tokens=self.read[below.name] // (table.size if by_data else 1),
            **own,  # type: ignore[arg-type]
        )
        name = _name(f"level-{level}-branch-{index + 1}", path)
        return self._add(Node(name, level, "branch", (below.name,), below.shape, seed, train=_whole_steps(spec)))

    def _aggregated(self, level: int, table: LevelTable, members: list[Node], path: tuple[int, ...]) -> Node:
        shape = members[0].shape
        if table.method == "stack":
            shape = shape.stacked(table.size)
        elif table.method == "upcycle":
            shape = shape.upcycled(table.size)
        elif table.method == "ensemble":
            shape = shape.ensembled(table.size)
        weights = tuple(table.weights) if isinstance(table.weights, list) else table.weights
        spec = AggregateSpec(
            table.method, weights, table.per, table.weights_tokens or WEIGHTS_TOKENS, table.copies or 1
        )
        parents = tuple(member.name for member in members)
        node = Node(
            _name(f"level-{level}-{table.method}", path),
            level,
            table.method,
            parents,
            shape,
            self._seed(path),
            aggregate=spec,
        )
        return self._add(node)

    def _healed(self, level: int, table: LevelTable, aggregated: Node, path: tuple[int, ...]) -> Node:
        heal = table.heal
        assert heal is not None
        last = not self._trained_above(level)
        spec = self._spec(heal, aggregated.shape, "last" if level == len(self.levels) else "heal", last=last)
        spec = replace(
            spec,
            distill=heal.distill,
            temperature=heal.temperature,
            start_tokens=self.read[aggregated.name],
            order_seed=self._seed(path),
        )
        teachers = aggregated.parents if heal.distill > 0 else ()
        name = _name(f"level-{level}-heal", path)
        node = Node(
            name, level, "heal", (aggregated.name,), aggregated.shape, self._seed(path), train=spec, teachers=teachers
        )
        return self._add(node)

    def _trained_above(self, level: int, *, branch_done: bool = False) -> bool:
        """Whether any training follows the node of *level* on its way up."""
        rest = self.levels[level:]
        return any((table.branch and not (branch_done and i == 0)) or table.heal for i, table in enumerate(rest))

    def _spec(self, stage: TrainTable, shape: Shape, share: str, *, last: bool, among: int = 1) -> TrainSpec:
        values = {**TRAIN_DEFAULTS, "decay": FINAL_DECAY if last else 0.0, **_given(self.plan.train), **_given(stage)}
        tokens = self._tokens(stage, values, shape, share, among)
        return _whole_steps(TrainSpec(**values, tokens=tokens))

    def _tokens(self, stage: TrainTable, values: dict[str, Any], shape: Shape, share: str, among: int) -> int:
        tokens, epochs = getattr(stage, "tokens", None), getattr(stage, "epochs", None)
        if tokens is not None:
            return tokens
        if epochs is not None:
            by_data = isinstance(stage, BranchTable) and "data" in stage.vary
            return round(epochs * self.train_tokens / (among if by_data else 1))
        if self.plan.budget is not None:
            each = shape.train_flops_per_token(values["block_size"], values["batch_tokens"], values["optimizer"])
            return round(self.plan.budget.flops * _SHARE[share] / self.shares / among / each)
        return TOKENS_PER_PARAMETER * shape.parameters // (4 * among if share == "branch" else 1)

    def _add(self, node: Node) -> Node:
        self.nodes.append(node)
        before = max((self.read[p] for p in node.parents), default=0)
        if node.train:
            before += node.train.tokens
        elif any(p.startswith("level-") and "-branch-" in p for p in node.parents):
            # branches on disjoint shards have read different windows: together as many as all of them
            own = [self._node(p) for p in node.parents]
            start = min(n.train.start_tokens * n.train.shard[1] for n in own if n.train)
            before = start + sum(n.train.tokens for n in own if n.train and n.train.shard[1] > 1) or before
        self.read[node.name] = before
        return node

    def _node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def _seed(self, path: tuple[int, ...]) -> int:
        seed = self.plan.seed
        for index in path:
            seed = seed * 101 + index + 1
        return seed


def _baseline(plan: Plan, graph: Graph, builder: _Builder) -> Node:
    """One model of the final size, from scratch, with the FLOPs of the whole tree and the same settings."""
    final = graph[graph.final].shape
    shape = final if final.experts == final.members == 1 else shape_for_parameters(final.vocab_size, final.parameters)
    values = {**TRAIN_DEFAULTS, "decay": FINAL_DECAY, **_given(plan.train), **_given(plan.baseline)}
    each = shape.train_flops_per_token(values["block_size"], values["batch_tokens"], values["optimizer"])
    tokens = round(graph.total_flops(graph.final) / each)
    spec = _whole_steps(TrainSpec(**values, tokens=tokens, order_seed=plan.seed))
    return Node("baseline", len(builder.levels), "baseline", (), shape, plan.seed, train=spec)


def _given(table: Any) -> dict[str, Any]:
    return {
        key: getattr(table, key)
        for key in type(table).model_fields
        if key in TRAIN_DEFAULTS | {"decay": 0} and getattr(table, key) is not None
    }


def _whole_steps(spec: TrainSpec) -> TrainSpec:
    """Batches of whole windows, micro-batches that divide them, at least one step."""
    windows = max(1, round(spec.batch_tokens / spec.block_size))
    micro = max(1, min(windows, spec.micro_batch_tokens // spec.block_size))
    micro = next(m for m in range(micro, 0, -1) if windows % m == 0)
    batch = windows * spec.block_size
    tokens = max(1, round(spec.tokens / batch)) * batch
    return replace(
        spec,
        batch_tokens=batch,
        micro_batch_tokens=micro * spec.block_size,
        tokens=tokens,
        evaluations=spec.evaluations or min(_EVALUATIONS, max(1, tokens // _TOKENS_PER_EVALUATION)),
    )


def _name(base: str, path: tuple[int, ...]) -> str:
    return base if not path else f"{base}-of-{'.'.join(str(i + 1) for i in path)}"
