"""What a rank holds of the tables: rectangles of weights with their optimizer state, whichever kernel trains them.

Source: TorchRec 1.8, `batched_embedding_kernel.py`: fused kernels keep the state themselves; the tables of dense ones
(replicas; all tables under Adam on CPUs) are stepped by an ordinary optimizer, which keeps it by parameter.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer

from dlrm.errors import DlrmError
from dlrm.reshard.parcels import Layout
from planner.plan import ShardingPlan
from planner.torchrec_bridge import table_name

ORDINARY_STATES = ("sum", "exp_avg", "exp_avg_sq")
"""State tensors of ordinary optimizers, in the order in which fused kernels hold theirs.

Source: TorchRec's `RowWiseAdagrad`, torch's Adam; FBGEMM's momentum1 and momentum2.
"""


@dataclass(frozen=True, eq=False)
class HeldShard:
    """One rectangle of one table on this rank; on what trains, all tensors share its memory.

    Attributes:
        table: The table.
        row_offset: Its first row.
        col_offset: Its first column.
        weight: float32 [num_rows, num_cols].
        states: Of the optimizer, float32: one value a weight [num_rows, num_cols], or a row [num_rows].
    """

    table: str
    row_offset: int
    col_offset: int
    weight: torch.Tensor
    states: tuple[torch.Tensor, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of weights and state."""
        return sum(each.numel() * each.element_size() for each in (self.weight, *self.states))

    @property
    def place(self) -> tuple[str, int, int]:
        """Table, first row, first column: no two shards of a rank have the same."""
        return self.table, self.row_offset, self.col_offset

    def is_like(self, other: "HeldShard") -> bool:
        """Whether another shard of the same place has the same bits, on whichever device."""
        pairs = zip((self.weight, *self.states), (other.weight, *other.states), strict=True)
        # As integers: a weight that is no number is not equal to itself.
        return all(torch.equal(a.view(torch.int32), b.to(a.device).view(torch.int32)) for a, b in pairs)

    def copy_to(self, device: torch.device) -> "HeldShard":
        """The same values in fresh memory of a device."""
        weight, *states = (each.detach().to(device, copy=True) for each in (self.weight, *self.states))
        return HeldShard(self.table, self.row_offset, self.col_offset, weight, tuple(states))

    @torch.no_grad()
    def take(self, other: "HeldShard") -> None:
        """Copy the values of a rectangle of the same place."""
        for mine, theirs in zip((self.weight, *self.states), (other.weight, *other.states), strict=True):
            mine.copy_(theirs)


@dataclass(frozen=True)
class Counters:
    """What the optimizer of the tables counts and is set to, alike on all ranks.

    Attributes:
        iteration: Steps so far; Adam's bias correction goes by them.
        learning_rate: As last set; 0 on a rank that holds no table.
    """

    iteration: float
    learning_rate: float


def agree_counters(own: Counters) -> Counters:
    """The counters of the ranks that have any. Collective."""
    values = torch.tensor([own.iteration, own.learning_rate], dtype=torch.float64)
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return Counters(*values.tolist())


