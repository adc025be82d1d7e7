"""The host's costs: what is planted in steps is found again, and calibrated plans keep a valid bound."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from planner.cost.analytic import AnalyticEstimator
from planner.cost.estimator import COMMS_PHASES, PHASES
from planner.cost.host import HOST_TERMS, HostCost
from planner.cost.host_fit import PHASE_TERMS, MeasuredStep, critical_ms, fit_host
from planner.errors import PlanningError
from planner.problem import PlanningProblem
from planner.search.bound import lower_bound_ms
from planner.search.registry import SearchSettings, find_plan
from planner.tables import Workload
from planner.topology import Topology


@pytest.fixture(scope="module")
def problems(make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]) -> list[PlanningProblem]:
    """Thirty models of different sizes."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(30):
        shapes = [(int(10 ** rng.uniform(2, 5)), 4 * int(rng.integers(1, 33)), float(rng.uniform(1, 20)))] * int(
            rng.integers(2, 12)
        )
        workload = make_workload(*shapes, batch_size=int(rng.integers(64, 1024)), dense_parameters=10_000)
        dense = {"dense_layers": int(rng.integers(3, 12)), "dense_activations": float(rng.integers(100, 2000))}
        found.append(PlanningProblem(replace(workload, **dense), make_topology()))
    return found


def planted() -> HostCost:
    cost_ms = np.zeros((len(PHASES), len(HOST_TERMS)))
    cost_ms[PHASES.index("input_dist"), HOST_TERMS.index("step")] = 1.5
    cost_ms[PHASES.index("lookup_forward"), HOST_TERMS.index("shards")] = 0.2
    cost_ms[PHASES.index("dense_backward"), HOST_TERMS.index("activations")] = 1e-5
    return HostCost(np.full(len(PHASES), 1.0), cost_ms, waiting=0.1)


def test_planted_costs_are_found(problems: list[PlanningProblem]) -> None:
    kernels, host = AnalyticEstimator(), planted()
    priced = []
    for problem in problems:
        plan = find_plan(problem, "size_greedy").plan
        phases_ms = replace_host(kernels, replace(host, waiting=0.0)).estimate(problem, plan).phases_ms.max(axis=1)
        priced.append((kernels, MeasuredStep(problem, plan, phases_ms, float(1.1 * phases_ms.sum()))))
    found = replace_host(kernels, fit_host(priced))
    for _, step in priced:
        assert found.estimate(step.problem, step.plan).step_ms == pytest.approx(step.step_ms, rel=0.02)


def replace_host(kernels: AnalyticEstimator, host: HostCost) -> AnalyticEstimator:
    estimator = AnalyticEstimator()
    object.__setattr__(estimator, "host", host)
    return estimator


def test_a_collective_is_timed_by_the_rank_that_waits_least() -> None:
    phases_ms = np.stack([np.full(len(PHASES), 2.0), np.full(len(PHASES), 5.0)], axis=1)
    expected = [2.0 if phase in COMMS_PHASES else 5.0 for phase in PHASES]
    assert critical_ms(phases_ms).tolist() == expected


def test_the_bound_holds_for_calibrated_plans(problems: list[PlanningProblem]) -> None:
    estimator = replace_host(AnalyticEstimator(), planted())
    for problem in problems[:8]:
        bound_ms = lower_bound_ms(problem, estimator)
        for strategy in ("size_greedy", "dim_greedy", "longest_processing_time"):
            assert find_plan(problem, strategy, SearchSettings(estimator)).cost.step_ms >= bound_ms > 1.5


def test_scaled_and_stored_costs(problems: list[PlanningProblem]) -> None:
    host = planted()
    again = HostCost.from_dict(host.to_dict())
    assert again.waiting == host.waiting and (again.cost_ms == host.cost_ms).all() and (again.scale == host.scale).all()
    assert host.scaled(2.0).least_ms(problems[0]) == pytest.approx(2 * host.least_ms(problems[0]))
    with pytest.raises(PlanningError, match="host costs"):
        HostCost.from_dict({"phases": {}})


def test_every_phase_has_terms() -> None:
    assert set(PHASE_TERMS) == set(PHASES)
    assert all(set(terms) <= set(HOST_TERMS) for terms in PHASE_TERMS.values())
