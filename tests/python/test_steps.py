"""Steps of an offloader: their orders, waits for slots, and the transfers of each group."""

from __future__ import annotations

import threading
import time

import pytest

from parameters import LAYERS, Model, check_step
from weighbridge import Offloader, Plan, Status, WeighbridgeError


@pytest.fixture
def offloader(device):
    plan = Plan(
        device, Model().parameters(), offload_bytes=1 << 20, transfer_mode="prefetch", depth=2
    )
    with device.stream() as stream, Offloader(plan, stream) as offloader:
        yield offloader
        stream.synchronize()
    plan.close()


def test_prefetching_follows_the_expected_order(device, offloader):
    with device.stream() as stream:
        for order in ([0, 1], [4, 3, 2], [5]):
            offloader.expect(order)
            before = [offloader.group_stats(group).copies for group in range(LAYERS)]
            offloader.begin_step(stream)
            check_step(device, offloader, Model().arrays, stream, order)
            after = [offloader.group_stats(group).copies for group in range(LAYERS)]
            assert {group for group in range(LAYERS) if after[group] > before[group]} == set(order)
        offloader.expect([])
        with pytest.raises(WeighbridgeError, match="more than once"):
            offloader.expect([1, 1])
        with pytest.raises(ValueError, match="group"):
            offloader.expect([LAYERS])


def test_the_transfers_of_groups_add_up(device, offloader):
    with device.stream() as stream:
        check_step(device, offloader, Model().arrays, stream)
        groups = [offloader.group_stats(group) for group in range(LAYERS)]
        assert all(group.acquires > 0 and group.copies > 0 for group in groups)
        for name in ("acquires", "copies", "moved_bytes", "late_copies"):
            total = sum(getattr(group, name) for group in groups)
            assert total == getattr(offloader.stats, name), name


def test_a_thread_waits_for_a_slot_of_another(device, offloader):
    with device.stream() as stream, device.stream() as other:
        offloader.acquire_group(0, stream)
        waited = []

        def acquire():
            begin = time.monotonic()
            with offloader.acquired(2, other, timeout=60):
                waited.append(time.monotonic() - begin)

        thread = threading.Thread(target=acquire)
        thread.start()
        time.sleep(0.3)  # longer than one native call
        assert not waited
        offloader.release_group(0, stream)
        thread.join()
        assert 0.2 < waited[0] < 30
        other.synchronize()


def test_a_wait_for_a_slot_ends_with_its_timeout(device, offloader):
    with device.stream() as stream, device.stream() as other:
        offloader.acquire_group(0, stream)
        found = []

        def acquire():
            try:
                offloader.acquire_group(2, other, timeout=0.15)
            except TimeoutError as error:
                found.append(str(error))

        thread = threading.Thread(target=acquire)
        thread.start()
        thread.join()
        assert found[0].startswith("after 0.15 s: asked to acquire group")
        assert "layers.0" in found[0]
        with pytest.raises(WeighbridgeError) as caught:  # its own: it would wait for ever
            offloader.acquire_group(2, other, timeout=None)
        assert caught.value.status == Status.BUSY
        offloader.release_group(0, stream)


def test_a_reset_ends_the_step_of_its_stream(device, offloader):
    with device.stream() as stream, device.stream() as other:
        offloader.acquire_group(0, stream)
        offloader.acquire_group(1, other)
        offloader.reset(other)
        with pytest.raises(WeighbridgeError, match="not acquired"):
            offloader.release_group(1, other)
        offloader.reset_all(other)
        with pytest.raises(WeighbridgeError, match="not acquired"):
            offloader.release_group(0, stream)
        other.synchronize()
