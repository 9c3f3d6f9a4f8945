"""Offloads the weights of any ``torch.nn.Module`` under a budget::

    handle = weighbridge.torch.offload(model, offload_bytes=8 << 30)
    model(inputs)          # as before, eager, in a CUDA graph or compiled
    print(handle.stats)
    handle.remove()        # resident again, bit for bit

For inference: offloaded parameters need no gradients until the handle is removed.
"""

from __future__ import annotations

from .._extras import need

need("torch", "torch", "weighbridge.torch")

from ._arbiter import Arbiter  # noqa: E402 - these import PyTorch
from ._handle import OffloadHandle, handle_of  # noqa: E402
from ._offload import offload  # noqa: E402

__all__ = ["Arbiter", "OffloadHandle", "handle_of", "offload"]
