"""Changes of a model's weights that are not taken yet, and errors that say what to do."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import weighbridge.torch as wt  # noqa: E402
from weighbridge import QuantizeOptions, Status, WeighbridgeError  # noqa: E402
from weighbridge.errors import make  # noqa: E402
from weighbridge.offloader import Offloader  # noqa: E402
from weighbridge.torch._hooked import HookedLayers  # noqa: E402

WIDTH = 64
QUANTIZED = {"quantize": QuantizeOptions(), "quantize_select": ["*.1.weight"]}


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def net(seed=0):
    torch.manual_seed(seed)
    layers = [
        torch.nn.Sequential(
            torch.nn.Linear(WIDTH, WIDTH, dtype=torch.bfloat16),
            torch.nn.Linear(WIDTH, WIDTH, dtype=torch.bfloat16),
        )
        for _ in range(4)
    ]
    return torch.nn.Sequential(*layers).requires_grad_(False).eval()


def offload(model, **options):
    return wt.offload(model, **{"offload_bytes": 1 << 30, "transfer_mode": "prefetch", **options})


def by_data(layer):
    layer.weight.data = layer.weight.data * 2


def by_object(layer):
    layer.weight = torch.nn.Parameter(layer.weight.data * 2, requires_grad=False)


@pytest.mark.parametrize("keeps", [False, True], ids=["", "its old memory is used"])
@pytest.mark.parametrize("change", [by_data, by_object])
@pytest.mark.filterwarnings("ignore:.*something else")
def test_read_gives_a_change_before_a_step_takes_it(change, keeps):
    model = net()
    handle = offload(model)
    model(torch.ones(2, WIDTH).bfloat16())
    old = model[1][0].weight.data if keeps else None
    wanted = model[1][0].weight * 2
    change(model[1][0])
    assert torch.equal(handle.read("1.0.weight"), wanted)
    model(torch.ones(2, WIDTH).bfloat16())
    assert torch.equal(handle.read("1.0.weight"), wanted)
    del old
    handle.remove()


def test_read_gives_each_name_of_a_tie_that_ends_its_own():
    model = net()
    model[2][0].weight = model[1][0].weight
    handle = offload(model)
    first = model[1][0].weight.clone()
    by_object(model[2][0])
    assert torch.equal(handle.read("1.0.weight"), first)
    assert torch.equal(handle.read("2.0.weight"), first * 2)
    handle.remove()


def test_loading_one_quantized_weight_leaves_other_changes():
    model = net()
    handle = offload(model, **QUANTIZED)
    new = torch.randn(WIDTH, WIDTH).bfloat16()
    model[3][0].weight.data = new.clone()
    model.load_state_dict({"2.1.weight": torch.randn(WIDTH, WIDTH).bfloat16()}, strict=False)
    assert torch.equal(model[3][0].weight, new)
    assert torch.equal(handle.read("3.0.weight"), new)
    handle.remove()


@pytest.mark.parametrize("skip", [0, 2, 5])
def test_an_offload_that_fails_leaves_the_full_precision_weights(monkeypatch, skip):
    model, other = net(), net()
    objects = dict(model.named_parameters())
    real, left = Offloader.view, [skip + 1]

    def view(*args):
        left[0] -= 1
        if left[0] == 0:
            raise make(Status.OUT_OF_MEMORY, "no memory")
        return real(*args)

    monkeypatch.setattr(Offloader, "view", view)
    with pytest.raises(MemoryError):
        offload(model, **QUANTIZED)
    now = dict(model.named_parameters())
    assert now.keys() == objects.keys()
    assert all(now[name] is objects[name] for name in objects)
    assert all(torch.equal(now[name], weight) for name, weight in other.named_parameters())
    offload(model, **QUANTIZED).remove()


def test_weights_that_are_refused_for_a_while_and_for_good_are_both_named(monkeypatch):
    model = net()
    handle = offload(model, fixed_addresses=True)
    errors = iter([Status.BUSY, Status.NOT_SUPPORTED])

    def replace(*_):
        raise make(next(errors), "not now")

    monkeypatch.setattr(Offloader, "replace", replace)
    for at in (1, 2):
        by_data(model[at][0])
    with pytest.raises(WeighbridgeError) as caught:
        model(torch.ones(2, WIDTH).bfloat16())
    assert "'1.0.weight': they are read where they are until it can" in str(caught.value)
    assert "'2.0.weight': they keep the bytes of before" in str(caught.value)
    monkeypatch.undo()
    handle.remove()


def test_a_step_begins_after_an_interrupt_of_layers_that_run_by_hooks():
    model, twin, x = net(), net(), torch.ones(2, WIDTH).bfloat16()
    handle = offload(model, verify="off")
    handle._modules.detach()
    hooked = HookedLayers(handle._weights)

    def interrupt(*_):
        raise KeyboardInterrupt

    hook = model[3].register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(x)
    hook.remove()
    for _ in range(2):
        for each in (model, twin):
            for layer in each:
                layer[0].weight.data.mul_(2)  # which a step reads that has begun since
        assert torch.equal(model(x), twin(x))
        assert not handle._weights.runs
    hooked.close()
    handle.remove()


def test_an_error_of_an_abandoned_step_names_the_handle():
    model = net()
    handle = offload(model)
    handle.acquire_group(0)
    handle.acquire_group(1)
    with pytest.raises(WeighbridgeError, match=r"the handle's reset\(\) ends an abandoned step"):
        handle.acquire_group(2)
    handle.reset()
    handle.acquire_group(2)
    handle.release_group(2)
    handle.remove()
