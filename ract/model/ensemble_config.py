"""The config of an ensemble: its members' whole configs, α, and what is added."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig

from ract.errors import BadInput
from ract.model.live import ENSEMBLE, live_config

MODES = ("logits", "probabilities")
# What generation and classification read from a config; taken from the first member.
_SHARED_FIELDS = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "source_language", "target_language",
    "is_encoder_decoder", "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id",
    "id2label", "label2id", "problem_type",
)  # fmt: skip


class EnsembleConfig(PretrainedConfig):
    """*members*: the children's whole configs, each with its ``architectures``; *weights*: α; *mode*: see the module.

    Raises BadInput: no members, not one weight for each, an unknown mode, or negative weights of probabilities.
    """

    model_type = ENSEMBLE

    def __init__(
        self,
        members: Sequence[dict[str, Any]] | None = None,
        weights: Sequence[float] | None = None,
        mode: str = "logits",
        **kwargs: Any,
    ) -> None:
        self.members = [dict(member) for member in members or ()]
        count = len(self.members)
        self.weights = [float(w) for w in weights] if weights is not None else [1.0 / max(count, 1)] * count
        self.mode = mode
        if len(self.weights) != count:
            raise BadInput(
                f"an ensemble of {count} members has {len(self.weights)} weights", "Give one for each member"
            )
        if mode not in MODES:
            raise BadInput(f'"{mode}" is no mode of an ensemble', f"Known: {', '.join(MODES)}")
        if mode == "probabilities" and min(self.weights, default=0.0) < 0:
            raise BadInput("probabilities cannot be mixed with negative weights", 'Use mode "logits"')
        if self.members:
            configs = [live_config(member) for member in self.members]
            for name in _SHARED_FIELDS:
                if kwargs.get(name) is None and getattr(configs[0], name, None) is not None:
                    kwargs[name] = getattr(configs[0], name)
            limits = [getattr(config, "max_position_embeddings", None) for config in configs]
            known = [limit for limit in limits if isinstance(limit, int) and limit > 0]
            if known and kwargs.get("max_position_embeddings") is None:
                kwargs["max_position_embeddings"] = min(known)  # the ensemble looks at what every member can
        kwargs["tie_word_embeddings"] = False  # members tie their own
        super().__init__(**kwargs)
