"""Named points at which a test can have this process killed, to see that nothing half-done looks finished."""

from __future__ import annotations

import os
import signal

VARIABLE = "RACT_CRASH_AT"


def crash_point(name: str) -> None:
    """Kill this process without cleaning up, as a power cut would, if the environment asks for it at *name*."""
    if os.environ.get(VARIABLE) == name:
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
