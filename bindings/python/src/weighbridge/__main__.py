"""The command line: ``python -m weighbridge doctor``, ``plan`` and ``quantize``."""

from __future__ import annotations

import argparse
import sys

from . import __version__, planning, quantizing
from .doctor import run as run_doctor


def main() -> int:
    """Run the command that the arguments name."""
    parser = argparse.ArgumentParser(
        prog="python -m weighbridge",
        description="Carries model weights between host memory and an accelerator.",
    )
    parser.add_argument("--version", action="version", version=f"weighbridge {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    doctor = commands.add_parser(
        "doctor", help="say what this platform can do, what is decided from it, and why"
    )
    doctor.add_argument("--json", action="store_true", help="print JSON instead of tables")
    doctor.add_argument("--device", metavar="NAME", help='only this one, "host" or "cuda:N"')
    plan = commands.add_parser(
        "plan", help="say which weights of a checkpoint would leave the device, and why"
    )
    planning.add_arguments(plan)
    quantize = commands.add_parser(
        "quantize", help="write a checkpoint whose matrices are in 8 bits"
    )
    quantizing.add_arguments(quantize)
    arguments = parser.parse_args()
    if arguments.command == "quantize":
        return quantizing.run(arguments)
    if arguments.command == "plan":
        return planning.run(arguments)
    return run_doctor(arguments.device, arguments.json)


if __name__ == "__main__":
    sys.exit(main())
