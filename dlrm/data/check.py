"""Checks of the `data` configuration that need no data: every problem at once."""

from collections.abc import Iterator

from dlrm.data.config import DataConfig, SyntheticConfig, TableConfig
from dlrm.data.synthetic_tables import draw_tables
from dlrm.errors import DataError
from dlrm.options import limit_faults
from planner.text import did_you_mean


def check_config(config: DataConfig) -> None:
    """Raise where a value is outside its limits, or the configuration contradicts itself.

    Raises:
        DataError: `config`, with one line for every problem.
    """
    problems = [*limit_faults(config, "data."), *config_problems(config)]
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise DataError(f"The data configuration is wrong:\n{lines}", "config")


def config_problems(config: DataConfig) -> list[str]:
    """What the limits of single keys cannot tell: keys that lack, contradict each other or name what is not there.

    One line a problem, which starts with the key as `data.xyz`. Where `dlrm.options.limit_faults` finds something, this
    may find less, but never fails.
    """
    problems: list[str] = []
    if config.kind in ("criteo", "table") and not config.path:
        problems.append(f"data.path is not set; kind={config.kind} reads files: name a file or a folder")
    if config.kind == "synthetic":
        problems += _synthetic_problems(config.synthetic)
    elif config.kind == "table":
        problems += _table_problems(config.table)
    return problems


def _table_problems(config: TableConfig) -> Iterator[str]:
    """Problems of `data.table`."""
    key = "data.table"
    if not config.categorical:
        yield f"{key}.categorical is empty: declare a column and the rows of its table, as {{user_id: 10000}}"
    for name, num_embeddings in config.categorical.items():
        if num_embeddings < 2:
            yield f"{key}.categorical.{name} = {num_embeddings}: it must be at least 2"
    for name in config.csv_lists:
        if name not in config.categorical:
            hint = did_you_mean(name, list(config.categorical))
            yield f"{key}.csv_lists names {name!r}, which is not in table.categorical{hint}"
    if not config.csv_list_separator:
        yield f"{key}.csv_list_separator is empty: name the text between two values"
    columns = [config.label, *config.dense, *config.dense_log, *config.categorical]
    for name in sorted({name for name in columns if columns.count(name) > 1}):
        yield f"{key} names column {name!r} {columns.count(name)} times: it is label, dense, dense_log or categorical"


def _synthetic_problems(config: SyntheticConfig) -> Iterator[str]:
    """Problems of `data.synthetic`."""
    problems = [*_range_problems(config), *_table_list_problems(config)]
    yield from problems
    # Tables can be drawn, and their names be known, where nothing is wrong with what they are drawn from.
    if not problems and not list(limit_faults(config)):
        yield from _drift_problems(config)


def _range_problems(config: SyntheticConfig) -> Iterator[str]:
    """Problems of the ranges that tables are drawn from."""
    key = "data.synthetic"
    if config.min_pooling_factor <= 0:
        yield f"{key}.min_pooling_factor = {config.min_pooling_factor}: it must be above 0"
    for what in ("rows", "pooling_factor", "zipf_alpha"):
        low, high = getattr(config, f"min_{what}"), getattr(config, f"max_{what}")
        if low > high:
            yield f"{key}.min_{what} = {low} is above {key}.max_{what} = {high}"


def _table_list_problems(config: SyntheticConfig) -> Iterator[str]:
    """Problems of the tables listed by hand."""
    for i, table in enumerate(config.tables):
        key = f"data.synthetic.tables[{i}]"
        if not table.name:
            yield f"{key}.name is empty"
        if table.pooling_factor <= 0:
            yield f"{key}.pooling_factor = {table.pooling_factor}: it must be above 0"
    names = [table.name for table in config.tables]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"data.synthetic.tables has {names.count(name)} tables named {name!r}: names are unique"


def _drift_problems(config: SyntheticConfig) -> Iterator[str]:
    """Problems of the changes."""
    names = [table.name for table in draw_tables(config)]
    for i, change in enumerate(config.drift):
        key = f"data.synthetic.drift[{i}]"
        for name in change.tables:
            if name not in names:
                yield f"{key}.tables names {name!r}, but there is no such table{did_you_mean(name, names)}"
        if change.pooling_factor is not None and change.pooling_factor <= 0:
            yield f"{key}.pooling_factor = {change.pooling_factor}: it must be above 0"
        if change.hot_rows_shift is not None and not 0 <= change.hot_rows_shift < 1:
            yield f"{key}.hot_rows_shift = {change.hot_rows_shift}: a share of the rows, in [0, 1)"
        if not change.tables or (change.pooling_factor is None and change.hot_rows_shift is None):
            yield f"{key} changes nothing: name tables, and pooling_factor or hot_rows_shift"
