"""Events of a run as Markdown, for TensorBoard's text page."""

from typing import Any

import numpy as np

from planner.text import human_bytes

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
    return _with_table(record["message"], fields)


def decision_markdown(record: dict[str, Any]) -> str:
    """A decision's message, and its figures as a table."""
    left = record["remaining_steps"]
    fields = {
        "answer": record["answer"],
        "asked by": record["trigger"],
        "cause": record["cause"] or "-",
        "rank": "-" if record["rank"] is None else str(record["rank"]),
        "gain": f"{record['predicted_gain_ms']:.2f} ms a step",
        "moved": human_bytes(record["moved_bytes"]),
        "price": f"{record['price_ms']:.0f} ms",
        "steps left": "unknown" if left is None else str(left),
    }
    return _with_table(record["message"], fields)


def migration_markdown(record: dict[str, Any]) -> str:
    """A migration's message, and its figures as a table."""
    fields = {
        "move": str(record["move"]),
        "committed": "yes" if record["is_committed"] else "no",
        "moved": human_bytes(record["moved_bytes"]),
        "pause": f"{record['pause_ms']:.0f} ms",
        "transfers": f"{record['transfer_ms']:.0f} ms",
        "extra memory of a rank": human_bytes(record["extra_peak_bytes"]),
        "staging": record["staging"] or "-",
    }
    return _with_table(record["message"], fields)


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


def _with_table(message: str, fields: dict[str, str]) -> str:
    return "\n".join([message, "", _row(fields.keys()), "|---" * len(fields) + "|", _row(fields.values())])


def _row(cells: Any) -> str:
    return f"| {' | '.join(map(str, cells))} |"
