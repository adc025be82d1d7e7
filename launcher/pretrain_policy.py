"""`shardwright pretrain policy`: trains the placement policy on made-up tasks and writes weights and a model card."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from launcher.bench.plan_tasks import PoolTable, build_access, read_pool
from launcher.policy_exam import Exam, Marks
from launcher.run_dir import write_beside
from launcher.views.policy_card import render_policy_card
from planner.policy.network import SEES_ALL, Blindness, PolicyNetwork
from planner.policy.train import Update, train_policy
from planner.policy.training_tasks import DrawnTable, DrawTables, TaskSource, make_tables
from planner.policy.weights_file import TrainedPolicy

MINUTES = 15.0
"""Of training unless told otherwise."""

EXAMS = 12
"""Times that a policy in training is examined; the best of them is kept."""

ABLATIONS = {
    "without cost features": Blindness(costs=True),
    "without current table": Blindness(table=True),
}
"""Policies that are not shown something, by what their figures are called in the card."""

EXAM_SEED, FINAL_SEED = 1_000_003, 2_000_003
"""Added to the seed for the tasks of exams in training, by which the policy that is kept is chosen, and for those of
the card: neither are training tasks, and nothing was chosen by the latter."""

NUM_SAMPLES = 64
"""Samples of best-of-K in the card."""

S_PER_MIN = 60.0


@dataclass(frozen=True)
class Pretraining:
    """What was asked for.

    Attributes:
        folder: Where `policy.npz`, `policy.md` and the events go.
        seed: Of tasks, weights and noise.
        minutes: Of training.
        tables: CSV file of a pool to draw tables from (see `cost_data.read_tables`); None makes tables up.
        ablation_minutes: Of training of each ablation, and of a full policy to compare it with; 0 trains none.
    """

    folder: Path
    seed: int = 0
    minutes: float = MINUTES
    tables: Path | None = None
    ablation_minutes: float = 0.0


@dataclass(frozen=True)
class PretrainedPolicy:
    """Files of a trained policy and what its card says."""

    weights: Path
    card_page: Path
    card: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """What `pretrain policy --json` prints."""
        return {"weights": str(self.weights), "card_page": str(self.card_page), "card": self.card}

    def render(self) -> Iterator[str]:
        """Lines for people."""
        for name, marks in self.card["figures"].items():
            yield f"unseen tasks, {name}: {_render_marks(Marks(**marks))}"
        yield f"weights: {self.weights}"
        yield f"model card: {self.card_page}"
        yield f"curves: tensorboard --logdir {self.weights.parent}"


def pretrain_policy(asked: Pretraining, console: Console) -> PretrainedPolicy:
    """Trains a policy, with its ablations if asked for, and writes it with its model card.

    Raises:
        PlanningError: The tables cannot be read (reason `workload`).
    """
    source = TaskSource(make_tables if asked.tables is None else pool_tables(asked.tables))
    asked.folder.mkdir(parents=True, exist_ok=True)
    exam = Exam.draw(source, asked.seed + EXAM_SEED)
    final = Exam.draw(source, asked.seed + FINAL_SEED)
    trained = _train(asked, "policy", asked.minutes, SEES_ALL, source, exam, console)
    card = {
        "seed": asked.seed,
        "minutes": asked.minutes,
        "tables": "made up" if asked.tables is None else asked.tables.name,
        "ranks": sorted(set(source.ranks)),
        "units": source.units,
        "num_updates": trained.num_updates,
        "num_tasks": len(final.questions),
        "figures": _figures(trained.network, final, asked.seed),
        "ablations": _ablations(asked, source, (exam, final), console) if asked.ablation_minutes else {},
        "ablation_minutes": asked.ablation_minutes,
    }
    weights = asked.folder / "policy.npz"
    TrainedPolicy(trained.network, SEES_ALL, card).save(weights)
    page = weights.with_suffix(".md")
    write_beside(page, render_policy_card(card))
    return PretrainedPolicy(weights, page, card)


def pool_tables(path: Path) -> DrawTables:
    """Draws tables with replacement from a CSV file; raises as `plan_tasks.read_pool`."""
    pool = read_pool(path)

    def draw(rng: np.random.Generator, count: int, samples: int) -> Sequence[DrawnTable]:
        return [_drawn(pool[index], samples) for index in rng.integers(len(pool), size=count)]

    return draw


def _drawn(table: PoolTable, samples: int) -> DrawnTable:
    return DrawnTable(table.num_embeddings, table.pooling_factor, build_access(table, samples))


@dataclass(frozen=True, eq=False)
class _Trained:
    """The network of the best exam, and how many updates were made."""

    network: PolicyNetwork
    num_updates: int


def _train(
    asked: Pretraining,
    name: str,
    minutes: float,
    blindness: Blindness,
    source: TaskSource,
    exam: Exam,
    console: Console,
) -> _Trained:
    """Trains one network, examined `EXAMS` times; its curves go to `events/<name>` in the folder."""
    with (
        closing(SummaryWriter(str(asked.folder / "events" / name), flush_secs=5)) as curves,
        _bar(console, name) as bar,
    ):
        follower = _Follower(exam, curves, bar)
        network = train_policy(source, asked.seed, minutes * S_PER_MIN, follower, blindness)
        follower.examine(network)
    return _Trained(follower.best, follower.num_updates)


ShowProgress = Callable[[float, str], None]
"""Is told the share of the time that is over, and how good the policy is."""


class _Follower:
    """Writes curves, examines now and then and keeps the network of the best exam."""

    def __init__(self, exam: Exam, curves: SummaryWriter, show: ShowProgress) -> None:
        self.exam, self.curves, self.show = exam, curves, show
        self.num_updates = 0
        self.num_exams = 0
        self.marks: Marks | None = None
        self.best: PolicyNetwork

    def __call__(self, update: Update, network: PolicyNetwork) -> None:
        """Follows one update."""
        self.num_updates = update.index + 1
        for field in fields(Update):
            value = getattr(update, field.name)
            if isinstance(value, float):
                self.curves.add_scalar(f"{update.stage}/{field.name}", value, update.index)
        if update.elapsed * EXAMS >= self.num_exams:
            self.examine(network)
        if self.marks is not None:
            self.show(update.elapsed, f"{update.stage}: {_render_marks(self.marks)}")

    def examine(self, network: PolicyNetwork) -> None:
        """Marks the network; the best so far is kept."""
        marks = self.exam.mark(network)
        for name, value in asdict(marks).items():
            self.curves.add_scalar(f"exam/{name}", value, self.num_updates)
        if self.marks is None or marks.order < self.marks.order:
            self.marks, self.best = marks, deepcopy(network)
        self.num_exams += 1


def _figures(network: PolicyNetwork, exam: Exam, seed: int) -> dict[str, dict[str, float]]:
    """Marks of the ways to use a policy, without and with polish."""
    found = {
        "greedy": exam.mark(network),
        f"best of {NUM_SAMPLES}": exam.mark(network, NUM_SAMPLES, seed),
        "greedy, polished by local search": exam.mark(network, is_polished=True),
    }
    return {name: asdict(marks) for name, marks in found.items()}


def _ablations(
    asked: Pretraining, source: TaskSource, exams: tuple[Exam, Exam], console: Console
) -> dict[str, dict[str, float]]:
    """Marks, greedy, of policies that are not shown something, and of one that is, all trained for the same time.

    The first exam chooses the network, the second one marks it.
    """
    found = {}
    for name, blindness in {"full": SEES_ALL, **ABLATIONS}.items():
        trained = _train(asked, name, asked.ablation_minutes, blindness, source, exams[0], console)
        found[name] = asdict(exams[1].mark(trained.network))
    return found


def _render_marks(marks: Marks) -> str:
    return (
        f"{marks.over_processing:.3f} x longest-processing-time, {marks.over_rule:.3f} x the best greedy rule, "
        f"{marks.success:.0%} solved"
    )


@contextmanager
def _bar(console: Console, name: str) -> Iterator[ShowProgress]:
    """A progress bar until the context ends; where the output is no terminal, a line an exam."""
    if not console.is_terminal:
        yield _PlainProgress(console, name)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(name, total=1.0)
        yield lambda share, text: bar.update(task, completed=share, description=f"{name}: {text}")


class _PlainProgress:
    """One line whenever the text changes, and for each tenth of the time."""

    def __init__(self, console: Console, name: str) -> None:
        self._console, self._name = console, name
        self._told = ("", 0)

    def __call__(self, share: float, text: str) -> None:
        if (text, int(10 * share)) != self._told:
            self._told = text, int(10 * share)
            self._console.print(f"{self._name}, {share:.0%}: {text}", soft_wrap=True)
