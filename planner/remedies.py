"""Why a problem is infeasible and which changes would make it feasible, each of them tried."""

import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from planner.check import check
from planner.errors import InfeasibleError, PlanningError
from planner.plan import ShardingPlan
from planner.problem import PlanningProblem, TableConstraint
from planner.sharding import ShardingType
from planner.tables import OptimizerKind
from planner.text import render_bytes
from planner.topology import Topology

LINE_WIDTH = 100
"""Columns of a message."""

MAX_GROWTH = 1024
"""Largest factor by which nodes or memory are multiplied in search of a remedy."""

MEMORY_ACCURACY = 64
"""A memory remedy is at most 1 / 64 above the least that was found to help, to spare plans."""

Planner = Callable[[PlanningProblem], ShardingPlan]
"""Finds a plan or raises PlanningError."""


@dataclass(frozen=True)
class Change:
    """A changed problem and the words for the change."""

    text: str
    problem: PlanningProblem


def explain(problem: PlanningProblem, planner: Planner, error: InfeasibleError) -> InfeasibleError:
    """The same error with the changes that were tried and found to help, in lines of at most 100 columns."""
    remedies = tuple(_remedies(problem, planner))
    lines = textwrap.wrap(f"no feasible plan on {problem.topology.name}: {error}", LINE_WIDTH)
    if remedies:
        lines.append("Each of these changes alone makes it fit (tried with the same strategy):")
        for remedy in remedies:
            lines += textwrap.wrap(remedy, LINE_WIDTH, initial_indent="  - ", subsequent_indent="    ")
    else:
        lines += textwrap.wrap(
            "No single change helps: other sharding types, no pins, another optimizer, smaller batches, "
            f"up to {MAX_GROWTH} times the nodes or the memory were tried.",
            LINE_WIDTH,
        )
    return InfeasibleError(
        "\n".join(lines), shortfall_bytes=error.shortfall_bytes, table=error.table, remedies=remedies
    )


def _remedies(problem: PlanningProblem, planner: Planner) -> Iterator[str]:
    for change in (*_looser_constraints(problem), *_other_optimizers(problem)):
        if _is_feasible(change, planner):
            yield change.text
    for found in (
        _largest_batch(problem, planner),
        _fewest_nodes(problem, planner),
        _least_memory(problem, planner),
    ):
        if found is not None:
            yield found.text


def _is_feasible(change: Change, planner: Planner) -> bool:
    try:
        check(planner(change.problem), change.problem)
    except PlanningError:
        return False
    return True


def _looser_constraints(problem: PlanningProblem) -> Iterator[Change]:
    for index, constraint in enumerate(problem.constraints):
        names = ", ".join(constraint.tables)
        allowed = constraint.sharding_types
        for other in () if allowed is None else (each for each in ShardingType if each not in allowed):
            loosened = replace(constraint, sharding_types=(*(allowed or ()), other))
            yield Change(f"allow {other} for {names}", _with_constraint(problem, index, loosened))
        if constraint.ranks is not None:
            pins = ", ".join(str(rank) for rank in sorted(constraint.ranks))
            text = f"drop the pin of {names} to ranks {pins}"
            yield Change(text, _with_constraint(problem, index, replace(constraint, ranks=None)))
        if constraint.together:
            text = f"do not keep {names} together"
            yield Change(text, _with_constraint(problem, index, replace(constraint, together=False)))


def _with_constraint(problem: PlanningProblem, index: int, constraint: TableConstraint) -> PlanningProblem:
    constraints = (*problem.constraints[:index], constraint, *problem.constraints[index + 1 :])
    return replace(problem, constraints=constraints)


def _other_optimizers(problem: PlanningProblem) -> Iterator[Change]:
    lighter = {
        OptimizerKind.ADAM: (OptimizerKind.ROWWISE_ADAGRAD, OptimizerKind.SGD),
        OptimizerKind.ROWWISE_ADAGRAD: (OptimizerKind.SGD,),
        OptimizerKind.SGD: (),
    }
    for kind in lighter[problem.workload.optimizer]:
        text = f"train the tables with {kind} instead of {problem.workload.optimizer} (another algorithm)"
        yield Change(text, replace(problem, workload=replace(problem.workload, optimizer=kind)))


def _largest_batch(problem: PlanningProblem, planner: Planner) -> Change | None:
    """The largest halving of the batch that fits; None if not even one sample does."""

    def change(batch_size: int) -> Change:
        text = f"a batch of {batch_size:,} samples per rank instead of {problem.workload.batch_size:,}"
        return Change(text, replace(problem, workload=replace(problem.workload, batch_size=batch_size)))

    sizes = [problem.workload.batch_size >> shift for shift in range(1, problem.workload.batch_size.bit_length())]
    if not sizes or not _is_feasible(change(sizes[-1]), planner):
        return None
    return next(change(size) for size in sizes if _is_feasible(change(size), planner))


def _fewest_nodes(problem: PlanningProblem, planner: Planner) -> Change | None:
    """The smallest number of nodes that fits, found by doubling and bisection."""
    num_nodes = len(problem.topology.nodes)

    def change(count: int) -> Change:
        topology = with_nodes(problem.topology, count)
        text = f"{count} nodes with {topology.world_size} devices instead of {num_nodes} with " + str(
            problem.topology.world_size
        )
        return Change(text, replace(problem, topology=topology))

    return _smallest(change, num_nodes, accuracy=1, planner=planner)


def _least_memory(problem: PlanningProblem, planner: Planner) -> Change | None:
    """The least memory of every device that fits, found by doubling and bisection."""
    present = min(device.hbm_bytes for device in problem.topology.devices)

    def change(hbm_bytes: int) -> Change:
        devices = tuple(
            replace(device, hbm_bytes=max(device.hbm_bytes, hbm_bytes)) for device in problem.topology.devices
        )
        text = f"devices of {render_bytes(hbm_bytes)} each, smallest now {render_bytes(present)}"
        return Change(text, replace(problem, topology=replace(problem.topology, devices=devices)))

    return _smallest(change, present, accuracy=max(1, present // MEMORY_ACCURACY), planner=planner)


def _smallest(change: Callable[[int], Change], present: int, accuracy: int, planner: Planner) -> Change | None:
    """The smallest amount found feasible, within `accuracy`; None if `MAX_GROWTH` times present is not."""
    too_small, enough = present, present * 2
    while not _is_feasible(change(enough), planner):
        too_small, enough = enough, enough * 2
        if enough > present * MAX_GROWTH:
            return None
    while enough - too_small > accuracy:
        middle = (too_small + enough) // 2
        if _is_feasible(change(middle), planner):
            enough = middle
        else:
            too_small = middle
    return change(enough)


def with_nodes(topology: Topology, num_nodes: int) -> Topology:
    """The topology grown to a number of nodes by copies of its last one."""
    last = [topology.devices[rank] for rank in topology.ranks_of(topology.nodes[-1])]
    devices = list(topology.devices)
    for number in range(len(topology.nodes), num_nodes):
        devices += [
            replace(device, rank=len(devices) + index, node=f"added-{number}") for index, device in enumerate(last)
        ]
    return replace(topology, devices=tuple(devices))
