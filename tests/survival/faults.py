"""The kills and stops that a script gets, as the command line of a survival test asks for them."""

import argparse


def ask(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, list[str]]:
    """Read the command line: what it says, and the faults; half of the kills fall in a save."""
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--stops", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    in_a_save = args.kills // 2
    faults = ["kill"] * (args.kills - in_a_save) + ["kill in a save"] * in_a_save
    return args, faults + ["stop"] * args.stops
