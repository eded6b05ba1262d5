"""The plan file as types: an unknown key or a wrong type is one line that names the key and its nearest known one."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from ract.errors import BadInput, nearest
from ract.plan.quantities import Count
from ract.plan.tables import (
    BranchTable,
    DataTable,
    Fraction,
    HealTable,
    NotNegative,
    Positive,
    StageTable,
    StudentTable,
    Table,
    TokenizerTable,
    TrainTable,
)

_SHAPE_KEYS = (
    "parameters",
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
)


class CompactTable(Table):
    """``[compact]``: the leaf. Give *parameters*, or *hidden_size* and *num_hidden_layers*; the rest is derived.

    Or *from*, a checkpoint that takes its place: then the shape and the tokenizer are the checkpoint's.
    """

    kind: Literal["decoder", "encoder", "encoder-decoder"] | None = Field(
        default=None,
        description="default: decoder for language-modeling, encoder for classification, encoder-decoder for "
        "translation",
    )
    from_: str | None = Field(default=None, alias="from", description="the directory of a Hugging Face checkpoint")
    parameters: Count | None = Field(default=None, description="a budget from which the shape is derived")
    num_hidden_layers: Count | None = None
    hidden_size: Count | None = None
    num_attention_heads: Count | None = None
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    intermediate_size: Count | None = None
    max_position_embeddings: Count = 1024
    dropout: Fraction | None = Field(
        default=None, description="encoder and encoder-decoder: default 0.1; of a checkpoint: its own"
    )
    pretrain: StageTable | None = Field(
        default=None, description="encoder: masked-language-model training on the texts and on data.unlabelled"
    )
    train: StageTable | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> CompactTable:
        shaped = [key for key in _SHAPE_KEYS if getattr(self, key) is not None]
        if self.from_ is not None and shaped:
            raise ValueError(f"{shaped[0]} and from cannot both be given: the checkpoint has its shape")
        return self


class LevelTable(Table):
    """``[[level]]``, bottom-up: *members* (branches of the node below, or whole trees) or *copies* become one.

    With ``method = "distill"`` the node below, usually an ensemble, teaches a new leaf: the way down in size.
    """

    method: Literal["merge", "stack", "upcycle", "ensemble", "distill"]
    members: Count | None = None
    copies: Count | None = None
    branch: BranchTable | None = None
    weights: Literal["uniform", "learned"] | list[float] = "uniform"
    per: Literal["model", "layer", "tensor"] = "model"
    weights_tokens: Count | None = Field(default=None, description="valid tokens used to learn α")
    heal: HealTable | None = None
    student: StudentTable | None = Field(default=None, description="distill: how the student is trained")
    teacher: Literal["own", "shared"] = Field(
        default="own", description="distill: where several trees follow above, a tree below for each student or one"
    )

    @field_validator("weights")
    @classmethod
    def _simplex(cls, weights: Any) -> Any:
        if isinstance(weights, list):
            if not all(math.isfinite(w) for w in weights):
                raise ValueError("α must be finite numbers")
            if abs(math.fsum(weights) - 1) > 1e-6:
                raise ValueError(f"α must sum to 1, not {math.fsum(weights):g}")
        return weights

    @model_validator(mode="after")
    def _student_or_members(self) -> LevelTable:
        if self.method == "distill":
            given = [k for k in ("members", "copies", "branch", "heal") if getattr(self, k) is not None]
            if given:
                raise ValueError(f"distill teaches one student: leave {given[0]} out (its training is student = {{…}})")
        elif self.teacher == "shared":
            raise ValueError(f"teacher belongs to distill, not to {self.method}")
        elif self.student is not None:
            raise ValueError(f"student belongs to distill, not to {self.method}: use heal")
        elif (self.members is None) == (self.copies is None):
            raise ValueError("give either members or copies")
        elif self.size < 2:
            raise ValueError("a level aggregates at least 2 models")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> LevelTable:
        if self.copies is not None and self.method in ("merge", "ensemble"):
            raise ValueError(f"copies of one model have nothing to {self.method}: use members")
        if self.copies is not None and self.weights != "uniform":
            raise ValueError("copies of one model are equal, whatever their weights: leave weights out")
        if self.weights == "learned" and self.method != "merge":
            raise ValueError(f"α can be learned for merge, not for {self.method}: give the weights, or use uniform")
        if self.copies is not None and self.branch is not None:
            raise ValueError("copies are not trained apart: use members with branch")
        if self.method == "merge" and self.branch is None:
            raise ValueError("merge needs members with a shared ancestor: add branch = { tokens = … }")
        if isinstance(self.weights, list) and len(self.weights) != self.size:
            raise ValueError(f"{len(self.weights)} weights for {self.size} members")
        for key, values in (self.branch.each if self.branch else {}).items():
            if len(values) != self.size:
                raise ValueError(f"branch.each.{key} has {len(values)} values for {self.size} members")
        return self

    @property
    def size(self) -> int:
        """How many models go into one node of this level."""
        return self.members or self.copies or 0


class TreeTable(Table):
    """``[tree]``: the dials instead of written levels: how many compact models, and how deep the recursion."""

    compact_models: Count
    depth: Count = 2


class BudgetTable(Table):
    """``[budget]``: what the whole tree may spend; stages without a length of their own share it."""

    flops: Count


class BaselineTable(Table):
    """``[baseline]``: one model of the final size trained with the tree's total FLOPs, for comparison."""

    enabled: bool = True
    lr: Positive | None = None
    weight_decay: NotNegative | None = None


