"""The offloader on a GPU: graphs, compiled models, and the memory that is used."""

from __future__ import annotations

import threading

import pytest
import torch

import weighbridge.torch as wt
from graphs import graph_of
from weighbridge import QuantizeOptions

LAYERS, WIDTH = 6, 512


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = torch.nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


class Net(torch.nn.Module):
    def __init__(self, layers: int = LAYERS) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([Block() for _ in range(layers)])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().cuda().to(torch.bfloat16).eval().requires_grad_(False)


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.randn(4, WIDTH, device="cuda", dtype=torch.bfloat16)


@pytest.mark.parametrize("layers", [1, 2, 3, 6, 7])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("transfer_mode", ["zero-copy", "on-demand", "prefetch"])
def test_replays_in_turn_with_eager_steps_are_bit_identical(x, transfer_mode, depth, layers):
    torch.manual_seed(0)
    net = Net(layers).cuda().to(torch.bfloat16).eval().requires_grad_(False)
    with torch.no_grad():
        resident = net(x)
        handle = wt.offload(net, offload_bytes=1 << 30, transfer_mode=transfer_mode, depth=depth)
        graph, result = graph_of(lambda: net(x))
        for turn in range(300):
            if turn % 7 in (2, 3):
                assert torch.equal(net(x), resident), f"eager, turn {turn}"
            else:
                result.zero_()
                graph.replay()
                assert torch.equal(result, resident), f"replayed, turn {turn}"
        for _ in range(1000):
            graph.replay()
        assert torch.equal(result, resident)
        assert torch.equal(net(x), resident)
        del graph
        handle.remove()
        assert torch.equal(net(x), resident)


def test_an_eager_step_after_a_capture_without_replay_is_bit_identical(net, x):
    with torch.no_grad():
        resident = net(x)
        handle = wt.offload(net, offload_bytes=1 << 30, transfer_mode="prefetch")
        graph, result = graph_of(lambda: net(x))
        assert torch.equal(net(x), resident), "eager, after a capture without replay"
        graph.replay()
        assert torch.equal(result, resident)
        del graph
        handle.remove()


def test_layers_by_themselves_are_bit_identical_before_and_after_a_capture_of_one(net, x):
    with torch.no_grad():
        resident = net(x)
        handle = wt.offload(net, offload_bytes=1 << 30, transfer_mode="prefetch", depth=3)
        net(x)

        def layer():
            result = net.layers[2](x)
            handle.join()  # the end of a capture of part of a step
            return result

        third = layer().clone()
        graph, result = graph_of(layer)
        for turn in range(5):
            y = x
            for module in net.layers:
                y = module(y)
            assert torch.equal(y, resident), turn
            result.zero_()
            graph.replay()
            assert torch.equal(result, third), turn
        del graph
        handle.remove()


def test_a_replay_waits_for_copies_through_the_same_pageable_memory(net, x, monkeypatch):
    monkeypatch.setenv("WEIGHBRIDGE_DISABLE_PIN_MEMORY", "1")
    with torch.no_grad():
        resident = net(x)
        handle = wt.offload(net, offload_bytes=1 << 30, transfer_mode="prefetch", depth=3)
        assert handle.stats.staging_bytes > 0
        graph, result = graph_of(lambda: net(x))
        for turn in range(100):
            eager = net(x)  # its last copies are for the next step, and still in flight
            result.zero_()
            graph.replay()
            assert torch.equal(result, resident), f"turn {turn}"
            assert torch.equal(eager, resident), f"turn {turn}"
        del graph
    handle.remove()


def test_a_replay_uses_weights_that_changed_after_the_capture(net, x):
    with torch.no_grad():
        handle = wt.offload(net, offload_bytes=1 << 30, transfer_mode="prefetch")
        graph, result = graph_of(lambda: net(x))
        state = {name: tensor.clone() * 0.5 for name, tensor in net.state_dict().items()}
        net.load_state_dict(state)
        result.zero_()
        graph.replay()  # before an eager step could copy the new weights
        replayed = result.clone()
        eager = net(x)
        assert torch.equal(replayed, eager)
        graph.replay()
        assert torch.equal(result, eager)
        del graph
        handle.remove()
        assert torch.equal(net(x), eager)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_steps_are_bit_identical(net, x, mode):
    with torch.no_grad():
        compiled = torch.compile(net, mode=mode)
        for _ in range(3):
            resident = compiled(x).clone()
        torch._dynamo.reset()
        handle = wt.offload(net, offload_bytes=1 << 30, transfer_mode="prefetch")
        compiled = torch.compile(net, mode=mode)
        for _ in range(4):
            assert torch.equal(compiled(x).clone(), resident)
        torch._dynamo.reset()
        handle.remove()


