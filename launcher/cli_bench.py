"""The commands of `shardwright bench`: what says how good this system is."""

import argparse
from pathlib import Path
from typing import Any

from launcher.cli_parts import EPILOG, FILES_FIRST, add_config, follow_profile, load, print_json
from launcher.exit_codes import ExitCode

GIB = 1 << 30


def add_benchmarks(commands: Any) -> None:
    """`shardwright bench NAME`: one parser a benchmark."""
    text = "measure how good this system is"
    names = commands.add_parser("bench", help=text, description=text, epilog=EPILOG).add_subparsers(
        metavar="NAME", required=True
    )
    text = "fit our costs and the baselines to a file of measured costs and test them on lines left out"
    parser = names.add_parser("cost-file", help=text, description=f"{text}. MAPE is a fraction: 0.09 is 9 %.")
    parser.set_defaults(command=bench_cost_file)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("--costs", type=Path, metavar="FILE", required=True, help="lines of measured costs")
    parser.add_argument("--tables", type=Path, metavar="CSV", help="the tables that the lines name; not with --comms")
    parser.add_argument("--comms", action="store_true", help="the lines are all-to-alls, split by time")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="runs to average over (5)")
    add_cost_benchmark(names)
    add_plans_benchmark(names)
    add_telemetry_benchmarks(names)
    add_migrate_benchmark(names)
    add_drift_benchmark(names)


def add_cost_benchmark(names: Any) -> None:
    """`shardwright bench cost`."""
    text = "compare our costs and the baselines with sets, collectives and steps that nothing was fitted to"
    parser = names.add_parser("cost", help=text, description=f"{text}. Errors are fractions. {FILES_FIRST}")
    parser.set_defaults(command=bench_cost)
    parser.add_argument("--sets", type=int, default=120, metavar="N", help="fused sets to measure, each twice (120)")
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="configurations to train; 0: none (20)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of what is drawn, splits and weights (0)")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="test on its sets and collectives; measures none")
    text = "train the baselines on these profiles; without it on the local one"
    parser.add_argument("--train", type=Path, nargs="+", metavar="FILE", default=[], help=text)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    add_config(parser)


