"""Does the same to a resident model and to its offloaded twin, and compares everything.

An offloaded model gives the bits of the resident one, or raises an error that names the offload.
Whatever happened, ``remove()`` leaves a resident model with whole weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Callable

import torch
from torch import nn

import weighbridge.torch as wt
from weighbridge import WeighbridgeError

TOKENS = [[1, 7, 3, 49], [0, 2, 2, 9]]
ALL = 1 << 24

Use = Callable[[nn.Module], Any]


class Layer(nn.Module):
    """A feed-forward layer."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x):
        return x + self.down(torch.nn.functional.gelu(self.up(self.norm(x))))


class Net(nn.Module):
    """An embedding, six layers and a head; ``layer`` makes another kind of layer."""

    layer: Callable[[], nn.Module] = Layer

    def __init__(self, count: int = 6) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.layers = nn.ModuleList([type(self).layer() for _ in range(count)])
        self.head = nn.Linear(32, 50, bias=False)

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Tied(Net):
    """A net whose head has the weight of its embedding."""

    def __init__(self, count: int = 6) -> None:
        super().__init__(count)
        self.head.weight = self.embed.weight


def forward(model: nn.Module, device: torch.device | None = None) -> Any:
    """Runs a model on tokens, without gradients, by default on the device of its first weight."""
    if device is None:
        device = next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu"))
    with torch.no_grad():
        return model(torch.tensor(TOKENS, device=device))


def equal(one: Any, other: Any) -> bool:
    """Returns whether two results have the same types, shapes and bits, at any depth."""
    if isinstance(one, torch.Tensor):
        if type(one) is not type(other) and not isinstance(one, nn.Parameter):
            return False
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            return False
        one, other = (plain(t) for t in (one, other))
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a tensor's bytes, on the host; of a quantized subclass its numbers'."""
    tensor = tensor.detach()
    if type(tensor) is not torch.Tensor and hasattr(tensor, "dequantize"):
        tensor = tensor.dequantize()
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8)


def copied(value: Any) -> Any:
    """Returns a result whose tensors nothing else changes."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: copied(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [copied(entry) for entry in value]
    return value


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns copies of what ``state_dict`` gives."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def shape(model: nn.Module) -> list[Any]:
    """Returns what else a user sees of the weights: names, ties, types and gradients."""
    first: dict[int, str] = {}
    return [
        (name, first.setdefault(id(p), name), tuple(p.shape), p.dtype, p.requires_grad, type(p))
        for name, p in model.named_parameters(remove_duplicate=False)
    ]


def refusal(error: BaseException) -> str | None:
    """Returns how an error names the offload; None if its reader could not know what failed."""
    seen: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in seen:
        if isinstance(at, WeighbridgeError) or "offload" in str(at) or "weighbridge" in str(at):
            message = " ".join(str(at).split())
            return f"{type(at).__name__}: {message}"
        seen.append(at)
        at = at.__cause__ or at.__context__
    return None


class Outcome:
    """The outcome of one use in one transfer mode: equal, unless an error was raised."""

    def __init__(self) -> None:
        self.raised: list[str] = []

    def __str__(self) -> str:
        return f"raised {self.raised[0]}" if self.raised else "equal"

    @contextlib.contextmanager
    def may_raise(self) -> Iterator[None]:
        """Takes an error that names the offload; every other one fails the test."""
        try:
            yield
        except AssertionError:
            raise
        except Exception as error:
            found = refusal(error)
            if found is None:
                what = f"{type(error).__name__}: {error}"
                raise AssertionError(f"an error that does not name the offload: {what}") from error
            self.raised.append(found)


