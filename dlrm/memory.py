"""The memory of this rank's device: the most it has used, what is free, and the peak of a stretch of work."""

import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

# `ru_maxrss` is in kibibytes on Linux and in bytes on macOS. Source: getrusage(2) of either.
MAXRSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024
# Sets the peak of the resident set back to what it is. Source: proc(5), /proc/PID/clear_refs.
RESET_PEAK = "5"


# The most that was read of each device: a watch over a stretch of work sets the system's own peak back.
_MOST_BYTES: dict[torch.device, int] = {}


def peak_bytes(device: torch.device) -> int:
    """Peak allocated bytes of the GPU, or of the process's resident set on a CPU rank, since the process began."""
    _MOST_BYTES[device] = max(_MOST_BYTES.get(device, 0), _latest_peak_bytes(device))
    return _MOST_BYTES[device]


def _latest_peak_bytes(device: torch.device) -> int:
    """The same since it was last set back."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_UNIT_BYTES


def free_bytes(device: torch.device) -> int:
    """Bytes that this rank may still take on a device; of a host its share, with the other ranks there."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    available = _proc_bytes(Path("/proc/meminfo"), "MemAvailable")
    if available is None:  # no Linux: what is free is not told, and what is there stands for it
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


class PeakWatch:
    """The most memory that a stretch of work took beyond what there was at its beginning."""

    def __init__(self, device: torch.device) -> None:
        """Begin; the peak that the device or system keeps is set back."""
        self._device = device
        self._begin = self._used()
        peak_bytes(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        with suppress(OSError):  # not allowed here: the peak is then that since the process began
            Path("/proc/self/clear_refs").write_text(RESET_PEAK)

    @property
    def extra_bytes(self) -> int:
        """The peak so far beyond the beginning."""
        if self._device.type == "cuda":
            return max(0, torch.cuda.max_memory_allocated(self._device) - self._begin)
        peak = _proc_bytes(Path("/proc/self/status"), "VmHWM")
        return max(0, (_latest_peak_bytes(self._device) if peak is None else peak) - self._begin)

    def _used(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.memory_allocated(self._device)
        resident = _proc_bytes(Path("/proc/self/status"), "VmRSS")
        return _latest_peak_bytes(self._device) if resident is None else resident


def _proc_bytes(path: Path, key: str) -> int | None:
    """A figure of a file of proc(5), which states it in kB; None where there is none."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), None)
