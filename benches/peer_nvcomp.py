"""nvCOMP's rANS, by its Python module, on numbers of 16 bits."""

from __future__ import annotations

from typing import Any

import torch
import wheels


class Ans:
    """A tensor in device memory, compressed, and decompressed to ``target``."""

    def __init__(self, source: torch.Tensor) -> None:
        self.nvcomp: Any = wheels.load_of_nvidia("nvcomp")
        # It takes no default stream.
        self.stream = torch.cuda.Stream()
        self.codec = self.nvcomp.Codec(
            algorithm="ANS", data_type="<f2", cuda_stream=self.stream.cuda_stream
        )
        self.source, self.target = source, torch.empty_like(source)
        self.stream.wait_stream(torch.cuda.current_stream())
        self.encoded = self.codec.encode(self.nvcomp.as_array(source))
        self.config = self.codec.decompression_config(self.encoded)
        self.ratio = self.encoded.buffer_size / source.numel()

    def decode(self) -> None:
        """Queues decompressing on the stream."""
        self.codec.decode(self.encoded, out=self.target, decompression_config=self.config)
