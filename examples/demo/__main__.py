"""Runs a real sentence encoder with part of its weights offloaded by weighbridge.

    python examples/demo --device host --offload-bytes 60MB ["a sentence" ...]

The file of weights is mapped, and a plan chooses under the budget which weights are offloaded: they
stay in host memory and are transferred to the device layer by layer. The others are resident on the
device. The embeddings must be bit-identical to those of a run without weighbridge.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress
from rich.table import Table

import model
from offloaded import OffloadedWeights, parameters_of
from weighbridge import Device, Plan, Safetensors
from weighbridge.cli.arguments import bytes_argument
from weighbridge.cli.plan import summary

SENTENCES = [
    "A model's weights wait in host memory until they are needed.",
    "Parameters stay in RAM and are fetched on demand.",
    "The bakery opens at seven in the morning.",
]


def open_with_progress(device: Device, console: Console) -> Safetensors:
    """Maps the file of weights and shows its progress."""
    columns = ("[bold]{task.description}", BarColumn(), DownloadColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("mapping the weights", total=None)

        def show(_phase: object, done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        return Safetensors(device, model.weights_path(), progress=show)


def encode(
    weights: Mapping[str, Any],
    ids: np.ndarray,
    mask: np.ndarray,
    config: model.Config,
    cuda: bool,
    visit: Any = nullcontext,
) -> np.ndarray:
    """Computes the embeddings with NumPy or, on a CUDA device, with PyTorch."""
    if not cuda:
        from encoder_numpy import NumpyEncoder

        return NumpyEncoder(config).encode(weights, ids, mask, visit)
    import torch

    from encoder_torch import TorchEncoder

    on_device = [torch.from_numpy(array).cuda() for array in (ids, mask)]
    return TorchEncoder(config).encode(weights, *on_device, visit).cpu().numpy()


def plain_weights(cuda: bool) -> Mapping[str, Any]:
    """Loads the same weights without weighbridge, with the safetensors package."""
    if cuda:
        from safetensors.torch import load_file

        return load_file(model.weights_path(), device="cuda")
    from safetensors.numpy import load_file

    return load_file(model.weights_path())


def show_plan(plan: Plan, budget: int, console: Console) -> None:
    """Prints the planned placement of each group."""
    table = Table(title=f"plan: at most {budget:,} bytes offloaded", title_justify="left")
    for column in ("group", "bytes offloaded", "bytes resident", "transfer mode"):
        table.add_column(column, justify="left" if column[0] in "gt" else "right")
    for number, group in enumerate(plan.groups):
        inside = {
            planned.transfer_mode
            for planned in plan.parameters
            if planned.group == number and planned.placement == "offloaded"
        }
        nbytes = (f"{group.offloaded_bytes:,}", f"{group.resident_bytes:,}")
        table.add_row(group.name, *nbytes, ", ".join(sorted(inside)))
    console.print(table)
    for line in summary(plan):
        console.print(line)


def main() -> int:
    """Runs the demo; returns 0 if the embeddings are bit-identical and the budget was kept."""
    parser = argparse.ArgumentParser(prog="demo", description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="host", help="host (default) or cuda:N")
    parser.add_argument("--offload-bytes", type=bytes_argument, default="60MB")
    parser.add_argument("sentences", nargs="*", default=SENTENCES)
    arguments = parser.parse_args()
    console = Console()
    config = model.load_config()
    ids, mask = model.tokenize(model.load_tokenizer(config), arguments.sentences)
    groups, budget = model.weight_groups(config), arguments.offload_bytes

    with Device(arguments.device) as device:
        cuda = arguments.device.startswith("cuda")
        info = device.info
        console.print(f"{arguments.device}: {info.name}; pin: {info.pin_reason}")
        console.print(f"views: {info.views_reason}")
        console.print(f"link: {device.measure_link() / 1e9:.1f} GB/s")
        with open_with_progress(device, console) as file:
            plan = Plan(device, parameters_of(file, groups), offload_bytes=budget)
            show_plan(plan, budget, console)
            offloaded = OffloadedWeights(plan, cuda)
        embeddings = encode(offloaded.weights, ids, mask, config, cuda, offloaded.visit)
        stats = offloaded.offloader.stats
        similarity = embeddings @ embeddings.T
        for index, sentence in enumerate(arguments.sentences):
            console.print(f"{similarity[0, index]:+.3f}  {sentence}")
        console.print(f"{stats.moved_bytes:,} bytes moved in {stats.copies} copies")
        offloaded.close()
        plan.close()
        device.drain(10)

    reference = encode(plain_weights(cuda), ids, mask, config, cuda)
    if stats.asked_bytes > budget:
        print(f"demo: failed, {stats.asked_bytes} bytes of host memory, {budget} allowed")
        return 1
    if embeddings.tobytes() != reference.tobytes():
        difference = float(np.abs(embeddings - reference).max())
        print(f"demo: failed, embeddings differ from the run without weighbridge by {difference}")
        return 1
    total = stats.offloaded_bytes + stats.resident_bytes
    print(f"demo: ok, {stats.offloaded_bytes} of {total} bytes offloaded, embeddings bit-identical")
    return 0


if __name__ == "__main__":
    sys.exit(main())
