"""The C library's heap while networks run on a CPU."""

from __future__ import annotations

import ctypes
import platform

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # <malloc.h>
_LARGEST = 2**30


def keep_freed_memory(device: torch.device) -> None:
    """Let glibc keep freed tensors for the next ones, where a CPU computes; elsewhere nothing happens.

    By default a tensor above 32 MB is mapped anew and its pages are zeroed one by one at the first touch, in every
    layer of every step.
    """
    if device.type == "cpu" and platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, _LARGEST)
        library.mallopt(_TRIM_THRESHOLD, _LARGEST)
