"""Criteo rows: parsed right, refused right, in bounded memory, with the same batches on every rank."""

import gzip
import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from dlrm.data import files
from dlrm.data.bad_rows import BadRow, BadRowLog
from dlrm.data.config import CriteoConfig, DataConfig
from dlrm.data.criteo_format import CriteoBlock, read_criteo
from dlrm.data.criteo_origin import VocabularyOrigin
from dlrm.data.criteo_vocabulary import HashedEncoder, build_vocabulary
from dlrm.data.factory import open_schema, open_stream
from dlrm.errors import DataError
from tests.dlrm.data.helpers import drain, same


def make_line(number: int, generator: random.Random) -> str:
    """A row whose first integer is its number; about a quarter of the other fields is missing."""
    integers = ["" if generator.random() < 0.25 else str(generator.randint(-3, 99_999)) for _ in range(12)]
    categories = ["" if generator.random() < 0.25 else f"{generator.getrandbits(32):08x}" for _ in range(26)]
    return "\t".join([str(number % 2), str(number), *integers, *categories])


def make_lines(count: int, seed: int = 0) -> list[str]:
    """Rows numbered from 0."""
    generator = random.Random(seed)
    return [make_line(number, generator) for number in range(count)]


def write(path: Path, lines: list[str], newline: str = "\n") -> Path:
    """The lines as a file."""
    path.write_bytes((newline.join(lines) + newline).encode())
    return path


def read(paths: list[Path], pads: bool = False, limit: int = 0) -> tuple[CriteoBlock, BadRowLog]:
    """All good rows as one block, and the log."""
    log = BadRowLog(limit)
    return CriteoBlock.concatenate(list(read_criteo(paths, pads, log))), log


def expected(line: str) -> tuple[float, list[float], list[int], list[bool]]:
    """What a line means, by the plainest code there is."""
    fields = line.split("\t") + [""] * (40 - len(line.split("\t")))
    dense = [np.log1p(max(int(field), 0)) if field else 0.0 for field in fields[1:14]]
    return (
        float(fields[0]),
        dense,
        [int(field or "0", 16) for field in fields[14:]],
        [not field for field in fields[14:]],
    )


def check_against(lines: list[str], block: CriteoBlock) -> None:
    """Every value of the block is what the lines say."""
    assert len(block.labels) == len(lines)
    for row, line in enumerate(lines):
        label, dense, categories, is_missing = expected(line)
        assert block.labels[row] == label
        np.testing.assert_allclose(block.dense[row], dense, rtol=1e-6)
        assert block.categories[row].tolist() == categories
        assert block.is_missing[row].tolist() == is_missing


@pytest.mark.parametrize("block_bytes", [400, 1000, 2**19])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_every_field_is_read_whatever_the_blocks_and_newlines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int, newline: str
) -> None:
    lines = make_lines(60)
    path = write(tmp_path / "a.tsv", lines, newline)
    blocks = files.read_line_blocks
    monkeypatch.setattr("dlrm.data.criteo_format.read_line_blocks", lambda path: blocks(path, block_bytes))
    block, log = read([path])
    check_against(lines, block)
    assert log.count == 0


def test_a_missing_last_newline_and_empty_lines_change_nothing(tmp_path: Path) -> None:
    lines = make_lines(5)
    path = tmp_path / "a.tsv"
    for text in ("\n".join(lines), "\n".join(lines) + "\n\n", "\n".join([lines[0], "", *lines[1:]]) + "\r\n"):
        path.write_bytes(text.encode())
        check_against(lines, read([path])[0])


@pytest.mark.parametrize("block_bytes", [300, 700, 2**19])
def test_bad_rows_are_located_wherever_the_blocks_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    lines = make_lines(30)
    spoiled = {
        0: (0, "2", "column 1: label '2'"),
        7: (3, "1x", "column 4: '1x', expected an integer"),
        8: (4, "-", "column 5: '-', expected an integer"),
        9: (5, "12345678901", "column 6"),
        15: (14, "0123456g", "column 15: '0123456g', expected 8 hexadecimal digits"),
        16: (39, "abc", "column 40: 'abc', expected 8 hexadecimal digits"),
        29: (0, "", "column 1: label ''"),
    }
    for number, (column, text, _) in spoiled.items():
        fields = lines[number].split("\t")
        fields[column] = text
        lines[number] = "\t".join(fields)
    lines[20] += "\textra"
    path = write(tmp_path / "a.tsv", lines)
    blocks = files.read_line_blocks
    monkeypatch.setattr("dlrm.data.criteo_format.read_line_blocks", lambda path: blocks(path, block_bytes))
    monkeypatch.setattr("dlrm.data.bad_rows.NUM_EXAMPLES", 100)
    block, log = read([path], limit=8)
    check_against([line for number, line in enumerate(lines) if number not in spoiled and number != 20], block)
    assert [row.line for row in log.examples] == [1, 8, 9, 10, 16, 17, 21, 30]
    reasons = {row.line - 1: row.why for row in log.examples}
    assert all(why in reasons[number] for number, (_, _, why) in spoiled.items())
    assert reasons[20] == "41 columns, a row has 40"


