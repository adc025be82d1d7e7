"""Checksums of tables that do not depend on how they are cut: sums over cells, exact in integers.

Two cells beside each other are one number of 64 bits, which is multiplied by a factor of their columns and one of
their row, both odd; all sums and products are modulo 2^64. So a table has the same sum under every plan, whoever adds
it up in whatever order; a changed cell changes it for certain, since odd factors lose nothing, and exchanged rows or
columns do unless by a chance of 2^-32 or less.
"""

from collections.abc import Iterable

import torch

from dlrm.reshard.held import HeldShard

BLOCK_CELLS = {"cpu": 1 << 18, "cuda": 1 << 24}
"""Cells that are multiplied at once: on a CPU they stay in a core's second cache, on a GPU they fill it."""

WORD_CELLS, CELL_BITS = 2, 32
"""Cells of a number, and bits of a cell."""

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
    """int64 [], on the host: the sum of fp32 cells [rows, cols], the first of which has this place in its table."""
    num_rows, num_cols = cells.shape
    is_paired = not (col_offset % WORD_CELLS or num_cols % WORD_CELLS)
    columns = (_pair_factors if is_paired else _cell_factors)(col_offset, num_cols, cells.device)
    block = max(1, BLOCK_CELLS[cells.device.type] // max(1, num_cols))
    total = torch.zeros((), dtype=torch.int64, device=cells.device)
    for begin in range(0, num_rows, block):
        part = cells[begin : begin + block].contiguous()
        words = part.view(torch.int64) if is_paired else part.view(torch.int32).long() & ((1 << CELL_BITS) - 1)
        rows = factors(row_offset + begin, len(part), cells.device)
        total += (_multiply(words, columns) * rows).sum()
    return total.cpu()


@torch.no_grad()
def row_values_sum(values: torch.Tensor, row_offset: int, col_offset: int) -> torch.Tensor:
    """int64 []: the sum of fp32 values [rows] of a part that begins at this row and column; quick for small parts."""
    rows = factors(row_offset, len(values), values.device)
    return (values.contiguous().view(torch.int32) * rows).sum() * (2 * col_offset + 1)


def _multiply(words: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """int64 [rows]: words [rows, n] times columns [n]; there is no product of integer matrices on GPUs."""
    return torch.mv(words, columns) if words.device.type == "cpu" else (words * columns).sum(dim=1)


def _pair_factors(col_offset: int, num_cols: int, device: torch.device) -> torch.Tensor:
    """int64 [num_cols / 2], for whole words."""
    return factors(col_offset // WORD_CELLS, num_cols // WORD_CELLS, device)


def _cell_factors(col_offset: int, num_cols: int, device: torch.device) -> torch.Tensor:
    """int64 [num_cols], for single cells: those of their words, and of a word's second cell 2^32 times that."""
    columns = torch.arange(col_offset, col_offset + num_cols, device=device)
    first = col_offset // WORD_CELLS
    of_words = factors(first, (col_offset + num_cols - 1) // WORD_CELLS - first + 1, device)
    return of_words[columns // WORD_CELLS - first] << (CELL_BITS * (columns % WORD_CELLS))


def factors(begin: int, count: int, device: torch.device) -> torch.Tensor:
    """int64 [count]: odd factors of the rows, or columns, from `begin` on, scattered over all bits."""
    mixed = (torch.arange(begin + 1, begin + count + 1, dtype=torch.int64, device=device)) * MIX_INCREMENT
    for shift, factor in MIX_STEPS:
        mixed = (mixed ^ (mixed >> shift)) * factor
    return (mixed ^ (mixed >> 31)) | 1
