"""A commit that begins while transformers still loads the model.

When transformers has made its modules, on the meta device, and the headers of the files are read,
the parameters of the plan are nearly always known: transformers' loading gives them their tensors
and changes neither names nor shapes. So the plan is made and committed then, by another thread,
which copies while transformers works. If the loaded model has other parameters, or if the plan
cannot be made, all of it is done again with the loaded model.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..._progress import Callback, Cancel
from ...offloader import Offloader
from ...plan import Parameter, Plan
from ...torch._devices import open_device
from ...torch._offload import experts_in, planned, planned_parameters
from ...torch._weight import Weight, weights_of
from ._deferred import Deferred
from ._files import CheckpointFiles


class Begun:
    """A commit of a plan on a thread of its own."""

    def __init__(
        self,
        plan: Plan,
        parameters: Sequence[Parameter],
        weights: Sequence[Weight],
        where: torch.device,
        progress: Callback | None,
    ) -> None:
        self.plan = plan
        self.read = {holder.name for weight in weights for holder in weight.holders}
        """The names of the weights that it reads, which are ``weights``."""
        self.read_bytes = sum(weight.tensor.nbytes for weight in weights)
        self._parameters = _normal(parameters)
        self._progress = progress
        self._cancel = Cancel()
        self._cancelled = False
        self._made: Offloader | None = None
        self._error: BaseException | None = None
        stream = None
        if where.type == "cuda":
            stream = torch.cuda.current_stream(where).cuda_stream
        self._thread = threading.Thread(target=self._run, args=(stream,), daemon=True)
        self._thread.start()

    def is_of(self, parameters: Sequence[Parameter]) -> bool:
        """Returns whether it is the commit of these parameters."""
        return self._parameters == _normal(parameters)

    def offloader(self) -> Offloader:
        """Waits for the commit; returns its offloader, or raises what it raised."""
        try:
            self._wait()
        except BaseException:  # such as Ctrl-C
            self.cancel()
            raise
        if self._error is not None:
            raise self._error
        made, self._made = self._made, None
        assert made is not None
        return made

    def cancel(self) -> None:
        """Ends the commit, and frees what it has made, unless the offloader was taken."""
        self._cancelled = True
        self._cancel.cancel()
        self._thread.join()
        if self._made is not None:
            self._made.close()
            self._made = None

    def _wait(self) -> None:
        while self._thread.is_alive():
            self._thread.join(0.1)  # a wait without an end keeps Ctrl-C back on some systems

    def _run(self, stream: int | None) -> None:
        # Reports in Python wait for the interpreter while transformers works.
        progress = self._cancel if self._progress is None else self._report
        try:
            self._made = Offloader(self.plan, stream, progress=progress)
        except BaseException as error:
            self._error = error

    def _report(self, phase: str, done: int, total: int) -> bool | None:
        assert self._progress is not None
        return False if self._cancelled else self._progress(phase, done, total)


class Early:
    """Begins the commit of a model that is being loaded, in a ``with`` statement, at whose end a
    commit that was not taken is cancelled. ``given`` are options of an offload."""

    def __init__(self, where: torch.device, given: Mapping[str, Any]) -> None:
        self.begun: Begun | None = None
        self._where, self._given = where, given

    def __enter__(self) -> Early:
        return self

    def __exit__(self, *_: Any) -> None:
        if self.begun is not None:
            self.begun.cancel()

    def begin(
        self, model: torch.nn.Module, files: CheckpointFiles, found: Mapping[str, Deferred]
    ) -> None:
        """Begins the commit of a model on the meta device, whose weights files have as ``found``.

        Does nothing if the plan cannot be made yet: what is wrong is said by the offload.
        """
        if self.begun is not None:  # of another model that is loaded with this one
            begun, self.begun = self.begun, None
            begun.cancel()
        try:
            self.begun = self._begin(model, files, found)
        except (ValueError, TypeError, RuntimeError, KeyError):
            self.begun = None

    def _begin(
        self, model: torch.nn.Module, files: CheckpointFiles, found: Mapping[str, Deferred]
    ) -> Begun | None:
        given = self._given
        weights = _tied(model, weights_of(model, given["buffers"]))
        sources = {}
        for weight in weights:
            tensor = weight.tensor
            name = next((one.name for one in weight.holders if one.name in found), None)
            if name is None or not tensor.is_meta:
                continue
            if found[name].shape == tensor.shape and found[name].dtype == tensor.dtype:
                sources[id(tensor)] = files.parameter(name)
        if not sources:
            return None
        opened = open_device(self._where, given["pin"])
        experts = experts_in(model, weights, given)
        parameters = planned_parameters(model, opened, weights, sources, experts, given)
        plan = planned(model, opened, weights, parameters, experts, given)
        read = [weight for weight in weights if id(weight.tensor) in sources]
        return Begun(plan, parameters, read, self._where, given["progress"])


def _tied(model: torch.nn.Module, weights: Sequence[Weight]) -> list[Weight]:
    """Returns the weights as they are when transformers has tied them."""
    source_of: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    found: dict[str, Weight] = {}
    for weight in weights:
        source = source_of.get(weight.name, weight.name)
        found.setdefault(source, Weight(weight.tensor, [])).holders.extend(weight.holders)
    return list(found.values())


def _normal(parameters: Sequence[Parameter]) -> list[Parameter]:
    """Returns parameters with numbers of their storages that do not depend on the tensors."""
    numbers: dict[int, int] = {0: 0}
    found = []
    for one in parameters:
        number = numbers.setdefault(one.storage_id, len(numbers))
        found.append(replace(one, storage_id=number))
    return found
