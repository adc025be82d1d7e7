"""Beam search over options: which units to cut, by columns, by rows or not at all; placement is greedy.

Source: NeuroShard (arXiv 2305.01868), section 4.2, a beam over column halvings with a greedy placement inside. Here a
step of the beam gives one unit any other of its options, and starts are what other strategies have chosen.
"""

import time
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from planner.search.assignment import Assignment
from planner.search.catalogue import Catalogue, Form
from planner.search.greedy_batch import Forms, Placed, joined, own_ms, place_forms
from planner.search.objective import Rates, feel_rates

WIDTH = 4
"""Form vectors that a level keeps."""

CANDIDATES = 10
"""Units of each that are given other options: those with the dearest piece, and as many with the largest."""

NUM_KEPT = 2
"""Placements that are handed out."""

PATIENCE = 3
"""Levels without a better placement after which the beam ends."""

MOST_AT_ONCE = 1 << 12
"""Placements x ranks that are filled at once: memory for the loads of a few thousand ranks."""

CUTS = (1, 2, 3, 4, 6, 8, 12, 16, 32)
"""Numbers of column shards that are tried."""


def beam_search(catalogue: Catalogue, starts: Sequence[Assignment], ends_at: float) -> list[Assignment]:
    """The best few assignments that the beam meets until a deadline (`time.monotonic()`), the best first.

    It begins with the forms of the starts.
    """
    rates = feel_rates(catalogue.problem, catalogue.estimator, starts[0].loads)
    beam = joined([Forms.of(start) for start in starts])
    placed = _place_in_parts(catalogue, rates, beam, ends_at)
    met, seen = _Met(catalogue), {_key(beam, at) for at in range(len(beam))}
    met.add(beam, placed)
    beam, patience = beam.take(placed.order[:WIDTH]), PATIENCE
    while patience and time.monotonic() < ends_at:
        found = _unseen(_expand(catalogue, rates, beam), seen)
        if not len(found):
            break
        placed = _place_in_parts(catalogue, rates, found, ends_at)
        patience = PATIENCE if met.add(found, placed) else patience - 1
        beam = found.take(placed.order[:WIDTH])
    return [met.assignments[score] for score in sorted(met.assignments)]


class _Met:
    """The best placements so far, by bytes over memory and step."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self.assignments: dict[tuple[float, float], Assignment] = {}

    def add(self, forms: Forms, placed: Placed) -> bool:
        """Takes note of the best placements; whether one is better than all before."""
        best = min(self.assignments, default=(np.inf, np.inf))
        for at in placed.order[:NUM_KEPT]:
            score = float(placed.over_bytes[at]), float(placed.step_ms[at])
            self.assignments[score] = Assignment.of_forms(
                self.catalogue, forms.form[at].copy(), placed.granules[at].copy()
            )
        for score in sorted(self.assignments)[NUM_KEPT:]:
            del self.assignments[score]
        return min(self.assignments) < best


def _expand(catalogue: Catalogue, rates: Rates, beam: Forms) -> Forms:
    """Each form vector with one unit changed: its dearest and its largest units, in every other option."""
    changed = []
    for form, num_cuts in zip(beam.form, beam.num_cuts, strict=True):
        for unit in _critical_units(catalogue, rates, form, num_cuts):
            for other_form, other_cuts in _options(catalogue, int(unit)):
                if (other_form, other_cuts) != (form[unit], num_cuts[unit]):
                    forms = Forms(form[None].copy(), num_cuts[None].copy())
                    forms.form[0, unit], forms.num_cuts[0, unit] = other_form, other_cuts
                    changed.append(forms)
    return joined(changed) if changed else beam.take(np.zeros(0, dtype=np.int64))


def _critical_units(
    catalogue: Catalogue, rates: Rates, form: NDArray[np.int64], num_cuts: NDArray[np.int64]
) -> NDArray[np.int64]:
    every = np.arange(len(form))
    rows = catalogue.rows(every, -(-catalogue.num_granules // num_cuts))
    fixed = form != Form.FREE
    rows[fixed] = catalogue.fixed[every[fixed], form[fixed], 0]
    times_ms = own_ms(catalogue, rates, catalogue.prices.loads[rows], np.zeros_like(rows))
    num_bytes = catalogue.prices.num_bytes[rows]
    first = [np.argsort(-values, kind="stable")[:CANDIDATES] for values in (times_ms, num_bytes)]
    return np.unique(np.concatenate(first))


def _options(catalogue: Catalogue, unit: int) -> Iterator[tuple[int, int]]:
    """Form and number of column shards of each option."""
    yield from ((form, 1) for form in catalogue.fixed_forms(unit))
    most = min(int(catalogue.num_granules[unit]), int(catalogue.may_move[unit].sum()))
    for count in CUTS:
        if count <= most and (catalogue.may_cut[unit] if count > 1 else catalogue.may_be_whole[unit]):
            yield Form.FREE, count


def _place_in_parts(catalogue: Catalogue, rates: Rates, forms: Forms, ends_at: float) -> Placed:
    """As `place_forms`, a part at a time; parts that the deadline cuts off are left out."""
    size = max(1, MOST_AT_ONCE // catalogue.world_size)
    parts: list[Placed] = []
    for first in range(0, len(forms), size):
        if parts and time.monotonic() >= ends_at:
            break
        parts.append(place_forms(catalogue, rates, forms.take(np.arange(first, min(first + size, len(forms))))))
    columns = zip(*((part.granules, part.over_bytes, part.step_ms) for part in parts), strict=True)
    return Placed(*(np.concatenate(each) for each in columns))


def _unseen(forms: Forms, seen: set[bytes]) -> Forms:
    kept = []
    for at in range(len(forms)):
        key = _key(forms, at)
        if key not in seen:
            seen.add(key)
            kept.append(at)
    return forms.take(np.array(kept, dtype=np.int64))


def _key(forms: Forms, at: int) -> bytes:
    return forms.form[at].tobytes() + forms.num_cuts[at].tobytes()
