"""A pipeline whose models are offloaded."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from typing import Any

import torch

from ...errors import Status, WeighbridgeError
from ...offloader_info import OffloaderStats
from ...torch import OffloadHandle
from . import _pipeline


class PipelineHandle:
    """A pipeline whose models are offloaded; made by :func:`offload`.

    In a ``with`` statement it is removed at the end.
    """

    def __init__(
        self,
        pipeline: Any,
        device: torch.device,
        components: Mapping[str, OffloadHandle],
        device_bytes: Mapping[str, int],
    ) -> None:
        self.pipeline = pipeline
        self.device = device
        """Where the pipeline runs."""
        self.components = dict(components)
        """The handles of the models that are offloaded, by their names in the pipeline."""
        self.device_bytes = dict(device_bytes)
        """The budget of every model; one that fits into it is wholly on the device."""
        _pipeline.attach(pipeline, self)

    def offloaded(self) -> dict[str, OffloadHandle]:
        """Returns the handles of the models that are offloaded now: one whose own handle was
        removed is resident."""
        found = self.components.items()
        return {name: handle for name, handle in found if not handle.offloader.closed}

    @property
    def stats(self) -> OffloaderStats:
        """The sums of the counters of the models' offloaders."""
        found = [handle.stats for handle in self.offloaded().values()]
        names = [field.name for field in fields(OffloaderStats)]
        return OffloaderStats(**{name: sum(getattr(s, name) for s in found) for name in names})

    @contextmanager
    def steps(self) -> Iterator[None]:
        """Carries the weights through a loop of denoising steps: the end of each step copies the
        first groups of the next one.

        A call of the pipeline is such a loop; around another loop, this saves the time of these
        copies. Within, weights may not be changed in ways that PyTorch does not count, which are
        in-place changes of ``weight.data``.
        """
        with ExitStack() as stack:
            for component in self.offloaded().values():
                stack.enter_context(component._weights.overlapping())
            yield

    def reconcile(self) -> None:
        """Takes the weights of adapters that were added or removed, and replaced weights.

        The pipeline's own methods for these call it. Added weights that the budget has no space for
        stay on the device beyond it, with a warning.
        """
        for name, handle in self.offloaded().items():
            try:
                handle.reconcile()
            except WeighbridgeError as error:
                if error.status not in (Status.BUDGET, Status.SLOTS_BUDGET):
                    raise
                warnings.warn(
                    f"weights that were added to {name} stay on the device beyond the budget of "
                    f"{self.device_bytes[name]} bytes: {error}",
                    stacklevel=3,
                )

    def remove(self, device: str | torch.device | None = None) -> None:
        """Makes all weights resident, bit for bit, and closes the offloaders.

        They are then on the device that the pipeline runs on, or on ``device``, such as "cpu",
        where the pipeline is moved. If the memory does not suffice for a model, it and those after
        it stay offloaded.
        """
        for name in list(self.components):
            if not self.components[name].offloader.closed:
                self.components[name].remove(device)
            del self.components[name]
        _pipeline.detach(self.pipeline)
        if device is not None:
            self.pipeline.to(device)

    def close(self) -> None:
        """Makes all weights resident in host memory, and closes the offloaders."""
        if _pipeline.is_attached(self.pipeline):
            self.remove("cpu")

    def __enter__(self) -> PipelineHandle:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __repr__(self) -> str:
        kept = ", ".join(f"{name} {size}" for name, size in self.device_bytes.items())
        return f"<PipelineHandle {type(self.pipeline).__name__}: {kept} device bytes>"
