"""``posttrain reward-parity``: the same rows scored in PPO, in an evaluation and after export."""

from __future__ import annotations

import argparse

from posttrain.cli.arguments import add_configured
from posttrain.cli.output import print_block, print_table, say
from posttrain.cli.progress import ProgressLine


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    add_configured(
        commands,
        "reward-parity",
        execute,
        help="Score rows with a reward model in PPO, in evaluation and as exported (export_dir); compare.",
    )


def execute(args: argparse.Namespace) -> int:
    """Score and compare; the exit status is 1 where scores differ by more than rounding."""
    from posttrain.config import load_config

    config = load_config(args.config, args.overrides, command="eval")

    from posttrain.evaluate.parity import reward_parity

    with ProgressLine() as progress:
        found = reward_parity(config, notify=say, progress=progress)
    print_table(
        {
            way: {"mean": float(scores.mean()), "lowest": float(scores.min()), "highest": float(scores.max())}
            for way, scores in found.scores.items()
        }
    )
    differences = {f"{a} - {b}": value for (a, b), value in found.differences.items()}
    account = {"num_rows": found.num_rows, "largest": found.largest, "allowed": found.tolerance}
    print_block("reward parity", {**account, **differences})
    if not found.holds:
        say(f"scores differ by up to {found.largest:.3g}, which is more than rounding ({found.tolerance:.1g})")
    return 0 if found.holds else 1