KIND_OF_TASK = {"language-modeling": "decoder", "classification": "encoder", "translation": "encoder-decoder"}


class Plan(Table):
    """A plan file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(default=0, ge=0)
    data: DataTable
    tokenizer: TokenizerTable = TokenizerTable()
    compact: CompactTable
    train: TrainTable = TrainTable()
    tree: TreeTable | None = None
    level: list[LevelTable] = Field(default=[])
    budget: BudgetTable | None = None
    baseline: BaselineTable = BaselineTable()
    prompts: list[str] = Field(default=[], description="texts to complete for the report")

    @model_validator(mode="after")
    def _levels_once(self) -> Plan:
        if self.tree is not None and self.level:
            raise ValueError("give [tree] (the dials) or [[level]] tables, not both")
        return self

    @property
    def kind(self) -> str:
        """What the compact model is: as given, else what the task asks for."""
        return self.compact.kind or KIND_OF_TASK[self.data.task]

    @model_validator(mode="after")
    def _kind_suits_task(self) -> Plan:
        task, kind = self.data.task, self.compact.kind
        if kind is not None and kind != KIND_OF_TASK[task]:
            raise ValueError(f'compact.kind = "{kind}" does not do {task}: it takes "{KIND_OF_TASK[task]}"')
        if self.compact.pretrain is not None and task != "classification":
            raise ValueError("compact.pretrain (masked language modelling) is for classification")
        if self.data.prefix and self.compact.from_ is None:
            raise ValueError("data.prefix is for a checkpoint that was trained with it: give compact.from")
        if self.compact.dropout is not None and self.kind == "decoder":
            raise ValueError(
                "compact.dropout is for encoders and encoder-decoders; of a decoder's training: train.dropout"
            )
        dropped = [where for where, stage in self._stages() if stage is not None and stage.dropout is not None]
        if dropped and self.kind != "decoder":
            raise ValueError(f"{dropped[0]}.dropout is for decoders; of an {self.kind}: compact.dropout")
        return self

    def _stages(self) -> list[tuple[str, TrainTable | None]]:
        """Every table of training with its place in the plan."""
        stages = [("train", self.train), ("compact.train", self.compact.train)]
        stages.append(("compact.pretrain", self.compact.pretrain))
        for number, level in enumerate(self.level):
            stages += [(f"level[{number}].{key}", getattr(level, key)) for key in ("branch", "heal", "student")]
        return stages

    @model_validator(mode="after")
    def _a_branch_for_each_domain(self) -> Plan:
        for number, level in enumerate(self.level):
            if level.branch is None or "domain" not in level.branch.vary:
                continue
            if level.size != len(self.data.domains):
                raise ValueError(
                    f'level[{number}]: vary = ["domain"] needs as many members as there are data.domains '
                    f"({len(self.data.domains)}), not {level.size}"
                )
            if "data" in level.branch.vary:
                raise ValueError(f'level[{number}]: vary takes "domain" or "data", not both')
        return self


def load_plan(path: str | Path) -> Plan:
    """Read and check a plan file. Raises BadInput naming the file, the key and what would be right."""
    file = Path(path)
    if not file.is_file():
        raise BadInput(f"{file} does not exist", "Give the path of a plan, or write one: ract init")
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise BadInput(f"{file} is not UTF-8 text (byte {error.start})", "Save the plan as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"{file} is not valid TOML: {error}", "Correct that line") from error
    return parse_plan(values, str(file))


def parse_plan(values: dict[str, Any], source: str = "plan") -> Plan:
    """A plan from already parsed TOML; *source* stands in the error message."""
    try:
        return Plan.model_validate(values)
    except ValidationError as error:
        raise _explained(error, source) from error


def _explained(error: ValidationError, source: str) -> BadInput:
    first = error.errors(include_url=False)[0]
    place = _place(first["loc"])
    if first["type"] == "extra_forbidden":
        table = _table_at(first["loc"][:-1])
        inside = f" in [{_place(first['loc'][:-1])}]" if len(first["loc"]) > 1 else ""
        known = [field.alias or name for name, field in table.model_fields.items()]
        return BadInput(f'{source}: unknown key "{first["loc"][-1]}"{inside}', nearest(str(first["loc"][-1]), known))
    if first["type"] == "missing":
        return BadInput(f'{source}: the key "{place}" is missing', "Add it; ract init writes a complete plan")
    message = first["msg"].removeprefix("Value error, ")
    value = "" if isinstance(first["input"], dict) else f" (it is {first['input']!r})"
    return BadInput(f"{source}: {place or 'the plan'}: {message[0].lower()}{message[1:]}{value}", "Correct that value")


def _place(loc: tuple[int | str, ...]) -> str:
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        elif not part.startswith(("literal[", "list[", "function-")):
            text += f".{part}" if text else part
    return text


def _table_at(loc: tuple[int | str, ...]) -> type[Table]:
    table: type[Table] = Plan
    for part in loc:
        if isinstance(part, str) and part in table.model_fields:
            annotation = table.model_fields[part].annotation
            table = next((t for t in _classes(annotation) if issubclass(t, Table)), table)
    return table


def _classes(annotation: Any) -> list[type]:
    arguments = getattr(annotation, "__args__", ())
    return (
        [c for a in arguments for c in _classes(a)]
        if arguments
        else [annotation]
        if isinstance(annotation, type)
        else []
    )
