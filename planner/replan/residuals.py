"""What a running job says of the cost model: residuals, sorted by what they belong to, as an estimator's corrections.

A residual is observed / estimated under the present plan, the estimate with the ids that tables look up now, so a hot
table is dearer wherever it goes before any residual is taken. What is left belongs

- to the model, as far as it was there when the job was healthy: what ranks have in common to all of them, what a rank
  has beyond it to the tables that it held then, since devices were measured before the job;
- to the device, as far as it came since; on a rank with a hot table only what the dense layers show as well, the rest
  belongs to the hot tables, whose new ids may be dearer or cheaper than the model's. What its tables cannot carry,
  since they lie on other ranks as well, is the device's again;
- to a collective where it is one; to what slow senders send where a probe found some.

The dense part is the same under every plan, so it is taken as it was seen. Everything else that tells ranks or tables
apart is shrunk first: noise would otherwise move tables.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from planner.cost.estimator import COMMS_PHASES, PHASES, AdditiveEstimator
from planner.cost.loads import NUM_TRAFFIC
from planner.plan import ShardingPlan
from planner.problem import PlanningProblem
from planner.replan.corrected import EXCHANGE_ROWS, LOOKUP_ROWS, CorrectedEstimator
from planner.replan.interface import Observation
from planner.replan.observed import observed_problem
from planner.replan.slow_senders import charge_senders
from planner.shards import ShardArrays, plan_shards

DENSE_ROWS = [PHASES.index(phase) for phase in ("dense_forward", "dense_backward", "optimizer", "other")]
COMMS_ROWS = [PHASES.index(phase) for phase in COMMS_PHASES]

MODEL_NOISE = (0.10, 0.18)
"""Residuals (logarithms) of healthy ranks below the first are taken for noise of the measurement, from the second on
they count whole: medians of some steps on shared machines scatter by 5 %, and of two ranks one is held against the
other, which makes 7 %."""

CHANGE_NOISE = (0.16, 0.24)
"""The same of changes since the job was healthy, ratios of two such medians, 7 % each. Forward and backward have to
agree, so chance brings one rank of four thousand beyond the first; a device that is 27 % slower counts whole, one that
is 20 % slower a third."""

DENSE_NOISE = (0.20, 0.30)
"""The same of the dense part, where there is one figure instead of two that agree."""

HOT_GROWTH = 0.05
"""Growth of a table's ids, or of a rank's estimated lookups (a logarithm), from which it is hot: ids of batches differ
by less."""

LEAST_SHARE = 0.01
"""Of the mean rank's lookups: a rank with less tells nothing of them."""

TINY_MS = 1e-12
"""Keeps shards that take no time out of divisions."""

MOST_HOT_FACTOR = 3.0
"""A hot table's new ids are at most so many times as dear as the model says, or as cheap."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class _Look:
    """One observation beside the model's estimate for the ids that it saw; phases [P, W] each."""

    problem: PlanningProblem
    seen_ms: Floats
    model_ms: Floats

    @property
    def lookup_residuals(self) -> Floats:
        """Logarithms [2, W] of observed over estimated lookups, forward and backward."""
        return np.log(_ratio(self.seen_ms[LOOKUP_ROWS], self.model_ms[LOOKUP_ROWS]))


@dataclass(frozen=True, eq=False)
class _Causes:
    """Logarithms of what work is dearer by.

    Attributes:
        common: [2, 1], lookups of all ranks, forward and backward.
        device: [W], lookups of each rank.
        dense: [W], the dense part of each rank.
        table: [T], lookups of each table.
    """

    common: Floats
    device: Floats
    dense: Floats
    table: Floats


def learn_corrections(
    problem: PlanningProblem,
    plan: ShardingPlan,
    estimator: AdditiveEstimator,
    seen: Observation,
    healthy: Observation | None,
) -> tuple[PlanningProblem, CorrectedEstimator]:
    """The problem with the ids that were seen, and the estimator corrected for it.

    Without a healthy observation nothing tells a model's error from a device's: what ranks have in common is the
    model's, the rest the devices'.

    Args:
        problem: Tables as they were planned.
        plan: Under which both observations were made.
        estimator: The model.
        seen: What is the case now.
        healthy: What was before it changed.
    """
    counted = set(seen.table_distinct)
    if healthy is not None:
        counted &= set(healthy.table_distinct)
    now = _look(problem, plan, estimator, seen, counted)
    before = None if healthy is None else _look(problem, plan, estimator, healthy, counted)
    shards = plan_shards(now.problem, plan)
    causes = _attribute_new(now) if before is None else _attribute(now, before, shards, estimator)
    corrected = _with_lookups(causes, now, plan, estimator)
    corrected = _with_comms(corrected, now, before, plan, seen.slow_senders)
    return now.problem, _with_dense(corrected, now, plan)


