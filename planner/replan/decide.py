"""When a move is worth its price: with a known end by what is left to gain, else by ski rental."""

LEAST_GAIN = 0.03
"""Share of a step that a move must gain to be believed. Corrected estimates of two plans of a job differ by their moved
shards only, yet levels of steps wander by 2 % and what has been shrunk as noise may hide as much."""


def decide(
    gain_ms: float, step_ms: float, price_ms: float, remaining_steps: int | None, lost_ms: float, margin: float
) -> tuple[bool, str]:
    """Whether to move now, and why: one line with the numbers.

    With a known end: gain x remaining steps > margin x price. Else once what has been lost, and the move would have
    saved, reaches the price: whatever comes, that pays at most twice what one would have paid who knew the end.
    Source: Karlin, Manasse, Rudolph and Sleator 1988, Competitive snoopy caching, break-even rule of ski rental.

    Args:
        gain_ms: Predicted, a step.
        step_ms: The present step.
        price_ms: Of the pause.
        remaining_steps: None where the end is not known.
        lost_ms: What the move would have saved so far, had it been made when the loss began.
        margin: Times its price that a gain must be where the end is known.
    """
    gain = f"{gain_ms:.2f} ms a step"
    if gain_ms <= LEAST_GAIN * step_ms:
        return False, f"no: a gain of {gain} is not above noise, {LEAST_GAIN:.0%} of {step_ms:.2f} ms"
    if remaining_steps is None:
        lost = f"{lost_ms:,.0f} ms lost so far that it would have saved"
        if lost_ms >= price_ms:
            return True, f"gains {gain}; {lost} >= price {price_ms:,.0f} ms, end unknown"
        return False, f"no, not yet: {lost} < price {price_ms:,.0f} ms, end unknown; it would gain {gain}"
    total_ms = gain_ms * remaining_steps
    terms = f"{gain} x {remaining_steps:,} steps left = {total_ms:,.0f} ms"
    if total_ms > margin * price_ms:
        return True, f"gains {terms} > {margin:g} x price {price_ms:,.0f} ms"
    return False, f"no: {terms} <= {margin:g} x price {price_ms:,.0f} ms"
