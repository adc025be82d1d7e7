"""The commands of `shardwright pretrain` and `shardwright bench`: what trains and judges the models of planning."""

import argparse
from pathlib import Path
from typing import Any

from launcher.cli_parts import EPILOG, add_config, follow_profile, load, print_json
from launcher.exit_codes import ExitCode

FILES_FIRST = "Give key=value before a list of files, or after another option."


def add_pretraining(commands: Any) -> None:
    """`shardwright pretrain NAME`: one parser a model."""
    text = "train a model that planning uses"
    names = commands.add_parser("pretrain", help=text, description=text, epilog=EPILOG).add_subparsers(
        metavar="NAME", required=True
    )
    text = "train the costs of fused lookups from stored profiles and write weights and a model card"
    parser = names.add_parser("cost", help=text, description=f"{text}. {FILES_FIRST}")
    parser.set_defaults(command=pretrain_cost)
    parser.add_argument("--profiles", type=Path, nargs="+", metavar="FILE", required=True, help="of one device type")
    parser.add_argument("--steps", type=Path, metavar="FILE", help="measured steps: fit the host's costs to them too")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder to write to (weights, beside the runs)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the split and the training (0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    add_config(parser)


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


def pretrain_cost(options: argparse.Namespace) -> ExitCode:
    """`shardwright pretrain cost`."""
    from launcher.pretrain import pretrain_cost as run
    from launcher.run_dir import locate_runs
    from launcher.views.tables import make_console

    console = make_console(stderr=True)
    folder = options.output or locate_runs(load(options).run.dir) / "weights"
    made = run(options.profiles, folder, options.seed, console.print, options.steps)
    if options.json:
        print_json(made.to_dict())
    else:
        for line in made.render():
            make_console().print(line, soft_wrap=True)
    return ExitCode.OK
