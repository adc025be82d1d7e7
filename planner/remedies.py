"""Why a problem is infeasible and which changes would make it feasible, each of them tried."""

import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from planner.check import check
from planner.errors import InfeasibleError, PlanningError
from planner.memory import capacity_bytes, may_fit, replicated_bytes, shard_bytes, whole_table_bytes
from planner.plan import ShardingPlan
from planner.problem import PlanningProblem, TableConstraint
from planner.sharding import ShardingType
from planner.shards import whole_tables
from planner.tables import OptimizerKind
from planner.text import render_bytes
from planner.topology import Topology

LINE_WIDTH = 100
"""Columns of a message."""

BUDGET_S = 10.0
"""Seconds after which no further change is tried: what a user waits for an answer, not what all tries would take."""

MAX_WORLD_SIZE = 1024
"""Ranks up to which nodes are added in search of a remedy: the largest jobs that strategies are made for."""

AMPLE = 2
"""Nodes are not added beyond this many times the memory that the tables need at least.

Source: Johnson et al. 1974, Worst-case performance bounds for simple one-dimensional packing algorithms: first fit
leaves at most one bin half empty, so what finds no room there does not lack nodes.
"""

MEMORY_ACCURACY = 64
"""A memory remedy is at most 1 / 64 above the least that was found to help, to spare plans."""

Planner = Callable[[PlanningProblem], ShardingPlan]
"""Finds a plan or raises PlanningError."""


@dataclass(frozen=True)
class Change:
    """A changed problem and the words for the change."""

    text: str
    problem: PlanningProblem


class _Trials:
    """Tries changes on the strategy until the budget is spent.

    A try that would end beyond the budget, if it took as long a rank as the one before, is not begun; one that has
    begun is finished.

    Attributes:
        is_cut: Whether a change was left untried.
    """

    def __init__(self, planner: Planner) -> None:
        self.is_cut = False
        self._planner = planner
        self._ends_at = time.monotonic() + BUDGET_S
        self._seconds_per_rank = 0.0

    def helps(self, change: Change) -> bool:
        """Whether a valid plan is found; changes that leave too little memory in any case are not tried."""
        if not may_fit(change.problem):
            return False
        started, world_size = time.monotonic(), change.problem.topology.world_size
        if started + self._seconds_per_rank * world_size >= self._ends_at:
            self.is_cut = True
            return False
        try:
            check(self._planner(change.problem), change.problem)
        except PlanningError:
            return False
        finally:
            self._seconds_per_rank = (time.monotonic() - started) / world_size
        return True


def explain(problem: PlanningProblem, planner: Planner, error: InfeasibleError) -> InfeasibleError:
    """The same error with the changes that were tried and found to help, in lines of at most 100 columns.

    The search takes about `BUDGET_S` seconds at most.
    """
    trials = _Trials(planner)
    remedies = tuple(_remedies(problem, trials))
    lines = textwrap.wrap(f"no feasible plan on {problem.topology.name}: {error}", LINE_WIDTH)
    if remedies:
        lines.append("Each of these changes alone makes it fit (tried with the same strategy):")
        for remedy in remedies:
            lines += textwrap.wrap(remedy, LINE_WIDTH, initial_indent="  - ", subsequent_indent="    ")
    elif not trials.is_cut:
        lines += textwrap.wrap(
            "No single change helps: other sharding types, no pins, another optimizer, smaller batches, "
            f"nodes for up to {MAX_WORLD_SIZE:,} devices and more memory were tried or ruled out by their bytes.",
            LINE_WIDTH,
        )
    if trials.is_cut:
        lines.append(f"The search for changes ended after {BUDGET_S:g} s: others may help as well.")
    return InfeasibleError(
        "\n".join(lines), shortfall_bytes=error.shortfall_bytes, table=error.table, remedies=remedies
    )


def _remedies(problem: PlanningProblem, trials: _Trials) -> Iterator[str]:
    for change in (*_looser_constraints(problem), *_other_optimizers(problem)):
        if trials.helps(change):
            yield change.text
    # Nodes last: every try of theirs takes longer than one on the present ranks.
    for search in (_largest_batch, _least_memory, _fewest_nodes):
        found = search(problem, trials)
        if found is not None:
            yield found.text


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


