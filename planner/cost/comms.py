"""Time of a collective from the bytes that each rank sends and receives: a maximum of planes.

Legend: W ranks of a group, x_r bytes of rank r's input (its own part included), sum over all ranks S.

Bytes over the link, by a factor f of the collective and W:
- out_r = f x_r leaves rank r, in_r = f (S - x_r) / (W - 1) arrives there;
- f = (W - 1) / W for all_to_all and reduce_scatter, where 1 / W of an input stays at home; W - 1 for
  all_gather; 2 (W - 1) / W for all_reduce. Source: Patarasuk and Yuan 2009, bandwidth optimal all-reduce,
  for the last three.

Rank r needs max over planes k of constant_k + a_k out_r + b_k in_r, and the collective the largest of its
ranks: alpha + beta x (own, sum, max) bytes. Several planes say what one cannot: small messages fit into
caches, the busiest rank holds up the others only beyond a point. All a, b are >= 0 and the first plane's
constant is, so times are positive and never fall when a byte is added; a later plane may have a negative
constant. Every plane is also a linear lower bound.

A group of another size takes the planes of the nearest measured one: bytes are recomputed, a rank's share of
the link stays what it was there, and positive constants of ring collectives grow with the number of steps,
W - 1.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from math import log
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.errors import PlanningError
from planner.profile import COLLECTIVES
from planner.topology import Link, Topology

MS_PER_S = 1e3
"""Milliseconds in a second."""

RING_COLLECTIVES = ("reduce_scatter", "all_gather", "all_reduce")
"""Collectives that pass parts around a ring: their latency is paid for each of W - 1 steps."""


@dataclass(frozen=True)
class TransferPlane:
    """One linear function of the bytes that leave and reach a rank.

    Attributes:
        constant_ms: At no bytes.
        ms_per_byte_out: Of bytes that leave the rank, >= 0.
        ms_per_byte_in: Of bytes that reach it, >= 0.
        waiting_share: How much of a rank's late start delays the end, 0 to 1: less than 1 where the others
            move bytes meanwhile.
    """

    constant_ms: float
    ms_per_byte_out: float
    ms_per_byte_in: float
    waiting_share: float = 1.0


@dataclass(frozen=True)
class LinearFloor:
    """What a collective that runs takes at least: the slowest rank >= constant + figure x bytes of inputs.

    Attributes:
        constant_ms: At no bytes; below 0 for some planes.
        ms_per_total_byte: Of the sum of all ranks' inputs.
        ms_per_own_byte: Of any one rank's input.
    """

    constant_ms: float
    ms_per_total_byte: float
    ms_per_own_byte: float


@dataclass(frozen=True)
class CollectiveCost:
    """The planes of one collective over one link class.

    Attributes:
        collective: One of `planner.profile.COLLECTIVES`.
        link: One of `planner.profile.LINK_CLASSES`.
        group_size: W that they were measured with.
        planes: The first has a constant >= 0.
    """

    collective: str
    link: str
    group_size: int
    planes: tuple[TransferPlane, ...]

    def arrays(self, group_size: int) -> NDArray[np.float64]:
        """Planes [K, 4] for a group of this size: constant, out, in, waiting share."""
        planes = self._arrays
        if self.collective in RING_COLLECTIVES:
            planes = planes.copy()
            steps = (group_size - 1) / (self.group_size - 1)
            planes[:, 0] *= np.where(planes[:, 0] > 0, steps, 1.0)
        return planes

    @cached_property
    def _arrays(self) -> NDArray[np.float64]:
        return np.array([tuple(asdict(plane).values()) for plane in self.planes])

    def scaled(self, factor: float) -> "CollectiveCost":
        """The same on a link that is slower by a factor."""
        planes = tuple(
            TransferPlane(
                plane.constant_ms * factor,
                plane.ms_per_byte_out * factor,
                plane.ms_per_byte_in * factor,
                plane.waiting_share,
            )
            for plane in self.planes
        )
        return CollectiveCost(self.collective, self.link, self.group_size, planes)


@dataclass(frozen=True)
class CommsModel:
    """Times of collectives by link class.

    Attributes:
        costs: At most one entry a collective, link class and group size.
    """

    costs: tuple[CollectiveCost, ...]

    def estimate_ms(
        self, collective: str, link: str, sent_bytes: ArrayLike, num_collectives: ArrayLike = 1
    ) -> NDArray[np.float64]:
        """Milliseconds [..., W] that each rank needs when all start together.

        The collective ends for every rank with the largest of them.

        Args:
            collective: One of `COLLECTIVES`.
            link: The slowest link class in the group.
            sent_bytes: [..., W] bytes of each rank's input; leading dimensions are a batch.
            num_collectives: How many collectives share the bytes, [..., 1]; each further one costs another
                latency, and 0 of them take no time.

        Raises:
            PlanningError: Nothing is known of this collective on this link (reason `profile`).
        """
        bytes_out, bytes_in = moved_bytes(collective, np.asarray(sent_bytes, dtype=np.float64))
        return self.transfer_ms(collective, link, bytes_out.shape[-1], bytes_out, bytes_in, num_collectives)

    def transfer_ms(
        self,
        collective: str,
        link: str,
        group_size: int,
        bytes_out: ArrayLike,
        bytes_in: ArrayLike,
        num_collectives: ArrayLike = 1,
    ) -> NDArray[np.float64]:
        """As `estimate_ms`, of the bytes [..., W] that leave and reach each rank over this link alone."""
        moved_out, moved_in = np.broadcast_arrays(bytes_out, bytes_in)
        number = np.asarray(num_collectives)
        if group_size < 2:
            return np.zeros(np.broadcast_shapes(moved_out.shape, number.shape))
        planes = self.planes(collective, link, group_size)
        needed = (_plane_ms(plane, moved_out, moved_in) for plane in planes)
        slowest_plane = np.maximum.reduce(list(needed))
        return np.where(number > 0, slowest_plane + (number - 1) * planes[0, 0], 0.0)

    def end_ms(self, collective: str, link: str, sent_bytes: ArrayLike, start_ms: ArrayLike) -> NDArray[np.float64]:
        """When the collective ends [...], given when each rank starts [..., W], both from the first start.

        A rank's own duration, waiting included, is this end less its own start.
        """
        inputs, starts = np.broadcast_arrays(np.asarray(sent_bytes, dtype=np.float64), start_ms)
        bytes_out, bytes_in = moved_bytes(collective, inputs)
        planes = self.planes(collective, link, inputs.shape[-1])
        ends = [_plane_ms(plane, bytes_out, bytes_in) + plane[3] * starts for plane in planes]
        return np.asarray(np.maximum.reduce([starts, *ends]).max(axis=-1))

    def linear_floors(self, collective: str, link: str, group_size: int) -> tuple[LinearFloor, ...]:
        """One floor a plane; any of them holds for any bytes where the collective runs.

        Proof, for one plane: the slowest rank is at least the mean over ranks, whose bytes out and in are
        both f S / W; and it is at least the rank that sends f x, and any other rank, which receives at least
        f x / (W - 1).
        """
        factor = moved_share(collective, group_size)
        return tuple(
            LinearFloor(
                constant_ms=float(constant),
                ms_per_total_byte=float((out + into) * factor / group_size),
                ms_per_own_byte=float(max(out, into / (group_size - 1)) * factor),
            )
            for constant, out, into, _ in self.planes(collective, link, group_size)
        )

    def completed(self, other: Self) -> "CommsModel":
        """This model, with another's costs for every collective and link class of which it knows nothing."""
        known = {(cost.collective, cost.link) for cost in self.costs}
        return CommsModel(self.costs + tuple(cost for cost in other.costs if (cost.collective, cost.link) not in known))

    def scaled(self, factor: float) -> "CommsModel":
        """The same on links that are slower by a factor: how a canary corrects a stored model."""
        return CommsModel(tuple(cost.scaled(factor) for cost in self.costs))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"collectives": [{**asdict(cost), "planes": [*map(asdict, cost.planes)]} for cost in self.costs]}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "CommsModel":
        """The model that `to_dict` gave.

        Raises:
            PlanningError: The content has another form (reason `profile`).
        """
        try:
            return cls(tuple(_read_cost(entry) for entry in content["collectives"]))
        except (KeyError, TypeError, ValueError) as error:
            raise PlanningError(
                f"communication costs: {type(error).__name__}: {error}; expected what to_dict writes", reason="profile"
            ) from error

    def planes(self, collective: str, link: str, group_size: int) -> NDArray[np.float64]:
        """Planes [K, 4] of the nearest group size, by ratio; the larger of two equally near."""
        found = [cost for cost in self.costs if (cost.collective, cost.link) == (collective, link)]
        if not found:
            known = sorted({f"{cost.collective} on {cost.link}" for cost in self.costs})
            raise PlanningError(
                f"communication costs: nothing is known of {collective} on {link}, only of "
                f"{', '.join(known) or 'nothing'}; measure it (shardwright profile) or describe the link in a topology",
                reason="profile",
            )
        nearest = min(found, key=lambda cost: (abs(log(group_size / cost.group_size)), -cost.group_size))
        return nearest.arrays(group_size)


