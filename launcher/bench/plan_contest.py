"""What `bench plans` is asked for, and the tasks, devices and strategies that follow from it."""

from dataclasses import dataclass
from pathlib import Path

from launcher.bench.plan_costs import PricedDevices, price_cpu_node, price_profiled_node, price_topology
from launcher.bench.plan_tasks import DIMS, PlanningTask, build_problem, default_cap_bytes, draw_tasks, read_pool
from launcher.config import ConfigError
from planner.problem import PlanningProblem, TableConstraint
from planner.search.registry import BUDGET_S, STRATEGIES, SearchSettings, build_strategy
from planner.sharding import ShardingType
from planner.tables import DIM_MULTIPLE, MemoryCount

DEFAULT_STRATEGIES = (
    "portfolio",
    "neuroshard",
    "torchrec",
    "longest_processing_time",
    "size_greedy",
    "dim_greedy",
    "lookup_greedy",
    "size_lookup_greedy",
    "random",
    "policy",
)
"""What is compared unless the user says otherwise, as far as it is registered."""


@dataclass(frozen=True)
class PlanBenchmark:
    """What `bench plans` is asked for.

    Attributes:
        tables: CSV file of the pool.
        num_tables: Fewest and most tables of a task.
        dims: Widths that they may get.
        num_ranks: Equal ranks of one node; None with a topology.
        memory_bytes: Of each; None with a topology.
        total_bytes: Most weights of a task; None takes `default_cap_bytes`.
        num_tasks: Tasks to draw.
        seed: The same draws the same tasks for any strategies, and seeds these.
        strategies: Names; empty for `DEFAULT_STRATEGIES`.
        budget_s: Seconds that a search which could go on takes at most.
        sharding_types: Types that all tables may take; empty for all.
        memory: What counts against the memory of a device.
        profile: Prices plans by a profile's measurements.
        topology: Devices of a file, priced by its own figures.
        is_measured: Also runs the plans' ranks, scaled to fit this machine.
    """

    tables: Path
    num_tables: tuple[int, int]
    dims: tuple[int, ...] = DIMS
    num_ranks: int | None = None
    memory_bytes: int | None = None
    total_bytes: int | None = None
    num_tasks: int = 100
    seed: int = 0
    strategies: tuple[str, ...] = ()
    budget_s: float = BUDGET_S
    sharding_types: tuple[ShardingType, ...] = ()
    memory: MemoryCount = MemoryCount.WEIGHTS
    profile: Path | None = None
    topology: Path | None = None
    is_measured: bool = False

    def check(self) -> None:
        """Raises ConfigError with every figure that is out of range, and options that exclude one another."""
        fewest, most = self.num_tables
        faults = [] if 1 <= fewest <= most else [f"--num-tables is {fewest}:{most}, expected 1 <= A <= B"]
        faults += [f"--dims has {dim}, expected multiples of {DIM_MULTIPLE}" for dim in self.dims if not _is_width(dim)]
        figures = {"--ranks": self.num_ranks, "--memory-gib": self.memory_bytes, "--total-gib": self.total_bytes}
        figures |= {"--tasks": self.num_tasks}
        faults += [] if self.budget_s > 0 else [f"--budget-s is {self.budget_s}, expected above 0"]
        faults += [
            f"{name} is {value}, expected above 0" for name, value in figures.items() if value is not None and value < 1
        ]
        is_node = self.num_ranks is not None and self.memory_bytes is not None
        is_partial = self.num_ranks is not None or self.memory_bytes is not None or self.profile is not None
        if self.topology is None and not is_node:
            faults.append("the devices are missing: give --ranks and --memory-gib, or --topology FILE")
        if self.topology is not None and is_partial:
            faults.append("--topology gives the devices: leave --ranks, --memory-gib and --profile out")
        if faults:
            raise ConfigError(faults)


@dataclass(frozen=True, eq=False)
class Contest:
    """The tasks, the devices and the strategies that plan them.

    Attributes:
        asked: What the user asked for.
        devices: With the cost model.
        tasks: As drawn.
        strategies: Names.
        settings: What the strategies are told.
    """

    asked: PlanBenchmark
    devices: PricedDevices
    tasks: tuple[PlanningTask, ...]
    strategies: tuple[str, ...]
    settings: SearchSettings

    def problem(self, task: PlanningTask) -> PlanningProblem:
        """The problem of one task, drawn or scaled."""
        types = self.asked.sharding_types
        constraints = (TableConstraint(("*",), sharding_types=types),) if types else ()
        return build_problem(task, self.devices.topology, self.asked.memory, constraints=constraints)


def set_up(asked: PlanBenchmark) -> Contest:
    """The contest that was asked for.

    Raises:
        ConfigError: A figure is out of range.
        CostFileError: The pool cannot be read.
        PlanningError: A strategy is not known, or the profile, topology or weights cannot be used.
    """
    asked.check()
    devices = _price_devices(asked)
    usable = [device.hbm_bytes - device.reserved_bytes for device in devices.topology.devices]
    cap_bytes = asked.total_bytes or default_cap_bytes(min(usable), len(usable))
    names = asked.strategies or tuple(name for name in DEFAULT_STRATEGIES if name in STRATEGIES)
    settings = SearchSettings(devices.estimator, asked.budget_s, asked.seed, has_policy=True)
    for name in names:
        build_strategy(name, settings)
    pool = read_pool(asked.tables)
    tasks = draw_tasks(pool, asked.num_tables, asked.num_tasks, asked.seed, cap_bytes, asked.dims)
    return Contest(asked, devices, tasks, names, settings)


def _price_devices(asked: PlanBenchmark) -> PricedDevices:
    if asked.topology is not None:
        return price_topology(asked.topology)
    assert asked.num_ranks is not None and asked.memory_bytes is not None
    if asked.profile is not None:
        return price_profiled_node(asked.profile, asked.num_ranks, asked.memory_bytes)
    return price_cpu_node(asked.num_ranks, asked.memory_bytes)


def _is_width(dim: int) -> bool:
    return dim >= DIM_MULTIPLE and dim % DIM_MULTIPLE == 0
