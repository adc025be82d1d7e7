"""The commands of `shardwright pretrain`: what trains the models of planning."""

import argparse
from pathlib import Path
from typing import Any

from launcher.cli_parts import EPILOG, FILES_FIRST, add_config, load, print_json
from launcher.exit_codes import ExitCode


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
    text = "train the placement policy on made-up tasks and write weights, a model card and TensorBoard curves"
    parser = names.add_parser("policy", help=text, description=f"{text}. Costs alone are asked, no hardware.")
    parser.set_defaults(command=pretrain_policy)
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder to write to (policy, beside the runs)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of tasks, weights and samples (0)")
    parser.add_argument("--minutes", type=_minutes, default=15.0, metavar="M", help="of training (15)")
    parser.add_argument("--tables", type=Path, metavar="CSV", help="draw tables from this pool; makes them up without")
    text = "train policies that are not shown something, so many minutes each, for the card (0: none)"
    parser.add_argument("--ablation-minutes", type=float, default=0.0, metavar="M", help=text)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    add_config(parser)


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


def pretrain_policy(options: argparse.Namespace) -> ExitCode:
    """`shardwright pretrain policy`."""
    from launcher.pretrain_policy import Pretraining
    from launcher.pretrain_policy import pretrain_policy as run
    from launcher.run_dir import locate_runs
    from launcher.views.tables import make_console

    folder = options.output or locate_runs(load(options).run.dir) / "policy"
    asked = Pretraining(folder, options.seed, options.minutes, options.tables, options.ablation_minutes)
    made = run(asked, make_console(stderr=True))
    if options.json:
        print_json(made.to_dict())
    else:
        for line in made.render():
            make_console().print(line, soft_wrap=True)
    return ExitCode.OK


def _minutes(text: str) -> float:
    """A number above 0."""
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if minutes <= 0:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number of minutes above 0")
    return minutes
