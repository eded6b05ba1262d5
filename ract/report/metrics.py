"""The figure that a task is judged by: its name, which way is better, and how it is written."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """*key* in a node's measures; *label* in sentences and on axes, *short* in tables; *form* a format for a value.

    *better* says what more of it means: "fewer" is better for bits, "more" for the others.
    """

    key: str
    label: str
    short: str
    form: str
    higher_is_better: bool
    tick: str = "g"

    def show(self, value: float | None) -> str:
        """*value* as text; an en dash for None."""
        return "–" if value is None else format(value, self.form)

    def is_better(self, a: float, b: float) -> bool:
        """Whether *a* is better than *b*."""
        return a > b if self.higher_is_better else a < b

    def is_clearly_better(self, a: float, b: float) -> bool:
        """Whether *a* is better than *b* by something that is shown."""
        return self.is_better(a, b) and not self.is_tie(self.against(a, b))

    def best(self, values: list[float]) -> float:
        """The best of *values*."""
        return max(values) if self.higher_is_better else min(values)

    def against(self, value: float, baseline: float) -> float:
        """How *value* differs from *baseline*: relative for bits, in the metric's own points otherwise."""
        return value - baseline if self.higher_is_better else value / baseline - 1

    def show_against(self, difference: float | None) -> str:
        """The result of :meth:`against` as text with its sign."""
        if difference is None:
            return "–"
        sign = "+" if difference >= 0 else "−"
        return sign + self.show_size_of(difference)

    def show_size_of(self, difference: float) -> str:
        """The result of :meth:`against` without its sign, in its unit."""
        if self.key == "accuracy":
            return f"{100 * abs(difference):.1f} points"
        return f"{abs(difference):.2f}" if self.higher_is_better else f"{abs(difference):.1%}"

    def is_tie(self, difference: float) -> bool:
        """Whether the result of :meth:`against` is less than is shown."""
        return abs(difference) < (0.005 if self.key == "bleu" else 5e-4)


METRICS = {
    "language-modeling": Metric("bits_per_byte", "bits per byte", "bits/byte", ".4f", higher_is_better=False),
    "classification": Metric("accuracy", "accuracy", "accuracy", ".2%", higher_is_better=True, tick=".1%"),
    "translation": Metric("bleu", "BLEU", "BLEU", ".2f", higher_is_better=True),
}
LOSS_OF = {"language-modeling": "token", "classification": "text", "translation": "token"}
# The ways in which translations go wrong, as they are counted and as they are called.
FAILURES = {
    "empty": "empty",
    "copies": "copies of their source",
    "too_long": "cut at the limit",
    "repeated": "ending in a loop",
}
# What else a node's row shows: (key, heading, format).
COLUMNS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "language-modeling": (("nats_per_token", "nats/token", ".4f"), ("perplexity", "perplexity", ".1f")),
    "classification": (
        ("macro_f1", "macro-F1", ".2%"),
        ("nats", "nats", ".3f"),
        ("ece", "calibration error", ".1%"),
        ("latency_ms", "ms a text", ".2f"),
    ),
    "translation": (
        ("chrf", "chrF", ".2f"),
        ("nats_per_token", "nats/token", ".3f"),
        ("latency_ms", "ms a sentence", ".1f"),
    ),
}
