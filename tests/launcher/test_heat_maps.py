"""Pictures: colours, cells, what is written beside them."""

from pathlib import Path

import numpy as np
import pytest

from launcher.views.cost_map import MOST_TABLES, draw_cost_map, lookup_ms_by_table
from launcher.views.heatmap import DIVERGING, SEQUENTIAL, UNKNOWN, Axis, Scale, colour, draw_cells, draw_heat_map
from launcher.views.work_map import MOST_WINDOWS, WorkMap, deviation_percent
from tests.launcher.test_tensorboard import small_task

ONE = Scale(SEQUENTIAL, 0.0, 2.0, "ms")


def test_colours_go_from_dark_to_bright_and_stop_at_the_ends() -> None:
    found = colour(np.array([0.0, 1.0, 2.0, 5.0, np.nan]), ONE)
    assert found.dtype == np.uint8
    assert found.tolist() == [*SEQUENTIAL[[0, 2, 4, 4]].tolist(), list(UNKNOWN)]
    assert colour(np.zeros(3), Scale(SEQUENTIAL, 0.0, 0.0, "ms")).tolist() == SEQUENTIAL[[0] * 3].tolist()


@pytest.mark.parametrize(("shape", "least", "most"), [((2, 12), 90, 96), ((256, 200), 2, 2), ((4096, 1), 1, 1)])
def test_cells_are_tall_for_two_ranks_and_seen_for_256(shape: tuple[int, int], least: int, most: int) -> None:
    cells = draw_cells(np.ones(shape), ONE)
    assert least <= cells.shape[0] / shape[0] <= most and cells.shape[1] <= 960


def test_a_map_holds_its_cells_ticks_and_scale() -> None:
    values = np.array([[0.0, 2.0], [1.0, 0.0]])
    axis = Axis.numbered("rank", np.arange(2))
    image, plain = (draw_heat_map(values, ONE, axis, columns) for columns in (axis, Axis("rank", ())))
    cells = draw_cells(values, ONE)
    height, width = cells.shape[:2]
    corners = [
        (y, x)
        for y in range(image.shape[0] - height)
        for x in range(image.shape[1] - width)
        if (image[y : y + height, x : x + width] == cells).all()
    ]
    assert len(corners) == 1
    ((top, left),) = corners
    assert (image[:, :left] < 128).any() and (image[top + height :] < 128).any()
    assert (image[top + height :] != plain[top + height :]).any()
    bar = image[:, left + width :].reshape(-1, 3).tolist()
    assert SEQUENTIAL[0].tolist() in bar and SEQUENTIAL[-1].tolist() in bar


def test_an_axis_tells_few_of_many_numbers_its_first_and_last_among_them() -> None:
    axis = Axis.numbered("step", np.arange(1, 2001, 10))
    assert len(axis.ticks) == 9 and axis.ticks[0] == (0, "1") and axis.ticks[-1] == (199, "1991")
    assert Axis.numbered("rank", np.arange(2)).ticks == ((0, "0"), (1, "1"))


def test_of_two_ranks_the_slower_one_stands_out() -> None:
    found = deviation_percent(np.array([[10.0, 12.0], [12.0, 12.0]]))
    assert found == pytest.approx(np.array([[0.0, 20.0], [0.0, 0.0]]))
    assert deviation_percent(np.array([[8.0, 10.0, 15.0]])) == pytest.approx(np.array([[-20.0, 0.0, 50.0]]))
    assert np.isnan(deviation_percent(np.zeros((1, 2)))).all()


def test_the_map_of_work_goes_back_a_bounded_way_and_shows_the_slow_rank_red() -> None:
    found = WorkMap()
    for first in range(1, 20_001, 100):
        work_ms = np.full((100, 2), 10.0)
        work_ms[:, 1] = 15.0 if first > 19_000 else 10.0
        found.add(np.arange(first, first + 100), work_ms)
    image = found.draw()
    assert not found.has_news and image.shape[1] < 1200
    colours, counts = np.unique(image.reshape(-1, 3), axis=0, return_counts=True)
    red = counts[(colours == DIVERGING[-1].astype(np.uint8)).all(axis=1)]
    assert red.sum() >= 100 // 10 * 10 * 4 * 90  # 100 of MOST_WINDOWS windows, 4 x 96 pixels each
    assert MOST_WINDOWS == 200


def test_a_cell_is_the_median_of_its_steps_however_many_came() -> None:
    found = WorkMap()
    work_ms = np.where(np.arange(13) % 5 == 0, 90.0, np.arange(13.0))[:, None] * [1.0, 2.0]
    found.add(np.arange(1, 14), work_ms)
    assert found._work_ms == pytest.approx(np.array([[6.5, 13.0], [12.0, 24.0]])) and found._steps.tolist() == [1, 11]


def test_other_ranks_begin_a_new_map() -> None:
    found = WorkMap()
    found.add(np.arange(1, 11), np.ones((10, 2)))
    found.add(np.arange(11, 21), np.ones((10, 3)))
    assert found.draw().shape[0] > 0 and found._work_ms.shape == (1, 3)


def test_lookups_of_a_rank_are_divided_among_its_tables(repository: Path) -> None:
    planned = small_task(repository)
    found = lookup_ms_by_table(planned)
    assert found.shape == (2, len(planned.plan.tables))
    assert found.sum(axis=1) == pytest.approx(planned.cost.lookup_ms)
    for table in planned.plan.tables:
        column = found[:, planned.problem.index_of[table.name]]
        holders = {shard.rank for shard in table.shards if shard.num_rows}
        assert {int(rank) for rank in np.nonzero(column)[0]} == holders


def test_a_cost_map_of_many_tables_shows_the_costliest() -> None:
    few = draw_cost_map(np.ones((2, MOST_TABLES)), [f"t{i}" for i in range(MOST_TABLES)], "ms")
    many = draw_cost_map(np.ones((2, 3 * MOST_TABLES)), [f"t{i}" for i in range(3 * MOST_TABLES)], "ms")
    assert few.shape == many.shape and (few != many).any()
