"""The command line: `shardwright COMMAND`, the same as `python -m launcher COMMAND`."""

import argparse
import os
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launcher.cli_bench import add_benchmarks
from launcher.cli_parts import EPILOG, add_config, follow_profile, follow_strategies, load, print_json
from launcher.cli_pretrain import add_pretraining
from launcher.cli_reshard import add_reshard
from launcher.exit_codes import ExitCode

WIDTH = 100
DESCRIPTION = "Trains DLRMs on a Ray cluster and decides where every embedding table lives."


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; every known fault is one message on stderr."""
    options = build_parser().parse_args(arguments)
    return int(report_faults(options.command, options))


def build_parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    parser = argparse.ArgumentParser(prog="shardwright", description=DESCRIPTION, epilog=EPILOG)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, command: Callable[[argparse.Namespace], ExitCode], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, epilog=EPILOG)
        sub.set_defaults(command=command)
        sub.add_argument("--json", action="store_true", help="print one JSON object instead of text")
        return sub

    add_config(add("doctor", doctor, "check this machine and say how to mend what is wrong"))
    profile_parser = add("profile", profile, "measure the devices and links that train would use, and keep the result")
    profile_parser.add_argument("--fresh", action="store_true", help="measure even if a kept profile fits")
    add_config(profile_parser)
    plan_parser = add("plan", plan, "place the tables and print the plan that train would run")
    source = plan_parser.add_mutually_exclusive_group()
    source.add_argument("--strategy", metavar="NAME", help="the search to use instead of planner.strategy")
    text = "check and price the plan of this file (plan --json, runs/NAME/plans/*.json) instead of searching"
    source.add_argument("--pinned", type=Path, metavar="FILE", help=text)
    compare_parser = add("compare", compare, "plan with every strategy and print them side by side")
    for sub in (plan_parser, compare_parser):
        sub.add_argument("--topology", type=Path, metavar="FILE", help="plan for these devices; needs no cluster")
        text = "plan with this profile, without --topology for the devices that it measured; needs no cluster"
        sub.add_argument("--profile", type=Path, metavar="FILE", help=text)
        add_config(sub)
    train_parser = add("train", train, "plan, launch and watch a training job")
    train_parser.add_argument("--dry-run", action="store_true", help="print the plan that would train, and stop")
    add_config(train_parser)
    report_parser = add("report", report, "say what a run came to")
    report_parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    add_reshard(commands)
    add_pretraining(commands)
    add_benchmarks(commands)
    return parser


def report_faults(command: Callable[[argparse.Namespace], ExitCode], options: argparse.Namespace) -> ExitCode:
    """Run a command; a fault that a user can mend becomes its message and its exit code, without a traceback."""
    try:
        return command(options)
    except BrokenPipeError:
        # Whoever read our output (`| head`) has enough of it; nothing may be flushed into the pipe any more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    except (Exception, KeyboardInterrupt) as error:
        from launcher.faults import exit_code_of

        code = exit_code_of(error)
        if code is None:
            raise
        print(fold(headed(str(error) or "interrupted")), file=sys.stderr)
        return code


def headed(message: str, width: int = WIDTH) -> str:
    """The message behind the command's name; below it where its lines are folded already and leave no room."""
    head, (first, *others) = "shardwright:", message.splitlines()
    has_room = not others or len(f"{head} {first}") <= width
    return f"{head} {message}" if has_room else f"{head}\n{message}"


def fold(text: str, width: int = WIDTH) -> str:
    """The text with its long lines folded at words; what has no spaces (a path) stays whole."""
    options = {"width": width, "subsequent_indent": "  ", "break_long_words": False, "break_on_hyphens": False}
    return "\n".join(
        line if len(line) <= width else textwrap.fill(line, **options)  # type: ignore[arg-type]
        for line in text.splitlines()
    )