def test_one_bad_row_too_many_ends_with_file_and_line(tmp_path: Path) -> None:
    lines = make_lines(10)
    lines[3] = "x" + lines[3][1:]
    lines[6] = "y" + lines[6][1:]
    path = write(tmp_path / "a.tsv", lines)
    with pytest.raises(DataError) as caught:
        read([path], limit=1)
    assert f"{path}:7: column 1: label 'y', expected 0 or 1 is bad row number 2" in str(caught.value)
    assert f"{path}:4:" in str(caught.value)
    assert caught.value.reason == "bad_rows"


def test_ragged_rows_are_padded_or_refused_never_shifted(tmp_path: Path) -> None:
    lines = [line.rstrip("\t") for line in make_lines(50)]
    assert {len(line.split("\t")) for line in lines} > {40}
    path = write(tmp_path / "a.tsv", lines)
    check_against(lines, read([path], pads=True)[0])
    first = next(number for number, line in enumerate(lines, start=1) if line.count("\t") != 39)
    with pytest.raises(DataError, match=rf"a.tsv:{first}: 3\d columns, a row has 40") as caught:
        read([path])
    assert caught.value.reason == "ragged" and "data.criteo.ragged=pad" in str(caught.value)


def test_the_real_ragged_file(shared_data: Path) -> None:
    path = shared_data / "criteo" / "kaggle_ragged1000.txt"
    check_against(path.read_text().splitlines(), read([path], pads=True)[0])
    with pytest.raises(DataError, match=r"kaggle_ragged1000.txt:\d+: 3[78] columns"):
        read([path])


def test_the_real_file_plain_and_compressed_in_a_folder(shared_data: Path, tmp_path: Path) -> None:
    plain = shared_data / "criteo" / "kaggle_first8000.tsv"
    lines = plain.read_bytes().splitlines(keepends=True)
    for day, part in ((2, lines[:3000]), (10, lines[3000:])):
        (tmp_path / f"day_{day}.gz").write_bytes(gzip.compress(b"".join(part)))
    (tmp_path / "_SUCCESS").touch()
    whole, _ = read([plain])
    assert whole.labels.mean() == pytest.approx(0.218, abs=0.003)
    days = files.list_files(str(tmp_path))
    assert [path.name for path in days] == ["day_2.gz", "day_10.gz"]
    parts, _ = read(days)
    assert np.array_equal(whole.categories, parts.categories) and np.array_equal(whole.dense, parts.dense)


def test_a_cut_gzip_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress("\n".join(make_lines(500)).encode())[:-20])
    with pytest.raises(DataError, match=r"a.gz is not a whole gzip file"):
        read([path])


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", make_lines(3000) * 16)
    assert path.stat().st_size > 16 * files.BLOCK_BYTES / 2
    tracemalloc.start()
    for _ in read_criteo([path], False, BadRowLog(0)):
        pass
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 25 * files.BLOCK_BYTES


