"""One entry of the tables: a model class with a small configuration, and how it is run."""

from __future__ import annotations

import copy
import importlib
from typing import Any, Callable, NamedTuple

import torch


class Model(NamedTuple):
    """A model with few and random weights."""

    name: str
    kind: str
    """The model's class."""
    config: str
    """The class of its configuration; empty if the model takes the options itself."""
    options: dict[str, Any]
    run: Callable[[torch.nn.Module], Any]
    """Runs the model on fixed inputs, and returns the tensors to compare."""
    generate: Callable[[torch.nn.Module], Any] | None = None
    package: str = "transformers"

    def build(self, device: torch.device) -> torch.nn.Module:
        """Returns the model, always with the same weights."""
        package = importlib.import_module(self.package)
        options = copy.deepcopy(self.options)  # configurations change what they are given
        torch.manual_seed(0)
        if self.config:
            model = getattr(package, self.kind)(getattr(package, self.config)(**options))
        else:
            model = getattr(package, self.kind)(**options)
        return model.to(device).eval()

    def parts(self, network: torch.nn.Module) -> list[torch.nn.Module]:
        """Returns the models to offload: this one."""
        return [network]


def ramp(model: torch.nn.Module, *shape: int) -> torch.Tensor:
    """Returns numbers from -1 to 1 on the device of a model."""
    count = torch.Size(shape).numel()
    return torch.linspace(-1, 1, count, device=device_of(model)).reshape(shape)


def tokens(model: torch.nn.Module, *shape: int, limit: int = 90) -> torch.Tensor:
    """Returns token numbers from 3 to ``limit`` + 2 on the device of a model."""
    count = torch.Size(shape or (2, 12)).numel()
    numbers = torch.arange(count, device=device_of(model)) * 3 % limit + 3
    return numbers.reshape(shape or (2, 12))


def numbers(model: torch.nn.Module, values: Any) -> torch.Tensor:
    """Returns a tensor of these numbers on the device of a model."""
    return torch.tensor(values, device=device_of(model))


def device_of(model: torch.nn.Module) -> torch.device:
    """Returns where a model runs: the device of its first parameter."""
    return next(model.parameters()).device
