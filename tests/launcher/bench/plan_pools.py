"""Small pools of tables in the form of Meta's, for tests of planning tasks."""

from pathlib import Path

import numpy as np

from launcher.bench.cost_data import TABLE_COLUMNS
from planner.lookups import NUM_REUSE_BINS


def write_pool(path: Path, num_tables: int = 12, most_rows: int = 1_000_000) -> Path:
    """Tables of 1,000 to `most_rows` rows, of which the last is never looked up."""
    rng = np.random.default_rng(0)
    lines = [",".join(TABLE_COLUMNS)]
    for index in range(num_tables):
        shares = rng.dirichlet(np.exp(-np.arange(NUM_REUSE_BINS)))
        pooling_factor = rng.uniform(1, 20)
        if index == num_tables - 1:
            shares, pooling_factor = 0 * shares, 0.0
        num_rows = round(1_000 * (most_rows / 1_000) ** (index / (num_tables - 1)))
        lines.append(",".join(map(str, (index, num_rows, pooling_factor, *shares))))
    path.write_text("\n".join(lines) + "\n")
    return path
