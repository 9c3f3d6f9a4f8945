"""The homes of weights: memory in which they are between the forwards of their layers."""

from __future__ import annotations

import torch

from ..errors import Status, WeighbridgeError
from ..offloader import Offloader
from ..offloader_info import OffloaderParameterInfo
from ._tensors import refusing, typed, view_within
from ._weight import Weight


def place(
    weight: Weight, offloader: Offloader, infos: dict[str, OffloaderParameterInfo]
) -> list[Weight]:
    """Gives a weight its home. Names of it that were quantized apart become weights."""
    if weight.part_of is not None:
        return [weight]
    apart: dict[torch.dtype | None, Weight] = {}
    holders, weight.holders = weight.holders, []
    for holder in holders:
        info, home, stored = infos.get(holder.name), None, None
        if info is None or info.device_address is None or info.span_bytes == 0:
            pass
        elif info.encoded_bytes:
            home = stored = refusing(weight.tensor, offloader.view(holder.name), _why(holder.name))
        elif info.placement == "offloaded" and info.host_address is not None:
            stored = typed(weight.tensor, offloader.host_view(holder.name))
            home = _device_view(offloader, weight.tensor, holder.name, stored)
        elif info.owned:
            home = typed(weight.tensor, offloader.view(holder.name))
        key = None if home is None else home.dtype
        if key not in apart:
            apart[key] = Weight(weight.tensor, []) if apart else weight
            apart[key].place(home, stored)
            apart[key].compressed = info is not None and info.encoded_bytes > 0
        apart[key].holders.append(holder)
    for made in apart.values():
        _use_home(made)
    return list(apart.values())


def _why(name: str) -> str:
    return (
        f"asked to use {name!r} of an offloaded model outside of the forward of its layer, where "
        "it is compressed: state_dict() and the handle's read() have its numbers, load_state_dict "
        "and .data = change them; for anything else call remove() first, or leave it out of "
        "compress"
    )


def _device_view(
    offloader: Offloader, tensor: torch.Tensor, name: str, stored: torch.Tensor
) -> torch.Tensor:
    """Returns a tensor that the device reads in place; the host's if the device cannot."""
    try:
        return typed(tensor, offloader.zero_copy_view(name))
    except WeighbridgeError as error:
        if error.status != Status.NOT_MAPPED:
            raise
        return stored


def place_part(weight: Weight, whole: Weight) -> None:
    """Makes a weight a view of the weight that contains its memory."""
    if whole.compressed:
        raise ValueError(
            f"{weight.name!r} is in the memory of {whole.name!r}, which is compressed: leave "
            "that out of compress"
        )
    if whole.home is not None:
        home = view_within(weight.tensor, weight.offset_in_whole, whole.home)
        weight.place(home, None)
        weight.go_home()


def _use_home(weight: Weight) -> None:
    """Makes a weight's tensor use its home: a new tensor if the old one cannot."""
    tensor, home = weight.tensor, weight.home
    if home is None:
        return
    if tensor.is_meta or tensor.dtype != home.dtype:
        if isinstance(tensor, torch.nn.Parameter):
            gradient = tensor.requires_grad and tensor.dtype == home.dtype
            weight.tensor = torch.nn.Parameter(home, requires_grad=gradient)
        else:
            weight.tensor = home
        for holder in weight.holders:
            holder.put(weight.tensor)
    if not weight.in_slot:
        weight.go_home()
