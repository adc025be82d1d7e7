"""What was measured on a cluster: times of lookups, dense layers, copies and collectives.

`planner.profile_file` keeps a profile as JSON.
"""

from dataclasses import dataclass

from planner.lookups import LookupSet
from planner.topology import Topology

PROFILE_VERSION = 1
"""Changes whenever a file of an earlier version would be read wrongly."""

COLLECTIVES = ("all_to_all", "reduce_scatter", "all_gather", "all_reduce")
"""The collectives of a training step."""

LINK_CLASSES = ("intra_node", "inter_node")
"""Names of the link classes, as in `planner.topology.Topology`."""


@dataclass(frozen=True)
class Timing:
    """Repeated measurements of one thing.

    Attributes:
        median_ms: Median.
        iqr_ms: Inter-quartile range.
        num_repeats: How many there were, warm-up not counted.
    """

    median_ms: float
    iqr_ms: float
    num_repeats: int


@dataclass(frozen=True)
class LookupMeasurement:
    """One fused set, forward and backward with its fused update.

    Attributes:
        lookups: What was looked up.
        forward: Times of the forward pass.
        backward: Times of the backward pass with the update.
        canary_ms: The device's fixed lookup, forward and backward with row-wise Adagrad, measured beside it: how
            fast the device was then.
    """

    lookups: LookupSet
    forward: Timing
    backward: Timing
    canary_ms: float


@dataclass(frozen=True)
class DenseMeasurement:
    """A chain of linear layers with ReLU between them.

    Attributes:
        samples: Rows of the input.
        layer_sizes: Widths, input first.
        forward: Times of the forward pass.
        backward: Times of the backward pass, gradients of input and weights.
        canary_ms: The device's fixed matrix product, measured beside it.
    """

    samples: int
    layer_sizes: tuple[int, ...]
    forward: Timing
    backward: Timing
    canary_ms: float


@dataclass(frozen=True)
class CopyMeasurement:
    """A copy of contiguous memory.

    Attributes:
        kind: `device_to_device`, `host_to_device` or `device_to_host`; on a CPU rank the first only.
        num_bytes: Bytes copied.
        timing: Times.
    """

    kind: str
    num_bytes: int
    timing: Timing


@dataclass(frozen=True)
class CollectiveMeasurement:
    """One collective over a group of ranks.

    Attributes:
        collective: One of `COLLECTIVES`.
        link: The slowest link class in the group, one of `LINK_CLASSES`.
        sent_bytes: [W] bytes of each rank's input: all that it hands over, its own part included.
        skew_ms: [W] by how much each rank started later than the first, as asked for.
        duration_ms: [W] median from a rank's own start to its own end, waiting included.
        slowest: Times from the last start to the last end, over repeats.
        canary_ms: A fixed small all-to-all of the group, measured beside it.
    """

    collective: str
    link: str
    sent_bytes: tuple[int, ...]
    skew_ms: tuple[float, ...]
    duration_ms: tuple[float, ...]
    slowest: Timing
    canary_ms: float

    @property
    def world_size(self) -> int:
        """W, ranks of the group."""
        return len(self.sent_bytes)


@dataclass(frozen=True)
class DeviceProfile:
    """What one kind of device can do.

    Attributes:
        kind: Name of the device kind, as in the topology.
        name: The device's name as its driver or the system reports it.
        free_bytes: Memory that was free on each device of the kind, the smallest.
        lookup_canary: The fixed lookup over the whole profile.
        dense_canary: The fixed matrix product over the whole profile.
        lookups: Fused sets.
        dense: Chains of linear layers.
        copies: Copies.
    """

    kind: str
    name: str
    free_bytes: int
    lookup_canary: Timing
    dense_canary: Timing
    lookups: tuple[LookupMeasurement, ...]
    dense: tuple[DenseMeasurement, ...]
    copies: tuple[CopyMeasurement, ...]


@dataclass(frozen=True)
class Profile:
    """Everything measured on one cluster.

    Attributes:
        fingerprint: What a profile is valid for: devices, driver, library versions, threads, world size.
        created: UTC time, ISO 8601.
        seconds: How long it took, the start of the workers included.
        topology: The devices that were measured, with their memory; a plan from the profile alone is for these.
        devices: One entry a device kind.
        collectives: Over all groups and link classes.
    """

    fingerprint: dict[str, str]
    created: str
    seconds: float
    topology: Topology
    devices: tuple[DeviceProfile, ...]
    collectives: tuple[CollectiveMeasurement, ...]
