"""The interpreter's exit, forks and Ctrl-C, each in a process of its own."""

from __future__ import annotations

import copy
import pickle
import textwrap

import pytest
from conftest import DEVICES

TESTS = __file__.rpartition("/")[0]

PREAMBLE = """
import atexit, ctypes, gc, os, signal, sys, threading, time, warnings
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
sys.path.insert(0, {tests!r})
import numpy as np
import weighbridge
from native import SLEEP
from weighbridge import Buffer, View
device = weighbridge.Device({device!r})
stream = device.stream()
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs inherit SIG_IGN
"""


@pytest.fixture(params=DEVICES)
def play(request, run_python):
    """Runs a program; returns its output if the exit status is right and stderr is empty."""

    def run(program: str, status: int = 0) -> str:
        preamble = PREAMBLE.format(tests=TESTS, device=request.param)
        code, output, errors = run_python("-c", preamble + textwrap.dedent(program))
        assert (code, errors) == (status, ""), (code, output, errors)
        return output

    return run


ALIVE = """
    buffer = device.buffer(1 << 20)
    view = buffer.view("float32", (512, 512))
    array, bytes_ = view.numpy(), np.asarray(buffer)
    taken = np.from_dlpack(buffer.view("float32", (512, 512), accessor="host"))
    capsules = [view.__dlpack__(), view.__dlpack__(max_version=(1, 0))]
    registered = Buffer.register(device, bytearray(1 << 20))
    imported = View.from_dlpack(device, np.ones(1 << 20, np.uint8))
"""


def test_the_interpreter_exits_with_objects_alive(play):
    play(ALIVE)


def test_the_interpreter_exits_with_objects_in_a_cycle(play):
    play(
        ALIVE
        + "\n    class Knot: pass\n    knot = Knot(); knot.all = globals(); knot.knot = knot\n"
    )


@pytest.mark.parametrize("microseconds", [0, 2_000, 5_000, 10_000, 300_000])
def test_the_interpreter_exits_with_work_in_flight(play, microseconds):
    play(
        ALIVE
        + f"""
    stream.call(SLEEP, {microseconds})
    for _ in range(20):
        device.copy(buffer, registered, stream=stream)
        device.copy(imported, buffer, stream=stream)
    for handle in (buffer, view, registered, imported):
        handle.release_after(stream)
    """
    )


def test_exit_handlers_and_late_destructors_can_use_the_memory(play):
    output = play(
        """
    class Last:
        def __init__(self, array):
            self.array = array
        def __del__(self, print=print):
            print("last", self.array[0])
    array = device.buffer(1 << 16).view("uint8", (1 << 16,)).numpy()
    array[0] = 7
    atexit.register(lambda: print("exit", array[0]))
    last = Last(np.from_dlpack(device.buffer(64).view("uint8", (64,), accessor="host")))
    """
    )
    assert output.split() == ["exit", "7", "last", "0"]


def test_os_exit_works_with_work_in_flight(play):
    play(
        ALIVE
        + "\n    stream.call(SLEEP, 300_000)\n    buffer.release_after(stream)\n    os._exit(0)"
    )


def test_daemon_threads_may_use_memory_at_exit(play):
    play(
        """
    def work():
        while True:
            with device.buffer(1 << 16) as buffer:
                view = buffer.view("uint8", (1 << 16,))
                view.numpy()[:] = 1
                view.release_after(stream)
    for _ in range(2):
        threading.Thread(target=work, daemon=True).start()
    time.sleep(0.2)
    """
    )


def test_a_forked_child_gets_errors_and_leaves_the_parent_intact(play):
    output = play(
        ALIVE
        + """
    stream.synchronize()
    array[0, 0] = 5
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            device.buffer(100)
        except weighbridge.WeighbridgeError as error:
            print(error.status.name)
        try:
            View.from_dlpack(device, np.ones(10))
        except weighbridge.WeighbridgeError as error:
            print(error.status.name)
        try:
            buffer.release_after(stream)
        except weighbridge.WeighbridgeError as error:
            print(error.status.name)
        del capsules, taken, array, bytes_, view, buffer, registered, imported, stream, device
        gc.collect()
        sys.stdout.flush()
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), array[0, 0])
    device.copy(buffer, registered, stream=stream)
    stream.synchronize()
    print(array[0, 0], device.stats.views)
    """
    )
    assert output.split()[:3] == ["FORKED"] * 3
    assert output.split()[3:6] == ["0", "5.0", "0.0"]


def test_a_forked_child_exits_normally(play):
    play(
        ALIVE
        + """
    child = os.fork()
    if child == 0:
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    """
    )


def test_ctrl_c_cancels_a_long_allocation(play):
    """Also without a callback of the user; the call stops at once, not when it is complete."""
    output = play(
        """
    import resource
    def press():
        begun.wait()
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)
    begun = threading.Event()
    presser = threading.Thread(target=press)
    presser.start()
    try:
        begun.set()
        device.buffer(4 << 30, threads=1, huge_pages="off", pin=False)
    except KeyboardInterrupt:
        print("interrupted")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    gc.collect()
    print(device.stats.buffers, device.stats.mapped_bytes, most < 3 << 30)
    """
    )
    assert output.split() == ["interrupted", "0", "0", "True"]


