"""What the machine offers to training: native bf16, threads, an accelerator."""

from __future__ import annotations

import os

import torch


def has_native_bf16(device: torch.device) -> bool:
    """Whether bf16 products run in hardware there; emulated bf16 is slower than fp32.

    On a CPU: AVX-512 BF16 or AMX (x86), or the BF16 extension (Arm).
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "amx_tile", "bf16", "arm_bf16"))


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype for ``torch.autocast``, or None for plain fp32. *precision* is ``auto``, ``bf16`` or ``fp32``."""
    if precision == "bf16" or (precision == "auto" and has_native_bf16(device)):
        return torch.bfloat16
    return None


def cpu_count() -> int:
    """Processors this process may use (cgroup and affinity respected where the system tells)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
