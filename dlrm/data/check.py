"""Checks of the `data` configuration that need no data: every problem at once."""

import difflib
from collections.abc import Iterator

from dlrm.data.config import CriteoConfig, DataConfig, SyntheticConfig, TableConfig
from dlrm.data.synthetic_tables import draw_tables
from dlrm.errors import DataError

KINDS = ("synthetic", "criteo", "table")
VOCABULARIES = ("hashed", "frequency")
RAGGED = ("refuse", "pad")


def check_config(config: DataConfig) -> None:
    """Raise where the configuration contradicts itself.

    Raises:
        DataError: `config`, with one line for every problem.
    """
    problems = list(_problems(config))
    if problems:
        lines = "\n".join(f"  data.{problem}" for problem in problems)
        raise DataError(f"The data configuration is wrong:\n{lines}", "config")


def _problems(config: DataConfig) -> Iterator[str]:
    """Every problem, each starting with its key."""
    yield from _choice("kind", config.kind, KINDS)
    yield from _at_least("prefetch_batches", config.prefetch_batches, 1)
    yield from _at_least("max_bad_rows", config.max_bad_rows, 0)
    yield from _at_least("shuffle_rows", config.shuffle_rows, 0)
    if config.eval_path is None:
        yield from _at_least("holdout_every", config.holdout_every, 2)
    if config.kind in ("criteo", "table") and not config.path:
        yield f"path is not set; kind={config.kind} reads files: name a file or a folder"
    if config.kind == "synthetic":
        yield from _synthetic_problems(config.synthetic)
    elif config.kind == "criteo":
        yield from _criteo_problems(config.criteo)
    elif config.kind == "table":
        yield from _table_problems(config.table)


def _criteo_problems(config: CriteoConfig) -> Iterator[str]:
    """Problems of `data.criteo`."""
    yield from _choice("criteo.vocabulary", config.vocabulary, VOCABULARIES)
    yield from _choice("criteo.ragged", config.ragged, RAGGED)
    yield from _at_least("criteo.num_embeddings", config.num_embeddings, 3)
    yield from _at_least("criteo.min_count", config.min_count, 1)
    if config.vocabulary == "frequency" and not config.vocabulary_path:
        yield "criteo.vocabulary_path is not set; vocabulary=frequency keeps its vocabulary in that .npz file"


def _table_problems(config: TableConfig) -> Iterator[str]:
    """Problems of `data.table`."""
    if not config.categorical:
        yield "table.categorical is empty: declare at least one column and the rows of its table, as {user_id: 10000}"
    for name, num_embeddings in config.categorical.items():
        yield from _at_least(f"table.categorical.{name}", num_embeddings, 2)
    for name in config.csv_lists:
        if name not in config.categorical:
            hint = _hint(name, list(config.categorical))
            yield f"table.csv_lists names {name!r}, which is not in table.categorical{hint}"
    if not config.csv_list_separator:
        yield "table.csv_list_separator is empty: name the text between two values"
    columns = [config.label, *config.dense, *config.dense_log, *config.categorical]
    for name in sorted({name for name in columns if columns.count(name) > 1}):
        yield f"table names column {name!r} {columns.count(name)} times: it is label, dense, dense_log or categorical"


def _synthetic_problems(config: SyntheticConfig) -> Iterator[str]:
    """Problems of `data.synthetic`."""
    ranges = list(_range_problems(config))
    yield from ranges
    yield from _at_least("synthetic.seed", config.seed, 0)
    yield from _at_least("synthetic.num_dense", config.num_dense, 0)
    for i, table in enumerate(config.tables):
        key = f"synthetic.tables[{i}]"
        if not table.name:
            yield f"{key}.name is empty"
        yield from _at_least(f"{key}.num_embeddings", table.num_embeddings, 1)
        yield from _at_least(f"{key}.embedding_dim", table.embedding_dim, 1)
        yield from _at_least(f"{key}.zipf_alpha", table.zipf_alpha, 0)
        if table.pooling_factor <= 0:
            yield f"{key}.pooling_factor = {table.pooling_factor}: it must be above 0"
    if not ranges:
        yield from _drift_problems(config)


def _range_problems(config: SyntheticConfig) -> Iterator[str]:
    """Problems of the ranges that tables are drawn from."""
    yield from _at_least("synthetic.num_tables", config.num_tables, 1)
    yield from _at_least("synthetic.min_rows", config.min_rows, 1)
    yield from _at_least("synthetic.min_zipf_alpha", config.min_zipf_alpha, 0)
    if config.min_pooling_factor <= 0:
        yield f"synthetic.min_pooling_factor = {config.min_pooling_factor}: it must be above 0"
    for what in ("rows", "pooling_factor", "zipf_alpha"):
        low, high = getattr(config, f"min_{what}"), getattr(config, f"max_{what}")
        if low > high:
            yield f"synthetic.min_{what} = {low} is above synthetic.max_{what} = {high}"
    if not config.embedding_dims or min(config.embedding_dims) < 1:
        yield f"synthetic.embedding_dims = {list(config.embedding_dims)}: list one or more positive dims"


def _drift_problems(config: SyntheticConfig) -> Iterator[str]:
    """Problems of the names of tables and of the changes."""
    names = [table.name for table in draw_tables(config)]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"synthetic.tables has {names.count(name)} tables named {name!r}: names are unique"
    for i, change in enumerate(config.drift):
        key = f"synthetic.drift[{i}]"
        yield from _at_least(f"{key}.step", change.step, 0)
        for name in change.tables:
            if name not in names:
                yield f"{key}.tables names {name!r}, but there is no such table{_hint(name, names)}"
        if change.pooling_factor is not None and change.pooling_factor <= 0:
            yield f"{key}.pooling_factor = {change.pooling_factor}: it must be above 0"
        if change.hot_rows_shift is not None and not 0 <= change.hot_rows_shift < 1:
            yield f"{key}.hot_rows_shift = {change.hot_rows_shift}: a share of the rows, in [0, 1)"
        if not change.tables or (change.pooling_factor is None and change.hot_rows_shift is None):
            yield f"{key} changes nothing: name tables, and pooling_factor or hot_rows_shift"


def _choice(key: str, value: str, choices: tuple[str, ...]) -> Iterator[str]:
    """A problem unless the value is one of the choices."""
    if value not in choices:
        yield f"{key} = {value!r}: one of {', '.join(choices)}{_hint(value, choices)}"


def _at_least(key: str, value: float, least: float) -> Iterator[str]:
    """A problem where the value is below the least one."""
    if value < least:
        yield f"{key} = {value}: it must be at least {least}"


def _hint(name: str, names: tuple[str, ...] | list[str]) -> str:
    """A guess at what was meant."""
    close = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
