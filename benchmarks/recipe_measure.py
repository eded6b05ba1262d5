"""The loss of a model on held-out text, window by window: what paired comparisons are made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from benchmarks.recipe_corpora import BLOCK_SIZE

_ROWS = 16


@torch.inference_mode()
def window_losses(
    directory: Path, files: Sequence[str], block_size: int = BLOCK_SIZE
) -> dict[str, npt.NDArray[np.float64]]:
    """What the model in *directory* loses on each window of the text *files*: nats, and the tokens and bytes scored.

    Windows of *block_size* tokens that do not overlap, in fp32; separators are read and not scored, as in
    :func:`ract.evaluate.language_modeling.evaluate`. Each array has shape (windows,).
    """
    from ract.aggregate.loaded import load
    from ract.data.batches import evaluation_batches
    from ract.data.tokenizer import TextEncoder
    from ract.evaluate.language_modeling import encode_files
    from ract.train.device import best_device

    stream, _, separator = encode_files(directory, files)
    device = best_device()
    token_bytes = torch.from_numpy(np.asarray(TextEncoder(directory).token_bytes(), dtype=np.float64)).to(device)
    model = load(directory).float().eval().to(device)
    rows: list[torch.Tensor] = []
    for batch in evaluation_batches(stream, block_size, _ROWS):
        windows = torch.from_numpy(batch).to(device)
        inputs, targets = windows[:, :-1], windows[:, 1:]
        logits = model(input_ids=inputs, attention_mask=torch.ones_like(inputs), use_cache=False).logits
        nats = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none").view(targets.shape)
        counted = (targets != separator).double()
        sums = ((nats.double() * counted), counted, token_bytes[targets] * counted)
        rows.append(torch.stack([one.sum(dim=1) for one in sums], dim=1))
    table = torch.cat(rows).cpu().numpy()
    return {"nats": table[:, 0], "tokens": table[:, 1], "bytes": table[:, 2]}
