"""The command line: ``python -m weighbridge doctor``, and the commands of :mod:`.cli`."""

from __future__ import annotations

import argparse
import sys

from . import __version__, doctor
from .cli import compress, experts, plan, quantize


def main() -> int:
    """Runs the command that the arguments name; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m weighbridge",
        description="Offloads model weights to host memory and transfers them to an accelerator.",
    )
    parser.add_argument("--version", action="version", version=f"weighbridge {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    examine = commands.add_parser(
        "doctor", help="show this platform's capabilities, the policy, and the reasons for it"
    )
    examine.add_argument("--json", action="store_true", help="print JSON instead of tables")
    examine.add_argument("--device", metavar="NAME", help='examine only "host" or "cuda:N"')
    plan.add_arguments(
        commands.add_parser(
            "plan", help="show which parameters of a checkpoint would be offloaded, and why"
        )
    )
    quantize.add_arguments(
        commands.add_parser("quantize", help="write a checkpoint with its matrices in FP8")
    )
    experts.add_arguments(
        commands.add_parser("experts", help="show what an expert cache would make of a trace")
    )
    for name, does in compress.COMMANDS.items():
        compress.add_arguments(commands.add_parser(name, help=does))
    arguments = parser.parse_args()
    if arguments.command == "doctor":
        try:
            return doctor.run(arguments.device, arguments.json)
        except OSError as error:  # of the output
            print(f"weighbridge doctor: {error}", file=sys.stderr)
            return 1
    runs = {
        "plan": plan.run,
        "quantize": quantize.run,
        "experts": experts.run,
        **dict.fromkeys(compress.COMMANDS, compress.run),
    }
    return runs[arguments.command](arguments)


if __name__ == "__main__":
    sys.exit(main())
