"""The offloader that vLLM calls while it builds, captures and runs a model."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Callable

import torch
from vllm.logger import init_logger
from vllm.model_executor.offloader.base import BaseOffloader

from .._experts import CachedExperts
from .._layers import OffloadedLayers
from ._attention import preceding
from ._options import NAME, Options

logger = init_logger("vllm.weighbridge")


class WeighbridgeOffloader(OffloadedLayers, BaseOffloader):
    """Offloads the layers of one model, which a loader commits."""

    def __init__(
        self,
        options: Options,
        device: torch.device,
        layers: int,
        other_bytes: int = 0,
        compiles: bool = False,
        experts: CachedExperts | None = None,
    ) -> None:
        switch = f"--load-format {NAME}"
        super().__init__(options, device, layers, other_bytes, switch, logger, experts)
        self._compiles = compiles
        self.engine: Callable[[], Any] = lambda: None
        """Returns the configuration of the engine, while that exists."""

    def wrap_modules(
        self, modules_generator: Generator[torch.nn.Module, None, None], prefix: str = ""
    ) -> list[torch.nn.Module]:
        """Moves the chosen weights of each layer to host memory before the next layer is built.

        A model after the engine's own, which another format loads, stays on the device.
        """
        if self.committed:
            return list(modules_generator)
        if self._compiles:
            return self.take(modules_generator, prefix, preceding=preceding)
        return self.take(modules_generator, prefix)

    def post_init(self) -> None:
        """Nothing is left to do: one of vLLM's runners does not call this."""

    def sync_prev_onload(self) -> None:
        """Called before each capture and each replay: follows changed experts, which may be in
        slots. There is nothing to wait for: a captured step waits for copies itself."""
        if self.committed and not self.weights.runs:
            self.weights.follow_experts()

    def join_after_forward(self) -> None:
        """Joins the copies to the stream at the end of a capture."""
        self.join()
