"""Offloads model weights to host memory and transfers them to an accelerator.

Pinned host memory of the exact size, registered existing memory, mapped files, and views for the
device that keep their memory alive::

    import weighbridge

    with weighbridge.Device("cuda:0") as device:
        weights = device.buffer(1 << 30)                 # exactly 1 GiB, pinned
        view = weights.view("float16", (16384, 32768))   # the device reads it in place
        array = view.numpy()                             # and the host, without a copy
        tensor = torch.from_dlpack(view)

Memory lives until its last use: closing a buffer leaves its views, and NumPy arrays and tensors
over them, valid. Objects may be used from any thread.
"""

from __future__ import annotations

from ._library import VERSION as __version__
from .arbiter import Arbiter, ArbiterMemberInfo, ArbiterProgress
from .codec import Codec, CodecInfo
from .dtypes import Dtype, OpaqueDtype
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
from .experts import (
    ExpertCache,
    ExpertCacheInfo,
    ExpertCacheSize,
    ExpertCacheStats,
    ExpertParameter,
    ExpertSlotsInfo,
    ExpertTensor,
)
from .info import BufferInfo, BufferStats, DeviceInfo, DeviceStats, ViewInfo
from .memory import Buffer, Device, DeviceView, PinnedBuffer, View
from .offloader import Offloader
from .offloader_info import (
    OffloadedGroupStats,
    OffloaderParameterInfo,
    OffloaderStats,
    RebalanceProgress,
    ReconcileResult,
    ResizeProgress,
)
from .plan import Parameter, Plan, PlanGroupInfo, PlanInfo, PlanParameterInfo
from .quantizer import QuantizeOptions, Quantizer, QuantizerResult, QuantizerScalesInfo
from .safetensors import LoadedView, Safetensors, SafetensorsTensorInfo
from .stream import Stream

__all__ = [
    "Arbiter",
    "ArbiterMemberInfo",
    "ArbiterProgress",
    "Buffer",
    "BufferInfo",
    "BufferStats",
    "ClosedError",
    "Codec",
    "CodecInfo",
    "DLPackError",
    "Device",
    "DeviceInfo",
    "DeviceStats",
    "DeviceView",
    "Dtype",
    "ExpertCache",
    "ExpertCacheInfo",
    "ExpertCacheSize",
    "ExpertCacheStats",
    "ExpertParameter",
    "ExpertSlotsInfo",
    "ExpertTensor",
    "FileAccessError",
    "FileMissingError",
    "InvalidValueError",
    "LoadedView",
    "NotFoundError",
    "OffloadedGroupStats",
    "Offloader",
    "OffloaderParameterInfo",
    "OffloaderStats",
    "OpaqueDtype",
    "OutOfMemoryError",
    "Parameter",
    "PinnedBuffer",
    "Plan",
    "PlanGroupInfo",
    "PlanInfo",
    "PlanParameterInfo",
    "QuantizeOptions",
    "Quantizer",
    "QuantizerResult",
    "QuantizerScalesInfo",
    "RebalanceProgress",
    "ReconcileResult",
    "ResizeProgress",
    "Safetensors",
    "SafetensorsTensorInfo",
    "Status",
    "Stream",
    "View",
    "ViewInfo",
    "WaitTimeoutError",
    "WeighbridgeError",
    "WeighbridgeOSError",
    "__version__",
]
