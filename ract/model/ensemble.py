"""An ensemble as one Hugging Face model: children run side by side, their outputs are added with weights α.

``mode="logits"`` gives ``logits = Σ αᵢ logitsᵢ``, ``mode="probabilities"`` ``logits = log Σ αᵢ softmax(logitsᵢ)``.
On disk the weights are ``members.<i>.<the child's own name>`` and the config holds each member's whole config, so an
ensemble is saved, loaded and generated from like any model. Importing this module registers it with the Auto classes.

Members run one after the other. Running equally shaped members as one batch (``torch.func.stack_module_state`` with
``vmap``) was measured and is not used: see ``docs/decisions/0006-ensembles-run-member-by-member.md``.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    DynamicCache,
    EncoderDecoderCache,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.modeling_outputs import (
    BaseModelOutput,
    CausalLMOutputWithPast,
    MaskedLMOutput,
    Seq2SeqLMOutput,
    SequenceClassifierOutput,
)
from transformers.utils import can_return_tuple

from ract.errors import BadInput
from ract.model.ensemble_cache import EnsembleCache
from ract.model.ensemble_config import EnsembleConfig
from ract.model.live import ENSEMBLE, live_config, model_class


class _Ensemble(PreTrainedModel):
    config_class = EnsembleConfig
    base_model_prefix = ""
    _supports_sdpa = True

    def __init__(self, config: EnsembleConfig) -> None:
        super().__init__(config)
        configs = [live_config(member) for member in config.members]
        classes = [model_class(member) for member in config.members]
        self.members = nn.ModuleList(cls(one) for cls, one in zip(classes, configs, strict=True))
        self._check_outputs()
        self.post_init()
        self._adopt()

    def _adopt(self) -> None:
        """Take over what members declare: ``transformers`` asks direct children, and members are one list deeper."""
        self.all_tied_weights_keys = self.get_expanded_tied_weights_keys(all_submodels=True)
        for index, member in enumerate(self._members()):
            self._keys_to_ignore_on_save.update(f"members.{index}.{key}" for key in member._keys_to_ignore_on_save)
            self._keys_to_ignore_on_load_missing.update(member._keys_to_ignore_on_load_missing)
            self._keys_to_ignore_on_load_unexpected.update(member._keys_to_ignore_on_load_unexpected)

    def _members(self) -> list[PreTrainedModel]:
        return list(self.members)

    def _check_outputs(self) -> None:
        if not self._members():
            raise BadInput("an ensemble has no members", "Give at least one child")
        for field in ("num_labels",) if self._classifies else ("vocab_size",):
            sizes = sorted({getattr(member.config, field) for member in self._members()})
            if len(sizes) > 1:
                raise BadInput(f"members differ in {field}: {sizes}", "Only models with the same outputs can be added")

    @property
    def _classifies(self) -> bool:
        return isinstance(self, EnsembleForSequenceClassification)

    def get_input_embeddings(self) -> nn.Module:
        return self._members()[0].get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module | None:
        return None  # every member has its own head

    def _init_weights(self, module: nn.Module) -> None:
        """Members initialise themselves when they are built."""

    def _run(self, inputs: dict[str, Any], own: Callable[[int], dict[str, Any]] = lambda index: {}) -> list[Any]:
        """The outputs of every member on *inputs* (those it takes and that are given) and on what is its *own*."""
        outputs = []
        for index, member in enumerate(self._members()):
            known = inspect.signature(member.forward).parameters
            open_ended = any(p.kind is p.VAR_KEYWORD for p in known.values())
            given = {k: v for k, v in inputs.items() if v is not None and (k in known or open_ended)}
            outputs.append(member(**given, **own(index), return_dict=True))
        return outputs

    def _combined(self, outputs: list[Any], keep: int | torch.Tensor = 0) -> torch.Tensor:
        """The ensemble's logits from its members', added in fp32; *keep* > 0: those of the last positions only."""
        logits = [output.logits.to(torch.promote_types(output.logits.dtype, torch.float32)) for output in outputs]
        if isinstance(keep, int) and keep:
            logits = [one[:, -keep:] for one in logits]
        if self.config.mode == "logits":
            return sum(weight * one for weight, one in zip(self.config.weights, logits, strict=True))
        alpha = [math.log(weight) if weight > 0 else -math.inf for weight in self.config.weights]
        return torch.stack([a + one.log_softmax(-1) for a, one in zip(alpha, logits, strict=True)]).logsumexp(0)


class _Generating(_Ensemble, GenerationMixin):
    def __init__(self, config: EnsembleConfig) -> None:
        super().__init__(config)
        # The first member knows what its own config class says about generation (forced tokens, start tokens).
        self.generation_config = copy.deepcopy(self._members()[0].generation_config)
        self.generation_config._from_model_config = False

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """Let every member make the cache it wants; ``generate`` calls this before the first step."""
        given = model_kwargs.get("past_key_values")
        if given is not None and not isinstance(given, EnsembleCache):
            raise BadInput(f"an ensemble cannot continue from a {type(given).__name__}", "Give an EnsembleCache")
        caches = []
        for member in self._members() if given is None else ():
            own: dict[str, Any] = {}
            member._prepare_cache_for_generation(generation_config, own, *args, **kwargs)
            caches.append(own.get("past_key_values"))
        if caches and all(cache is not None for cache in caches):
            model_kwargs["past_key_values"] = EnsembleCache(caches)

    def _caches(self, given: EnsembleCache | None, use_cache: bool | None) -> EnsembleCache | None:
        if given is not None or not use_cache:
            return given
        caches = [DynamicCache(config=member.config.get_text_config(decoder=True)) for member in self._members()]
        if self.config.is_encoder_decoder:
            return EnsembleCache([EncoderDecoderCache(cache, DynamicCache()) for cache in caches])
        return EnsembleCache(caches)


class EnsembleForCausalLM(_Generating):
    """Decoders side by side: ``logits`` of shape (batch, sequence, vocabulary); *labels* are shifted here."""

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        position_ids: torch.Tensor | None = None,
        past_key_values: EnsembleCache | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Run every member on the same tokens and add their logits; the mean loss when *labels* are given."""
        caches = self._caches(past_key_values, use_cache)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        extra = {"use_cache": caches is not None, "logits_to_keep": logits_to_keep or None}
        outputs = self._run({**inputs, **extra}, lambda i: {"past_key_values": caches.members[i]} if caches else {})
        logits = self._combined(outputs, logits_to_keep)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=caches)