class Compare:
    """Compares uses of a model in one transfer mode, or with budgets that change; a fixture."""

    def __init__(self, transfer_mode: str, where: torch.device, *, resized: bool = False) -> None:
        self.transfer_mode = transfer_mode
        self.where = where
        self.resized = resized
        self.outcome = Outcome()

    def made(self, build: Callable[[], nn.Module]) -> nn.Module:
        """Builds a model, always with the same weights."""
        torch.manual_seed(0)
        return build().to(self.where).eval()

    def offload(self, model: nn.Module, **options: Any) -> wt.OffloadHandle:
        """Offloads a model in this transfer mode, all of it unless the options say otherwise."""
        if "device_bytes" not in options:
            options.setdefault("offload_bytes", ALL)
        options.setdefault("transfer_mode", self.transfer_mode)
        if self.resized:
            options.setdefault("fixed_addresses", True)
            options.setdefault("keep_host_copy", True)
        return wt.offload(model, **options)

    def resize(self, handle: wt.OffloadHandle, step: int) -> None:
        """Gives the model more memory, then less, and lets it sleep before its step."""
        if self.resized:
            handle.resize(device_bytes=(64 if step == 1 else 16) << 20)
            handle.sleep()
            handle.wake()

    def __call__(
        self,
        build: Callable[[], nn.Module],
        use: Use,
        *,
        of_offloaded: Callable[[nn.Module, wt.OffloadHandle], Any] | None = None,
        run: Use = forward,
        starts: tuple[str, ...] = ("cold", "warm"),
        **options: Any,
    ) -> None:
        """Does ``use`` to a resident model and to an offloaded one, cold and after a step.

        ``of_offloaded`` is done to the offloaded model instead, if the use needs the handle.
        ``run`` is the model's forward.
        """
        for start in starts:
            self._compare(build, use, of_offloaded, run, start, options)

    def _compare(
        self,
        build: Callable[[], nn.Module],
        use: Use,
        of_offloaded: Any,
        run: Use,
        start: str,
        options: dict[str, Any],
    ) -> None:
        resident, model = self.made(build), self.made(build)
        before, shape_before = weights(resident), shape(resident)
        ran_before = copied(run(resident))
        raised = len(self.outcome.raised)
        handle = None
        with self.outcome.may_raise():
            handle = self.offload(model, **options)
        if handle is None:
            assert equal(weights(model), before), "a refused offload() changed weights"
            assert shape(model) == shape_before, "a refused offload() changed parameters"
            assert equal(run(model), ran_before), "the model after a refused offload()"
            return
        found: Any = None
        if start == "warm":
            with self.outcome.may_raise():
                found = run(model)
                if self.resized:  # so that offloaded weights are on the device
                    handle.resize(device_bytes=64 << 20)
            if len(self.outcome.raised) == raised:
                assert equal(found, ran_before), f"WRONG numbers in the first step, {start}"
        wanted = copied(use(resident))
        after = weights(resident)
        if len(self.outcome.raised) == raised:
            with self.outcome.may_raise():
                found = use(model) if of_offloaded is None else of_offloaded(model, handle)
                found = copied(found)
        if len(self.outcome.raised) > raised:
            self._removed_after_refusal(model, handle, before, after, ran_before, run)
            return
        assert equal(found, wanted), f"WRONG numbers, {start}"
        ran = copied(run(resident))
        for step in (1, 2):
            with self.outcome.may_raise():
                self.resize(handle, step)
                found = copied(run(model))
            if len(self.outcome.raised) > raised:
                break
            assert equal(found, ran), f"WRONG numbers in step {step} after it, {start}"
        assert equal(weights(model), after), f"WRONG state_dict() after it, {start}"
        handle.remove()
        assert equal(weights(model), after), f"WRONG weights after remove(), {start}"
        assert shape(model) == shape(resident), f"other parameters after remove(), {start}"
        assert equal(run(model), ran), f"WRONG numbers after remove(), {start}"

    def _removed_after_refusal(
        self,
        model: nn.Module,
        handle: wt.OffloadHandle,
        before: dict[str, torch.Tensor],
        after: dict[str, torch.Tensor],
        ran_before: Any,
        run: Use,
    ) -> None:
        """Every weight is the old one or what the use makes of it, and none is lost."""
        handle.remove()
        found = weights(model)
        for name, tensor in found.items():
            choices = [state[name] for state in (before, after) if name in state]
            assert any(equal(tensor, choice) for choice in choices), (
                f"WRONG {name} after a refusal and remove()"
            )
        if equal(found, before):
            assert equal(run(model), ran_before), "WRONG numbers after a refusal and remove()"
