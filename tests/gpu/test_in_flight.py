"""Memory in flight is not freed, and no call waits without need."""

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


def test_memory_lives_until_the_queued_work_has_run(device: Device, stream, kernels) -> None:
    buffer = filled(device)
    view = buffer.view("uint32", (WORDS,))
    total = kernels.slow_sum(stream, view.device_address, WORDS)
    begin = time.perf_counter()
    view.release_after(stream)
    buffer.release_after(stream)
    assert time.perf_counter() - begin < 0.1, "release_after waited for the kernel"
    assert device.stats.pinned_bytes == 4 * WORDS, "freed under a kernel"
    with pytest.raises(weighbridge.WeighbridgeError) as failure:
        device.drain(0.01)
    assert failure.value.status == weighbridge.Status.TIMEOUT
    device.drain(30)
    assert device.stats.pinned_bytes == 0
    stream.synchronize()
    assert int(total[0]) == 3 * WORDS


def test_deleting_a_tensor_in_flight_neither_waits_nor_frees(
    device: Device, stream, kernels
) -> None:
    buffer = filled(device)
    tensor = torch.from_dlpack(buffer.view("int32", (WORDS,)))
    buffer.close()
    gc.collect()
    total = kernels.slow_sum(stream, tensor.data_ptr(), WORDS)
    begin = time.perf_counter()
    del tensor
    assert time.perf_counter() - begin < 0.1, "the deleter waited for the kernel"
    stream.synchronize()
    assert int(total[0]) == 3 * WORDS
    device.drain(30)


def test_closing_a_buffer_unregisters_it_after_the_kernel(device: Device, stream, kernels) -> None:
    """The deferred deleter relies on it: unregistering waits for a running kernel."""
    buffer = filled(device)
    total = kernels.slow_sum(stream, buffer.info.device_address, WORDS)
    buffer.close()
    assert stream.query(), "the driver unregistered memory under a running kernel"
    assert int(total[0]) == 3 * WORDS


def test_memory_of_two_streams_is_released_in_any_order(device: Device, kernels) -> None:
    slow, fast = torch.cuda.Stream(), torch.cuda.Stream()
    on_slow, on_fast = filled(device), filled(device)
    total = kernels.slow_sum(slow, on_slow.info.device_address, WORDS)
    on_slow.release_after(slow)
    on_fast.release_after(fast)
    stop = time.perf_counter() + 5
    while device.stats.buffers != 1 and time.perf_counter() < stop:
        time.sleep(0.005)
    # The fast stream's event completes at once, but the driver may delay the unregistering.
    assert device.stats.buffers <= 1
    device.drain(30)
    assert int(total[0]) == 3 * WORDS


def test_allocating_and_freeing_does_not_invalidate_a_capture_in_another_thread(
    device: Device,
) -> None:
    source = torch.ones(1 << 20, device="cuda")
    result = torch.zeros(1 << 20, device="cuda")
    graph = torch.cuda.CUDAGraph()
    started, resume = threading.Event(), threading.Event()
    failures: list[BaseException] = []

    def capture() -> None:
        try:
            with torch.cuda.graph(graph, capture_error_mode="global"):
                result.copy_(source * 2)
                started.set()
                resume.wait(30)
                result.add_(1)
        except BaseException as failure:
            failures.append(failure)
            started.set()

    thread = threading.Thread(target=capture)
    thread.start()
    started.wait(30)
    try:
        stream = torch.cuda.Stream()
        for _ in range(3):
            buffer = Buffer.alloc(device, 4 << 20)
            buffer.view("uint8", (4 << 20,)).release_after(stream)
            buffer.close()
            device.free(device.alloc(1 << 20))
        device.drain(30)
    finally:
        resume.set()
        thread.join()
    assert not failures, failures
    graph.replay()
    torch.cuda.synchronize()
    assert bool((result == 3).all())


def test_release_after_on_a_capturing_stream_fails_and_leaves_the_view_open(device: Device) -> None:
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


def test_the_current_context_of_the_engine_is_unchanged(device: Device) -> None:
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


EXITS = ["pass", "import os; os._exit(0)", "sys.exit(0)"]


@pytest.fixture(scope="module")
def exiting() -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Processes that exit with work in flight, started at the same time: each imports PyTorch."""
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
        exit: subprocess.Popen(
            [sys.executable, "-c", program + exit],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for exit in EXITS
    }
    yield processes
    for process in processes.values():
        with process:
            process.kill()


@pytest.mark.parametrize("exit", EXITS)
def test_a_process_exits_cleanly_with_work_in_flight(exiting, exit: str) -> None:
    process = exiting[exit]
    _, errors = process.communicate(timeout=100)
    assert (process.returncode, errors) == (0, "")
