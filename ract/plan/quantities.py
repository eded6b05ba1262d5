"""Numbers as people write them in a plan: ``"2M"`` tokens, ``"20MB"``, ``"40T"`` FLOPs."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

_SCALE = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12, "p": 10**15}
_BYTES = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_PATTERN = re.compile(r"^\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*$")


def parse_count(value: Any) -> int:
    """``2_000_000``, ``"2M"`` or ``"0.5M"`` as a whole number; k, M, B (= G), T and P are powers of a thousand."""
    return _parse(value, _SCALE, 'a whole number such as 2000000 or "2M"')


def parse_size(value: Any) -> int:
    """``"20MB"`` (10⁶) or ``"20MiB"`` (2²⁰) as bytes."""
    return _parse(value, _BYTES, 'a size such as "20MB"')


def _parse(value: Any, scale: dict[str, int], expected: str) -> int:
    if isinstance(value, bool):
        raise ValueError(f"must be {expected}")
    if isinstance(value, int):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    match = _PATTERN.match(value) if isinstance(value, str) else None
    if match is None or match[2].lower() not in scale:
        raise ValueError(f"must be {expected}")
    return round(float(match[1].replace("_", "")) * scale[match[2].lower()])


Count = Annotated[int, BeforeValidator(parse_count), Field(gt=0)]


def show_count(number: float) -> str:
    """``1_234_567`` → ``"1.23M"``: three significant digits."""
    for suffix, scale in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.3g}{suffix}"
    return f"{number:.3g}"


def show_size(size_bytes: float) -> str:
    """Bytes in decimal units: ``"14.2 MB"``."""
    for suffix, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= scale:
            return f"{size_bytes / scale:.3g} {suffix}"
    return f"{size_bytes:.0f} B"


def show_time(seconds: float) -> str:
    """Seconds as a person says them: ``"45 s"``, ``"3 min 20 s"``, ``"2 h 05 min"``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"
