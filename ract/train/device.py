"""What the machine offers to training: native bf16, threads, an accelerator."""

from __future__ import annotations

import torch

from ract.machine import processor_name


def best_device() -> torch.device:
    """Where training runs, and models are measured as they are made: the accelerator if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name() -> str:
    """What to call :func:`best_device` in a record."""
    return torch.cuda.get_device_name() if best_device().type == "cuda" else processor_name()


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
