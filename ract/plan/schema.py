"""The plan file as types: an unknown key or a wrong type is one line that names the key and its nearest known one."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ract.errors import BadInput, nearest
from ract.plan.quantities import Count

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class Table(BaseModel):
    """One table of the plan file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=False)


class DomainTable(Table):
    """``[data.domains.NAME]``: sources of one domain, beside those of ``[data]``."""

    train: list[str] = Field(min_length=1)
    valid: list[str] = []
    test: list[str] = []


class DataTable(Table):
    """``[data]``: what to read and how to cut it into documents and splits."""

    task: Literal["language-modeling", "classification", "translation"] = "language-modeling"
    train: list[str] = Field(
        default=[],
        description='files, globs, folders, "hf:NAME" or "stdlib"; for translation also pairs of files whose lines '
        'correspond: ["a.en", "a.de"]',
    )
    valid: list[str] = Field(default=[], description="for choices (α, early stop); default: a part of train, by hash")
    test: list[str] = Field(default=[], description="for the numbers in the report; default: a part of train, by hash")
    document: Literal["auto", "file", "paragraph", "line"] = Field(default="auto", description="what one document is")
    text_field: str = Field(default="text", description="the field of a JSONL row or data-set row that holds the text")
    label_field: str = Field(default="label", description="classification: the field or column of the class")
    source_field: str = Field(default="source", description="translation: the field or column to translate from")
    target_field: str = Field(default="target", description="translation: the field or column to translate into")
    source_language: str = Field(default="", description='translation: code of the language, e.g. "en"')
    target_language: str = Field(default="", description='translation: e.g. "de" or "zh"; decides how BLEU cuts words')
    domains: dict[str, DomainTable] = Field(default={}, description="classification and translation: named parts")
    unlabelled: list[str] = Field(
        default=[], description="classification: further plain text, for the tokenizer and for masked-LM pre-training"
    )
    max_tokens: Count = Field(default=256, description="classification and translation: a text is cut after so many")
    valid_fraction: Fraction = 0.05
    test_fraction: Fraction = 0.05
    test_tokens: Count = Field(default=65_536, description="tokens of the test split that every node is measured on")
    test_examples: Count = Field(
        default=2_000, description="classification and translation: examples of the test split for every node"
    )

    @model_validator(mode="after")
    def _for_the_task(self) -> DataTable:
        if not self.train and not self.domains:
            raise ValueError('name at least one training source: train = ["…"]')
        if self.task == "language-modeling":
            given = [key for key in ("domains", "unlabelled") if getattr(self, key)]
            if given:
                raise ValueError(f"{given[0]} is for classification and translation, not for language-modeling")
        if self.task == "translation" and not (self.source_language and self.target_language):
            raise ValueError('translation needs source_language and target_language, e.g. "en" and "zh"')
        return self


class TokenizerTable(Table):
    """``[tokenizer]``: a byte-level BPE trained on the train split."""

    vocab_size: Count = 4096


class CompactTable(Table):
    """``[compact]``: the leaf. Give *parameters*, or *hidden_size* and *num_hidden_layers*; the rest is derived."""

    kind: Literal["decoder"] = "decoder"
    parameters: Count | None = Field(default=None, description="a budget from which the shape is derived")
    num_hidden_layers: Count | None = None
    hidden_size: Count | None = None
    num_attention_heads: Count | None = None
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    intermediate_size: Count | None = None
    max_position_embeddings: Count = 1024
    train: StageTable | None = None


