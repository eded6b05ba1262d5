"""How fast this machine trains: a few real steps at three widths.

Run as a process of its own: ``python -m ract.train.calibrate THREADS``.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

WIDTHS = (64, 192, 384)
_STEPS = 3


def main() -> None:
    """Print FLOP/s by width as JSON."""
    import numpy as np
    import torch

    from ract.cost import derive_shape
    from ract.machine import freed_memory_kept
    from ract.model.compact import new_compact_transformer
    from ract.plan.defaults import default_train_spec
    from ract.train.node import TrainingRun
    from ract.train.objectives import NextToken

    torch.set_num_threads(int(sys.argv[1]))
    speeds = {}
    for width in WIDTHS:
        shape = derive_shape(2048, width, 3)
        spec = default_train_spec(tokens=2 * 4096)
        tokens = np.random.default_rng(0).integers(0, shape.vocab_size, 200_000).astype(np.uint16)
        run = TrainingRun(new_compact_transformer(shape, seed=0), spec, NextToken(spec, tokens, None))
        with freed_memory_kept():
            run.step(0)
            # The fastest of a few: what the machine can do when nothing else is running.
            seconds = min(_timed(run.step, step) for step in range(1, 1 + _STEPS))
        each = shape.train_flops_per_token(spec.block_size, spec.batch_tokens, spec.optimizer)
        speeds[str(width)] = each * spec.batch_tokens / seconds
    print(json.dumps(speeds))


def _timed(work: Callable[[int], float], argument: int) -> float:
    started = time.perf_counter()
    work(argument)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
