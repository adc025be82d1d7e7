"""The model card of a trained policy, a page for people, from the figures that the weights carry."""

from typing import Any

PAGE = """\
# Placement policy

Points at a sharding option and ranks for one table after another, by descending cost. The weights are in `policy.npz`;
`shardwright pretrain policy` wrote them and this page.

## Trained on

{num_updates} updates in {minutes:g} minutes, seed {seed}, by REINFORCE with a leave-one-out baseline in the estimated
decision process: no hardware, no measured plan. Every task is new: tables {tables}, {units[0]} to {units[1]} of them
with 4 to 128 columns, on {ranks} ranks,
equal and unequal, on one node or several, memory filled to 30 to 92 %, global batches of 4,096 to 65,536. Three in
five tasks are priced by the learned costs of processors, the others by the data sheets of GPUs.

## On {num_tasks} tasks of the same kind that were neither trained on nor used to choose

Geometric means over tasks of the estimated step, over that of longest-processing-time's plan and over that of the best
of four greedy rules (size, dim, lookup, size x lookup).

| | over longest-processing-time | over the best greedy rule | solved |
|---|---|---|---|
{figures}
{ablations}
## Limits

The policy knows what the cost model tells it; a plan is as good as that. It cuts columns into equal shards only. On
tasks far larger than those above it goes by the greedy rule that it started from.
"""

ABLATIONS = """
## Ablations

Each trained for {minutes:g} minutes with the same seed, greedy decoding; without polish is the first line above against
the last.

| | over longest-processing-time | over the best greedy rule | solved |
|---|---|---|---|
{rows}
"""


def render_policy_card(card: dict[str, Any]) -> str:
    """The page of a card."""
    rows = "\n".join(_row(name, marks) for name, marks in card["ablations"].items())
    ablations = ABLATIONS.format(minutes=card["ablation_minutes"], rows=rows) if rows else ""
    others = {key: card[key] for key in ("num_updates", "minutes", "seed", "tables", "units", "num_tasks")}
    return PAGE.format(
        **others,
        ranks=", ".join(map(str, card["ranks"])),
        figures="\n".join(_row(name, marks) for name, marks in card["figures"].items()),
        ablations=ablations,
    )


def _row(name: str, marks: dict[str, float]) -> str:
    return f"| {name} | {marks['over_processing']:.3f} | {marks['over_rule']:.3f} | {marks['success']:.0%} |"
