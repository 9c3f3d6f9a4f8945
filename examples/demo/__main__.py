"""The demo: a real sentence encoder whose weights weighbridge holds in host memory.

    python examples/demo --device host --offload-bytes 60MB ["a sentence" ...]

The weights' file is mapped. As many weights as the budget allows stay in host memory, where the
device reads them through views; the others are copied into device memory. The embeddings must be
bit-identical to those of a run without weighbridge.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress
from rich.table import Table

import model
from placement import Placement, place
from weighbridge import Device, Safetensors

SENTENCES = [
    "A model's weights wait in host memory until they are needed.",
    "Parameters stay in RAM and are fetched on demand.",
    "The bakery opens at seven in the morning.",
]
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def byte_count(text: str) -> int:
    """Bytes of ``60MB``, ``1.5GiB`` or ``4096``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of bytes: write 60MB or 4096")
    return int(float(match[1]) * UNITS[(match[2] or "").upper()])


def open_with_progress(device: Device, console: Console) -> Safetensors:
    """Maps the weights' file and shows how far that is."""
    columns = ("[bold]{task.description}", BarColumn(), DownloadColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("mapping the weights", total=None)

        def show(_phase: object, done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        return Safetensors(device, model.weights_path(), progress=show)


def encode(
    weights: Mapping[str, Any], ids: np.ndarray, mask: np.ndarray, config: model.Config, cuda: bool
) -> np.ndarray:
    """The embeddings, by NumPy or, on a CUDA device, by PyTorch."""
    if not cuda:
        import encoder_numpy

        return encoder_numpy.encode(weights, config, ids, mask)
    import torch

    import encoder_torch

    on_device = [torch.from_numpy(array).cuda() for array in (ids, mask)]
    return encoder_torch.encode(weights, config, *on_device).cpu().numpy()


def plain_weights(cuda: bool) -> Mapping[str, Any]:
    """The same weights without weighbridge: read by the safetensors package."""
    if cuda:
        from safetensors.torch import load_file

        return load_file(model.weights_path(), device="cuda")
    from safetensors.numpy import load_file

    return load_file(model.weights_path())


def show_placement(placement: Placement, budget: int, console: Console) -> None:
    """A table of what is held where."""
    table = Table(title=f"what is held where, at most {budget:,} bytes offloaded")
    for column in ("group", "in host memory, by view", "of these copied to align", "on the device"):
        table.add_column(column, justify="left" if column == "group" else "right")
    for group, row in placement.by_group().items():
        table.add_row(group, *(f"{nbytes:,}" for nbytes in row))
    table.add_section()
    table.add_row("all", *(f"{nbytes:,}" for nbytes in placement.totals()))
    console.print(table)


def main() -> int:
    """Runs the demo; 0 only when the embeddings are bit-identical and the budget was kept."""
    parser = argparse.ArgumentParser(prog="demo", description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="host", help="host (default) or cuda:N")
    parser.add_argument("--offload-bytes", type=byte_count, default=byte_count("60MB"))
    parser.add_argument("sentences", nargs="*", default=SENTENCES)
    arguments = parser.parse_args()
    console = Console()
    config = model.load_config()
    ids, mask = model.tokenize(model.load_tokenizer(config), arguments.sentences)
    groups = model.weight_groups(config)

    with Device(arguments.device) as device:
        cuda = arguments.device.startswith("cuda")
        info = device.info
        console.print(f"{arguments.device}: {info.name}; pin: {info.pin_reason}")
        console.print(f"views: {info.views_reason}")
        with open_with_progress(device, console) as file:
            placement = place(device, file, groups, arguments.offload_bytes, cuda)
        show_placement(placement, arguments.offload_bytes, console)
        ours = encode(placement.weights, ids, mask, config, cuda)
        similarity = ours @ ours.T
        for index, sentence in enumerate(arguments.sentences):
            console.print(f"{similarity[0, index]:+.3f}  {sentence}")
        placement.close()
        device.drain(10)

    reference = encode(plain_weights(cuda), ids, mask, config, cuda)
    offloaded, _, resident = placement.totals()
    if offloaded > arguments.offload_bytes:
        print(f"demo: failed, {offloaded} bytes offloaded, {arguments.offload_bytes} allowed")
        return 1
    if ours.tobytes() != reference.tobytes():
        difference = float(np.abs(ours - reference).max())
        print(f"demo: failed, embeddings differ from the run without weighbridge by {difference}")
        return 1
    total = offloaded + resident
    print(f"demo: ok, {offloaded} of {total} bytes offloaded, embeddings bit-identical")
    return 0


if __name__ == "__main__":
    sys.exit(main())
