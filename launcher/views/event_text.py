"""Events of a run as Markdown, for TensorBoard's text page."""

from typing import Any

import numpy as np

SLOWEST_LINKS = 10
"""Links that a probe's text names."""


def verdict_markdown(record: dict[str, Any]) -> str:
    """A verdict's message, and its fields as a table."""
    fields = {
        "cause": record["cause"],
        "rank": "-" if record["rank"] is None else str(record["rank"]),
        "tables": ", ".join(record["tables"]) or "-",
        "severity": f"{record['severity_ms']:.2f} ms a step",
        "since step": str(record["since_step"]),
        "over": "yes" if record["is_over"] else "no",
    }
    return "\n".join([record["message"], "", _row(fields.keys()), "|---" * len(fields) + "|", _row(fields.values())])


def links_markdown(record: dict[str, Any]) -> str:
    """The slowest links of a probe, one way, against the median of all."""
    send_ms = np.array(record["send_ms"], dtype=np.float64)
    senders, receivers = np.nonzero(np.isfinite(send_ms))
    if not len(senders):
        return "no link was probed"
    found_ms = send_ms[senders, receivers]
    order = np.argsort(-found_ms, kind="stable")[:SLOWEST_LINKS]
    rows = [_row((senders[i], receivers[i], f"{found_ms[i]:.3f}")) for i in order]
    head = f"{len(found_ms)} links probed, median {np.median(found_ms):.3f} ms; the slowest:"
    return "\n".join([head, "", "| from rank | to rank | ms |", "|---|---|---|", *rows])


def _row(cells: Any) -> str:
    return f"| {' | '.join(map(str, cells))} |"