def test_three_ranks_get_the_same_number_of_batches_from_a_file_with_bad_rows(tmp_path: Path) -> None:
    lines = make_lines(500)
    for number in (0, 99, 100, 101, 499):
        lines[number] = "?" + lines[number][1:]
    config = DataConfig(kind="criteo", path=str(write(tmp_path / "a.tsv", lines)), max_bad_rows=5, shuffle_rows=50)
    schema = open_schema(config)
    numbers, counts = [], []
    for rank in range(3):
        stream = open_stream(config, schema, "train", 16, rank, 3, seed=1, num_epochs=1)
        batches = drain(stream)
        counts.append(len(batches))
        numbers += [round(float(np.expm1(value))) for batch in batches for value in batch.dense_features[:, 0]]
        assert stream.report().num_bad_rows == 5
        assert stream.report().bad_rows[0].endswith("a.tsv:1: column 1: label '?', expected 0 or 1")
    assert counts == [(495 - 49) // 48] * 3
    assert len(set(numbers)) == len(numbers) and not {0, 99, 100, 101, 499} & set(numbers)


def test_files_for_evaluation_leave_all_other_rows_to_training(tmp_path: Path) -> None:
    train, held_out = write(tmp_path / "train.tsv", make_lines(40)), write(tmp_path / "eval.tsv", make_lines(9, seed=1))
    config = DataConfig(kind="criteo", path=str(train), eval_path=str(held_out))
    schema = open_schema(config)
    trained = drain(open_stream(config, schema, "train", 10, 0, 1, seed=0, num_epochs=1))
    evaluated = drain(open_stream(config, schema, "eval", 4, 0, 1, seed=0, num_epochs=1))
    assert [len(batch.labels) for batch in trained] == [10] * 4
    assert [len(batch.labels) for batch in evaluated] == [4, 4, 1]
    check_labels = torch.cat([batch.labels for batch in evaluated])
    assert check_labels.tolist() == [number % 2 for number in range(9)]


def test_hashed_ids_are_in_range_differ_by_column_and_keep_zero_for_missing(shared_data: Path) -> None:
    config = DataConfig(kind="criteo", path=str(shared_data / "criteo" / "kaggle_first8000.tsv"))
    config.criteo.num_embeddings = 1000
    schema = open_schema(config)
    batch = drain(open_stream(config, schema, "train", 7000, 0, 1, seed=0, num_epochs=1))[0]
    block, _ = read(files.list_files(config.path))
    trained = np.arange(8000)[(np.arange(8000) + 1) % 10 != 0][:7000]
    ids = batch.sparse_features.values().reshape(26, 7000).T.numpy()
    assert ids.max() == 999
    assert np.array_equal(ids == 0, block.is_missing[trained])


def test_the_same_category_hashes_differently_in_every_column() -> None:
    block = CriteoBlock(np.zeros(1), np.zeros((1, 13)), np.full((1, 26), 77, np.uint32), np.zeros((1, 26), bool))
    assert len(set(HashedEncoder(2**40).encode(block)[0])) == 26
    # Fixed for ever: checkpoints and serving rely on it.
    assert HashedEncoder(1000).encode(block)[0, :4].tolist() == [732, 462, 38, 813]


def test_counting_in_little_memory_keeps_what_is_frequent_and_bounds_the_error() -> None:
    generator = np.random.default_rng(0)
    true_counts: dict[int, int] = {}

    def blocks() -> Iterator[CriteoBlock]:
        for _ in range(30):
            # Ten frequent categories in a sea of ones that occur once or twice.
            values = np.where(
                generator.random(1000) < 0.3, generator.integers(0, 10, 1000), generator.integers(10, 2**31, 1000)
            )
            for value in values:
                true_counts[int(value)] = true_counts.get(int(value), 0) + 1
            categories = np.repeat(values.astype(np.uint32)[:, None], 26, axis=1)
            yield CriteoBlock(np.zeros(1000, np.float32), np.zeros((1000, 13), np.float32), categories, categories < 0)

    vocabulary = build_vocabulary(blocks(), VocabularyOrigin(500, 100, 10, "refuse", {}), max_counted=2000)
    assert set(vocabulary.columns[0].tolist()) == set(range(10))
    assert 0 < vocabulary.max_undercount < 100
    ranked = sorted(range(10), key=lambda value: -true_counts[value])
    assert abs(true_counts[int(vocabulary.columns[0][0])] - true_counts[ranked[0]]) <= vocabulary.max_undercount


def vocabulary_config(tmp_path: Path, lines: list[str], **criteo: object) -> DataConfig:
    """A configuration with a frequency vocabulary beside the file."""
    path = write(tmp_path / "a.tsv", lines)
    settings = {"vocabulary": "frequency", "vocabulary_path": str(tmp_path / "vocabulary.npz"), **criteo}
    return DataConfig(kind="criteo", path=str(path), criteo=CriteoConfig(**settings))  # type: ignore[arg-type]


def with_category(line: str, category: str) -> str:
    """The line with another first category."""
    fields = line.split("\t")
    fields[14] = category
    return "\t".join(fields)


def test_frequent_categories_own_rows_and_held_out_ones_stay_unseen(tmp_path: Path) -> None:
    # Rows 9 and 19 are held out: category 3 occurs there alone.
    plan = ["1"] * 4 + ["2"] * 3 + [""] + ["4"] + ["3"] + ["1"] * 4 + ["2"] * 2 + ["5"] * 3 + ["3"]
    lines = [
        with_category(line, category and f"0000000{category}")
        for line, category in zip(make_lines(20), plan, strict=True)
    ]
    config = vocabulary_config(tmp_path, lines, min_count=2)
    schema = open_schema(config)
    assert schema.features[0].num_embeddings == 2 + 3
    with open_stream(config, schema, "train", 18, 0, 1, seed=0, num_epochs=1) as stream:
        ids = next(stream).sparse_features["cat_0"].values().tolist()
    rows = {"1": 2, "2": 3, "5": 4, "4": 1, "": 0}
    assert ids == [rows[category] for number, category in enumerate(plan) if (number + 1) % 10]
    with open_stream(config, schema, "eval", 2, 0, 1, seed=0, num_epochs=1) as stream:
        assert next(stream).sparse_features["cat_0"].values().tolist() == [1, 1]


def test_the_vocabulary_file_is_shared_and_guarded(tmp_path: Path) -> None:
    config = vocabulary_config(tmp_path, make_lines(40), min_count=1, num_embeddings=20)
    schema = open_schema(config)
    assert all(feature.num_embeddings <= 20 for feature in schema.features)
    built = (tmp_path / "vocabulary.npz").stat().st_mtime_ns
    assert open_schema(config) == schema
    assert (tmp_path / "vocabulary.npz").stat().st_mtime_ns == built
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tsv", "vocabulary.npz"]
    config.criteo.min_count = 3
    with pytest.raises(DataError, match="was built with min_count = 1, now 3"):
        open_schema(config)
    (tmp_path / "vocabulary.npz").write_bytes(b"torn")
    with pytest.raises(DataError, match="is not a vocabulary of this version"):
        open_schema(config)
    (tmp_path / "vocabulary.npz").unlink()
    with pytest.raises(DataError, match="does not exist here") as caught:
        open_stream(config, schema, "train", 4, 0, 1, seed=0)
    assert caught.value.reason == "vocabulary"


def test_a_vocabulary_of_other_data_is_refused_with_what_differs(tmp_path: Path) -> None:
    config = vocabulary_config(tmp_path, make_lines(40), min_count=1)
    schema = open_schema(config)
    path = Path(str(config.path))
    num_bytes = path.stat().st_size

    def refusal() -> str:
        with pytest.raises(DataError, match=r"vocabulary.npz was built with") as caught:
            open_schema(config)
        assert caught.value.reason == "vocabulary"
        assert "Delete it, or choose another data.criteo.vocabulary_path; it is then built anew" in str(caught.value)
        return str(caught.value)

    config.holdout_every, config.criteo.ragged = 5, "pad"
    assert "ragged = refuse, now pad; holdout_every = 10, now holdout_every = 5" in refusal()
    config.holdout_every, config.criteo.ragged, config.eval_path = 10, "refuse", config.path
    assert "holdout_every = 10, now nothing held out (data.eval_path)" in refusal()
    config.eval_path = None
    text = path.read_text()
    path.write_text(text + make_line(40, random.Random(9)) + "\n")
    assert f"a.tsv of {num_bytes:,} bytes, now {path.stat().st_size:,} bytes" in refusal()
    with pytest.raises(DataError, match=r"was built with a\.tsv of"):
        open_stream(config, schema, "train", 4, 0, 1, seed=0)
    (tmp_path / "b").mkdir()
    write(tmp_path / "b" / "c.tsv", make_lines(3))
    config.path = str(tmp_path / "b")
    assert f"a.tsv ({num_bytes:,} bytes), now absent; no c.tsv, now there" in refusal()
    # Moved as a whole, or written anew with the same rows, it is the same data.
    path.unlink()
    (tmp_path / "b" / "c.tsv").unlink()
    (tmp_path / "b" / "a.tsv").write_text(text)
    assert open_schema(config) == schema


def test_the_counter_of_bad_rows_follows_its_examples() -> None:
    log = BadRowLog(limit=3)
    counts = []

    class Watching(list[BadRow]):
        def append(self, row: BadRow) -> None:
            counts.append(log.count)
            super().append(row)

    log.examples = Watching()
    log.add([BadRow("a", 1, "x"), BadRow("a", 2, "y")])
    # A thread that looks in between never sees a count without an example.
    assert counts == [0, 1] and log.count == len(log.examples) == 2


def test_a_resumed_run_reads_the_same_batches(shared_data: Path) -> None:
    config = DataConfig(kind="criteo", path=str(shared_data / "criteo" / "kaggle_first8000.tsv"), shuffle_rows=3000)
    schema = open_schema(config)
    whole = drain(open_stream(config, schema, "train", 256, 1, 2, seed=3, num_epochs=2))
    stream = open_stream(config, schema, "train", 256, 1, 2, seed=3, num_epochs=2)
    stream.seek({"epoch": 1, "batch": 4})
    rest = drain(stream)
    assert len(rest) == 10 and all(same(a, b) for a, b in zip(rest, whole[18:], strict=True))
