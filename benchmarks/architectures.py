"""Every architecture × every method on pico models: works, with its law checked, or refused with the reason.

    python -m benchmarks.architectures            # writes docs/architectures.md

Each cell aggregates two models of random weights by ``ract.aggregate.run.aggregate``, loads the result with
``transformers`` (no key missing or left over), runs a forward pass and checks the method's exact law.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file

from ract.aggregate.run import aggregate
from ract.errors import BadInput
from ract.model.anatomy import anatomy
from tests.pico import ZOO, children, inputs, load, output

TARGET = Path(__file__).resolve().parents[1] / "docs" / "architectures.md"
ALPHA = [0.25, 0.75]
HEAD = """# Architectures and methods

Written by `python -m benchmarks.architectures`; a test writes it again and compares. Every cell was made from two
small models with random weights (norms and biases too), loaded again with no key missing or left over, run, and held
to its law:

- **merge**: two equal models give the model back bit for bit; the tensors of two different ones are
  0.25 θ₀ + 0.75 θ₁ in fp64, rounded once;
- **stack**: two models of L blocks make one of 2 L, whose config says so, and whose block *k* is the child's bit for
  bit;
- **upcycle**: equal models under a uniform router give the model's logits (within 1e-6, the order of fp32 sums);
- **ensemble**: the logits are 0.25 logits₀ + 0.75 logits₁, exactly.

"""
NOTES = """
## What stacking does where blocks are not alike

- **ALBERT** runs one group of shared blocks `num_hidden_layers` times. The groups are stacked: two models make two
  groups, each run as often as in its own model.
- **T5** keeps the relative attention bias of a whole stack in its first block. It is blended by α like an embedding,
  since every block of the parent uses it.
- **ModernBERT**'s first block has no norm before its attention, since the embeddings end in one. Where such a block
  no longer stands first, that norm is filled with the one of its own model's embeddings; a block that has the norm
  cannot be moved to the first place.
- **Gemma 2**, **Gemma 3**, **ModernBERT** and **Qwen** models name the kind of attention of every block:
  `layer_types` follows the blocks.
"""


def check_merge(paths: list[Path], out: Path) -> None:
    """Equal children → the child; different ones → the formula."""
    aggregate([paths[0], paths[0]], out / "equal", weights=ALPHA)
    child, same = (load_file(path / "model.safetensors") for path in (paths[0], out / "equal"))
    assert child.keys() == same.keys() and all(torch.equal(child[key], same[key]) for key in child)
    aggregate(paths, out / "merge", weights=ALPHA)
    parent = load_file(out / "merge" / "model.safetensors")
    a, b = (load_file(path / "model.safetensors") for path in paths)
    for key, value in parent.items():
        assert torch.equal(value, (ALPHA[0] * a[key].double() + ALPHA[1] * b[key].double()).to(value.dtype)), key
    assert output(load(out / "merge")).isfinite().all()


def check_stack(paths: list[Path], out: Path) -> None:
    """Block k of the parent is the child's block."""
    aggregate(paths, out / "stack", method="stack", weights=ALPHA)
    parent = load(out / "stack")
    assert output(parent).isfinite().all()
    for stack in anatomy(out / "stack").stacks:
        depth = stack.depth // 2
        assert depth == anatomy(paths[0]).stack(stack.name).depth
        for place in range(stack.depth):
            theirs = load(paths[place // depth]).get_submodule(f"{stack.prefix}.{place % depth}").state_dict()
            ours = parent.get_submodule(f"{stack.prefix}.{place}").state_dict()
            own = [key for key in theirs if "relative_attention_bias" not in key]  # held for the whole stack
            assert all(torch.equal(ours[key], theirs[key]) for key in own)


def check_upcycle(paths: list[Path], out: Path) -> None:
    """Equal children and a uniform router → the child's logits."""
    aggregate([paths[0], paths[0]], out / "equal", method="upcycle", weights=ALPHA)
    parent, child = load(out / "equal"), load(paths[0])
    torch.testing.assert_close(output(parent), output(child), rtol=1e-6, atol=1e-6)
    aggregate(paths, out / "upcycle", method="upcycle", weights=ALPHA)
    assert output(load(out / "upcycle")).isfinite().all()


def check_ensemble(paths: list[Path], out: Path) -> None:
    """Logits = Σ αᵢ logitsᵢ."""
    aggregate(paths, out / "ensemble", method="ensemble", weights=ALPHA)
    parent = load(out / "ensemble")
    given = inputs(parent)
    a, b = (output(load(path), given) for path in paths)
    assert torch.equal(output(parent, given), ALPHA[0] * a + ALPHA[1] * b)


CHECKS: dict[str, Callable[[list[Path], Path], None]] = {
    "merge": check_merge,
    "stack": check_stack,
    "upcycle": check_upcycle,
    "ensemble": check_ensemble,
}


def cell(name: str, method: str, folder: Path) -> str | None:
    """None when *method* works for the architecture *name*, else the reason why it is refused."""
    paths = children(folder, name)
    try:
        CHECKS[method](paths, folder / method)
    except BadInput as error:
        assert not (folder / method / method).exists(), "a refused aggregation left something behind"
        return f"{error.problem}. {error.remedy}.".replace(str(paths[0]), "The model")
    return None


def document() -> str:
    """The whole page."""
    reasons: dict[str, int] = {}
    rows = [f"| architecture | class | {' | '.join(CHECKS)} |", "|---|---|" + "---|" * len(CHECKS)]
    for name, (model_class, _, _) in ZOO.items():
        cells = []
        for method in CHECKS:
            with tempfile.TemporaryDirectory() as folder:
                reason = cell(name, method, Path(folder))
            cells.append("works" if reason is None else f"refused ({reasons.setdefault(reason, len(reasons) + 1)})")
        rows.append(f"| {name} | `{model_class}` | {' | '.join(cells)} |")
    refused = [f"{number}. {reason}" for reason, number in reasons.items()]
    return HEAD + "\n".join([*rows, "", "## Refused, and why", "", *refused]) + "\n" + NOTES


def main() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    TARGET.write_text(document(), encoding="utf-8")


if __name__ == "__main__":
    main()
