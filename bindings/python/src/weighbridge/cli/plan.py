"""Plans the offload of a checkpoint: ``python -m weighbridge plan FILE``."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from .._enums import ORDER, TRANSFER_MODE
from .._text import in_words, print_table
from ..dtypes import Dtype, OpaqueDtype
from ..errors import WeighbridgeError
from ..memory import Device
from ..plan import Parameter, Plan
from ..safetensors import Safetensors
from .arguments import add_selectors, bytes_argument
from .svg import kind_of, plan_svg

_STYLES = {"resident": "dim", "zero-copy": "cyan", "on-demand": "yellow", "prefetch": "green"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="safetensors files of one model")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument(
        "--offload-bytes",
        type=bytes_argument,
        metavar="N",
        help="limit of the host memory, such as 40MB or 1.5GiB",
    )
    budget.add_argument(
        "--device-bytes",
        type=bytes_argument,
        metavar="N",
        help="limit of the device memory of resident parameters and slots",
    )
    parser.add_argument(
        "--slot-bytes", type=bytes_argument, default=0, metavar="N", help="limit of the slots"
    )
    parser.add_argument(
        "--depth",
        type=int,
        default=0,
        metavar="N",
        help="groups with slots at a time (default: as many as are fastest)",
    )
    add_selectors(parser, "offloaded")
    parser.add_argument(
        "--sparse",
        action="append",
        default=[],
        metavar="GLOB",
        help="parameters of which a step reads few rows, beside the embeddings that names show",
    )
    parser.add_argument(
        "--link-bytes-per-second",
        type=float,
        default=0.0,
        metavar="N",
        help="bandwidth of the link, such as 50e9, to predict a step's time",
    )
    parser.add_argument(
        "--compute-bytes-per-second",
        type=float,
        default=0.0,
        metavar="N",
        help="bytes of parameters that a step's kernels go through in a second: those of the model "
        "over the seconds of a step without offloading",
    )
    parser.add_argument(
        "--rows",
        type=int,
        default=0,
        metavar="N",
        help="rows (tokens) of a step; parameters in place are read again for every 128",
    )
    parser.add_argument("--order", choices=ORDER.words, default="spread")
    parser.add_argument("--transfer-mode", choices=TRANSFER_MODE.words, default="auto")
    parser.add_argument(
        "--compress",
        action="append",
        default=[],
        metavar="SELECTOR",
        help="carry these offloaded parameters compressed; auto: those that it makes faster",
    )
    parser.add_argument(
        "--device", default="host", metavar="NAME", help='plan for "host" (default) or "cuda:N"'
    )
    parser.add_argument(
        "--measure", action="store_true", help="measure the device's link, to predict a step's time"
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print the whole plan as JSON")
    output.add_argument("--svg", type=Path, metavar="OUT", help="draw the plan into a file")


def run(arguments: argparse.Namespace) -> int:
    """Plans, and prints the plan; returns 1 if there is no such plan."""
    try:
        with ExitStack() as stack:
            device = stack.enter_context(Device(arguments.device))
            if arguments.measure:
                device.measure_link()
            files = [
                stack.enter_context(Safetensors(device, path, file_mode="source"))
                for path in arguments.files
            ]
            parameters = with_embeddings(
                [parameter for file in files for parameter in file.parameters(arguments.sparse)]
            )
            plan = stack.enter_context(_plan(device, parameters, arguments))
            if arguments.json:
                print(plan.to_json(), end="")
            elif arguments.svg:
                arguments.svg.write_text(plan_svg(plan), encoding="utf-8")
                print(arguments.svg)
            else:
                _show(plan)
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
        transfer_mode=arguments.transfer_mode,
        order=arguments.order,
        link_bytes_per_second=arguments.link_bytes_per_second,
        compute_bytes_per_second=arguments.compute_bytes_per_second,
        rows=arguments.rows,
        compress="auto" if arguments.compress == ["auto"] else arguments.compress or False,
    )


# Modules that look up rows of their weight, as checkpoints of language models name them.
_EMBEDDINGS = frozenset(
    "embed_tokens word_embeddings position_embeddings token_type_embeddings embed_positions "
    "tok_embeddings token_embedding embed_in wte wpe shared embed embedding embeddings".split()
)


def with_embeddings(parameters: list[Parameter]) -> list[Parameter]:
    """Makes the embeddings of a checkpoint sparse: matrices whose module is named like one."""

    def is_embedding(parameter: Parameter) -> bool:
        module = parameter.name.rpartition(".")[0].rpartition(".")[2]
        return len(parameter.shape) == 2 and module in _EMBEDDINGS

    return [
        replace(parameter, access_pattern="sparse") if is_embedding(parameter) else parameter
        for parameter in parameters
    ]


def _show(plan: Plan) -> None:
    """Prints a table of the parameters of a plan, and the totals."""
    rows = [
        (
            planned.name,
            _type_name(planned.dtype),
            "x".join(map(str, planned.shape)),
            f"{planned.span_bytes:,}",
            kind_of(planned),
            planned.reason.partition(": ")[2],
        )
        for planned in plan.parameters
    ]
    columns = ("parameter", "dtype", "shape", "bytes", "transfer mode", "reason")
    print_table("plan", columns, rows, right=(3,), styles=_STYLES)
    for line in summary(plan):
        print(line)


def _type_name(dtype: Dtype | OpaqueDtype) -> str:
    return dtype.name if isinstance(dtype, OpaqueDtype) else dtype.name.lower()


def summary(plan: Plan) -> list[str]:
    """Returns a plan's totals in words."""
    info = plan.info
    lines = [
        f"{info.offloaded_bytes:,} of {info.payload_bytes:,} bytes offloaded "
        f"({in_words(info.arena_bytes)} of host memory)",
        f"{in_words(info.resident_bytes)} resident, {in_words(info.slot_bytes)} of slots "
        f"for {info.depth} groups at a time",
        f"{in_words(info.step_bytes)} copied per step, {in_words(info.view_bytes)} read in place",
    ]
    if info.encoded_bytes > 0:
        lines.append(
            f"{in_words(info.decoded_bytes)} compressed to {in_words(info.encoded_bytes)} "
            f"({100 * info.encoded_bytes / info.decoded_bytes:.1f} %)"
        )
    if info.device_encoded_bytes > 0:
        lines.append(
            f"{in_words(info.device_decoded_bytes)} of these kept on the device, "
            f"in {in_words(info.device_encoded_bytes)}"
        )
    if info.step_seconds > 0:
        parts = f"{1e3 * info.link_seconds:.2f} ms of the link"
        if info.kernel_seconds > 0:
            parts += f", {1e3 * info.kernel_seconds:.2f} ms of kernels"
        lines.append(f"{1e3 * info.step_seconds:.2f} ms per step: {parts}")
    return lines + [f"warning: {warning}" for warning in plan.warnings]
