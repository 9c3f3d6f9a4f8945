"""Carries model weights between host memory and an accelerator.

Exact-size pinned host memory, registered existing memory, mapped files, and device views that own
what they look at::

    import weighbridge

    with weighbridge.Device("cuda:0") as device:
        weights = device.buffer(1 << 30)                 # exactly 1 GiB, pinned
        view = weights.view("float16", (16384, 32768))   # the device reads it in place
        array = view.numpy()                             # and the host, without a copy
        tensor = torch.from_dlpack(view)

An object lives as long as anything uses it: closing a buffer leaves its views, and NumPy arrays
and tensors over them, as they are. Objects may be used from any thread.
"""

from __future__ import annotations

from ._library import VERSION as __version__
from .buffer import Buffer, BufferInfo, BufferUsage, PinnedBuffer
from .device import Device, DeviceInfo, DeviceUsage, Stream, cuda_device_count
from .dtypes import Dtype
from .errors import (
    ClosedError,
    DLPackError,
    FileAccessError,
    FileMissingError,
    InvalidValueError,
    NotFoundError,
    OutOfMemoryError,
    Status,
    WaitTimeoutError,
    WeighbridgeError,
    WeighbridgeOSError,
)
from .offloader import OffloadedInfo, Offloader, OffloaderStats, Reconciled
from .plan import Parameter, Plan, PlannedGroup, PlannedParameter, PlanTotals
from .quantizer import Quantized, Quantizer, Scales, scales_of
from .safetensors import Safetensors, TensorInfo
from .scheme import Scheme
from .view import DeviceView, View, ViewInfo

__all__ = [
    "Buffer",
    "BufferInfo",
    "BufferUsage",
    "ClosedError",
    "DLPackError",
    "Device",
    "DeviceInfo",
    "DeviceUsage",
    "DeviceView",
    "Dtype",
    "FileAccessError",
    "FileMissingError",
    "InvalidValueError",
    "NotFoundError",
    "OffloadedInfo",
    "Offloader",
    "OffloaderStats",
    "OutOfMemoryError",
    "Parameter",
    "PinnedBuffer",
    "Plan",
    "PlanTotals",
    "PlannedGroup",
    "PlannedParameter",
    "Quantized",
    "Quantizer",
    "Reconciled",
    "Safetensors",
    "Scales",
    "Scheme",
    "Status",
    "Stream",
    "TensorInfo",
    "View",
    "ViewInfo",
    "WaitTimeoutError",
    "WeighbridgeError",
    "WeighbridgeOSError",
    "__version__",
    "cuda_device_count",
    "scales_of",
]
