"""The live model on the meta device: what a ``config.json`` stands for, without a byte of weights.

Every question about an architecture is put to the model that ``transformers`` builds from the config, never to a table
kept by hand. Building on the meta device allocates nothing, so a question may be answered by building the model twice.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from ract.errors import BadInput, nearest

ENSEMBLE = "ract-ensemble"


def read_config(source: Mapping[str, Any] | str | os.PathLike[str]) -> dict[str, Any]:
    """The config as a dictionary, from a dictionary, a ``config.json`` or the directory that holds one."""
    if isinstance(source, Mapping):
        return copy.deepcopy(dict(source))
    path = Path(source) / "config.json" if Path(source).is_dir() else Path(source)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInput(
            f"{path} cannot be read as JSON ({_line(error)})", "Give a directory that holds a model"
        ) from error
    if not isinstance(config, dict):
        raise BadInput(f"{path} holds no JSON object", "Give a directory that holds a model")
    return config


def live_config(config: Mapping[str, Any]) -> PretrainedConfig:
    """The ``transformers`` config object; BadInput when the model type is unknown or a value is refused."""
    _register_ensembles(config)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        remedy = nearest(str(model_type), CONFIG_MAPPING.keys()) if model_type else "config.json must say model_type"
        if "auto_map" in config:
            remedy = "Its code lies in the checkpoint, and code from checkpoints is never run"
        raise BadInput(f'transformers {transformers.__version__} knows no model_type "{model_type}"', remedy)
    try:
        return CONFIG_MAPPING[model_type].from_dict(copy.deepcopy(dict(config)))
    except Exception as error:
        raise BadInput(f"config.json is refused by transformers: {_line(error)}", "Mend the config") from error


def model_class(config: Mapping[str, Any]) -> type[PreTrainedModel]:
    """The class named by ``architectures``, else the bare model of the model type; BadInput when there is none."""
    names = config.get("architectures") or []
    live = live_config(config)
    if not names:
        try:
            return transformers.AutoModel._model_mapping[type(live)]
        except KeyError as error:
            raise BadInput("config.json names no architectures", 'Add "architectures": ["…"]') from error
    name = str(names[0])
    found = getattr(transformers, name, None)
    if found is None and config.get("model_type") == ENSEMBLE:
        from ract.model import ensemble

        found = getattr(ensemble, name, None)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise BadInput(f'transformers has no model class "{name}"', 'Mend "architectures" in config.json')
    return found


def build(config: Mapping[str, Any]) -> PreTrainedModel:
    """The model of *config* on the meta device, in evaluation mode; BadInput when the config makes no model."""
    cls, live = model_class(config), live_config(config)
    try:
        with torch.device("meta"):
            return cls(live).eval()
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(f"config.json makes no {cls.__name__}: {_line(error)}", "Mend the config") from error


def full_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """*config* with every field that the model type has, defaults and derived lists (``layer_types``) filled in."""
    filled = live_config(config).to_dict()
    return {**filled, **{key: value for key, value in config.items() if key not in filled}}


def saved_names(model: PreTrainedModel) -> dict[str, tuple[str, ...]]:
    """For each parameter and persistent buffer of *model*, the names ``save_pretrained`` gives it on disk.

    ``transformers`` keeps some models in memory otherwise than on disk (experts fused into one tensor, renamed heads);
    what is tied to another tensor or made anew when loading is not saved and maps to an empty tuple.
    Raises BadInput for a class that fuses on disk what it keeps apart in memory.
    """
    kept = _kept(model)
    names: dict[str, tuple[str, ...]] = {name: (name,) if name in kept else () for name in model.state_dict()}
    whole = saved_shapes(model)
    if whole.keys() != kept.keys():  # something is renamed or split: ask for each tensor by itself what becomes of it
        names |= {name: tuple(sorted(revert_weight_conversion(model, {name: kept[name]}))) for name in kept}
        odd = whole.keys() ^ {one for found in names.values() for one in found}
        if odd:
            what = f"{type(model).__name__} stores {min(odd)} in a form that is not understood"
            raise BadInput(what, "Use a model of another architecture")
    return names


def saved_shapes(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """Name on disk → shape, for everything ``save_pretrained`` writes."""
    return {name: tuple(tensor.shape) for name, tensor in revert_weight_conversion(model, _kept(model)).items()}


def _kept(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    unsaved = {*tied_names(model), *(model._keys_to_ignore_on_save or ())}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in unsaved}


def tied_names(model: PreTrainedModel) -> dict[str, str]:
    """``{tied name: the name that is saved}``, both as in memory, from the declared ties and from shared storage."""
    tied = dict(getattr(model, "all_tied_weights_keys", None) or {})
    seen: dict[int, str] = {}
    sources = dict.fromkeys(tied.values())
    named = dict(model.named_parameters(remove_duplicate=False))
    for name in [*sources, *named]:  # the declared source of a tie comes first, so that it is the one kept
        if name in named and name not in tied:
            first = seen.setdefault(id(named[name]), name)
            if first != name:
                tied[name] = first
    return tied


def traits(block: nn.Module) -> dict[str, Any]:
    """What a block computes with beside its weights: the class and the plain attributes of each of its modules.

    Keys are ``<path in the block>:<attribute>``. Left out: the block's own number, norms' settings (the config's), and
    what a first block holds for its whole stack.
    """
    found: dict[str, Any] = {}
    for path, module in block.named_modules():
        if isinstance(module, nn.Embedding):
            continue
        found[f"{path}:class"] = type(module).__name__
        for key, value in vars(module).items():
            plain = value is None or isinstance(value, (bool, int, float, str))
            own = key.startswith(("_", "has_")) or key in ("layer_idx", "training") or "Norm" in type(module).__name__
            if plain and not own:
                found[f"{path}:{key}"] = value
    return found


def _register_ensembles(config: Mapping[str, Any]) -> None:
    if config.get("model_type") == ENSEMBLE:
        import ract.model.ensemble  # noqa: F401  (importing it registers the Auto classes)


def _line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return " ".join(text.split())[:200]