class Holding:
    """The tables of one sharded collection on this rank, under the optimizer that steps them.

    Attributes:
        shards: Its rectangles.
    """

    def __init__(self, collection: nn.Module, optimizer: CombinedOptimizer, num_states: int) -> None:
        """Find them.

        Args:
            collection: The sharded collection.
            optimizer: Steps it.
            num_states: Tensors of state that its kind of optimizer keeps.

        Raises:
            DlrmError: `state`, where a table has another number of them: it would be moved without.
        """
        kernels = list(_kernels(collection))
        self._fused = [kernel.emb_module for kernel in kernels if is_fused(kernel)]
        dense = [weight for kernel in kernels if not is_fused(kernel) for weight in kernel.split_embedding_weights()]
        places = {weight.data_ptr() for weight in dense}
        leaves = list(_leaves(optimizer))
        ordinary = [each for each in leaves if places & _states_by_place(each).keys()]
        self._optimizers = [each for each in leaves if getattr(each, "_emb_module", None) in self._fused] + ordinary
        states: dict[int, Any] = {}
        for each in ordinary:
            states |= _states_by_place(each)
        self._dense_states = [states[place] for place in sorted(places)]
        self.shards = [shard for kernel in kernels for shard in _shards_of(kernel, states)]
        for shard in self.shards:
            if len(shard.states) != num_states:
                found = f"found {len(shard.states)} tensors of optimizer state, expected {num_states}"
                raise DlrmError(f"table {shard.table!r}: {found}", "state")

    def read_counters(self) -> Counters:
        """The counters of this rank; one without tables has counted nothing."""
        iterations = [float(fused.iter.item()) for fused in self._fused]
        iterations += [float(state["step"]) for state in self._dense_states if "step" in state]
        rates = [float(group["lr"]) for each in self._optimizers for group in each.param_groups]
        return Counters(max(iterations, default=0.0), max(rates, default=0.0))

    def write_counters(self, counters: Counters) -> None:
        """Set the counters of this rank's tables."""
        for fused in self._fused:
            fused.set_optimizer_step(int(counters.iteration))
        for state in self._dense_states:
            if "step" in state:
                state["step"].fill_(counters.iteration)
        for each in self._optimizers:
            for group in each.param_groups:
                group["lr"] = counters.learning_rate


def empty_shards(plan: ShardingPlan, rank: int, layout: Layout) -> list[HeldShard]:
    """What a rank holds under a plan, as zeros in host memory."""
    found = []
    for table in plan.tables:
        for shard in (shard for shard in table.shards if shard.rank == rank and shard.num_rows):
            weight, *cells = (torch.zeros(shard.num_rows, shard.num_cols) for _ in range(layout.num_cell_values))
            rows = [torch.zeros(shard.num_rows) for _ in range(layout.num_row_values)]
            found.append(HeldShard(table.name, shard.row_offset, shard.col_offset, weight, (*cells, *rows)))
    return found


def flip_a_bit(shards: list[HeldShard]) -> None:
    """Change the lowest bit of one weight, if this rank holds any: for tests of what finds that."""
    for shard in [shard for shard in shards if shard.weight.numel()][:1]:
        shard.weight.view(torch.int32)[0, 0] ^= 1


def is_fused(kernel: Any) -> bool:
    """Whether a kernel steps its tables in the backward pass."""
    return hasattr(kernel.emb_module, "split_optimizer_states")


def _kernels(collection: Any) -> Iterator[Any]:
    """The kernels of all sharding groups; a rank without a table has a lookup without any."""
    for lookup in collection._lookups:
        for group in lookup.modules():
            yield from getattr(group, "_emb_modules", ())


def _shards_of(kernel: Any, states: dict[int, Any]) -> Iterator[HeldShard]:
    weights = kernel.split_embedding_weights()
    fused = kernel.emb_module.split_optimizer_states() if is_fused(kernel) else []
    for number, (table, weight) in enumerate(zip(kernel.config.embedding_tables, weights, strict=True)):
        place = table.local_metadata
        row, col = (0, 0) if place is None else place.shard_offsets
        held = fused[number] if fused else _ordinary_states(states.get(weight.data_ptr(), {}))
        # Row-wise state is a column in one optimizer and a vector in the other.
        shaped = tuple(each if each.shape == weight.shape else each.view(-1) for each in held)
        yield HeldShard(table_name(table.name), row, col, weight.detach(), shaped)


def _ordinary_states(state: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return [state[name] for name in ORDINARY_STATES if name in state]


def _leaves(optimizer: KeyedOptimizer) -> Iterator[KeyedOptimizer]:
    """The optimizers that others are combined of."""
    if not isinstance(optimizer, CombinedOptimizer):
        yield optimizer
        return
    for _, inner in optimizer._optims:
        yield from _leaves(inner)


def _states_by_place(optimizer: KeyedOptimizer) -> dict[int, Any]:
    """State of each parameter of an ordinary optimizer by where its memory begins; nothing of a fused one."""
    inner = getattr(optimizer, "_optimizer", None)
    if inner is None:
        return {}
    return {
        parameter.data_ptr(): inner.state.get(parameter, {})
        for group in inner.param_groups
        for parameter in group["params"]
    }
