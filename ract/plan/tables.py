"""The tables of a plan that say what to read and how to train; :mod:`ract.plan.schema` has those of the tree."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

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
    label_names: dict[str, str] = Field(
        default={}, description='classification: what the classes are called, e.g. { 0 = "negative", 1 = "positive" }'
    )
    source_field: str = Field(default="source", description="translation: the field or column to translate from")
    target_field: str = Field(default="target", description="translation: the field or column to translate into")
    source_language: str = Field(default="", description='translation: code of the language, e.g. "en"')
    target_language: str = Field(default="", description='translation: e.g. "de" or "zh"; decides how BLEU cuts words')
    prefix: str = Field(
        default="",
        description="translation, with compact.from: what stands before every source, as T5 wants it "
        '("translate English to German: ") and Marian of many languages (">>cmn<<")',
    )
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
        if self.prefix and self.task != "translation":
            raise ValueError("prefix is for translation")
        if self.task == "translation" and not (self.source_language and self.target_language):
            raise ValueError('translation needs source_language and target_language, e.g. "en" and "zh"')
        return self


class TokenizerTable(Table):
    """``[tokenizer]``: a byte-level BPE trained on the train split."""

    vocab_size: Count = 4096
    lowercase: bool = Field(default=False, description="classification: upper case makes no difference")


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
    token_splits: Fraction | None = Field(
        default=None, description="classification: share of the tokens of a training text that are shown in two pieces"
    )
    token_dropout: Fraction | None = Field(
        default=None, description="classification: share of the tokens of a training text that are hidden"
    )
    dropout: Fraction | None = Field(
        default=None,
        description="language modelling: share of what the embedding and every attention and feed-forward give that is "
        "dropped in training",
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


class StudentTable(HealTable):
    """``student``: the training of a fresh compact transformer that learns from the node below."""

    distill: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    temperature: Positive = 2.0
