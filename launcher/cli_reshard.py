"""`shardwright reshard`: hands a plan in to a running job, through its controller."""

import argparse
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from launcher.cli_parts import EPILOG, print_json
from launcher.exit_codes import ExitCode

WAIT_S = 60.0
"""A migration takes seconds, and so may another one or a search that goes before it."""


def add_reshard(commands: Any) -> None:
    """The command and its options."""
    text = "move a running job to the plan of a file, without stopping it"
    codes = "Here 3 says that the plan was refused, 4 that the migration failed; the plan before then trains on."
    sub = commands.add_parser("reshard", help=text, description=text, epilog=f"{EPILOG} {codes}")
    sub.set_defaults(command=reshard)
    sub.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    sub.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    text = "the plan: what `plan --json` prints, or a file of runs/NAME/plans/"
    sub.add_argument("--plan", type=Path, metavar="FILE", required=True, help=text)
    text = "longest wait for the answer (default: %(default)g); a request that nobody took by then is taken back"
    sub.add_argument("--wait", type=float, default=WAIT_S, metavar="S", help=text)


def reshard(options: argparse.Namespace) -> ExitCode:
    """Ask, wait, say what came of it.

    Ends with 0 where the job trains under the plan, 3 where the plan is refused, 4 where the migration failed and the
    old plan trains on, 2 where the run had ended or did not answer.
    """
    from launcher.priced_plan import read_pinned
    from launcher.resharding.requests import ENDED, FAILED, REFUSED, await_answer, check_running, hand_in

    run = check_running(options.run_dir)
    name = hand_in(run, read_pinned(options.plan))
    with _waiting(f"waiting for {run.path.name} to move"):
        answer = await_answer(run, name, options.wait)
    if options.json:
        print_json(answer)
    else:
        print(_render(answer))
    codes = {REFUSED: ExitCode.INFEASIBLE, FAILED: ExitCode.TRAINING_FAILED, ENDED: ExitCode.USAGE}
    return codes.get(answer["status"], ExitCode.OK)


def _waiting(text: str) -> Any:
    """Shows on a terminal that something is waited for."""
    from launcher.views.tables import make_console

    console = make_console(stderr=True)
    return console.status(text) if console.is_terminal else nullcontext()


def _render(answer: dict[str, Any]) -> str:
    from planner.text import human_bytes

    migration = answer["migration"]
    if migration is None or not migration["is_committed"]:
        return f"{answer['status']}: {answer['message']}"
    return (
        f"moved after step {migration['step']}: {human_bytes(migration['moved_bytes'])} over links, "
        f"training paused for {migration['pause_ms']:.0f} ms"
    )
