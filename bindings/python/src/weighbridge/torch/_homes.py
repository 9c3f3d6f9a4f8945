"""The homes of weights: memory in which they are between the forwards of their layers."""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import contextmanager

import torch

from ..errors import Status, WeighbridgeError
from ..offloader import Offloader
from ..offloader_info import OffloaderParameterInfo
from ._tensors import refusing, typed, view_within
from ._weight import Holder, Weight, Where

Homes = tuple[torch.Tensor | None, torch.Tensor | None, Where]
"""What :meth:`Weight.place` takes."""


@contextmanager
def given_back(weights: list[Weight], offloader: Offloader) -> Iterator[None]:
    """Gives the model the tensors that it has now, with their memory, if the offload fails.
    Weights that it adds to the list are taken from their modules."""
    before = [(weight.tensor, weight.tensor.data, weight.holders) for weight in weights]
    try:
        yield
    except BaseException:
        for tensor, data, holders in before:
            tensor.data = data
            for holder in holders:
                if holder.outer is None:
                    holder.put(tensor)
        for weight in weights[len(before) :]:
            for holder in weight.holders:
                delattr(holder.module, holder.own)
        offloader.close()
        raise


def where_of(info: OffloaderParameterInfo | None, reads_host: bool = False) -> Where:
    """Returns where a parameter is now, as the offloader says. With ``reads_host`` nothing reads
    it elsewhere if it is in host memory."""
    if info is None or info.device_address is None or info.span_bytes == 0:
        return Where.ENGINE
    if info.encoded_bytes:
        return Where.COMPRESSED
    if info.placement == "offloaded" and info.host_address is not None:
        if reads_host or info.transfer_mode == "zero-copy" or not info.at_address:
            return Where.HOST
        return Where.TWICE if info.copied_by_graphs else Where.DEVICE
    if not info.owned:
        return Where.ENGINE
    return Where.DEVICE if info.at_address else Where.ASLEEP


def homes_at(where: Where, tensor: torch.Tensor, name: str, offloader: Offloader) -> Homes:
    """Returns the home of a parameter, and its bytes for the host, where it is now."""
    home, stored = None, None
    if where is Where.COMPRESSED:
        home = stored = refusing(tensor, offloader.view(name), _WHY[where].format(name))
    elif where is not Where.ENGINE:
        if offloader.parameter_info(name).host_address is not None:
            stored = typed(tensor, offloader.host_view(name))
        if where is Where.DEVICE:
            home = typed(tensor, offloader.view(name))
        elif stored is not None and where is Where.HOST:
            home = _device_view(offloader, tensor, name, stored)
        else:
            home = refusing(tensor, offloader.view(name), _WHY[where].format(name))
    return home, stored, where


def place(
    weight: Weight,
    offloader: Offloader,
    infos: dict[str, OffloaderParameterInfo],
    in_place: Container[str],
) -> list[Weight]:
    """Gives a weight its home. Names of it that were quantized apart become weights."""
    if weight.part_of is not None:
        return [weight]
    apart: dict[torch.dtype | None, tuple[Homes, list[Holder]]] = {}
    reads_host = weight.where is not Where.DEVICE and weight.name in in_place
    for holder in weight.holders:
        where = where_of(infos.get(holder.name), reads_host)
        homes = homes_at(where, weight.tensor, holder.name, offloader)
        key = None if homes[0] is None else homes[0].dtype
        apart.setdefault(key, (homes, []))[1].append(holder)
    # Only now, so that an error before leaves the weight unchanged.
    made = [weight, *(Weight(weight.tensor, []) for _ in range(len(apart) - 1))]
    for one, (homes, holders) in zip(made, apart.values()):
        one.holders = holders
        one.place(*homes)
        _use_home(one)
    return made


_WHY = {
    Where.COMPRESSED: (
        "asked to use {!r} of an offloaded model outside of the forward of its layer, where "
        "it is compressed: state_dict() and the handle's read() have its numbers, load_state_dict "
        "and .data = change them; for anything else call remove() first, or leave it out of "
        "compress"
    ),
    Where.TWICE: (
        "asked to use {!r} of an offloaded model outside of the forward of its layer. It has come "
        "to the device by a resize, and a graph that was captured before copies it from host "
        "memory: state_dict() and the handle's read() have its numbers, load_state_dict and .data "
        "= change them; for anything else drop the graphs, and call resize(graphs_dropped=True)"
    ),
    Where.ASLEEP: (
        "asked to use {!r} of an offloaded model that is asleep, where it has no memory: call "
        "wake() or resize() of its handle first"
    ),
}


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
    if whole.where is Where.COMPRESSED:
        raise ValueError(
            f"{weight.name!r} is in the memory of {whole.name!r}, which is compressed: leave "
            "that out of compress"
        )
    if whole.home is not None:
        weight.place(*part_home(weight, whole))
        weight.go_home()


def part_home(weight: Weight, whole: Weight) -> Homes:
    """Returns the home of a weight in that of the weight that contains its memory."""
    assert whole.home is not None
    home = view_within(weight.tensor, weight.offset_in_whole, whole.home)
    return home, None, Where.ASLEEP if whole.where is Where.ASLEEP else Where.DEVICE


def _use_home(weight: Weight) -> None:
    """Makes a weight's tensor use its home: a new tensor if the old one cannot. One that is apart
    has bytes of its own."""
    tensor, home = weight.tensor, weight.home
    if home is None or weight.apart:
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