def _largest_batch(problem: PlanningProblem, trials: _Trials) -> Change | None:
    """The largest halving of the batch that fits; None if not even one sample does."""
    num_halvings = problem.workload.batch_size.bit_length() - 1

    def change(shift: int) -> Change:
        batch_size = problem.workload.batch_size >> shift
        text = f"a batch of {batch_size:,} samples per rank instead of {problem.workload.batch_size:,}"
        return Change(text, replace(problem, workload=replace(problem.workload, batch_size=batch_size)))

    if num_halvings == 0 or not trials.helps(change(num_halvings)):
        return None
    return _bisect(change, 0, num_halvings, accuracy=1, trials=trials)


def _fewest_nodes(problem: PlanningProblem, trials: _Trials) -> Change | None:
    """The smallest number of nodes that fits, by doubling and bisection; None beyond `MAX_WORLD_SIZE` or `AMPLE`."""
    topology = problem.topology
    num_nodes, per_node = len(topology.nodes), len(topology.ranks_of(topology.nodes[-1]))
    most = num_nodes + (MAX_WORLD_SIZE - topology.world_size) // per_node

    def change(count: int) -> Change:
        grown = with_nodes(topology, count)
        text = f"{count} nodes with {grown.world_size} devices instead of {num_nodes} with {topology.world_size}"
        return Change(text, replace(problem, topology=grown))

    return _smallest(change, num_nodes, most, accuracy=1, trials=trials, is_hopeless=_has_ample_memory)


def _has_ample_memory(problem: PlanningProblem) -> bool:
    return bool(capacity_bytes(problem).sum() >= AMPLE * whole_table_bytes(problem).sum())


def _least_memory(problem: PlanningProblem, trials: _Trials) -> Change | None:
    """The least memory of every device that fits; None if not even the whole model on each of them does."""
    devices = problem.topology.devices
    present = min(device.hbm_bytes for device in devices)

    def change(hbm_bytes: int) -> Change:
        grown = tuple(replace(device, hbm_bytes=max(device.hbm_bytes, hbm_bytes)) for device in devices)
        text = f"devices of {render_bytes(hbm_bytes)} each, smallest now {render_bytes(present)}"
        return Change(text, replace(problem, topology=replace(problem.topology, devices=grown)))

    most = max(device.reserved_bytes for device in devices) + replicated_bytes(problem) + _model_bytes(problem)
    return _smallest(change, present, most, accuracy=max(1, present // MEMORY_ACCURACY), trials=trials)


def _model_bytes(problem: PlanningProblem) -> int:
    """Bytes of all tables whole or copied on one rank, whichever is more: no shards of a table on a rank take more."""
    copies = shard_bytes(problem, whole_tables(problem, ShardingType.DATA_PARALLEL))
    return int(np.maximum(whole_table_bytes(problem), copies).sum())


def _smallest(
    change: Callable[[int], Change],
    present: int,
    most: int,
    accuracy: int,
    trials: _Trials,
    is_hopeless: Callable[[PlanningProblem], bool] = lambda _: False,
) -> Change | None:
    """The least amount that was found to help, by doubling and bisection.

    Args:
        change: The change to an amount.
        present: The amount that does not suffice.
        most: The largest amount to try.
        accuracy: How far above the least the answer may be.
        trials: Tries changes.
        is_hopeless: Tells of a problem without a plan that larger amounts will not help either.
    """
    too_small = present
    while too_small < most:
        enough = min(2 * too_small, most)
        candidate = change(enough)
        if trials.helps(candidate):
            return _bisect(change, too_small, enough, accuracy, trials)
        if is_hopeless(candidate.problem):
            return None
        too_small = enough
    return None


def _bisect(change: Callable[[int], Change], too_small: int, enough: int, accuracy: int, trials: _Trials) -> Change:
    """The least amount found to help, given one that does."""
    while enough - too_small > accuracy:
        middle = (too_small + enough) // 2
        if trials.helps(change(middle)):
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
