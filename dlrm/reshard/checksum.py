"""Checksums of tables that do not depend on how they are cut: sums over cells, exact in integers.

The bits of a cell, as an integer, times a factor of its column and one of its row, both odd; all sums and products are
modulo 2^64. So a table has the same sum under every plan, whoever adds it up in whatever order; a changed cell changes
it for certain, since odd factors lose nothing, and exchanged rows or columns do unless by a chance of 2^-32 or less.
"""

from collections.abc import Iterable

import torch

from dlrm.reshard.held import HeldShard

BLOCK_CELLS = 1 << 16
"""Cells that are multiplied at once: with what comes of them they stay in a core's second cache."""

# Source: Steele et al. 2014, "Fast splittable pseudorandom number generators", mix64 (variant 13 of Stafford).
MIX_STEPS = ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15))
MIX_INCREMENT = -0x61C8864680B583EB


def shard_sums(shard: HeldShard) -> torch.Tensor:
    """int64 [1 + num_states]: sums of the weights and of each state, of the cells that this shard has."""
    sums = [cells_sum(shard.weight, shard.row_offset, shard.col_offset)]
    for state in shard.states:
        cells = state if state.dim() == 2 else state[:, None]
        sums.append(cells_sum(cells, shard.row_offset, shard.col_offset if state.dim() == 2 else 0))
    return torch.stack(sums)


def table_sums(shards: Iterable[HeldShard], tables: dict[str, int], num_sums: int) -> torch.Tensor:
    """int64 [T, num_sums]: the same of all shards of this rank, by table; to be added up over ranks.

    Args:
        shards: What the rank holds.
        tables: Position of each table.
        num_sums: 1 + states of the optimizer.
    """
    sums = torch.zeros(len(tables), num_sums, dtype=torch.int64)
    for shard in shards:
        sums[tables[shard.table]] += shard_sums(shard)
    return sums


@torch.no_grad()
def cells_sum(cells: torch.Tensor, row_offset: int, col_offset: int) -> torch.Tensor:
    """int64 []: the sum of fp32 cells [rows, cols], the first of which has this place in its table."""
    num_rows, num_cols = cells.shape
    columns = factors(col_offset, num_cols, cells.device).to(torch.int32)
    rows = factors(row_offset, num_rows, cells.device)
    block = max(1, BLOCK_CELLS // max(1, num_cols))
    total = torch.zeros((), dtype=torch.int64, device=cells.device)
    for begin in range(0, num_rows, block):
        bits = cells[begin : begin + block].contiguous().view(torch.int32)
        total += ((bits * columns).sum(dim=1, dtype=torch.int64) * rows[begin : begin + block]).sum()
    return total.cpu()


def factors(begin: int, count: int, device: torch.device) -> torch.Tensor:
    """int64 [count]: odd factors of the rows, or columns, from `begin` on, scattered over all bits."""
    mixed = (torch.arange(begin + 1, begin + count + 1, dtype=torch.int64, device=device)) * MIX_INCREMENT
    for shift, factor in MIX_STEPS:
        mixed = (mixed ^ (mixed >> shift)) * factor
    return (mixed ^ (mixed >> 31)) | 1
