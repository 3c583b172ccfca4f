"""The command line options of a survival test that choose its kills and stops."""

import argparse


def parse(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, list[str]]:
    """Parse the command line, and return it with the faults; half of the kills come in a save."""
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--stops", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    in_a_save = args.kills // 2
    faults = ["kill"] * (args.kills - in_a_save) + ["kill in a save"] * in_a_save
    return args, faults + ["stop"] * args.stops
