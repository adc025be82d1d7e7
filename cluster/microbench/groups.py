"""The groups of ranks whose collectives are measured: those that a training step uses."""

from collections.abc import Sequence

import torch
import torch.distributed as dist

from cluster.microbench.collectives import Group


def list_shapes(nodes: Sequence[Sequence[int]]) -> list[tuple[str, list[list[int]]]]:
    """Gives link class and groups of ranks for every way in which a step splits the ranks; groups of one are left out.

    All ranks; with several nodes also each node alone, and the ranks of one place on every node, which is how
    table_row_wise reduces. The groups of one way work side by side.

    Args:
        nodes: The ranks of every node.

    >>> list_shapes([[0, 1], [2, 3]])
    [('inter_node', [[0, 1, 2, 3]]), ('intra_node', [[0, 1], [2, 3]]), ('inter_node', [[0, 2], [1, 3]])]
    """
    everyone = [rank for ranks in nodes for rank in ranks]
    if len(nodes) == 1:
        return [("intra_node", [everyone])] if len(everyone) > 1 else []
    shapes = [("inter_node", [everyone]), ("intra_node", [list(ranks) for ranks in nodes if len(ranks) > 1])]
    if len({len(ranks) for ranks in nodes}) == 1 and len(nodes[0]) > 1:
        shapes.append(("inter_node", [list(place) for place in zip(*nodes, strict=True)]))
    return [(link, groups) for link, groups in shapes if groups]


def open_groups(nodes: Sequence[Sequence[int]], rank: int, device: torch.device) -> list[Group | None]:
    """One entry a shape: this rank's group in it, or None. Collective: every rank must call it alike."""
    found: list[Group | None] = []
    for link, groups in list_shapes(nodes):
        own = None
        for ranks in groups:
            handle = dist.new_group(ranks)
            if rank in ranks:
                own = Group(handle, link, device)
        found.append(own)
    return found
