"""One tree, many sizes: which of its exported models fits this machine and what is asked of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ract.errors import BadInput
from ract.runtime.manifest import Manifest, is_exported, read_manifest
from ract.runtime.measure import Measured, measured_here

EXPORTS = "exports"  # the folder of a run that holds its exported models


@dataclass(frozen=True)
class Limits:
    """What a model may take; None: as much as it wants. See :class:`~ract.runtime.measure.Measured` for the units."""

    size_bytes: float | None = None
    latency_ms: float | None = None
    peak_memory_bytes: float | None = None

    def __bool__(self) -> bool:
        return any(limit is not None for limit in (self.size_bytes, self.latency_ms, self.peak_memory_bytes))

    def fit(self, found: Measured) -> bool:
        """Whether what was *found* keeps within every limit."""
        pairs = (
            (found.size_bytes, self.size_bytes),
            (found.latency_ms, self.latency_ms),
            (found.peak_memory_bytes, self.peak_memory_bytes),
        )
        return all(limit is None or value <= limit for value, limit in pairs)


@dataclass(frozen=True)
class Form:
    """One exported model of a tree, and how it runs on this machine."""

    directory: Path
    manifest: Manifest
    measured: Measured

    @property
    def name(self) -> str:
        """Node, precision and engine, for people."""
        return f"{self.manifest.node or self.directory.name} ({self.manifest.precision}, {self.manifest.engine})"


def exports_in(path: str | Path) -> list[Path]:
    """The exported models in the folder *path*, or in the exports of the run *path*; none where it is neither."""
    folder = Path(path)
    if is_exported(folder) or (folder / "config.json").is_file():
        return []
    if (folder / EXPORTS).is_dir():
        folder /= EXPORTS
    return sorted(one for one in folder.glob("*") if is_exported(one)) if folder.is_dir() else []


def forms_of(directories: Sequence[Path], *, report: Callable[[str, int, int], None] | None = None) -> list[Form]:
    """The exported models in *directories*, measured here (once), the best first: the lowest held-out loss, of equal
    ones the fastest. Raises BadInput when one was never measured on held-out text, or they were measured on different
    texts: then nobody can say which is better.
    """
    manifests = [read_manifest(one, verify=False) for one in directories]
    texts = {manifest.held_out.data if manifest.held_out else "" for manifest in manifests}
    if len(texts) != 1 or "" in texts:
        raise BadInput(
            f"the exports in {directories[0].parent} were not all measured on the same held-out text",
            "Export the run again: ract export RUN --all -o OUT",
        )
    found = []
    for number, (directory, manifest) in enumerate(zip(directories, manifests, strict=True)):
        if report:
            report(directory.name, number, len(directories))
        found.append(Form(directory, manifest, measured_here(directory)))
    return sorted(found, key=lambda form: (_loss(form), form.measured.latency_ms))


def choose(forms: Sequence[Form], limits: Limits) -> list[Form]:
    """Those of *forms* that keep within *limits*, the best first, and of what is worse only what is also faster: a
    ladder to step down. Raises BadInput, naming the closest, when none fits.
    """
    fitting = [form for form in forms if limits.fit(form.measured)]
    if not fitting:
        raise BadInput(f"none of {len(forms)} exported models keeps within the limits", _closest(forms, limits))
    ladder = [fitting[0]]
    for form in fitting[1:]:
        if form.measured.latency_ms < ladder[-1].measured.latency_ms:
            ladder.append(form)
    return ladder


def _loss(form: Form) -> float:
    assert form.manifest.held_out is not None
    return form.manifest.held_out.loss


def _closest(forms: Sequence[Form], limits: Limits) -> str:
    def excess(form: Form) -> float:
        m = form.measured
        pairs = (
            (m.size_bytes, limits.size_bytes),
            (m.latency_ms, limits.latency_ms),
            (m.peak_memory_bytes, limits.peak_memory_bytes),
        )
        return max(value / limit for value, limit in pairs if limit)

    nearest = min(forms, key=excess)
    m = nearest.measured
    return (
        f"The closest is {nearest.name}: {m.size_bytes / 1e6:.1f} MB, {m.latency_ms:.2f} ms, "
        f"{m.peak_memory_bytes / 1e6:.0f} MB of memory. Allow that, or build a smaller node"
    )
