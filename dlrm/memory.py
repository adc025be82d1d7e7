"""The most memory that this rank has used so far."""

import resource
import sys

import torch

# `ru_maxrss` is in kibibytes on Linux and in bytes on macOS. Source: getrusage(2) of either.
MAXRSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024


def peak_bytes(device: torch.device) -> int:
    """Peak allocated bytes of the GPU, or of the process's resident set on a CPU rank."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_UNIT_BYTES