def from_topology(topology: Topology) -> CommsModel:
    """The times that the two links of a topology promise: latency + the larger of bytes out and in / bandwidth.

    A ring over several machines goes at the pace of its slower link and pays a latency for every step: W - 1,
    for all_reduce twice as many. Source: Patarasuk and Yuan 2009.
    """
    group_size = max(2, topology.world_size)
    slower = Link(
        bytes_per_s=min(topology.intra_node.bytes_per_s, topology.inter_node.bytes_per_s),
        latency_s=max(topology.intra_node.latency_s, topology.inter_node.latency_s),
    )
    costs = []
    for collective in COLLECTIVES:
        is_ring = collective in RING_COLLECTIVES
        links = {"intra_node": topology.intra_node, "inter_node": slower if is_ring else topology.inter_node}
        steps = (group_size - 1) * (2 if collective == "all_reduce" else 1) if is_ring else 1
        costs += [
            CollectiveCost(collective, name, group_size, _link_planes(link, steps)) for name, link in links.items()
        ]
    return CommsModel(tuple(costs))


def moved_share(collective: str, group_size: int) -> float:
    """f of this module's docstring: bytes that leave a rank per byte of its input.

    >>> moved_share("all_reduce", 4)
    1.5
    """
    shares = {
        "all_to_all": (group_size - 1) / group_size,
        "reduce_scatter": (group_size - 1) / group_size,
        "all_gather": float(group_size - 1),
        "all_reduce": 2 * (group_size - 1) / group_size,
    }
    return shares[collective]


