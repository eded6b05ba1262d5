"""Members of an ensemble one after the other, or as one batch: which is faster on a CPU, and is it the same?

    python -m benchmarks.ensemble_execution

prints the tables of ``docs/decisions/0006-ensembles-run-member-by-member.md``.
"Batched" is ``torch.func.stack_module_state`` with ``vmap``: every matrix product of the members becomes one batched
product. The stacked copy of the weights is made beforehand; what it costs to make is the last column. Times are CPU
time of this process on one thread, so that a shared machine does not decide.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import torch
import transformers
from torch.func import functional_call, stack_module_state, vmap
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from tests.pico import ZOO, pico

MEMBERS = 4


def best_ms(run: Callable[[], object], seconds: float = 3.0) -> float:
    run()
    times, end = [], time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return 1e3 * min(times)


def both(members: list[PreTrainedModel], ids: torch.Tensor) -> tuple[Callable[[], torch.Tensor], ...]:
    """One forward pass of all members without a cache: one after the other, and batched."""
    parameters, buffers = stack_module_state(members)
    shape = copy.deepcopy(members[0])

    def one(own: dict[str, torch.Tensor], constant: dict[str, torch.Tensor]) -> torch.Tensor:
        return functional_call(shape, (own, constant), kwargs={"input_ids": ids, "use_cache": False}).logits

    return (
        lambda: torch.stack([member(input_ids=ids, use_cache=False).logits for member in members]),
        lambda: vmap(one)(parameters, buffers),
    )


def decoders(hidden: int, blocks: int) -> list[PreTrainedModel]:
    config = LlamaConfig(
        vocab_size=4096, hidden_size=hidden, num_hidden_layers=blocks, num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 64, intermediate_size=3 * hidden, max_position_embeddings=512,
    )  # fmt: skip
    return [LlamaForCausalLM(config).eval() for _ in range(MEMBERS)]


@torch.no_grad()
def main() -> None:
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    print("| 4 decoders of | tokens | one by one, ms | batched, ms | largest difference | stacking, ms |")
    print("|---|---|---|---|---|---|")
    for hidden, blocks in ((64, 2), (192, 4), (384, 8)):
        members = decoders(hidden, blocks)
        stacking = best_ms(lambda members=members: stack_module_state(members), 1.0)
        for batch, length in ((1, 1), (1, 128), (8, 256)):
            loop, batched = both(members, torch.randint(0, 4096, (batch, length)))
            difference = (loop() - batched()).abs().max().item()
            times = f"{best_ms(loop):.2f} | {best_ms(batched):.2f}"
            print(
                f"| {blocks} × {hidden} | {batch} × {length} | {times} | {difference:.1e} | {stacking:.1f} |",
                flush=True,
            )
    print("\n| architecture | largest difference, or why it cannot be batched |\n|---|---|")
    for name in (
        name for name, (model_class, _, _) in ZOO.items() if "CausalLM" in model_class or "LMHead" in model_class
    ):
        members = [pico(name, seed) for seed in range(MEMBERS)]
        try:
            loop, batched = both(members, torch.randint(3, 90, (2, 7)))
            print(f"| {name} | {(loop() - batched()).abs().max().item():.1e} |")
        except RuntimeError as error:
            print(f"| {name} | {' '.join(str(error).split())[:90]} |")


if __name__ == "__main__":
    main()