def add_plans_benchmark(names: Any) -> None:
    """`shardwright bench plans`."""
    text = "draw planning tasks from a pool of tables and compare strategies on them"
    about = (
        "One node of equal CPU ranks priced by the shipped lookup weights, unless --profile or --topology says else."
    )
    parser = names.add_parser("plans", help=text, description=f"{text}. {about}", epilog=EPILOG)
    parser.set_defaults(command=bench_plans)
    parser.add_argument("--tables", type=Path, metavar="CSV", required=True, help="pool: rows, pooling, reuse bins")
    parser.add_argument("--num-tables", type=_span, metavar="A:B", default=(10, 59), help="of a task (10:59)")
    parser.add_argument("--dims", type=_whole_numbers, metavar="N,N", help="widths to draw (4,8,16,32,64,128)")
    parser.add_argument("--ranks", type=int, metavar="D", help="equal ranks of one node")
    parser.add_argument("--memory-gib", type=_gib, metavar="G", help="memory of each rank for tables")
    parser.add_argument("--total-gib", type=_gib, metavar="G", help="most weights of a task (15/16 of 4 ranks)")
    parser.add_argument("--tasks", type=int, default=100, metavar="N", help="how many to draw (100)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the tasks (0)")
    parser.add_argument("--strategies", type=_words, metavar="NAME,NAME", default=(), help="what to compare (most)")
    parser.add_argument("--budget-s", type=float, metavar="S", help="of a search that could go on (6)")
    parser.add_argument("--sharding-types", type=_types, metavar="TYPE,TYPE", default=(), help="for all tables (any)")
    text = "what counts: weights alone, as NeuroShard counts, or everything (weights)"
    parser.add_argument("--memory", choices=("weights", "full"), default="weights", help=text)
    parser.add_argument("--profile", type=Path, metavar="FILE", help="price the ranks by what it measured")
    parser.add_argument("--topology", type=Path, metavar="FILE", help="these devices instead, by their own figures")
    text = "scale rows and batch to fit this machine, plan anew and run every rank of every plan"
    parser.add_argument("--measure", action="store_true", help=text)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def add_telemetry_benchmarks(names: Any) -> None:
    """`shardwright bench overhead` and `bench detect`."""
    text = "run the same steps with and without telemetry, in turns, and compare their times"
    about = "Ranks, driver and files are those of a real run. With configs/quickstart.yaml a pair of blocks takes 10 s."
    parser = names.add_parser("overhead", help=text, description=f"{text}. {about}", epilog=EPILOG)
    parser.set_defaults(command=bench_overhead)
    parser.add_argument("--pairs", type=_count, default=20, metavar="N", help="blocks of each kind (20)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    add_config(parser)
    text = "compare the detectors of imbalance on made-up traces and on recorded ones"
    parser = names.add_parser("detect", help=text, description=f"{text}.", epilog=EPILOG)
    parser.set_defaults(command=bench_detect)
    parser.add_argument("--runs", type=_count, default=30, metavar="N", help="of each kind and number of ranks (30)")
    parser.add_argument("--ranks", type=_whole_numbers, default=(8, 64), metavar="N,N", help="of made-up runs (8,64)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="first of the made-up runs (0)")
    text = "made-up steps without a fault, in which false alarms are counted (100000)"
    parser.add_argument("--clean-steps", type=_count, default=100_000, metavar="N", help=text)
    parser.add_argument("--recorded", type=Path, metavar="FILE", help="traces of real ranks (.npz) to judge by as well")
    text = "record --runs traces of each kind with the ranks of --config into --recorded first; goes on with a file"
    parser.add_argument("--record", action="store_true", help=text)
    text = "only find the detectors' thresholds anew, at one rate of false alarms (some minutes)"
    parser.add_argument("--calibrate", action="store_true", help=text)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    add_config(parser)


def add_migrate_benchmark(names: Any) -> None:
    """`shardwright bench migrate`."""
    text = "move tables between plans of all kinds on real ranks, each move beside an all-to-all of as many bytes"
    about = "Of the configuration count cluster, optimizer.sparse and resharding."
    parser = names.add_parser("migrate", help=text, description=f"{text}. {about}", epilog=EPILOG)
    parser.set_defaults(command=bench_migrate)
    parser.add_argument("--ranks", type=_count, default=2, metavar="N", help="of the group (2)")
    text = "that travel in a migration, all ranks together (16,64,256)"
    parser.add_argument("--mib", type=_whole_numbers, default=(16, 64, 256), metavar="N,N", help=f"MiB {text}")
    parser.add_argument("--repeats", type=_count, default=5, metavar="N", help="of every migration (5)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    add_config(parser)


def add_drift_benchmark(names: Any) -> None:
    """`shardwright bench drift`."""
    text = "let the load move to one rank's tables, and compare re-sharding with its plan kept and with the right one"
    about = "The job is the benchmark's own; of the configuration cluster, profile, imbalance and resharding count."
    parser = names.add_parser("drift", help=text, description=f"{text}. {about}", epilog=EPILOG)
    parser.set_defaults(command=bench_drift)
    parser.add_argument("--repeats", type=_count, default=3, metavar="N", help="runs of each of the three (3)")
    parser.add_argument("--steps", type=_count, default=1200, metavar="N", help="of each run (1200)")
    text = "last step before the drift, behind what the watch learns from (150)"
    parser.add_argument("--drift-step", type=_count, default=150, metavar="N", help=text)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    add_config(parser)


def bench_cost_file(options: argparse.Namespace) -> ExitCode:
    """`shardwright bench cost-file`."""
    from launcher.bench.cost_file import run_cost_file
    from launcher.views.tables import make_console

    console = make_console(stderr=True)
    found, tables = run_cost_file(options.costs, options.tables, options.comms, options.seeds, console.print)
    if options.json:
        print_json(found)
    else:
        for table in tables:
            make_console().print(table)
    return ExitCode.OK


def bench_cost(options: argparse.Namespace) -> ExitCode:
    """`shardwright bench cost`."""
    from launcher.bench.cost import CostBenchmark, render_cost, run_cost
    from launcher.views.tables import make_console

    console = make_console(stderr=True)
    asked = CostBenchmark(options.sets, options.steps, options.seed, options.profile, tuple(options.train))
    found = run_cost(load(options), asked, follow_profile(), console.print)
    if options.json:
        print_json(found)
    else:
        for part in render_cost(found):
            make_console().print(part)
    return ExitCode.OK


def bench_plans(options: argparse.Namespace) -> ExitCode:
    """`shardwright bench plans`."""
    from launcher.bench.plan_contest import PlanBenchmark
    from launcher.bench.plan_report import render_plans
    from launcher.bench.plan_tasks import DIMS
    from launcher.bench.plans import run_plans
    from launcher.views.tables import make_console
    from planner.search.registry import BUDGET_S
    from planner.tables import MemoryCount

    asked = PlanBenchmark(
        tables=options.tables,
        num_tables=options.num_tables,
        dims=options.dims or DIMS,
        num_ranks=options.ranks,
        memory_bytes=options.memory_gib,
        total_bytes=options.total_gib,
        num_tasks=options.tasks,
        seed=options.seed,
        strategies=options.strategies,
        budget_s=BUDGET_S if options.budget_s is None else options.budget_s,
        sharding_types=options.sharding_types,
        memory=MemoryCount(options.memory),
        profile=options.profile,
        topology=options.topology,
        is_measured=options.measure,
    )
    found = run_plans(asked, make_console(stderr=True).print)
    if options.json:
        print_json(found)
    else:
        for part in render_plans(found):
            make_console().print(part)
    return ExitCode.OK


def bench_overhead(options: argparse.Namespace) -> ExitCode:
    """`shardwright bench overhead`."""
    from launcher.bench.overhead import render_overhead, run_overhead
    from launcher.views.tables import make_console

    found = run_overhead(load(options), options.pairs, make_console(stderr=True).print)
    if options.json:
        print_json(found)
    else:
        for part in render_overhead(found):
            make_console().print(part)
    return ExitCode.OK


def bench_detect(options: argparse.Namespace) -> ExitCode:
    """`shardwright bench detect`."""
    from launcher.bench.detect import DetectBenchmark, run_calibration, run_detect
    from launcher.bench.detect_recording import record_traces
    from launcher.bench.detect_report import render_detect
    from launcher.config import ConfigError
    from launcher.views.tables import make_console

    tell = make_console(stderr=True).print
    if options.calibrate:
        print_json(run_calibration(tell))
        return ExitCode.OK
    if options.record:
        if options.recorded is None:
            raise ConfigError(["bench detect --record: there is no --recorded FILE to record into"])
        record_traces(load(options), options.recorded, options.runs, tell)
    asked = DetectBenchmark(options.runs, options.ranks, options.clean_steps, options.seed, options.recorded)
    found = run_detect(asked, tell)
    if options.json:
        print_json(found)
    else:
        for part in render_detect(found):
            make_console().print(part)
    return ExitCode.OK


def bench_migrate(options: argparse.Namespace) -> ExitCode:
    """`shardwright bench migrate`."""
    from launcher.bench.migrate import MigrateBenchmark, render_migrate, run_migrate
    from launcher.views.tables import make_console

    asked = MigrateBenchmark(options.ranks, options.mib, options.repeats)
    found = run_migrate(load(options), asked, make_console(stderr=True).print)
    if options.json:
        print_json(found)
    else:
        for part in render_migrate(found):
            make_console().print(part)
    return ExitCode.OK


def bench_drift(options: argparse.Namespace) -> ExitCode:
    """`shardwright bench drift`."""
    from launcher.bench.drift import DriftBenchmark, render_drift, run_drift
    from launcher.views.tables import make_console

    asked = DriftBenchmark(options.repeats, options.steps, options.drift_step)
    found = run_drift(load(options), asked, follow_profile(), make_console(stderr=True).print)
    if options.json:
        print_json(found)
    else:
        for part in render_drift(found):
            make_console().print(part)
    return ExitCode.OK


def _span(text: str) -> tuple[int, int]:
    """`A:B`, or one number for both."""
    first, _, last = text.partition(":")
    try:
        return int(first), int(last or first)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected two whole numbers as in 10:59, or one") from error


def _count(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number above 0")
    return int(text)


def _whole_numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _gib(text: str) -> int:
    """Bytes of a number of GiB."""
    return round(float(text) * GIB)


def _words(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def _types(text: str) -> tuple[Any, ...]:
    from planner.sharding import ShardingType

    try:
        return tuple(ShardingType(word) for word in _words(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}; expected of {', '.join(ShardingType)}") from error