def moved_bytes(collective: str, sent_bytes: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bytes [..., W] that leave each rank, and bytes that reach it, of the ranks' inputs [..., W]."""
    group_size = sent_bytes.shape[-1]
    factor = moved_share(collective, group_size)
    others = sent_bytes.sum(axis=-1, keepdims=True) - sent_bytes
    # The difference of two sums of floats may fall below 0 by rounding.
    return factor * sent_bytes, factor * np.maximum(others, 0.0) / max(1, group_size - 1)


def _plane_ms(
    plane: NDArray[np.float64], bytes_out: NDArray[np.float64], bytes_in: NDArray[np.float64]
) -> NDArray[np.float64]:
    return np.asarray(plane[0] + plane[1] * bytes_out + plane[2] * bytes_in)


def _link_planes(link: Link, steps: int) -> tuple[TransferPlane, ...]:
    latency_ms, ms_per_byte = steps * link.latency_s * MS_PER_S, MS_PER_S / link.bytes_per_s
    return TransferPlane(latency_ms, ms_per_byte, 0.0), TransferPlane(latency_ms, 0.0, ms_per_byte)


def _read_cost(entry: dict[str, Any]) -> CollectiveCost:
    planes: Sequence[dict[str, float]] = entry["planes"]
    if not planes or entry["collective"] not in COLLECTIVES:
        raise ValueError(f"collective {entry['collective']!r} with {len(planes)} planes")
    return CollectiveCost(
        entry["collective"],
        entry["link"],
        int(entry["group_size"]),
        tuple(TransferPlane(**{name: float(value) for name, value in plane.items()}) for plane in planes),
    )
