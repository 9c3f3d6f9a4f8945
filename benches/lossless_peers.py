"""Others that compress weights without loss, side by side with this library on the same tensors."""

from __future__ import annotations

import gc
import tempfile
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

import peer_dfloat11
import torch
import wheels
from peer_nvcomp import Ans

import link
from report import Report

if TYPE_CHECKING:
    from lossless_steps import Steps

DFLOAT11, NVCOMP = "DFloat11 0.5", "nvCOMP's ANS"


def versions() -> dict[str, str]:
    """Returns the versions of the peers that were fetched."""
    found = distributions(path=[str(wheels.FOLDER)])
    return {it.metadata["Name"]: it.version for it in found if it.metadata["Name"] != "dahuffman"}


def decoding(report: Report, name: str, tensor: Any, rate: float) -> None:
    """Measures the peers on a tensor of bf16, which this library decodes at ``rate`` GB/s."""
    with wheels.or_not_measured(report, DFLOAT11):
        against_dfloat11(report, name, tensor, rate)
    with wheels.or_not_measured(report, NVCOMP):
        against_nvcomp(report, name, tensor, rate)
    gc.collect()
    torch.cuda.empty_cache()


def against_dfloat11(report: Report, name: str, tensor: Any, rate: float) -> None:
    """Compares the kernels and the bytes of DFloat11 and this library."""
    values = tensor.source.view(torch.bfloat16)
    peer_dfloat11.check_encode(values[: 1 << 17])
    kernel = peer_dfloat11.Kernel(peer_dfloat11.encode(values))
    rates = link.bandwidth(kernel.decode, tensor.nbytes)
    if not torch.equal(kernel.target.view(torch.int16), values.view(torch.int16)):
        raise RuntimeError("it does not restore the values")
    what = f"the same tensor ({name}) by the decoding kernel of {DFLOAT11}"
    its = report.figure(f"dfloat11.decode.{name}", rates, "GB/s", what)
    ratio = kernel.encoded.nbytes() / tensor.nbytes
    what = f"compressed bytes of the same tensor ({name}) by {DFLOAT11}, for each byte"
    report.figure(f"dfloat11.ratio.{name}", [ratio], "", what)
    report.bar(f"decoding bf16, {name}, over {DFLOAT11}'s", rate / its, ">=", 3)
    report.bar(f"ratio of bf16, {name}, over {DFLOAT11}'s", tensor.ratio / ratio, "<=", 1.01)


def against_nvcomp(report: Report, name: str, tensor: Any, rate: float) -> None:
    """Reports what nvCOMP makes of the same tensor."""
    ans = Ans(tensor.source)
    with torch.cuda.stream(ans.stream):
        rates = link.bandwidth(ans.decode, tensor.nbytes)
    if not torch.equal(ans.target, tensor.source):
        raise RuntimeError("it does not restore the values")
    what = f"the same tensor ({name}) decoded by {NVCOMP}, numbers of 16 bits"
    its = report.figure(f"nvcomp.decode.{name}", rates, "GB/s", what)
    what = f"compressed bytes of the same tensor ({name}) by {NVCOMP}, for each byte"
    report.figure(f"nvcomp.ratio.{name}", [ans.ratio], "", what)
    print(f"decoding bf16, {name}: {rate / its:.2f} times {NVCOMP}", flush=True)


def steps(steps: Steps) -> None:
    """Measures steps with every second layer offloaded by DFloat11, to which the model is lost."""
    with wheels.or_not_measured(steps.report, DFLOAT11), tempfile.TemporaryDirectory() as folder:
        hooks = peer_dfloat11.offload(steps.model, steps.second, Path(folder))
        for step in steps.steps.values():
            step()
            for hook in hooks:
                hook.remove()
            hooks = []
        for name, step in steps.steps.items():
            what = f"every second layer offloaded by {DFLOAT11}"
            taken = steps.time(f"step.dfloat11.{name}", step, what)
            if name == "decode":
                label = f"raw link bound, {DFLOAT11}: {taken / steps.bound:.2f} of it"
                print(f"decode step over the {label}", flush=True)
