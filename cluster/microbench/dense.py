"""Times chains of linear layers, as the MLPs of a DLRM are, and copies of memory."""

from functools import cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from cluster.microbench.clock import measure_phases, repeat
from cluster.microbench.repeats import Limits
from cluster.microbench.sampling import latin_hypercube, spread
from planner.profile import CopyMeasurement, DenseMeasurement
from planner.topology import DeviceType

SAMPLES = (128.0, 8192.0)
WIDTHS = (8.0, 1024.0)
MOST_LAYERS = 4
MOST_FLOPS = {DeviceType.CPU: 1e9, DeviceType.CUDA: 1e12}
"""Of a forward pass: tens of milliseconds on one core, ten on a GPU. A larger chain gets fewer samples."""

CANARY_WIDTH = {DeviceType.CPU: 384, DeviceType.CUDA: 4096}
CANARY_LIMITS = Limits(num_warmups=1, min_repeats=3, max_repeats=8, seconds=0.05)

COPY_BYTES = tuple(4**power * 2**10 for power in range(3, 9))
"""64 KiB to 64 MiB."""

COPY_KINDS = {
    DeviceType.CPU: ("device_to_device",),
    DeviceType.CUDA: ("device_to_device", "host_to_device", "device_to_host"),
}


class DenseChain:
    """Linear layers with ReLU between them, and one input."""

    def __init__(self, samples: int, layer_sizes: tuple[int, ...], device: torch.device) -> None:
        """Makes the layers [W_0, W_1, ...] and an input [samples, W_0], which gets a gradient too."""
        self._device = device
        layers: list[nn.Module] = []
        for width, following in pairwise(layer_sizes):
            layers += [nn.Linear(width, following, device=device), nn.ReLU()]
        self._layers = nn.Sequential(*layers[:-1])
        self._input = torch.randn(samples, layer_sizes[0], device=device, requires_grad=True)
        self._gradient = torch.randn(samples, layer_sizes[-1], device=device)
        self._output: Tensor | None = None

    def run(self, _: int) -> tuple[float, float]:
        """Milliseconds of one forward and one backward pass."""

        def forward() -> None:
            self._output = self._layers(self._input)

        def backward() -> None:
            assert self._output is not None
            self._output.backward(self._gradient)

        times_ms = measure_phases((forward, backward), self._device)
        self._output = self._input.grad = None
        self._layers.zero_grad(set_to_none=True)
        return times_ms[0], times_ms[1]


def draw_chains(count: int, seed: int, device_type: DeviceType) -> list[tuple[int, tuple[int, ...]]]:
    """Gives `count` random pairs of samples and layer sizes, of one to four layers."""
    rng = np.random.default_rng(seed)
    chains = []
    for samples_share, depth, *widths in latin_hypercube(rng, count, 3 + MOST_LAYERS):
        sizes = tuple(8 * round(spread(width, WIDTHS) / 8) for width in widths)[: 2 + int(depth * MOST_LAYERS)]
        flops_per_sample = 2 * sum(a * b for a, b in pairwise(sizes))
        samples = min(spread(samples_share, SAMPLES), MOST_FLOPS[device_type] / flops_per_sample)
        chains.append((round(samples), sizes))
    return chains


def measure_dense(
    samples: int, layer_sizes: tuple[int, ...], device: torch.device, limits: Limits | None = None
) -> DenseMeasurement:
    """Times one chain on this process's device, with the canary before and after it."""
    before_ms = measure_matmul(device)
    forward, backward = repeat(DenseChain(samples, layer_sizes, device).run, limits or Limits(), device)
    canary_ms = (before_ms + measure_matmul(device)) / 2
    return DenseMeasurement(samples, layer_sizes, forward, backward, canary_ms)


def measure_matmul(device: torch.device) -> float:
    """Milliseconds of the fixed matrix product now."""
    matrix = _canary(device)
    (timing,) = repeat(lambda _: measure_phases((lambda: matrix @ matrix,), device), CANARY_LIMITS, device)
    return timing.median_ms


def measure_copies(device: torch.device, limits: Limits | None = None) -> list[CopyMeasurement]:
    """Times copies of 64 KiB to 64 MiB within the device and, on a GPU, from and to pinned host memory."""
    return [
        _measure_copy(kind, num_bytes, device, limits or Limits())
        for kind in COPY_KINDS[DeviceType(device.type)]
        for num_bytes in COPY_BYTES
    ]


def _measure_copy(kind: str, num_bytes: int, device: torch.device, limits: Limits) -> CopyMeasurement:
    on_host = torch.zeros(num_bytes, dtype=torch.uint8, pin_memory=device.type != "cpu")
    on_device = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    source = on_host if kind == "host_to_device" else on_device
    target = on_host if kind == "device_to_host" else torch.empty_like(on_device)

    def copy(_: int) -> tuple[float, ...]:
        return measure_phases((lambda: target.copy_(source, non_blocking=True),), device)

    return CopyMeasurement(kind, num_bytes, *repeat(copy, limits, device))


@cache
def _canary(device: torch.device) -> Tensor:
    """The matrix whose square is the fixed product, made once a process; its powers do not grow."""
    width = CANARY_WIDTH[DeviceType(device.type)]
    return torch.randn(width, width, device=device) / width
