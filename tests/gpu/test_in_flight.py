"""Nothing is freed in flight, and nobody waits who need not."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

import weighbridge
from weighbridge import Buffer, Device

WORDS = 16 << 20


def filled(device: Device) -> Buffer:
    buffer = Buffer.alloc(device, 4 * WORDS)
    np.asarray(buffer).view(np.uint32)[:] = 3
    return buffer


def test_memory_stays_until_the_stream_has_passed(device: Device, stream, kernels) -> None:
    buffer = filled(device)
    view = buffer.view("uint32", (WORDS,))
    total = kernels.slow_sum(stream, view.device_address, WORDS)
    begin = time.perf_counter()
    view.release_after(stream)
    buffer.release_after(stream)
    assert time.perf_counter() - begin < 0.1, "giving back waited for the kernel"
    assert device.stats.pinned_bytes == 4 * WORDS, "freed under a kernel"
    with pytest.raises(weighbridge.WeighbridgeError) as failure:
        device.drain(0.01)
    assert failure.value.status == weighbridge.Status.TIMEOUT
    device.drain(30)
    assert device.stats.pinned_bytes == 0
    stream.synchronize()
    assert int(total[0]) == 3 * WORDS


def test_a_dlpack_consumer_that_lets_go_early_neither_waits_nor_frees(
    device: Device, stream, kernels
) -> None:
    buffer = filled(device)
    tensor = torch.from_dlpack(buffer.view("int32", (WORDS,)))
    buffer.close()
    gc.collect()
    total = kernels.slow_sum(stream, tensor.data_ptr(), WORDS)
    begin = time.perf_counter()
    del tensor
    assert time.perf_counter() - begin < 0.1, "the consumer's thread waited for the kernel"
    stream.synchronize()
    assert int(total[0]) == 3 * WORDS
    device.drain(30)


def test_a_released_buffer_is_unregistered_behind_the_kernel(
    device: Device, stream, kernels
) -> None:
    """What the deferred deleter rests on: unregistering waits for a kernel that is running."""
    buffer = filled(device)
    total = kernels.slow_sum(stream, buffer.info.device_address, WORDS)
    buffer.close()
    assert stream.query(), "the driver unregistered memory under a running kernel"
    assert int(total[0]) == 3 * WORDS


def test_two_streams_pass_in_any_order(device: Device, kernels) -> None:
    slow, fast = torch.cuda.Stream(), torch.cuda.Stream()
    behind_slow, behind_fast = filled(device), filled(device)
    total = kernels.slow_sum(slow, behind_slow.info.device_address, WORDS)
    behind_slow.release_after(slow)
    behind_fast.release_after(fast)
    stop = time.perf_counter() + 5
    while device.stats.buffers != 1 and time.perf_counter() < stop:
        time.sleep(0.005)
    # The fast stream's event is complete at once, but the driver may make its unregistering wait.
    assert device.stats.buffers <= 1
    device.drain(30)
    assert int(total[0]) == 3 * WORDS


def test_a_capture_in_another_thread_survives_what_this_one_does(device: Device) -> None:
    source = torch.ones(1 << 20, device="cuda")
    result = torch.zeros(1 << 20, device="cuda")
    graph = torch.cuda.CUDAGraph()
    started, go_on = threading.Event(), threading.Event()
    failures: list[BaseException] = []

    def capture() -> None:
        try:
            with torch.cuda.graph(graph, capture_error_mode="global"):
                result.copy_(source * 2)
                started.set()
                go_on.wait(30)
                result.add_(1)
        except BaseException as failure:
            failures.append(failure)
            started.set()

    thread = threading.Thread(target=capture)
    thread.start()
    started.wait(30)
    try:
        ours = torch.cuda.Stream()
        for _ in range(3):
            buffer = Buffer.alloc(device, 4 << 20)
            buffer.view("uint8", (4 << 20,)).release_after(ours)
            buffer.close()
            device.free(device.alloc(1 << 20))
        device.drain(30)
    finally:
        go_on.set()
        thread.join()
    assert not failures, failures
    graph.replay()
    torch.cuda.synchronize()
    assert bool((result == 3).all())


def test_release_after_a_capturing_stream_is_refused_and_keeps_the_view(device: Device) -> None:
    with Buffer.alloc(device, 4096) as buffer:
        view = buffer.view("uint8", (4096,))
        graph = torch.cuda.CUDAGraph()
        work = torch.zeros(8, device="cuda")
        with torch.cuda.graph(graph):
            work.add_(1)
            with pytest.raises(weighbridge.WeighbridgeError) as failure:
                view.release_after(torch.cuda.current_stream())
        assert failure.value.status == weighbridge.Status.CAPTURING
        graph.replay()
        torch.cuda.synchronize()
        assert float(work[0]) == 1
        assert view.numpy()[0] == 0
        view.close()


def test_a_graph_replays_over_a_view(device: Device) -> None:
    with Buffer.alloc(device, 4 << 20) as buffer:
        view = buffer.view("float32", (1 << 20,))
        tensor = torch.from_dlpack(view)
        array = view.numpy()
        array[:] = 1
        result = torch.zeros(1 << 20, device="cuda")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            torch.mul(tensor, 2, out=result)
        for value in range(1, 51):
            array[:] = value
            graph.replay()
            torch.cuda.synchronize()
            assert bool((result == 2 * value).all())
        del graph, tensor, array
        view.close()


def test_the_engines_context_stays_as_it_was(device: Device) -> None:
    import ctypes

    driver = ctypes.CDLL("libcuda.so.1")

    def current() -> int:
        context = ctypes.c_void_p()
        assert driver.cuCtxGetCurrent(ctypes.byref(context)) == 0
        return context.value or 0

    seen = []

    def in_a_thread_without_a_context() -> None:
        seen.append(current())
        buffer = Buffer.alloc(device, 1 << 20)
        buffer.view("uint8", (1,)).close()
        buffer.release_after(None)
        device.drain(30)
        seen.append(current())

    torch.cuda.synchronize()
    before = current()
    assert before != 0
    thread = threading.Thread(target=in_a_thread_without_a_context)
    thread.start()
    thread.join()
    assert seen == [0, 0]
    with Buffer.alloc(device, 1 << 20):
        assert current() == before
    with Device("cuda:0", context=before) as same, Buffer.alloc(same, 1 << 20) as buffer:
        assert buffer.info.pinned_bytes == 1 << 20
    assert current() == before


LEAVES = ["pass", "import os; os._exit(0)", "sys.exit(0)"]


@pytest.fixture(scope="module")
def leaving() -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Processes that end with work in flight, started at the same time: each imports PyTorch."""
    program = """
import sys, torch, numpy as np
from weighbridge import Buffer, Device
device = Device("cuda:0")
buffer = Buffer.alloc(device, 64 << 20)
tensor = torch.from_dlpack(buffer.view("float32", (16 << 20,)))
stream = torch.cuda.Stream()
with torch.cuda.stream(stream):
    for _ in range(20):
        total = tensor.sum()
buffer.view("uint8", (1,)).release_after(stream)
"""
    processes = {
        leave: subprocess.Popen(
            [sys.executable, "-c", program + leave],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for leave in LEAVES
    }
    yield processes
    for process in processes.values():
        with process:
            process.kill()


@pytest.mark.parametrize("leave", LEAVES)
def test_a_process_ends_cleanly_with_work_in_flight(leaving, leave: str) -> None:
    process = leaving[leave]
    _, errors = process.communicate(timeout=100)
    assert (process.returncode, errors) == (0, "")
