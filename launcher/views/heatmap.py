"""Heat maps as pixels, for TensorBoard's image page."""

import numpy as np

# Viridis at five equal steps, dark to bright. Source: matplotlib 2.0, `_cm_listed.py`.
ANCHORS = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], dtype=np.float64)
# Least size of the longer side, so that a small map can be seen.
TARGET_PIXELS = 640
MOST_CELL_PIXELS = 24


def draw_heat_map(values: np.ndarray) -> np.ndarray:
    """An image `[H, W, 3]` (uint8) of a matrix `[rows, columns]`: zero dark, the largest value bright."""
    top = values.max()
    scaled = values / top if top > 0 else values
    at = scaled * (len(ANCHORS) - 1)
    low = np.minimum(at.astype(int), len(ANCHORS) - 2)
    share = (at - low)[..., None]
    colours = ANCHORS[low] * (1 - share) + ANCHORS[low + 1] * share
    cell = int(np.clip(TARGET_PIXELS // max(values.shape), 1, MOST_CELL_PIXELS))
    return np.kron(colours.round().astype(np.uint8), np.ones((cell, cell, 1), dtype=np.uint8))