def shrink(logs: Floats, noise: tuple[float, float]) -> Floats:
    """Logarithms, 0 up to the first figure of the noise, whole from the second on, linear between.

    Source: Gao and Bruce 1997, WaveShrink with firm shrinkage.

    >>> shrink(np.array([-0.3, 0.1, 0.17]), (0.15, 0.25)).round(3).tolist()
    [-0.3, 0.0, 0.05]
    """
    low, high = noise
    size = np.abs(logs)
    return np.asarray(np.sign(logs) * np.where(size >= high, size, high * np.maximum(size - low, 0.0) / (high - low)))


def agreed(logs: Floats, noise: tuple[float, float]) -> Floats:
    """Means [W] of logarithms [2, W], forward and backward, shrunk as the smaller one is; 0 where they contradict.

    What is true of a device or of tables shows in both.
    """
    least = np.where(np.sign(logs[0]) == np.sign(logs[1]), np.abs(logs).min(axis=0), 0.0)
    return np.asarray(logs.mean(axis=0) * shrink(least, noise) / np.maximum(least, noise[0]))


def _look(
    problem: PlanningProblem, plan: ShardingPlan, estimator: AdditiveEstimator, seen: Observation, counted: set[str]
) -> _Look:
    observed = observed_problem(problem, seen, counted)
    return _Look(observed, seen.phases_ms, estimator.estimate(observed, plan).phases_ms)


def _attribute_new(now: _Look) -> _Causes:
    """Causes where no healthy observation tells them apart."""
    common, own = _split_common(now)
    num_tables, world_size = len(now.problem.workload.tables), now.seen_ms.shape[1]
    return _Causes(common, agreed(own, CHANGE_NOISE), np.zeros(world_size), np.zeros(num_tables))


def _attribute(now: _Look, before: _Look, shards: ShardArrays, estimator: AdditiveEstimator) -> _Causes:
    """Causes by what was there before and what came since."""
    common, own = _split_common(before)
    is_busy = _is_busy(now) & _is_busy(before)
    is_hot = is_busy & (np.log(_ratio(_pooled(now.model_ms), _pooled(before.model_ms))) >= HOT_GROWTH)
    change = np.where(is_busy, now.lookup_residuals - before.lookup_residuals, 0.0)
    is_cold = is_busy & ~is_hot
    # Hot tables may be dearer than the model says; of few other ranks the slow one might be all there is.
    fleet = _fleet(change, is_cold if 2 * is_cold.sum() >= is_busy.sum() else is_busy)
    change -= fleet
    dense = np.log(_ratio(now.seen_ms[DENSE_ROWS].sum(axis=0), before.seen_ms[DENSE_ROWS].sum(axis=0)))[None]
    dense = shrink(dense - _fleet(dense, np.ones_like(is_busy)), DENSE_NOISE)[0]
    device = np.where(is_hot | ~is_busy, dense, agreed(change, CHANGE_NOISE))
    rest = np.where(is_hot, agreed(change - device, CHANGE_NOISE), 0.0)
    table = _table_residuals(now, before, shards, estimator, agreed(own, MODEL_NOISE), rest)
    return _Causes(common + fleet, device, dense, table)


def _table_residuals(
    now: _Look, before: _Look, shards: ShardArrays, estimator: AdditiveEstimator, own: Floats, rest: Floats
) -> Floats:
    """Logarithms [T] of what tables are dearer by: all by what their ranks were [W], hot ones by the rest since [W]."""
    weight = _shard_ms(now.problem, shards, estimator)
    growth = _ratio(now.problem.arrays.ids_per_sample, before.problem.arrays.ids_per_sample)
    is_hot = (np.log(growth) >= HOT_GROWTH)[shards.table]
    share = _rank_sums(shards, weight * is_hot, len(rest)) / np.maximum(_rank_sums(shards, weight, len(rest)), TINY_MS)
    factor = 1 + np.expm1(rest) / np.maximum(share, LEAST_SHARE)
    of_hot = np.log(np.clip(factor, 1 / MOST_HOT_FACTOR, MOST_HOT_FACTOR))
    return _by_table(now.problem, shards, weight, own[shards.rank] + of_hot[shards.rank] * is_hot)


def _split_common(look: _Look) -> tuple[Floats, Floats]:
    """What the lookups of all ranks have in common [2, 1] (logarithms), and what each has beyond it [2, W]."""
    is_busy, logs = _is_busy(look), look.lookup_residuals
    common = _fleet(logs, is_busy)
    return common, np.where(is_busy, logs - common, 0.0)


def _with_lookups(causes: _Causes, now: _Look, plan: ShardingPlan, estimator: AdditiveEstimator) -> CorrectedEstimator:
    """The estimator with lookups and devices corrected; what tables cannot carry of a rank is its device's."""
    corrected = _with_causes(causes, now, plan, estimator)
    model_ms = corrected.estimate(now.problem, plan).phases_ms
    left = replace(now, model_ms=model_ms).lookup_residuals
    device = causes.device + agreed(np.where(_is_busy(now), left, 0.0), CHANGE_NOISE)
    return _with_causes(replace(causes, device=device), now, plan, estimator)


