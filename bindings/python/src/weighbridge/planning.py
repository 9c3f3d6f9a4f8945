"""What a plan makes of a checkpoint: ``python -m weighbridge plan FILE``."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path

from ._text import byte_count, in_words, print_table
from .device import Device
from .dtypes import Dtype
from .errors import WeighbridgeError
from .picture import picture
from .plan import Parameter, Plan
from .safetensors import Safetensors

_STYLES = {"device": "dim", "view": "cyan", "on-demand": "yellow", "prefetch": "green"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="safetensors files of one model")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument(
        "--offload-bytes",
        type=bytes_argument,
        metavar="N",
        help="the most host memory that is taken, such as 40MB or 1.5GiB",
    )
    budget.add_argument(
        "--device-bytes",
        type=bytes_argument,
        metavar="N",
        help="the most device memory that what stays and the slots may take",
    )
    parser.add_argument("--slot-bytes", type=bytes_argument, metavar="N", help="the most for slots")
    parser.add_argument("--depth", type=int, default=0, help="groups in their slots at a time")
    for name, what in (
        ("--select", "what may leave the device: whole segments of a name, or a glob"),
        ("--exclude", "what may not"),
    ):
        parser.add_argument(name, action="append", default=[], metavar="SELECTOR", help=what)
    parser.add_argument(
        "--sparse",
        action="append",
        default=[],
        metavar="GLOB",
        help="what a step reads few rows of: embeddings",
    )
    parser.add_argument("--order", choices=("spread", "declared", "largest"), default="spread")
    parser.add_argument(
        "--carrier", choices=("auto", "view", "on-demand", "prefetch"), default="auto"
    )
    parser.add_argument(
        "--device", default="host", metavar="NAME", help='plan for "host" (default) or "cuda:N"'
    )
    parser.add_argument(
        "--measure", action="store_true", help="measure the device's link, to predict a step's time"
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print the whole plan as JSON")
    output.add_argument("--svg", type=Path, metavar="OUT", help="draw it into a file")


def bytes_argument(text: str) -> int:
    """``40MB`` as an argument of a command."""
    try:
        return byte_count(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(arguments: argparse.Namespace) -> int:
    """Plan, and print it; 1 where there is no such plan."""
    try:
        with ExitStack() as stack:
            device = stack.enter_context(Device(arguments.device))
            if arguments.measure:
                device.measure_link()
            files = [
                stack.enter_context(Safetensors(device, path, pin=False))
                for path in arguments.files
            ]
            parameters = [
                parameter for file in files for parameter in file.parameters(arguments.sparse)
            ]
            plan = stack.enter_context(_plan(device, parameters, arguments))
            if arguments.json:
                print(plan.to_json(), end="")
            elif arguments.svg:
                arguments.svg.write_text(picture(plan), encoding="utf-8")
                print(arguments.svg)
            else:
                show(plan, parameters)
    except (WeighbridgeError, OSError, ValueError) as error:
        print(f"weighbridge plan: {error}", file=sys.stderr)
        return 1
    return 0


def _plan(device: Device, parameters: list[Parameter], arguments: argparse.Namespace) -> Plan:
    return Plan(
        device,
        parameters,
        offload_bytes=arguments.offload_bytes,
        device_bytes=arguments.device_bytes,
        slot_bytes=arguments.slot_bytes,
        depth=arguments.depth,
        select=arguments.select,
        exclude=arguments.exclude,
        carrier=arguments.carrier,
        order=arguments.order,
    )


def show(plan: Plan, parameters: list[Parameter]) -> None:
    """Print a plan as a table of the parameters that it was made for, and its totals."""
    rows = [
        (
            planned.name,
            Dtype.of(given.dtype).name.lower(),
            "x".join(map(str, given.shape)),
            f"{planned.nbytes:,}",
            "device" if planned.carrier == "resident" else planned.carrier,
            planned.reason.partition(": ")[2],
        )
        for planned, given in zip(plan.parameters, parameters)
    ]
    columns = ("parameter", "type", "shape", "bytes", "carrier", "why")
    print_table("what goes where", columns, rows, right=(3,), styles=_STYLES)
    for line in summary(plan):
        print(line)


def summary(plan: Plan) -> list[str]:
    """A plan's totals in words."""
    totals = plan.totals
    lines = [
        f"{totals.offloaded_bytes:,} of {totals.payload_bytes:,} bytes leave the device "
        f"({in_words(totals.arena_bytes)} of host memory)",
        f"{in_words(totals.resident_bytes)} stay, {in_words(totals.slot_bytes)} of slots, "
        f"{totals.depth} groups deep",
        f"{in_words(totals.step_bytes)} copied a step, {in_words(totals.view_bytes)} read in place",
    ]
    if totals.step_seconds > 0:
        lines.append(f"{1e3 * totals.step_seconds:.2f} ms of the link a step, as measured")
    return lines + [f"warning: {warning}" for warning in plan.warnings]
