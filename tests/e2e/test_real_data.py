"""The shipped configurations learn from real data, through Ray."""

from pathlib import Path

import pytest

from tests.conftest import RayHead
from tests.e2e.command import Ran, shardwright

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def train(ray_head: RayHead, repository: Path, tmp_path: Path) -> object:
    def run(config: str, path: Path, *more: str) -> Ran:
        here = [f"cluster.address={ray_head.address}", f"run.dir={tmp_path}", f"data.path={path}"]
        words = ["train", "--config", f"configs/{config}.yaml", "--json", *here, *more]
        return shardwright(*words, environment=ray_head.environment, cwd=repository)

    return run


def test_criteo_reaches_the_auc_of_a_logistic_regression(train: object, shared_data: Path) -> None:
    ran: Ran = train("criteo_kaggle", shared_data / "criteo" / "kaggle_first8000.tsv")
    assert ran.code == 0, ran.err
    assert ran.json["auc"] >= 0.70 and ran.json["ne"] < 1


def test_a_table_with_a_list_column_trains(train: object, shared_data: Path) -> None:
    ran: Ran = train("anime", shared_data / "anime" / "anime_ratings_joined.parquet")
    assert ran.code == 0, ran.err
    assert ran.json["auc"] >= 0.80 and ran.json["ne"] < 1


def test_a_ragged_log_is_refused_with_file_and_line_or_padded(train: object, shared_data: Path) -> None:
    log = shared_data / "criteo" / "kaggle_ragged1000.txt"
    refused: Ran = train("criteo_kaggle", log)
    first = next(i for i, line in enumerate(log.read_text().splitlines(), 1) if line.count("\t") < 39)
    assert refused.code == 2 and f"{log.name}:{first}" in refused.err and "data.criteo.ragged" in refused.err
    padded: Ran = train("criteo_kaggle", log, "data.criteo.ragged=pad", "train.batch_size=16", "train.epochs=1")
    assert padded.code == 0, padded.err
    assert padded.json["steps"] == 800 // 32