def test_repacking_holds_one_module_on_the_device(x):
    torch.manual_seed(0)
    net = Net(24).cuda().to(torch.bfloat16).eval().requires_grad_(False)
    layer = sum(p.nbytes for p in net.layers[0].parameters())
    handle = wt.offload(net, offload_bytes=1 << 32, transfer_mode="prefetch")
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with handle.repack() as modules, torch.no_grad():
        for _, module in modules:
            module.up.weight = torch.nn.Parameter(module.up.weight.to(torch.float8_e4m3fn), False)
    assert torch.cuda.max_memory_allocated() - before < 2 * layer
    stats = handle.stats
    assert stats.offloaded_bytes < 24 * 0.76 * layer
    assert stats.slot_bytes <= 2 * layer
    handle.remove()


def test_a_model_from_a_file_is_never_whole_on_the_device(x, tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(0)
    net = Net(24).to(torch.bfloat16).eval().requires_grad_(False)
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    layer = sum(p.nbytes for p in net.layers[0].parameters())
    with torch.no_grad():
        resident = net.cuda()(x)
    del net
    with torch.device("meta"):
        empty = Net(24).to(torch.bfloat16).eval().requires_grad_(False)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    held, (free, _) = torch.cuda.memory_allocated(), torch.cuda.mem_get_info()
    handle = wt.offload(
        empty,
        offload_bytes=21 * layer,
        order="declared",
        checkpoint=tmp_path / "model.safetensors",
        device="cuda:0",
    )
    now, stats = torch.cuda.mem_get_info()[0], handle.stats
    # One number that orders compiled steps takes the allocator's smallest block.
    assert torch.cuda.max_memory_allocated() <= held + 512
    assert stats.resident_bytes <= 4 * layer and stats.slot_bytes <= 3 * layer
    # Allocations of the driver are rounded up to 2 MiB.
    assert free - now <= stats.resident_bytes + stats.slot_bytes + (8 << 20)
    assert stats.peak_mapped_bytes <= 21 * layer
    with torch.no_grad():
        assert torch.equal(empty(x), resident)
    handle.remove()


def test_a_quantized_model_from_a_file_is_never_whole_on_the_device(tmp_path):
    """Free memory is sampled: resident bytes and slots, in FP8, and the staging memory are used."""
    from safetensors.torch import save_file

    layers, width = 16, 4096
    tensors = {
        f"{at}.weight": torch.randn(width, width, device="cuda").to(torch.bfloat16).cpu()
        for at in range(layers)
    }
    save_file(tensors, tmp_path / "model.safetensors")
    with torch.device("meta"):
        linear = [torch.nn.Linear(width, width, bias=False) for _ in range(layers)]
        empty = torch.nn.Sequential(*linear).to(torch.bfloat16).requires_grad_(False)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before, samples, over = torch.cuda.mem_get_info()[0], [], threading.Event()

    def sample():
        while not over.wait(0.0005):
            samples.append(torch.cuda.mem_get_info()[0])

    sampler = threading.Thread(target=sample)
    sampler.start()
    handle = wt.offload(
        empty,
        offload_bytes=1 << 30,
        select=["0", "1"],
        transfer_mode="on-demand",
        device="cuda:0",
        checkpoint=tmp_path / "model.safetensors",
        quantize=QuantizeOptions(block_rows=128, block_cols=128),
    )
    over.set()
    sampler.join()
    stats = handle.stats
    kept = stats.resident_bytes + stats.slot_bytes
    assert kept < 15.1 * width * width
    # Allocations of the driver are rounded up to 2 MiB.
    assert before - min(samples) <= kept + (128 << 20) + (16 << 20)
    for at in (0, 9):
        weight, scale = empty[at].weight, empty[at].weight_scale_inv
        with handle.offloader.acquired(handle.offloader.parameter_info(f"{at}.weight").group):
            dequantized = weight.float() * scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
            torch.cuda.synchronize()
        given = tensors[f"{at}.weight"].cuda().float()
        assert (dequantized - given).abs().max() <= given.abs().max() / 16
    handle.remove()


def test_steps_on_two_streams_are_bit_identical(net, x):
    with torch.no_grad():
        resident = net(x)
        handle = wt.offload(net, offload_bytes=1 << 30, transfer_mode="prefetch")
        streams = [torch.cuda.Stream() for _ in range(2)]
        torch.cuda.synchronize()
        for turn in range(200):
            with torch.cuda.stream(streams[turn % 2]):
                result = net(x)
                streams[turn % 2].synchronize() if turn % 5 == 0 else None
                assert torch.equal(result, resident), turn
        torch.cuda.synchronize()
        handle.remove()