def test_ctrl_c_is_never_lost(play):
    """Ctrl-C at any moment of a call with a callback is raised, not printed and discarded."""
    output = play(
        """
    interrupts = 0
    def press():
        for at in range(60):
            inside.acquire()
            time.sleep(at * 0.0003)
            os.kill(os.getpid(), signal.SIGINT)
    inside = threading.Semaphore(0)
    presser = threading.Thread(target=press)
    presser.start()
    for _ in range(60):
        calls = []
        def progress(phase, done, total):
            calls.append(done)
            if len(calls) == 1:
                inside.release()
        try:
            device.buffer(4 << 30, progress=progress, pin=False)
        except KeyboardInterrupt:
            interrupts += 1
    gc.collect()
    print(interrupts, device.stats.buffers)
    """
    )
    assert output.split() == ["60", "0"]


def test_ctrl_c_in_a_callback_is_raised(play):
    output = play(
        """
    def progress(phase, done, total):
        os.kill(os.getpid(), signal.SIGINT)
    try:
        device.buffer(64 << 20, progress=progress)
    except KeyboardInterrupt:
        print("interrupted", device.stats.buffers)
    """
    )
    assert output.split() == ["interrupted", "0"]


def test_ctrl_c_interrupts_a_wait(play):
    output = play(
        """
    buffer = device.buffer(64)
    stream.call(SLEEP, 1_000_000)
    buffer.release_after(stream)
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    began = time.monotonic()
    try:
        device.drain()
    except KeyboardInterrupt:
        print("interrupted", time.monotonic() - began < 0.9)
    """
    )
    assert output.split() == ["interrupted", "True"]


def test_threads_may_use_and_close_the_same_objects(play):
    output = play(
        """
    failures = []
    def work():
        try:
            for _ in range(300):
                view = shared.view("uint8", (4096,))
                capsule = view.__dlpack__()
                array = view.numpy()
                view.close()
                array[0] = 1
        except ValueError as error:
            if "closed" not in str(error):
                failures.append(error)
    shared = device.buffer(4096)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    shared.close()
    for thread in threads:
        thread.join()
    gc.collect()
    device.drain(10)
    print(failures, device.stats.buffers, device.stats.views)
    """
    )
    assert output.split() == ["[]", "0", "0"]


def test_ctrl_c_interrupts_a_wait_for_a_stream_and_not_its_work(play):
    play(
        """
        stream.call(SLEEP, 1_000_000)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        begin = time.monotonic()
        try:
            stream.synchronize()
        except KeyboardInterrupt:
            assert time.monotonic() - begin < 0.8
        else:
            raise AssertionError("not interrupted")
        stream.synchronize()
        assert time.monotonic() - begin >= 0.9
        """
    )


def test_a_destroyed_subinterpreter_leaves_no_threads_and_no_memory(play, run_python):
    pytest.importorskip("_xxsubinterpreters")
    # In a process of its own: after a subinterpreter PyTorch has no backward pass in the process.
    has_ctypes = "import _xxsubinterpreters as of; of.run_string(of.create(), 'import _ctypes')"
    _, _, errors = run_python("-c", has_ctypes)
    if "RunFailedError" in errors:
        pytest.skip(f"subinterpreters of this Python have no ctypes: {errors}")
    play(
        """
        import _xxsubinterpreters as interpreters
        del stream
        device.drain(10)
        def threads():
            deadline = time.monotonic() + 10
            while len(os.listdir("/proc/self/task")) > before and time.monotonic() < deadline:
                time.sleep(0.01)
            return len(os.listdir("/proc/self/task"))
        program = (
            "import weighbridge, sys\\n"
            f"device = weighbridge.Device({device.name!r})\\n"
            "stream = device.stream()\\n"
            "buffer = device.buffer(4096)\\n"
            "view, capsule = buffer.memoryview(), buffer.view('uint8', (4096,)).__dlpack__()\\n"
            "registered = weighbridge.Buffer.register(device, bytearray(8192), pin=False)\\n"
            "device.copy(buffer, registered, 4096, stream)\\n"
            "given = weighbridge.Parameter('w', 'g', 'uint8', (64,), source=buffer.address)\\n"
            "plan = weighbridge.Plan(device, [given], offload_bytes=1 << 20)\\n"
            "offloader = weighbridge.Offloader(plan)\\n"
            "offloader.acquire_group(0); offloader.release_group(0)\\n"
        )
        for count in range(4):
            made = interpreters.create()
            interpreters.run_string(made, program)
            interpreters.destroy(made)
            if count == 0:
                before = 1 << 20
                threads()
                time.sleep(0.2)
                before = threads()
        assert threads() <= before, (threads(), before)
        """
    )


def test_an_object_is_not_copied_to_elsewhere(device):
    with device.buffer(64) as buffer, buffer.view("uint8", (64,)) as view:
        for one, noun in ((device, "device"), (buffer, "buffer"), (view, "view")):
            with pytest.raises(TypeError, match=f"a {noun} cannot be pickled: .*this process"):
                pickle.dumps(one)
            with pytest.raises(TypeError, match=f"a {noun} cannot be deep-copied: .*this process"):
                copy.deepcopy(one)
        second = copy.copy(buffer)
        buffer.close()
        assert second.nbytes == 64 and not second.closed
        second.close()
