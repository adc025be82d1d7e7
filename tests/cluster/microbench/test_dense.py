"""Chains and copies are measured on this device, within their bounds."""

from itertools import pairwise

import torch

from cluster.microbench.dense import MOST_FLOPS, DenseChain, draw_chains, measure_copies, measure_dense
from cluster.microbench.repeats import Limits
from planner.topology import DeviceType

CPU = torch.device("cpu")
QUICK = Limits(num_warmups=1, max_repeats=6, seconds=0.0)


def test_chains_cover_depths_and_stay_within_the_work() -> None:
    chains = draw_chains(60, 0, DeviceType.CPU)
    assert {len(sizes) for _, sizes in chains} == {2, 3, 4, 5}
    assert all(width % 8 == 0 and 8 <= width <= 1024 for _, sizes in chains for width in sizes)
    work = [2 * samples * sum(a * b for a, b in pairwise(sizes)) for samples, sizes in chains]
    assert max(work) <= 1.01 * MOST_FLOPS[DeviceType.CPU] and min(samples for samples, _ in chains) >= 100


def test_a_chain_gives_gradients_to_input_and_weights_and_forgets_them() -> None:
    seen: list[bool] = []
    chain = DenseChain(16, (8, 24, 8), CPU)
    for parameter in [*chain._layers.parameters(), chain._input]:
        parameter.register_hook(lambda gradient: seen.append(bool(gradient.any())))
    times_ms = chain.run(0)
    assert len(times_ms) == 2 and min(times_ms) > 0
    assert len(seen) == 5 and all(seen)
    assert chain._input.grad is None and all(each.grad is None for each in chain._layers.parameters())


def test_measurements_carry_the_canary() -> None:
    measured = measure_dense(64, (16, 8), CPU, QUICK)
    assert (measured.samples, measured.layer_sizes) == (64, (16, 8))
    assert min(measured.forward.median_ms, measured.backward.median_ms, measured.canary_ms) > 0


def test_a_cpu_copies_within_itself_only() -> None:
    copies = measure_copies(CPU, QUICK)
    assert {copy.kind for copy in copies} == {"device_to_device"}
    sizes = [copy.num_bytes for copy in copies]
    assert sizes[0] == 2**16 and sizes[-1] == 2**26 and all(copy.timing.median_ms > 0 for copy in copies)
