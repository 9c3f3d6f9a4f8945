"""PyTorch, CuPy and JAX exchange tensors with the library without a copy."""

from __future__ import annotations

import gc

import numpy as np
import pytest

import weighbridge
from weighbridge import Buffer, Dtype, View


def framework(name):
    return pytest.importorskip(name, reason=f"{name} is not installed")


@pytest.fixture
def torch():
    return framework("torch")


@pytest.fixture
def cuda():
    with weighbridge.Device("cuda:0", pin=True, views=True) as device:
        yield device
        gc.collect()
        device.drain(10)
        assert device.stats.buffers == 0


TORCH = [
    d for d in Dtype if d not in (Dtype.F8_E8M0, Dtype.F4_E2M1X2, Dtype.F8_E4M3FN, Dtype.F8_E5M2)
]


def test_torch_and_numpy_see_each_others_writes(device, torch):
    with device.buffer(400) as buffer, buffer.view("int32", (10, 10), accessor="host") as view:
        tensor = torch.from_dlpack(view)
        assert tensor.data_ptr() == view.address
        tensor[3, 4] = 12
        assert view.numpy()[3, 4] == 12
        view.numpy()[0, 0] = -1
        assert tensor[0, 0] == -1


@pytest.mark.parametrize("dtype", TORCH, ids=lambda dtype: dtype.label)
def test_torch_imports_every_type_that_it_has(device, torch, dtype):
    with device.buffer(64) as buffer, buffer.view(dtype, (2, 3), (4, 1), accessor="host") as view:
        tensor = torch.from_dlpack(view)
        assert Dtype.of(tensor.dtype) == dtype
        assert tuple(tensor.shape) == (2, 3) and tensor.stride() == (4, 1)


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"])
def test_torch_imports_8_bit_floats_or_their_bytes(device, torch, name):
    with device.buffer(4) as buffer:
        np.asarray(buffer)[:] = [0, 56, 64, 100]
        wanted = getattr(torch, name)
        as_bytes = torch.from_dlpack(buffer.view("uint8", (4,), accessor="host")).view(wanted)
        if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10):
            pytest.skip("this PyTorch imports only their bytes")
        tensor = torch.from_dlpack(buffer.view(name, (4,), accessor="host"))
        assert tensor.dtype == wanted
        assert (tensor.float() == as_bytes.float()).all()


def test_a_torch_tensor_keeps_the_memory_of_a_closed_device(torch):
    device = weighbridge.Device("host")
    tensor = torch.from_dlpack(device.buffer(400).view("float32", (10, 10)))
    device.close()
    del device
    gc.collect()
    tensor.fill_(2)
    assert tensor.sum() == 200


def test_a_torch_tensor_can_be_registered_and_copied(device, torch):
    source = torch.arange(12, dtype=torch.bfloat16).reshape(3, 4)[:, ::2]
    with View.from_dlpack(device, source, accessor="host", pin=False) as view:
        assert view.address == source.data_ptr() and view.strides == (4, 2)
        assert view.dtype == Dtype.BF16
    with View.copy_from(device, source) as copied:
        source.fill_(0)
        assert copied.strides == (4, 2)
        found = torch.from_dlpack(copied.buffer.view("bfloat16", (3, 2), (4, 2), accessor="host"))
        assert found.tolist() == [[0, 2], [4, 6], [8, 10]]


def test_jax_imports_host_memory(device):
    jax = framework("jax")
    with device.buffer(64) as buffer, buffer.view("float32", (4, 4), accessor="host") as view:
        view.numpy()[:] = 3
        array = jax.dlpack.from_dlpack(view)
        assert float(array.sum()) == 48
        del array


def test_frameworks_read_a_file_that_they_must_not_write(device, tmp_path, torch):
    path = tmp_path / "file"
    path.write_bytes(np.arange(1024, dtype=np.float32).tobytes())
    view = Buffer.map_file(device, path).view("float32", (1024,), accessor="host")
    with pytest.raises(BufferError, match="read-only"):
        torch.from_dlpack(view)
    tensor = torch.from_dlpack(view.for_reading())
    assert tensor.data_ptr() == view.address and float(tensor[1023]) == 1023
    jax = framework("jax")
    with pytest.raises(BufferError, match="read-only"):
        jax.dlpack.from_dlpack(view)
    assert float(jax.dlpack.from_dlpack(view.for_reading())[1023]) == 1023


@pytest.mark.gpu
def test_torch_on_the_gpu_and_numpy_see_each_others_writes(cuda, torch):
    with cuda.buffer(400) as buffer, buffer.view("int32", (10, 10)) as view:
        tensor = torch.from_dlpack(view)
        assert tensor.device.type == "cuda" and tensor.data_ptr() == view.device_address
        view.numpy()[3, 4] = 12
        assert (tensor + 1)[3, 4].item() == 13
        tensor[0, 0] = -7
        torch.cuda.synchronize()
        assert view.numpy()[0, 0] == -7
        del tensor


@pytest.mark.gpu
def test_torch_imports_the_cuda_array_interface(cuda, torch):
    with cuda.buffer(64) as buffer, buffer.view("float32", (4, 4)) as view:
        view.numpy()[:] = np.arange(16).reshape(4, 4)
        tensor = torch.as_tensor(view, device="cuda")
        assert tensor.data_ptr() == view.device_address
        assert tensor.sum().item() == 120
        del tensor


@pytest.mark.gpu
def test_the_gpu_reads_a_mapped_file(cuda, torch, tmp_path):
    path = tmp_path / "file"
    values = np.arange(1 << 20, dtype=np.float32)
    path.write_bytes(values.tobytes())
    with weighbridge.Buffer.map_file(cuda, path) as buffer:
        tensor = torch.from_dlpack(buffer.view("float32", (1 << 20,)).for_reading())
        assert torch.equal(tensor.cpu(), torch.from_numpy(values))
        del tensor


@pytest.mark.gpu
def test_release_after_accepts_a_torch_stream(cuda, torch):
    stream = torch.cuda.Stream()
    buffer = cuda.buffer(64 << 20)
    np.asarray(buffer)[:] = 3
    with torch.cuda.stream(stream):
        tensor = torch.from_dlpack(buffer.view("uint8", (64 << 20,)))
        copied = tensor.clone()
        del tensor
    buffer.release_after(stream)
    torch.cuda.synchronize()
    assert (copied == 3).all()


@pytest.mark.gpu
def test_cupy_on_the_gpu_and_numpy_see_each_others_writes(cuda):
    cupy = framework("cupy")
    with cuda.buffer(400) as buffer, buffer.view("int32", (10, 10)) as view:
        for array in (cupy.from_dlpack(view), cupy.asarray(view)):
            array[3, 4] += 12
            cupy.cuda.get_current_stream().synchronize()
        assert view.numpy()[3, 4] == 24
        del array
