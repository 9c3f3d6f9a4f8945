"""Offloads the models of a pipeline of diffusers under one budget of device memory::

handle = weighbridge.engines.diffusers.offload(pipeline, device_bytes=8 << 30)
image = pipeline(prompt).images[0]     # as before
print(handle.stats)
handle.remove()                        # every model is resident again
"""

from __future__ import annotations

from ..._extras import need

need("torch", "diffusers", "weighbridge.engines.diffusers")
need("diffusers", "diffusers", "weighbridge.engines.diffusers")

from ._handle import PipelineHandle  # noqa: E402 - these import PyTorch and diffusers
from ._offload import offload  # noqa: E402

__all__ = ["PipelineHandle", "offload"]
