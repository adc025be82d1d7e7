"""The columns of a rank's measured steps: their names, given once, and where each one stands."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from planner.cost.estimator import PHASES

# The step, waiting for data, and the phases of `planner.cost.estimator.PHASES` in their order. These do not overlap;
# `dlrm.phases` says where each begins.
STEP_COLUMNS = ("step_ms", "data_wait_ms", *(f"{phase}_ms" for phase in PHASES))
(
    STEP,
    DATA_WAIT,
    INPUT_DIST,
    LOOKUP_FORWARD,
    OUTPUT_DIST_FORWARD,
    DENSE_FORWARD,
    DENSE_BACKWARD,
    OUTPUT_DIST_BACKWARD,
    LOOKUP_BACKWARD,
    ALL_REDUCE,
    OPTIMIZER,
    OTHER,
) = range(len(STEP_COLUMNS))

# What is counted in a step beside its times: ids that this rank looked up, bytes of its input of each collective (its
# own part included, as `planner.cost.comms` counts), and the most memory that it has used so far.
COUNTERS = (
    "ids",
    "input_dist_bytes",
    "output_dist_forward_bytes",
    "output_dist_backward_bytes",
    "all_reduce_bytes",
    "peak_bytes",
)
IDS, INPUT_DIST_BYTES, OUTPUT_DIST_FORWARD_BYTES, OUTPUT_DIST_BACKWARD_BYTES, ALL_REDUCE_BYTES, PEAK_BYTES = range(
    len(COUNTERS)
)


@dataclass(frozen=True)
class StepColumns:
    """What is measured of a step of one sharded model: `STEP_COLUMNS`, parts of the lookups, `COUNTERS`.

    A model with several sharding groups looks each up by kernels of its own; their times are parts of `lookup_forward`
    and `lookup_backward`. A model with one group has no parts.

    >>> StepColumns(("table_wise", "row_wise")).names[12:16:2]
    ('lookup_forward_ms/table_wise', 'lookup_forward_ms/row_wise')

    Attributes:
        groups: Sharding type of each group, in TorchRec's order.
    """

    groups: tuple[str, ...] = ()

    @classmethod
    def of(cls, sharding_types: Sequence[str]) -> "StepColumns":
        """The columns of a model whose groups have these types."""
        return cls(tuple(sharding_types) if len(sharding_types) > 1 else ())

    @cached_property
    def parts(self) -> tuple[tuple[str, int], ...]:
        """Name of each part, and the column it belongs to: forward and backward, group after group."""
        kinds = ((LOOKUP_FORWARD, STEP_COLUMNS[LOOKUP_FORWARD]), (LOOKUP_BACKWARD, STEP_COLUMNS[LOOKUP_BACKWARD]))
        return tuple((f"{name}/{group}", column) for group in self.groups for column, name in kinds)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All columns, in the order of every row."""
        return (*STEP_COLUMNS, *(name for name, _ in self.parts), *COUNTERS)

    @property
    def num_times(self) -> int:
        """Columns that are times; the counters follow them."""
        return len(STEP_COLUMNS) + len(self.parts)

    def lookup_columns(self, group: int) -> tuple[int, int]:
        """The columns that the clock enters for a group's lookups, forward and backward."""
        if not self.groups:
            return LOOKUP_FORWARD, LOOKUP_BACKWARD
        first = len(STEP_COLUMNS) + 2 * group
        return first, first + 1
