"""The runtime of exported models: no torch, numpy's sampling and beam search by their definitions."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ract.errors import BadInput
from ract.runtime.beam import beam_search
from ract.runtime.manifest import Manifest, read_manifest, write_manifest
from ract.runtime.sampling import Sampler, log_softmax, softmax

LIGHT = """
import sys
sys.modules["torch"] = sys.modules["transformers"] = None  # importing either is an error now
import ract.runtime.classify, ract.runtime.generate, ract.runtime.translate, ract.runtime.engines.text
import ract.cli
print("light")
"""


def test_the_runtime_and_the_command_line_import_without_torch() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.strip() == "light", done.stderr


def test_sampling_follows_the_distribution_it_keeps() -> None:
    logits = np.array([2.0, 1.0, 0.0, -1.0])
    draws = np.bincount([Sampler(0.7, 1.0, 3, seed)(logits) for seed in range(4000)], minlength=4) / 4000
    expected = np.append(softmax(logits[:3] / 0.7), 0.0)
    np.testing.assert_allclose(draws, expected, atol=0.03)
    np.testing.assert_allclose(log_softmax(logits), np.log(softmax(logits)), atol=1e-12)


class Tree:
    """A decoder of three tokens (0 ends) whose logits follow from what it has seen, by a table of random numbers."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def logits(self, seen: tuple[int, ...]) -> np.ndarray:
        return np.random.default_rng((self.seed, *seen)).normal(size=4, scale=1.5).astype(np.float32)

    def step(self, ids: np.ndarray, state: Seen) -> tuple[np.ndarray, Seen]:
        grown = [(*seen, int(token)) for seen, token in zip(state.rows, ids[:, 0], strict=True)]
        return np.stack([self.logits(seen) for seen in grown]), Seen(grown)


class Seen:
    def __init__(self, rows: list[tuple[int, ...]]) -> None:
        self.rows = rows

    def reordered(self, rows: np.ndarray) -> Seen:
        return Seen([self.rows[row] for row in rows])


def best_of_all(tree: Tree, source: int, length: int, never: Sequence[Sequence[int]] = ()) -> tuple[float, list[int]]:
    """The hypothesis of at most *length* tokens with the best mean log-probability, by trying every one that has
    nothing of *never*.
    """
    found = []
    for count in range(1, length + 1):
        for tokens in itertools.product(range(4), repeat=count):
            inner_end = 0 in tokens[:-1]
            unfinished = tokens[-1] != 0 and count < length
            if inner_end or unfinished or any(contains((3, *tokens), one) for one in never):
                continue
            seen, score = (source, 3), 0.0
            for token in tokens:
                score += log_softmax(tree.logits(seen).astype(np.float64))[token]
                seen = (*seen, token)
            found.append((score / count, list(tokens)))
    return max(found)


def contains(tokens: Sequence[int], part: Sequence[int]) -> bool:
    return any(tuple(tokens[at : at + len(part)]) == tuple(part) for at in range(len(tokens)))


@pytest.mark.parametrize("never", [[[1]], [[3, 2]], [[2, 1], [1, 1, 0]], [[1, 2, 1, 2, 1, 2]]])
def test_what_a_translation_must_not_contain_is_passed_over(never: list[list[int]]) -> None:
    for seed in range(4):
        tree = Tree(seed)
        found = beam_search(tree, Seen([(0,)]), 1, start=3, ends=[0], num_beams=64, max_new_tokens=3, never=never)
        assert found[0] == best_of_all(tree, 0, 3, never)[1]


@pytest.mark.parametrize("seed", range(6))
def test_a_wide_beam_finds_the_best_translation_there_is(seed: int) -> None:
    tree = Tree(seed)
    sentences = 3
    state = Seen([(source,) for source in range(sentences)])
    found = beam_search(tree, state, sentences, start=3, ends=[0], num_beams=64, max_new_tokens=3)
    for source in range(sentences):
        assert found[source] == best_of_all(tree, source, 3)[1]


def test_one_beam_is_greedy() -> None:
    tree = Tree(9)
    seen, expected = (0, 3), []
    for _ in range(8):
        expected.append(int(tree.logits(seen).argmax()))
        seen = (*seen, expected[-1])
        if expected[-1] == 0:
            break
    assert beam_search(tree, Seen([(0,)]), 1, start=3, ends=[0], num_beams=1, max_new_tokens=8)[0] == expected


def test_a_manifest_is_read_back_and_what_is_wrong_with_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"graph")
    write_manifest(tmp_path, Manifest(kind="encoder", labels=("a", "b"), limit=7))
    found = read_manifest(tmp_path)
    assert found.labels == ("a", "b") and found.limit == 7 and set(found.files) == {"model.onnx"}
    (tmp_path / "model.onnx").write_bytes(b"grapf")
    with pytest.raises(BadInput, match=r"model.onnx is missing or damaged"):
        read_manifest(tmp_path)
    text = (tmp_path / "manifest.json").read_text()
    for wrong in ("{", "[]", text.replace("encoder", "elephant"), text.replace("model.onnx", "../model.onnx"), ""):
        (tmp_path / "manifest.json").write_text(wrong)
        with pytest.raises(BadInput, match="Export the model again"):
            read_manifest(tmp_path)
    with pytest.raises(BadInput, match="holds no exported model"):
        read_manifest(tmp_path / "nowhere")


def test_a_missing_package_names_its_extra_and_a_mistake_of_ours_stays_a_mistake() -> None:
    from ract.errors import MissingExtra, needs_extra

    with pytest.raises(MissingExtra, match=r"ract\[train\]"), needs_extra("This", "train"):
        import no_such_package  # noqa: F401
    with pytest.raises(ImportError), needs_extra("This", "train"):
        from ract.errors import no_such_name  # noqa: F401
