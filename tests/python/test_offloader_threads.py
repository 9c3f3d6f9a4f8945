"""Offloaders that threads share: a use gives one generation whole, or fails, whatever others do."""

from __future__ import annotations

import importlib
import random
import threading

import numpy as np
import pytest

from parameters import LAYERS, TRANSFER_MODES, Model, check_step, parameter_of
from weighbridge import Offloader, Plan, Status, WeighbridgeError


@pytest.mark.parametrize("transfer_mode", TRANSFER_MODES)
def test_threads_share_an_offloader(device, transfer_mode):
    """Each on its own stream: a slot that another holds is an error, never a wrong parameter."""
    model = Model()
    plan = Plan(device, model.parameters(), offload_bytes=1 << 20, transfer_mode=transfer_mode)
    wrong, visits = [], []

    def visit(number: int) -> None:
        chosen = random.Random(number)
        with device.stream() as stream:
            while len(visits) < 120:
                try:
                    check_step(device, offloader, model.arrays, stream, [chosen.randrange(LAYERS)])
                    visits.append(number)
                except WeighbridgeError as error:
                    if error.status != Status.BUSY:
                        wrong.append(error)
                except AssertionError as error:
                    wrong.append(error)

    with device.stream() as stream, Offloader(plan, stream) as offloader:
        threads = [threading.Thread(target=visit, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            assert offloader.stats.acquires >= 0
            threads[0].join(0.005)
        for thread in threads:
            thread.join()
        assert not wrong, wrong[0]
        assert len(set(visits)) > 1
        check_step(device, offloader, model.arrays, stream)


@pytest.mark.parametrize("use", ["view", "host_view", "parameter_info"])
def test_a_removal_by_another_thread_waits_for_uses_of_an_index(device, use, monkeypatch):
    arrays = {f"layers.0.w{at}": np.full(64, at, np.float32) for at in range(4)}
    plan = Plan(
        device, [parameter_of(name, array) for name, array in arrays.items()], offload_bytes=1 << 20
    )
    find, threads = Offloader.find_parameter, []

    def find_then_remove(self, name):
        index = find(self, name)
        threads.append(threading.Thread(target=self.remove, args=("layers.0.w0", stream)))
        threads[-1].start()
        threads[-1].join(0.3)  # without a lock the last parameter has another index then
        return index

    with device.stream() as stream, Offloader(plan, stream) as offloader:
        monkeypatch.setattr(Offloader, "find_parameter", find_then_remove)
        found = getattr(offloader, use)("layers.0.w3")
        threads[0].join()
        assert len(offloader.parameter_infos()) == 3
        if use == "parameter_info":
            assert found.name == "layers.0.w3"
        else:
            found.close()


def test_names_are_read_before_another_thread_removes_a_parameter(device, monkeypatch):
    array = np.zeros(64, np.float32)
    plan = Plan(device, [parameter_of(f"g.w{at}", array) for at in range(3)], offload_bytes=1 << 20)
    module = importlib.import_module("weighbridge.offloader")
    convert, threads, removed = module.parameter_info_of, [], []

    def remove_then_convert(info):
        if not threads:
            threads.append(threading.Thread(target=offloader.remove, args=("g.w2", stream)))
            threads[-1].start()
            threads[-1].join(0.3)
        removed.append(not threads[0].is_alive())
        return convert(info)

    with device.stream() as stream, Offloader(plan, stream) as offloader:
        monkeypatch.setattr(module, "parameter_info_of", remove_then_convert)
        names = [info.name for info in offloader.parameter_infos()]
        threads[0].join()
    assert names == ["g.w0", "g.w1", "g.w2"]
    assert not any(removed)
