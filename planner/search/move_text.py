"""A change of one table's placement in words."""

from collections import Counter
from collections.abc import Iterable
from itertools import groupby

from planner.plan import TablePlacement
from planner.sharding import FREE_TYPES


def describe_change(before: TablePlacement, after: TablePlacement) -> str:
    """What changes, to be read behind the table's name.

    >>> from planner.sharding import Shard, ShardingType
    >>> left, right = (TablePlacement("a", ShardingType.TABLE_WISE, (Shard(rank, 0, 9, 0, 8),)) for rank in (1, 0))
    >>> describe_change(left, right)
    'from rank 1 to rank 0'
    """
    if before.sharding_type in FREE_TYPES and after.sharding_type in FREE_TYPES:
        return _between_ranks(before, after) or _whole(before, after)
    return _whole(before, after)


def name_ranks(ranks: Iterable[int]) -> str:
    """Ranks as ranges.

    >>> name_ranks([3, 0, 1, 2, 7])
    '0-3,7'
    """
    # Within a run of neighbours, rank minus position stays the same.
    runs = [list(run) for _, run in groupby(enumerate(sorted(set(ranks))), key=lambda pair: pair[1] - pair[0])]
    ends = [(run[0][1], run[-1][1]) for run in runs]
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ends)


def _between_ranks(before: TablePlacement, after: TablePlacement) -> str | None:
    """The columns that go from one rank to another; None where it takes more words."""
    held, then = _columns(before), _columns(after)
    lost, gained = held - then, then - held
    if not lost and not gained:
        return f"merged, {len(before.shards)} column shards to {len(after.shards)}"
    if len(lost) != 1 or len(gained) != 1:
        return None
    ((source, num_cols),), (target,) = lost.items(), gained
    part = "" if num_cols == sum(held.values()) else f"{num_cols} of {sum(held.values())} columns "
    return f"{part}from rank {source} to rank {target}"


def _columns(placement: TablePlacement) -> Counter[int]:
    columns: Counter[int] = Counter()
    for shard in placement.shards:
        columns[shard.rank] += shard.num_cols
    return columns


def _whole(before: TablePlacement, after: TablePlacement) -> str:
    return f"from {_where(before)} to {_where(after)}"


def _where(placement: TablePlacement) -> str:
    ranks = name_ranks(placement.ranks)
    return f"{placement.sharding_type} on rank{'' if ranks.isdigit() else 's'} {ranks}"
