"""Which exported model of a tree fits, and stepping down from it: with made-up measurements and engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ract.errors import BadInput, RactError
from ract.runtime import choose as module
from ract.runtime.adaptive import AdaptiveClassifier, AdaptiveDecoder, AdaptiveTranslator, Ladder
from ract.runtime.choose import Form, Limits, choose, exports_in, forms_of
from ract.runtime.manifest import HeldOut, Manifest, write_manifest
from ract.runtime.measure import Measured


def form(name: str, loss: float, size: int, latency_ms: float, memory: int) -> Form:
    manifest = Manifest(kind="decoder", node=name, held_out=HeldOut(data="x", loss=loss, loss_original=loss))
    return Form(Path(name), manifest, Measured(size, latency_ms, memory, 1.0, 1))


TREE = [
    form("large", 2.0, 8_000_000, 9.0, 200_000_000),
    form("large-int8", 2.01, 2_000_000, 4.0, 120_000_000),
    form("slow", 2.05, 1_900_000, 6.0, 119_000_000),
    form("small", 2.5, 1_000_000, 2.0, 90_000_000),
]


def test_the_best_within_every_limit_is_chosen() -> None:
    assert [one.name.split()[0] for one in choose(TREE, Limits())] == ["large", "large-int8", "small"]
    assert choose(TREE, Limits(size_bytes=2_000_000))[0] is TREE[1]
    assert choose(TREE, Limits(latency_ms=3))[0] is TREE[3]
    assert choose(TREE, Limits(latency_ms=5, peak_memory_bytes=100_000_000))[0] is TREE[3]
    with pytest.raises(BadInput, match=r"none of 4 .*closest is small"):
        choose(TREE, Limits(latency_ms=1.9))
    assert not Limits() and Limits(latency_ms=1.0)


def test_exports_are_found_measured_and_ordered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = {"a": 3.0, "b": 2.0}
    for name, loss in losses.items():
        folder = tmp_path / "run" / "exports" / name
        folder.mkdir(parents=True)
        (folder / "decode.onnx").write_bytes(b"graph")
        write_manifest(folder, Manifest(kind="decoder", held_out=HeldOut(data="x", loss=loss, loss_original=loss)))
    monkeypatch.setattr(module, "measured_here", lambda directory: Measured(1, 1.0, 1, 1.0, 1))
    found = exports_in(tmp_path / "run")
    assert found == exports_in(tmp_path / "run" / "exports") and len(found) == 2
    assert exports_in(found[0]) == [] and exports_in(tmp_path / "nowhere") == []
    assert [one.directory.name for one in forms_of(found)] == ["b", "a"]
    write_manifest(found[0], Manifest(kind="decoder"))
    with pytest.raises(BadInput, match="same held-out text"):
        forms_of(found)


class Engine:
    """A decoder, classifier and translator that counts; from its *fails_at*-th use on it has no memory any more."""

    limit, target_language = 64, "de"

    def __init__(self, number: int, fails_at: int = 10**9) -> None:
        self.labels, self.ends = ["a", "b"], set[int]()
        self.number, self.left = number, fails_at

    def _use(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise MemoryError

    def next_logits(self, numbers: list[int], seen: int, cache: Any) -> tuple[np.ndarray, Any]:
        self._use()
        read = [*(cache or []), *numbers]
        assert len(read) == seen + len(numbers)
        return np.array([self.number, sum(read)], np.float32), read

    def probabilities(self, rows: Any, batch_size: int) -> np.ndarray:
        self._use()
        return np.array([[self.number, len(row)] for row in rows], float)

    def translate(self, texts: Any, **_: Any) -> list[str]:
        self._use()
        return [f"{self.number}{text}" for text in texts]


def ladder(fails_at: int = 10**9, **options: Any) -> tuple[Ladder, list[str]]:
    notices: list[str] = []
    forms = [TREE[0], TREE[1], TREE[3]]
    engines = {id(one): Engine(number, fails_at if number == 0 else 10**9) for number, one in enumerate(forms)}
    options.setdefault("pressure", lambda form: None)
    return Ladder(forms, lambda one: engines[id(one)], notice=notices.append, **options), notices


def test_a_decoder_that_fails_is_followed_by_one_that_has_read_everything() -> None:
    steps, notices = ladder(fails_at=2)
    decoder = AdaptiveDecoder(steps)
    cache = None
    found = []
    for position, token in enumerate([5, 6, 7, 8]):
        logits, cache = decoder.next_logits([token], position, cache)
        found.append(logits.tolist())
    assert found == [[0, 5], [0, 11], [1, 18], [1, 26]]
    assert len(notices) == 1 and "large" in notices[0] and "going on with large-int8" in notices[0]


def test_texts_are_answered_whole_whatever_fails_between() -> None:
    steps, _ = ladder(fails_at=1)
    found = AdaptiveClassifier(steps).probabilities([[1], [1, 2], [3]], 2)
    assert found.tolist() == [[0, 1], [0, 2], [1, 1]]
    steps, _ = ladder(fails_at=1)
    options = {"num_beams": 1, "max_new_tokens": None, "batch_size": 2}
    assert AdaptiveTranslator(steps).translate(["x", "y", "z"], **options) == ["0x", "0y", "1z"]


def test_a_busy_machine_and_short_memory_step_down_and_the_last_one_stays() -> None:
    time = iter(range(10**6))
    steps, notices = ladder(latency_ms=500.0, clock=lambda: next(time))  # every step takes a second
    for _ in range(40):
        steps.run(lambda engine: engine.number)
    assert steps.level == 2 and len(notices) == 2
    assert "1000.0 ms a step where 500.0 ms are allowed" in notices[0]
    short, said = ladder(pressure=lambda form: "12 MB of memory are left")
    assert short.run(lambda engine: engine.number) == 1 and "12 MB of memory" in said[0]


def test_when_even_the_smallest_fails_it_is_said() -> None:
    steps = Ladder([TREE[3]], lambda form: Engine(0, 0), pressure=lambda form: None)
    with pytest.raises(RactError, match=r"small .*failed"):
        steps.run(lambda engine: engine.translate(["a"]))
