"""Heat maps as pixels, for TensorBoard's image page: cells, named ticks on both axes, a bar of colours."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Pixels = NDArray[np.uint8]

# Viridis at five equal steps, dark to bright. Source: matplotlib 2.0, `_cm_listed.py`.
SEQUENTIAL = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], dtype=np.float64)
# Blue, white, red. Source: ColorBrewer 2.0 (Brewer and Harrower), RdBu in five classes, reversed.
DIVERGING = np.array([(5, 113, 176), (146, 197, 222), (247, 247, 247), (244, 165, 130), (202, 0, 32)], dtype=np.float64)
UNKNOWN = (160, 160, 160)
PAPER, INK = (255, 255, 255), (30, 30, 30)

# Sizes in pixels. The cells fill about this much, so that 2 ranks are tall bands and 256 can be told apart. No cell has
# more than the most, and a map of more rows than pixels grows.
CELLS_HEIGHT, CELLS_WIDTH = 512, 960
MOST_CELL_HEIGHT, MOST_CELL_WIDTH = 96, 24
FONT_SIZE, GAP = 12, 6
BAR_WIDTH, BAR_HEIGHT = 14, 120


@dataclass(frozen=True)
class Scale:
    """What colours mean: from `low` to `high` through the palette's anchors [A, 3]; `unit` is told beside the bar.

    Values beyond the ends have the colours of the ends, NaN is grey.
    """

    palette: NDArray[np.float64]
    low: float
    high: float
    unit: str


@dataclass(frozen=True)
class Axis:
    """What an axis counts, and names of some of its cells."""

    title: str
    ticks: tuple[tuple[int, str], ...]

    @classmethod
    def numbered(cls, title: str, numbers: NDArray[np.int64], most: int = 9) -> "Axis":
        """An axis whose cells have these numbers, up to `most` of them told, evenly spread."""
        told = np.unique(np.linspace(0, len(numbers) - 1, min(most, len(numbers))).round().astype(int))
        return cls(title, tuple((int(index), str(numbers[index])) for index in told))


def draw_heat_map(values: NDArray[np.float64], scale: Scale, rows: Axis, columns: Axis) -> Pixels:
    """An image [H, W, 3] of a matrix [R, C]: row 0 on top, the axes' ticks left and below, the scale to the right."""
    cells = draw_cells(values, scale)
    font = ImageFont.load_default(FONT_SIZE)
    left = max(_width(font, label) for label in (rows.title, *(name for _, name in rows.ticks))) + 2 * GAP
    top, line = FONT_SIZE + 2 * GAP, FONT_SIZE + GAP
    legend = _legend(scale)
    right = BAR_WIDTH + max(_width(font, label) for label in legend) + 3 * GAP
    height = max(cells.shape[0], BAR_HEIGHT + line) + top + 2 * line
    image = Image.new("RGB", (left + cells.shape[1] + right, height), PAPER)
    image.paste(Image.fromarray(cells), (left, top))
    pen = ImageDraw.Draw(image)
    _name_rows(pen, font, rows, (left, top), cells.shape[0] / len(values))
    _name_columns(pen, font, columns, (left, top + cells.shape[0]), cells.shape[1] / values.shape[1])
    image.paste(Image.fromarray(_bar(scale)), (left + cells.shape[1] + GAP, top))
    for index, label in enumerate(legend):
        y = top + index * (BAR_HEIGHT - FONT_SIZE) / (len(legend) - 1)
        pen.text((left + cells.shape[1] + BAR_WIDTH + 2 * GAP, y), label, INK, font)
    return np.asarray(image)


def draw_cells(values: NDArray[np.float64], scale: Scale) -> Pixels:
    """The cells alone, each a rectangle of one colour."""
    height = int(np.clip(CELLS_HEIGHT // values.shape[0], 1, MOST_CELL_HEIGHT))
    width = int(np.clip(CELLS_WIDTH // values.shape[1], 1, MOST_CELL_WIDTH))
    return np.kron(colour(values, scale), np.ones((height, width, 1), dtype=np.uint8))


def colour(values: NDArray[np.float64], scale: Scale) -> Pixels:
    """Colours [..., 3] of values [...]."""
    span = scale.high - scale.low
    share = np.clip((values - scale.low) / span, 0, 1) if span > 0 else np.zeros_like(values)
    at = np.nan_to_num(share) * (len(scale.palette) - 1)
    low = np.minimum(at.astype(int), len(scale.palette) - 2)
    part = (at - low)[..., None]
    colours = scale.palette[low] * (1 - part) + scale.palette[low + 1] * part
    return np.where(np.isnan(values)[..., None], UNKNOWN, colours.round()).astype(np.uint8)


def _legend(scale: Scale) -> tuple[str, ...]:
    """Labels of the bar of colours, top to bottom."""
    middle = (scale.low + scale.high) / 2
    return f"{scale.high:.4g} {scale.unit}", f"{middle:.4g}", f"{scale.low:.4g}"


def _bar(scale: Scale) -> Pixels:
    values = np.linspace(scale.high, scale.low, BAR_HEIGHT)
    return np.repeat(colour(values, scale)[:, None], BAR_WIDTH, axis=1)


def _width(font: ImageFont.ImageFont | ImageFont.FreeTypeFont, text: str) -> int:
    return int(np.ceil(font.getlength(text)))


def _name_rows(
    pen: ImageDraw.ImageDraw,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    axis: Axis,
    corner: tuple[int, int],
    cell_height: float,
) -> None:
    """Ticks to the left of the cells whose upper left is `corner`, flush right, and the axis's title above them."""
    left, top = corner
    for index, name in axis.ticks:
        y = top + (index + 0.5) * cell_height - FONT_SIZE / 2
        pen.text((left - GAP - _width(font, name), y), name, INK, font)
    pen.text((left - GAP - _width(font, axis.title), GAP / 2), axis.title, INK, font)


def _name_columns(
    pen: ImageDraw.ImageDraw,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    axis: Axis,
    corner: tuple[int, int],
    cell_width: float,
) -> None:
    """Ticks below the cells whose lower left is `corner`, as far as there is room, and the title in a line below."""
    left, bottom = corner
    room_from = 0.0
    for index, name in axis.ticks:
        x = max(0.0, left + (index + 0.5) * cell_width - _width(font, name) / 2)
        if x < room_from:
            continue
        pen.text((x, bottom + GAP / 2), name, INK, font)
        room_from = x + _width(font, name) + GAP
    pen.text((left, bottom + FONT_SIZE + GAP), axis.title, INK, font)