class TrainTable(Table):
    """``[train]``: how every stage is trained; a stage's own table overrides single values."""

    lr: Positive | None = Field(default=None, description="peak learning rate of AdamW and of Muon (RMS-matched)")
    optimizer: Literal["muon", "adamw"] | None = Field(
        default=None, description="Muon is for the matrices of the blocks"
    )
    batch_tokens: Count | None = Field(default=None, description="tokens per optimizer step")
    micro_batch_tokens: Count | None = Field(
        default=None, description="tokens per forward pass (gradient accumulation)"
    )
    block_size: Count | None = Field(default=None, description="tokens per training window")
    weight_decay: NotNegative | None = Field(default=None, description="λ, decoupled, on matrices")
    l2_penalty: NotNegative | None = Field(default=None, description="λ of the literal λ‖θ‖² added to the loss")
    warmup: Fraction | None = Field(default=None, description="share of the stage's steps")
    decay: Fraction | None = Field(default=None, description="share of the stage's steps; 0 where training goes on")
    grad_clip: NotNegative | None = Field(default=None, description="largest gradient norm; 0 turns it off")
    ema: Fraction | None = Field(
        default=None, description="decay of the averaged weights that are saved; 0 turns it off"
    )
    label_smoothing: Fraction | None = Field(
        default=None, description="classification and translation: share of the target spread over all classes"
    )
    class_weights: Literal["none", "balanced"] | None = Field(
        default=None, description="classification: balanced makes every class count alike"
    )
    patience: int | None = Field(
        default=None, ge=0, description="evaluations without gain before an early stop; 0: never"
    )
    evaluations: Count | None = Field(default=None, description="how often the valid loss is measured in a stage")
    precision: Literal["auto", "bf16", "fp32"] | None = None


class StageTable(TrainTable):
    """A training stage: shared settings plus its length, in *tokens* or in *epochs* of its data."""

    tokens: Count | None = None
    epochs: Positive | None = None

    @model_validator(mode="after")
    def _one_length(self) -> StageTable:
        if self.tokens is not None and self.epochs is not None:
            raise ValueError("give tokens or epochs, not both")
        return self


class BranchTable(StageTable):
    """``branch``: the members of a level are copies of the node below, each trained further on its own."""

    vary: list[Literal["data", "seed", "domain"]] = ["data"]
    each: dict[Literal["lr", "weight_decay", "l2_penalty", "ema"], list[float]] = Field(
        default={}, description="one value per branch, e.g. { lr = [3e-3, 2e-3] }"
    )


class HealTable(StageTable):
    """``heal``: a training run after aggregation, taught by the parents where *distill* > 0."""

    distill: Fraction = Field(default=0.0, description="share of the loss that is KL to the α-mixture of the parents")
    temperature: Positive = 1.0


class LevelTable(Table):
    """``[[level]]``, bottom-up: *members* (branches of the node below, or whole trees) or *copies* become one."""

    method: Literal["merge", "stack", "upcycle", "ensemble"]
    members: Count | None = None
    copies: Count | None = None
    branch: BranchTable | None = None
    weights: Literal["uniform", "learned"] | list[float] = "uniform"
    per: Literal["model", "layer", "tensor"] = "model"
    weights_tokens: Count | None = Field(default=None, description="valid tokens used to learn α")
    heal: HealTable | None = None

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
    def _consistent(self) -> LevelTable:
        if (self.members is None) == (self.copies is None):
            raise ValueError("give either members or copies")
        if self.size < 2:
            raise ValueError("a level aggregates at least 2 models")
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


class Plan(Table):
    """A plan file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(default=0, ge=0)
    data: DataTable
    tokenizer: TokenizerTable = TokenizerTable()
    compact: CompactTable
    train: TrainTable = TrainTable()
    tree: TreeTable | None = None
    level: list[LevelTable] = []
    budget: BudgetTable | None = None
    baseline: BaselineTable = BaselineTable()
    prompts: list[str] = Field(default=[], description="texts to complete for the report")

    @model_validator(mode="after")
    def _levels_once(self) -> Plan:
        if self.tree is not None and self.level:
            raise ValueError("give [tree] (the dials) or [[level]] tables, not both")
        return self


CompactTable.model_rebuild()


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
        return BadInput(
            f'{source}: unknown key "{first["loc"][-1]}"{inside}', nearest(str(first["loc"][-1]), table.model_fields)
        )
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
        if isinstance(part, str):
            annotation = table.model_fields[part].annotation
            table = next(t for t in _classes(annotation) if issubclass(t, Table))
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
