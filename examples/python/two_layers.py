"""The loop of an engine over two offloaded layers: plan, commit, step."""

from __future__ import annotations

import sys

import numpy as np

from weighbridge import Device, Offloader, Parameter, Plan

weights = [np.full((1024, 1024), layer + 1, np.float32) for layer in range(2)]

with Device(sys.argv[1] if len(sys.argv) > 1 else "host") as device, device.stream() as stream:
    parameters = [
        Parameter(
            f"layers.{layer}.weight",
            f"layers.{layer}",
            weight.dtype,
            weight.shape,
            source=weight.ctypes.data,
        )
        for layer, weight in enumerate(weights)
    ]
    plan = Plan(device, parameters, offload_bytes=8 << 20, transfer_mode="prefetch")
    for planned in plan.parameters:
        print(f"{planned.name}: {planned.reason}")
    with Offloader(plan, stream) as offloader, device.buffer(4 << 20) as seen:
        weights.clear()  # the offloader has copied them
        for layer in range(2):
            with offloader.acquired(layer, stream):
                weight = offloader.parameter_info(f"layers.{layer}.weight")
                # An engine launches the layer's kernels here; this copies the weight back.
                device.copy(seen.address, weight.device_address, weight.span_bytes, stream=stream)
            stream.synchronize()
            assert (np.asarray(seen).view(np.float32) == layer + 1).all()
        stats = offloader.stats
        print(f"{stats.offloaded_bytes} offloaded, {stats.slot_bytes} of slots", end=", ")
        print(f"{stats.moved_bytes} moved")
