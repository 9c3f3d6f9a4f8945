"""Loads a model of transformers with its weights under a budget::

    model = weighbridge.engines.transformers.from_pretrained("org/name", device_bytes=8 << 30)
    model.generate(**inputs)               # as before
    print(weighbridge.torch.handle_of(model).stats)

The weights go from the checkpoint's files to their places: offloaded ones to host memory, the
others to the device. The numbers are those of transformers' own ``from_pretrained``, bit for bit.
"""

from __future__ import annotations

from ..._extras import need

need("torch", "transformers", "weighbridge.engines.transformers")
need("transformers", "transformers", "weighbridge.engines.transformers")

from ._load import from_pretrained  # noqa: E402 - this imports PyTorch and transformers

__all__ = ["from_pretrained"]
