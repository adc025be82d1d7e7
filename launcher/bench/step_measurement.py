"""Measured steps of one model configuration: what was run, how long each phase took, a JSON line each."""

import hashlib
import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from dlrm.step_columns import STEP_COLUMNS
from launcher.preparation import describe_task, resolve_paths, with_access
from launcher.schema import RunConfig
from planner.cost.estimator import PHASES
from planner.plan import ShardingPlan
from planner.problem import PlanningProblem
from planner.profile import Timing
from planner.topology import Topology


@dataclass(frozen=True)
class StepMeasurement:
    """The steps of one configuration under one plan.

    Attributes:
        config: The whole configuration; with `plan` all that is needed to build the planning problem again.
        plan: Where every shard was; its `world_size` is W.
        step: Of the slowest rank in every step, warm-up not counted.
        columns: `dlrm.timing.STEP_COLUMNS` at that time.
        columns_ms: [W] rows, of every column the median over steps. Exchanges include waiting for the other ranks,
            `data_wait_ms` is what was left of making the batches.
        canary_before_ms: [W] median of a fixed product and gather, all ranks at once, before the steps.
        canary_after_ms: [W] the same after them.
    """

    config: RunConfig
    plan: ShardingPlan
    step: Timing
    columns: tuple[str, ...]
    columns_ms: tuple[tuple[float, ...], ...]
    canary_before_ms: tuple[float, ...]
    canary_after_ms: tuple[float, ...]

    @property
    def key(self) -> str:
        """Names the configuration; see `config_key`."""
        return config_key(self.config)

    def column_ms(self, name: str) -> NDArray[np.float64]:
        """Medians [W] of one column."""
        return np.array([row[self.columns.index(name)] for row in self.columns_ms])

    @property
    def phases_ms(self) -> NDArray[np.float64]:
        """Medians [P, W] of `planner.cost.estimator.PHASES`, to stand beside `PlanCost.phases_ms`."""
        return np.stack([self.column_ms(f"{phase}_ms") for phase in PHASES])

    def problem(self, topology: Topology) -> PlanningProblem:
        """The planning problem that `plan` solved, on devices with the figures of `topology`."""
        task, _ = with_access(describe_task(resolve_paths(deepcopy(self.config))), self.plan.world_size)
        return task.problem(topology)

    def to_json(self) -> str:
        """One line, without its end."""
        return json.dumps({**asdict(self), "plan": self.plan.to_dict()})

    @classmethod
    def from_json(cls, line: str) -> "StepMeasurement":
        """What `to_json` gave.

        Raises:
            ValueError: The line is no JSON, or its columns are not those of today.
            KeyError, TypeError: It is another object.
            PlanningError: It has no plan.
        """
        values = json.loads(line)
        if tuple(values["columns"]) != STEP_COLUMNS:
            raise ValueError(f"its columns are {values['columns']}, expected {list(STEP_COLUMNS)}")
        return cls(
            config=_build(RunConfig, values["config"]),
            plan=ShardingPlan.from_dict(values["plan"]),
            step=Timing(**values["step"]),
            columns=STEP_COLUMNS,
            columns_ms=tuple(map(tuple, values["columns_ms"])),
            canary_before_ms=tuple(values["canary_before_ms"]),
            canary_after_ms=tuple(values["canary_after_ms"]),
        )


def config_key(config: RunConfig) -> str:
    """A digest of what decides the steps: everything but the places of files and of the cluster, and the profile."""
    values = asdict(config)
    del values["run"], values["profile"], values["cluster"]["address"]
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=8).hexdigest()


class MeasurementFile:
    """A file of measurements that grows line by line; a kill costs the last line at most."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Iterator[StepMeasurement]:
        """Every whole line; raises ValueError that names one which is no measurement."""
        text = self.path.read_text() if self.path.exists() else ""
        for number, line in enumerate(text.splitlines(keepends=True), start=1):
            if not line.endswith("\n"):
                return
            try:
                yield StepMeasurement.from_json(line)
            except Exception as error:
                raise ValueError(
                    f"{self.path}:{number} is no measurement of steps by this version: {error}; move the file away "
                    "to measure anew"
                ) from error

    def append(self, measurement: StepMeasurement) -> None:
        """One more line, in place of one that a kill cut short."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
            file.write(measurement.to_json().encode() + b"\n")


def _build(schema: Any, values: dict[str, Any]) -> Any:
    """A dataclass of nested dicts, as `asdict` made them; keys that are not there keep their defaults."""
    types = {field.name: field.type for field in fields(schema)}
    return schema(**{name: _revive(types[name], value) for name, value in values.items()})


def _revive(kind: Any, value: Any) -> Any:
    if is_dataclass(kind):
        return _build(kind, value)
    inner = get_args(kind)
    return [_build(inner[0], each) for each in value] if inner and is_dataclass(inner[0]) else value