class EnsembleForMaskedLM(_Ensemble):
    """Encoders side by side: ``logits`` of shape (batch, sequence, vocabulary)."""

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> MaskedLMOutput:
        """Run every member on the same tokens and add their logits; the mean loss when *labels* are given."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        logits = self._combined(self._run({**inputs, "token_type_ids": token_type_ids}))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        return MaskedLMOutput(loss=loss, logits=logits)


class EnsembleForSequenceClassification(_Ensemble):
    """Classifiers side by side: ``logits`` of shape (batch, labels)."""

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Run every member on the same tokens and add their logits; the mean loss when *labels* are given."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        logits = self._combined(self._run({**inputs, "token_type_ids": token_type_ids}))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config, **kwargs)
        return SequenceClassifierOutput(loss=loss, logits=logits)


class EnsembleForSeq2SeqLM(_Generating):
    """Encoder-decoders side by side: ``logits`` of shape (batch, target, vocabulary); *labels* are shifted here.

    The encoders' outputs travel as one tensor (batch, source, Σ hidden sizes), so that ``generate`` can repeat and
    reorder them like a single model's.
    """

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """All encoders as one module; it is not part of the model's own modules."""
        return _Encoders(self)

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """The labels shifted right, as the first member does it."""
        return self._members()[0].prepare_decoder_input_ids_from_labels(labels)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: EnsembleCache | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        """Run every member on the same tokens and add their logits; the mean loss when *labels* are given."""
        if labels is not None and decoder_input_ids is None:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        if encoder_outputs is None:
            encoder_outputs = self.get_encoder()(input_ids=input_ids, attention_mask=attention_mask)
        sizes = [member.config.hidden_size for member in self._members()]
        states = encoder_outputs[0].split(sizes, dim=-1)
        caches = self._caches(past_key_values, use_cache)

        def own(index: int) -> dict[str, Any]:
            encoded = {"encoder_outputs": BaseModelOutput(last_hidden_state=states[index])}
            return {**encoded, "past_key_values": caches.members[index]} if caches else encoded

        inputs = {"attention_mask": attention_mask, "decoder_input_ids": decoder_input_ids}
        extra = {"decoder_attention_mask": decoder_attention_mask, "use_cache": caches is not None}
        logits = self._combined(self._run({**inputs, **extra}, own))
        loss = None
        if labels is not None:
            flat = logits.flatten(0, -2)
            loss = nn.functional.cross_entropy(flat, labels.flatten().to(flat.device))
        return Seq2SeqLMOutput(
            loss=loss, logits=logits, past_key_values=caches, encoder_last_hidden_state=encoder_outputs[0]
        )


class _Encoders(nn.Module):
    """The encoders of an ensemble as one: their last hidden states side by side."""

    main_input_name = "input_ids"

    def __init__(self, ensemble: EnsembleForSeq2SeqLM) -> None:
        super().__init__()
        self._encoders = [member.get_encoder() for member in ensemble._members()]  # a plain list: no second owner

    def forward(
        self, input_ids: torch.Tensor | None = None, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutput:
        """Hidden states of shape (batch, source, Σ hidden sizes)."""
        states = [encoder(input_ids=input_ids, attention_mask=attention_mask)[0] for encoder in self._encoders]
        return BaseModelOutput(last_hidden_state=torch.cat(states, dim=-1))


AutoConfig.register(ENSEMBLE, EnsembleConfig, exist_ok=True)
AutoModelForCausalLM.register(EnsembleConfig, EnsembleForCausalLM, exist_ok=True)
AutoModelForMaskedLM.register(EnsembleConfig, EnsembleForMaskedLM, exist_ok=True)
AutoModelForSeq2SeqLM.register(EnsembleConfig, EnsembleForSeq2SeqLM, exist_ok=True)
AutoModelForSequenceClassification.register(EnsembleConfig, EnsembleForSequenceClassification, exist_ok=True)