def _with_causes(causes: _Causes, now: _Look, plan: ShardingPlan, estimator: AdditiveEstimator) -> CorrectedEstimator:
    """The estimator with these causes; the host's part of a lookup phase is dearer as the lookups are."""
    shape = now.seen_ms.shape
    lookup_factor = np.exp(causes.common + causes.device)
    shards = plan_shards(now.problem, plan)
    traffic = np.zeros((shape[1], NUM_TRAFFIC))
    np.add.at(traffic, shards.rank, estimator.shard_loads(now.problem, shards)[:, :NUM_TRAFFIC])
    host_ms = estimator.join_ms(now.problem, traffic, np.zeros((2, shape[1])))[LOOKUP_ROWS]
    phase_factor, offset_ms = np.ones(shape), np.zeros(shape)
    phase_factor[DENSE_ROWS] = np.exp(causes.dense)
    offset_ms[LOOKUP_ROWS] = (lookup_factor - 1) * host_ms
    return CorrectedEstimator(
        estimator, np.exp(causes.table), lookup_factor, phase_factor, offset_ms, np.zeros(shape[1])
    )


def _with_comms(
    corrected: CorrectedEstimator, now: _Look, before: _Look | None, plan: ShardingPlan, senders: tuple[int, ...]
) -> CorrectedEstimator:
    """With collectives corrected: all ranks alike, but for what slow senders send."""
    total = np.log(_collective_ratio(now))
    healthy = total if before is None else np.log(_collective_ratio(before))
    since = shrink(total - healthy, CHANGE_NOISE)
    if senders:
        is_exchange = np.isin(COMMS_ROWS, EXCHANGE_ROWS)
        since = np.where(is_exchange, 0.0, since)
        healthy = np.where(is_exchange & (before is None), 0.0, healthy)
    factor = corrected.phase_factor.copy()
    factor[COMMS_ROWS] = np.exp(healthy + since)[:, None]
    corrected = replace(corrected, phase_factor=factor)
    return charge_senders(corrected, now.problem, plan, now.seen_ms, senders) if senders else corrected


def _with_dense(corrected: CorrectedEstimator, now: _Look, plan: ShardingPlan) -> CorrectedEstimator:
    """With the dense part, the optimizer and what the host does between phases as they were seen."""
    offset_ms = corrected.phase_offset_ms.copy()
    offset_ms[DENSE_ROWS] += (now.seen_ms - corrected.estimate(now.problem, plan).phases_ms)[DENSE_ROWS]
    return replace(corrected, phase_offset_ms=offset_ms)


def _collective_ratio(look: _Look) -> Floats:
    """Observed over estimated time of each of `COMMS_PHASES`."""
    return _ratio(look.seen_ms[COMMS_ROWS].max(axis=1), look.model_ms[COMMS_ROWS].max(axis=1))


def _shard_ms(problem: PlanningProblem, shards: ShardArrays, estimator: AdditiveEstimator) -> Floats:
    """What each shard [S] alone adds to the lookups of its rank, for shares of the rank's."""
    loads = estimator.shard_loads(problem, shards)
    alone = estimator.lookup_ms(problem, loads, shards.rank).sum(axis=0)
    return np.maximum(alone - estimator.lookup_ms(problem, np.zeros_like(loads), shards.rank).sum(axis=0), TINY_MS)


def _by_table(problem: PlanningProblem, shards: ShardArrays, weight: Floats, logs: Floats) -> Floats:
    """Means [T] over the shards of each table of figures [S], by weight."""
    num_tables = len(problem.workload.tables)
    sums = np.bincount(shards.table, weight * logs, minlength=num_tables)
    return sums / np.maximum(np.bincount(shards.table, weight, minlength=num_tables), TINY_MS)


def _rank_sums(shards: ShardArrays, weight: Floats, world_size: int) -> Floats:
    return np.bincount(shards.rank, weight, minlength=world_size).astype(np.float64)


def _pooled(phases_ms: Floats) -> Floats:
    """Lookups [W], forward and backward together: twice the evidence on a rank."""
    return np.asarray(phases_ms[LOOKUP_ROWS].sum(axis=0))


def _is_busy(look: _Look) -> NDArray[np.bool_]:
    """Ranks [W] whose lookups tell something."""
    model, seen = _pooled(look.model_ms), _pooled(look.seen_ms)
    return (model > LEAST_SHARE * model.mean()) & (seen > LEAST_SHARE * seen.mean())


def _fleet(logs: Floats, is_counted: NDArray[np.bool_]) -> Floats:
    """What ranks have in common [X, 1] of logs [X, W]: the lower median of those that count; 0 where none does."""
    counted = np.sort(logs[:, is_counted], axis=1)
    middle = (counted.shape[1] - 1) // 2
    return counted[:, [middle]] if counted.shape[1] else np.zeros((len(logs), 1))


def _ratio(above: Floats, below: Floats) -> Floats:
    """Quotients; 1 where either is nothing."""
    is_known = (above > 0) & (below > 0)
    return np.asarray(np.where(is_known, above, 1.0) / np.where(is_known, below, 1.0))