def doctor(options: argparse.Namespace) -> ExitCode:
    """`shardwright doctor`."""
    from launcher.doctor import examine, render_findings
    from launcher.views.tables import make_console

    findings = examine(load(options))
    if options.json:
        print_json({"ok": all(f.is_ok for f in findings), "checks": [vars(f) for f in findings]})
    else:
        for line in render_findings(findings):
            make_console().print(line)
    return ExitCode.OK if all(finding.is_ok for finding in findings) else ExitCode.UNFIT


def profile(options: argparse.Namespace) -> ExitCode:
    """`shardwright profile`."""
    from launcher.profiling import find_kept_locally
    from launcher.views.profiling import profile_dict, render_profile_summary
    from launcher.views.tables import make_console

    began_s, config = time.monotonic(), load(options)
    kept = None if options.fresh else find_kept_locally(config)
    if kept is None:
        kept = _profile_cluster(config, options.fresh, began_s)
    if options.json:
        print_json(profile_dict(kept))
    else:
        for part in render_profile_summary(kept):
            make_console().print(part, soft_wrap=isinstance(part, str))
    return ExitCode.OK


def _profile_cluster(config: Any, is_fresh: bool, began_s: float) -> Any:
    from cluster.session import open_session
    from launcher.preparation import find_devices
    from launcher.profiling import measure, obtain_profile

    with open_session(config.cluster.address):
        inventory, described = find_devices(config)
        obtain = measure if is_fresh else obtain_profile
        return obtain(config, inventory, described.topology, follow_profile(), began_s)


def plan(options: argparse.Namespace) -> ExitCode:
    """`shardwright plan`."""
    from launcher.preparation import prepare, session_unless

    config = load(options)
    with session_unless(options.topology or options.profile, config):
        prepared = prepare(
            config, options.topology, options.strategy, options.profile, follow_profile(), options.pinned
        )
    if options.json:
        print_json(prepared.planned.to_dict())
    else:
        _terminal().show_plan(prepared)
    return ExitCode.OK


def compare(options: argparse.Namespace) -> ExitCode:
    """`shardwright compare`."""
    from launcher.comparison import compare_strategies, comparison_dict
    from launcher.preparation import session_unless
    from launcher.views.comparison import render_comparison
    from launcher.views.tables import make_console

    config = load(options)
    with session_unless(options.topology or options.profile, config):
        outcomes = compare_strategies(config, options.topology, options.profile, follow_profile(), follow_strategies())
    if options.json:
        print_json(comparison_dict(outcomes))
    else:
        console = make_console()
        for part in render_comparison(outcomes):
            console.print(part)
    return ExitCode.OK if any(outcome.planned for outcome in outcomes) else ExitCode.INFEASIBLE


def train(options: argparse.Namespace) -> ExitCode:
    """`shardwright train`."""
    if options.dry_run:
        options.topology = options.strategy = options.profile = options.pinned = None
        return plan(options)
    from launcher.stop_signals import StopSignals

    config, terminal = load(options), _terminal(stderr=options.json)
    with StopSignals() as stop:
        # Loading torch and Ray takes seconds, in which a user may well think again.
        from launcher.controller import run_training

        code, run = run_training(config, options.config, terminal, stop)
    _show_report(run.path, options.json)
    return code


def report(options: argparse.Namespace) -> ExitCode:
    """`shardwright report RUN_DIR`."""
    _show_report(options.run_dir, options.json)
    return ExitCode.OK


def _terminal(stderr: bool = False) -> Any:
    from launcher.views.tables import make_console
    from launcher.views.terminal import Terminal

    return Terminal(make_console(stderr))


def _show_report(path: Path, as_json: bool) -> None:
    from launcher.views.report import read_report, render_report
    from launcher.views.tables import make_console

    found = read_report(path)
    if as_json:
        print_json(found)
        return
    console = make_console()
    for part in render_report(found, path):
        console.print(part, soft_wrap=isinstance(part, str))
