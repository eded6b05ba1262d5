"""From a plan to its graph: the nodes of every level, their lengths from a budget, and the baseline.

The defaults follow what was measured (docs/log.md): growth late and in the stable phase of the schedule, in one hop, at
an unchanged learning rate; the learning rate decays once, at the end of the last training run of a chain.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import takewhile

from ract.cost import AnyShape, EncoderShape, Shape
from ract.errors import BadInput
from ract.plan.defaults import whole_steps
from ract.plan.graph import AggregateSpec, DataSize, Graph, Node, Origin, TrainSpec
from ract.plan.levels import levels
from ract.plan.runs import Runs
from ract.plan.schema import LevelTable, Plan
from ract.plan.shapes import leaf_shape, single_shape
from ract.plan.tables import StageTable, StudentTable

# Valid tokens that α is chosen on. A text to classify has a hundred tokens and one label: it takes more of them.
WEIGHTS_TOKENS = {"next-token": 16_384, "classification": 65_536, "translation": 16_384}

_OBJECTIVE = {
    "language-modeling": "next-token",
    "classification": "classification",
    "translation": "translation",
}


def build_graph(plan: Plan, size: DataSize | int, origin: Origin | None = None) -> Graph:
    """The graph of *plan* for a train split of that *size* (an int: tokens), which lengths in epochs refer to.

    *origin* is the checkpoint that the plan names as its leaf, if it does.
    """
    size = size if isinstance(size, DataSize) else DataSize(size)
    flops = plan.budget.flops if plan.budget else None
    builder = _Builder(plan, size, origin, flops)
    graph = builder.graph()
    searches = sum(graph.own_flops(node.name) for node in graph if node.aggregate)
    if flops and searches:  # what the searches for α take does not depend on any length: training gets the rest
        builder = _Builder(plan, size, origin, max(0.0, flops - searches))
        graph = builder.graph()
    if not plan.baseline.enabled or not builder.levels:
        return graph
    baseline = builder.baseline(graph)
    return Graph(tuple(builder.nodes), graph.final, baseline.name)


class _Builder:
    """Walks the levels from the top and lists nodes from the bottom. *path* tells whole trees of a level apart."""

    def __init__(self, plan: Plan, size: DataSize, origin: Origin | None, flops: float | None) -> None:
        self.plan, self.size, self.origin = plan, size, origin
        self.levels = levels(plan)
        self.objective = _OBJECTIVE[plan.data.task]
        self.leaf = origin.shape if origin else leaf_shape(plan, size.labels)
        self.nodes: list[Node] = []
        self.shared: dict[int, Node] = {}  # level → the teacher of all its students
        self.read: dict[str, int] = {}  # tokens that a node and its ancestors have read
        tuned = origin is not None
        self.runs = Runs(plan, self.levels, size, flops, objective=self.objective, fine_tuning=tuned)

    def graph(self) -> Graph:
        """The tree, without a baseline."""
        final = self.node_of(len(self.levels), ())
        return Graph(tuple(self.nodes), final.name, None)

    def node_of(self, level: int, path: tuple[int, ...]) -> Node:
        if level == 0:
            return self._leaf(path)
        table = self.levels[level - 1]
        if table.method == "distill":
            return self._student(level, table, path)
        members = self._members(level, table, path)
        aggregated = self._aggregated(level, table, members, path)
        return self._healed(level, table, aggregated, path) if table.heal else aggregated

    def _leaf(self, path: tuple[int, ...]) -> Node:
        start = self._start(self.leaf)
        stage = self.plan.compact.train
        if start is not None and stage is None and start.method == "base" and self.levels:
            return start  # a checkpoint is a leaf as it stands; its branches learn the task
        spec = self.runs.spec(
            stage or StageTable(), self.leaf, "leaf", last=not self._trained_above(0), among=self._trees(0)
        )
        parents = (start.name,) if start else ()
        seed = self._seed(path)
        name = _name("leaf", path)
        return self._add(Node(name, 0, "leaf", parents, self.leaf, seed, train=replace(spec, order_seed=seed)))

    def _start(self, shape: AnyShape, name: str = "") -> Node | None:
        """What a model of *shape* starts from, made once: a checkpoint, masked-LM pre-training, or (None) chance."""
        if self.origin is not None:
            node = Node("base", 0, "base", (), shape, self.plan.seed, source=self.origin.content)
        elif self.plan.compact.pretrain is not None and isinstance(shape, EncoderShape):
            masked = shape.masked()
            spec = self.runs.spec(self.plan.compact.pretrain, masked, "pretrain", last=True, objective="masked")
            node = Node(name or "pretrain", 0, "pretrain", (), masked, self.plan.seed, train=spec)
        else:
            return None
        return next((known for known in self.nodes if known.name == node.name), None) or self._add(node)

    def _student(self, level: int, table: LevelTable, path: tuple[int, ...]) -> Node:
        """A new leaf, taught by the node below."""
        teacher = self.shared.get(level) or self.node_of(level - 1, () if table.teacher == "shared" else path)
        if table.teacher == "shared":
            self.shared[level] = teacher
        start = self._start(self.leaf)
        stage = table.student or StudentTable()
        seed = self._seed(path) + 1_000_003 * level  # not one of the seeds that the teachers began with
        last = not self._trained_above(level)
        spec = self.runs.spec(
            stage, self.leaf, "student", last=last, among=self._trees(level), teachers=(teacher.shape,)
        )
        spec = replace(spec, distill=stage.distill, temperature=stage.temperature, order_seed=seed)
        return self._add(
            Node(
                _name(f"level-{level}-distill", path),
                level,
                "distill",
                (start.name,) if start else (),
                self.leaf,
                seed,
                train=spec,
                teachers=(teacher.name,),
            )
        )

    def _members(self, level: int, table: LevelTable, path: tuple[int, ...]) -> list[Node]:
        if table.copies is not None:
            return [self.node_of(level - 1, path)]
        if table.branch is None:
            return [self.node_of(level - 1, (*path, i)) for i in range(table.size)]
        below = self.node_of(level - 1, path)
        spec = self.runs.spec(
            table.branch,
            below.shape,
            "branch",
            last=not self._trained_above(level - 1, branch_done=True),
            among=table.size * self._trees(level),
            parts=table.size,
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
        if "domain" in branch.vary:
            domain = list(self.plan.data.domains)[index]
            if branch.tokens is None and (branch.epochs is not None or self.plan.budget is None):
                tokens = spec.tokens * table.size * self.size.domains[domain] / sum(self.size.domains.values())
                spec = replace(spec, tokens=round(tokens))
            spec = replace(spec, domain=domain)
        spec = replace(
            spec,
            shard=(index, table.size) if by_data else (0, 1),
            order_seed=self._seed(path) if by_data else seed,
            start_tokens=0 if spec.domain else self.read[below.name] // (table.size if by_data else 1),
            **own,  # type: ignore[arg-type]
        )
        name = _name(f"level-{level}-branch-{index + 1}", path)
        return self._add(Node(name, level, "branch", (below.name,), below.shape, seed, train=whole_steps(spec)))

    def _aggregated(self, level: int, table: LevelTable, members: list[Node], path: tuple[int, ...]) -> Node:
        shape = members[0].shape
        if table.method == "stack":
            shape = shape.stacked(table.size)
        elif table.method == "upcycle":
            shape = self._upcycled(shape, table.size)
        elif table.method == "ensemble":
            shape = shape.ensembled(table.size)
        weights = tuple(table.weights) if isinstance(table.weights, list) else table.weights
        weights_tokens = table.weights_tokens or WEIGHTS_TOKENS[self.objective]
        spec = AggregateSpec(table.method, weights, table.per, weights_tokens, table.copies or 1)
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
        share = "last" if level == len(self.levels) else "heal"
        teachers = aggregated.parents if heal.distill > 0 else ()
        taught = [self._node(name).shape for name in teachers]
        spec = self.runs.spec(heal, aggregated.shape, share, last=last, among=self._trees(level), teachers=taught)
        spec = replace(
            spec,
            distill=heal.distill,
            temperature=heal.temperature,
            start_tokens=self.read[aggregated.name],
            order_seed=self._seed(path),
        )
        name = _name(f"level-{level}-heal", path)
        node = Node(
            name, level, "heal", (aggregated.name,), aggregated.shape, self._seed(path), train=spec, teachers=teachers
        )
        return self._add(node)

    def _trained_above(self, level: int, *, branch_done: bool = False) -> bool:
        """Whether the weights of *level*'s node are trained further on its way up; a student begins with its own."""
        rest = list(takewhile(lambda table: table.method != "distill", self.levels[level:]))
        return any((table.branch and not (branch_done and i == 0)) or table.heal for i, table in enumerate(rest))

    def _trees(self, level: int) -> int:
        """How many trees like that below *level* there are: the levels above whose members are whole trees."""
        count = 1
        for table in reversed(self.levels[level:]):
            if table.teacher == "shared":
                count = 1
            elif table.members is not None and table.branch is None:
                count *= table.members
        return count

    def _upcycled(self, shape: AnyShape, experts: int) -> AnyShape:
        if not isinstance(shape, Shape):
            raise BadInput(
                f"upcycle makes experts of decoders' feed-forwards, not of an {self.plan.kind}'s",
                'Use method = "merge", "stack" or "ensemble"',
            )
        return shape.upcycled(experts)

    def baseline(self, graph: Graph) -> Node:
        """One model of about the final size, from the leaf's beginning, with the FLOPs of the whole tree."""
        shape = single_shape(graph[graph.final].shape, self.leaf)
        start = self._start(shape, "" if shape == self.leaf else "baseline-pretrain")
        below = 0.0
        if start is not None and start.train is not None:
            own = graph["pretrain"]
            if start.name != own.name:  # the same FLOPs of pre-training as the tree's own
                start = replace(start, train=self._same_flops(start, graph.own_flops(own.name)))
                self.nodes[-1] = start
            below = graph.own_flops(own.name)
        values = self.runs.values(self.objective, self.plan.baseline, last=True)
        spec = TrainSpec(**values, tokens=1, order_seed=self.plan.seed)
        parents = (start.name,) if start else ()
        node = Node("baseline", len(self.levels), "baseline", parents, shape, self.plan.seed, train=spec)
        return self._add(replace(node, train=self._same_flops(node, graph.total_flops(graph.final) - below)))

    @staticmethod
    def _same_flops(node: Node, flops: float) -> TrainSpec:
        """The run of *node*, as long as *flops* last."""
        assert node.train is not None
        spec = node.train
        each = node.shape.train_flops_per_token(spec.block_size, spec.batch_tokens, spec.optimizer)
        return whole_steps(replace(spec, tokens=round(flops / each)))

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


def _name(base: str, path: tuple[int, ...]) -> str:
    return base if not path else f"{base}-of-{'.'.join(str(i + 1) for i in path)}"
