"""``ract inspect`` of one model: its shapes, size and lineage, read from the headers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ract.checkpoint.directory import open_model
from ract.checkpoint.lineage import Lineage, content_hash
from ract.checkpoint.tensors import TensorReader
from ract.model.anatomy import anatomy


@dataclass(frozen=True)
class Summary:
    """One model: *parameters* counts stored elements, *dtypes* how many of them are in which dtype."""

    path: Path
    model_class: str
    parameters: int
    size_bytes: int
    dtypes: dict[str, int]
    vocabulary: int | None
    hidden_size: int | None
    stacks: dict[str, int]
    tied: bool
    content: str
    lineage: Lineage | None

    def rows(self) -> list[tuple[str, str]]:
        """What to show, label and value."""
        blocks = ", ".join(
            f"{depth} ({name})" if len(self.stacks) > 1 else str(depth) for name, depth in self.stacks.items()
        )
        rows = [
            ("class", self.model_class),
            ("parameters", f"{self.parameters:,}"),
            ("size", f"{self.size_bytes / 1e6:.2f} MB ({', '.join(self.dtypes)})"),
            ("blocks", blocks or "none recognised"),
            ("hidden size", str(self.hidden_size or "unknown")),
            ("vocabulary", f"{self.vocabulary:,}" if self.vocabulary else "unknown"),
            ("embeddings", "tied with the head" if self.tied else "not tied"),
            ("content", self.content[:12]),
        ]
        return rows + (_lineage_rows(self.lineage) if self.lineage else [("lineage", "none: not made by ReAct")])


def summarize(path: Path) -> Summary:
    """The summary of the model directory *path*. Raises BadInput when it is none or its config makes no model."""
    model = open_model(path)
    shape = anatomy(path)
    with TensorReader.of(model) as reader:
        dtypes = Counter[str]()
        for info in reader.infos.values():
            dtypes[info.dtype] += info.numel
    return Summary(
        path=Path(path),
        model_class=shape.model_class,
        parameters=sum(dtypes.values()),
        size_bytes=model.size_bytes,
        dtypes=dict(dtypes.most_common()),
        vocabulary=_number(shape.config, "vocab_size"),
        hidden_size=_number(shape.config, "hidden_size", "n_embd", "d_model", "dim"),
        stacks={stack.name: stack.depth for stack in shape.stacks},
        tied=bool(set(shape.embeddings) & set(shape.head)),
        content=content_hash(Path(path)),
        lineage=model.lineage,
    )


def _number(config: dict[str, object], *keys: str) -> int | None:
    values = [config[key] for key in keys if isinstance(config.get(key), int)]
    return int(str(values[0])) if values else None


def _lineage_rows(lineage: Lineage) -> list[tuple[str, str]]:
    rows = [("method", lineage.method), ("level", str(lineage.level))]
    if lineage.parents:
        rows.append(("parents", ", ".join(parent.name for parent in lineage.parents)))
    if isinstance(lineage.weights, list):
        rows.append(("weights", ", ".join(f"{weight:.4g}" for weight in lineage.weights)))
    elif lineage.weights:
        rows.append(("weights", f"by group ({len(lineage.weights)} groups)"))
    if lineage.leaves:
        leaves = sorted(lineage.leaves.items(), key=lambda item: -item[1])
        rows.append(("leaves", ", ".join(f"{coefficient:.4g} · {leaf[:8]}" for leaf, coefficient in leaves)))
    cost = lineage.cost
    if cost.tokens:
        rows.append(("trained on", f"{cost.tokens:,} tokens, {cost.flops:.3g} FLOPs, {cost.seconds:.0f} s"))
    if cost.total_flops:
        rows.append(("FLOPs in all", f"{cost.total_flops:.3g}"))
    numbers = {
        k: v for k, v in lineage.metrics_after.items() if isinstance(v, (int, float)) and not isinstance(v, bool)
    }
    return rows + [(name.replace("_", " "), f"{value:.4g}") for name, value in numbers.items()]
