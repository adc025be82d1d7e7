"""`bench detect`: how reliably, how soon and how cheaply each detector finds what holds a fleet up."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from cluster.imbalance.detectors import DETECTORS
from cluster.imbalance.settings import WatchSettings
from launcher.bench.detect_calibration import calibrate
from launcher.bench.detect_kinds import KINDS, make_run
from launcher.bench.detect_play import Outcome, play, score
from launcher.bench.detect_traces import Trace, load_traces

CLEAN_RUN_STEPS = 2000
"""Length of the clean runs that false alarms are counted in; each learns a baseline of its own."""

RECORDED_WARMUP_STEPS = 0
"""Recorded runs follow each other in one job, which is warm."""


@dataclass(frozen=True)
class DetectBenchmark:
    """What to compare the detectors on.

    Attributes:
        runs: Made-up runs of each kind, for each number of ranks.
        ranks: Numbers of ranks of the made-up runs.
        clean_steps: Further clean steps in which false alarms are counted, shared out among the numbers of ranks.
        seed: First seed of the made-up runs.
        recorded: A file of recorded traces, or None.
    """

    runs: int = 30
    ranks: tuple[int, ...] = (8, 64)
    clean_steps: int = 100_000
    seed: int = 0
    recorded: Path | None = None


@dataclass(frozen=True)
class Played:
    """One trace and what became of it; the trace itself is not kept."""

    source: str
    kind: str
    num_ranks: int
    num_steps: int
    has_fault: bool
    outcome: Outcome


def run_detect(asked: DetectBenchmark, tell: Callable[[str], None]) -> dict[str, Any]:
    """Figures of every detector, JSON-able: its five main ones under its name, `breakdown` by source, ranks and kind.

    f1: over runs of all kinds. false_alarms_per_10k: wrong verdicts in 10,000 clean steps, made-up and recorded.
    cause_accuracy: of the found faults. delay_steps_median: of the found faults, from the fault's first step to the
    one that made it certain; the verdict itself comes with the poll that brings that step. us_per_point: microseconds
    of the whole watch per step and rank. Raises ValueError and OSError as `load_traces`.
    """
    recorded = load_traces(asked.recorded) if asked.recorded else ()
    found: dict[str, Any] = {}
    breakdown = []
    for name in DETECTORS:
        tell(f"{name}: {asked.runs} runs a kind, {asked.clean_steps} clean steps, {len(recorded)} recorded runs")
        played = [
            *_play_all("made", name, _made_runs(asked)),
            *_play_all("made, long", name, _clean_runs(asked)),
            *_play_all("recorded", name, recorded),
        ]
        found[name] = _summarize(played)
        breakdown += [{"detector": name, **line} for line in _break_down(played)]
    return {
        **found,
        "default": WatchSettings().detector,
        "thresholds": {name: detector.threshold for name, detector in DETECTORS.items()},
        "asked": {
            **asdict(asked),
            "ranks": list(asked.ranks),
            "recorded": str(asked.recorded) if asked.recorded else None,
        },
        "breakdown": breakdown,
    }


def run_calibration(tell: Callable[[str], None]) -> dict[str, float]:
    """The threshold of every detector at one rate of false alarms, over 2, 8 and 64 ranks."""
    return {name: calibrate(name, (2, 8, 64), tell) for name in DETECTORS}


def _made_runs(asked: DetectBenchmark) -> Iterator[Trace]:
    for num_ranks in asked.ranks:
        for kind in KINDS:
            for seed in range(asked.seed, asked.seed + asked.runs):
                yield make_run(kind, num_ranks, seed)


def _clean_runs(asked: DetectBenchmark) -> Iterator[Trace]:
    num_runs = -(-asked.clean_steps // (CLEAN_RUN_STEPS * len(asked.ranks)))
    for num_ranks in asked.ranks:
        # Other seeds than those of the short clean runs, which begin alike.
        for seed in range(asked.seed + asked.runs, asked.seed + asked.runs + num_runs):
            yield make_run("clean", num_ranks, seed, CLEAN_RUN_STEPS)


def _play_all(source: str, name: str, traces: Iterable[Trace]) -> Iterator[Played]:
    usual = WatchSettings(detector=name)
    warm = WatchSettings(detector=name, warmup_steps=RECORDED_WARMUP_STEPS)
    for trace in traces:
        outcome = play(trace, DETECTORS[name], warm if source == "recorded" else usual)
        num_steps = len(trace.steps.steps)
        yield Played(source, trace.kind, trace.num_ranks, num_steps, trace.fault is not None, outcome)


def _summarize(played: Sequence[Played]) -> dict[str, float | None]:
    events = [each for each in played if each.source != "made, long"]
    scores = score([each.outcome for each in events], sum(each.has_fault for each in events))
    clean = [each for each in played if each.kind == "clean"]
    made = [each for each in played if each.source != "recorded"]
    return {
        "f1": scores["f1"],
        "false_alarms_per_10k": _per_10k(clean),
        "cause_accuracy": scores["cause_accuracy"],
        "delay_steps_median": scores["delay_steps_median"],
        "us_per_point": 1e6 * _seconds(made) / sum(each.num_steps * each.num_ranks for each in made),
    }


def _break_down(played: Sequence[Played]) -> Iterator[dict[str, Any]]:
    """A line for each source, number of ranks and kind."""
    groups: dict[tuple[str, int, str], list[Played]] = {}
    for each in played:
        groups.setdefault((each.source, each.num_ranks, each.kind), []).append(each)
    for (source, num_ranks, kind), group in groups.items():
        outcomes = [each.outcome for each in group]
        found = [each for each in outcomes if each.is_found]
        num_steps = sum(each.num_steps for each in group)
        yield {
            "source": source,
            "ranks": num_ranks,
            "kind": kind,
            "runs": len(group),
            "faults": sum(each.has_fault for each in group),
            "found": len(found),
            "false": sum(each.num_false for each in outcomes),
            "right_cause": sum(each.is_right_cause for each in found),
            "right_rank": sum(each.is_right_rank for each in found),
            "right_tables": sum(each.is_right_tables for each in found),
            "delay_steps_median": float(median(each.delay_steps for each in found)) if found else None,
            "since_error_steps_median": float(median(each.error_steps for each in found)) if found else None,
            "false_per_10k": _per_10k(group),
            "us_per_point": 1e6 * _seconds(group) / (num_steps * num_ranks),
        }


def _per_10k(group: Sequence[Played]) -> float | None:
    num_steps = sum(each.num_steps for each in group)
    return 1e4 * sum(each.outcome.num_false for each in group) / num_steps if num_steps else None


def _seconds(group: Sequence[Played]) -> float:
    return sum(each.outcome.seconds for each in group)
