"""Calls that fail, or are interrupted, while a model's changes are taken: the error is raised, and
nothing is lost. The next steps, the model's weights and ``read()`` have what a resident model has.
"""

from __future__ import annotations

import contextlib
import warnings

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import weighbridge.torch as wt  # noqa: E402
from weighbridge import Status, WeighbridgeError  # noqa: E402
from weighbridge.errors import make  # noqa: E402
from weighbridge.offloader import Offloader  # noqa: E402
from weighbridge.torch import _changes, _homes, _moves, _weights, _window  # noqa: E402

two_tensor = pytest.importorskip("torch.testing._internal.two_tensor")
WIDTH = 64


class Scale(torch.nn.Module):
    """A weight of any size, also of a subclass of two tensors."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(WIDTH, WIDTH))

    def forward(self, x):
        weight = self.weight
        if isinstance(weight, two_tensor.TwoTensor):
            weight = weight.a + weight.b
        return torch.tanh(x @ weight[:WIDTH])


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(Scale() for _ in range(6))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Tied(Net):
    """Two modules have one weight."""

    def __init__(self):
        super().__init__()
        self.layers[4].weight = self.layers[1].weight


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Pair:
    """An offloaded model and a resident one that are changed alike."""

    def __init__(self, kind=Net, **options):
        self.model, self.twin = self.made(kind), self.made(kind)
        options = {"offload_bytes": 1 << 30, "transfer_mode": "prefetch", **options}
        self.handle = wt.offload(self.model, **options)
        self.x = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1))
        self.step()

    @staticmethod
    def made(kind):
        torch.manual_seed(0)
        return kind().requires_grad_(False).eval()

    def edit(self, how, *layers):
        for model in (self.model, self.twin):
            for at in layers:
                how(model.layers[at])

    def step(self):
        return self.model(self.x)

    def check(self):
        for _ in range(2):
            assert torch.equal(self.step(), self.twin(self.x))
            self.check_weights()
        self.handle.reconcile()
        assert torch.equal(self.step(), self.twin(self.x))
        self.check_weights()

    def check_weights(self):
        infos = self.handle.offloader.parameter_infos()
        offloaded = {info.name for info in infos if info.placement == "offloaded"}
        for name, wanted in self.twin.named_parameters(remove_duplicate=False):
            if not isinstance(wanted, two_tensor.TwoTensor):
                assert torch.equal(self.model.state_dict()[name], wanted), name
                assert torch.equal(self.model.get_parameter(name), wanted), name
                assert name not in offloaded or torch.equal(self.handle.read(name), wanted), name


@pytest.fixture
def fails(monkeypatch):
    """Makes one call of a function fail, after some that do not; returns how many are left."""

    def failing(owner, name, skip=0, error=None, after=False):
        real, left = getattr(owner, name), [skip + 1]

        def once(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0 and after:
                real(*args, **kwargs)
            if left[0] == 0:
                raise error or make(Status.DEVICE_MEMORY, "not now")
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, once)
        return left

    return failing


def doubled(layer):
    layer.weight.data = layer.weight.data * 2


def larger(layer):
    layer.weight.data = torch.cat([layer.weight.data * 2] * 3)


def another(layer):
    layer.weight = torch.nn.Parameter(layer.weight.data * 2, requires_grad=False)


def subclass(layer):
    one = two_tensor.TwoTensor(layer.weight.data * 2, layer.weight.data.clone())
    layer.weight = torch.nn.Parameter(one, requires_grad=False)


SET = [
    *((Offloader, name, skip) for name in ("host_view", "view") for skip in (0, 1, 3)),
    (Offloader, "parameter_infos", 0),
    *((_homes, "homes_at", skip) for skip in range(3)),
    (_weights.Weights, "set", 0),
    (_changes, "like", 0),
    (Offloader, "replace", 0),
]


@pytest.mark.parametrize("error", [None, KeyboardInterrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize(("owner", "name", "skip"), SET)
@pytest.mark.parametrize("change", [doubled, larger, another])
def test_a_step_that_fails_while_it_takes_a_change_is_repeated(
    fails, change, owner, name, skip, error
):
    pair = Pair()
    pair.edit(change, 1, 3)
    left = fails(owner, name, skip, error)
    try:
        pair.step()
    except (WeighbridgeError, KeyboardInterrupt):
        assert left[0] <= 0
    else:
        assert left[0] > 0, "the error was lost"
    for at in (0, 2, 4, 5):  # layers without a change
        assert torch.equal(pair.model.layers[at](pair.x), pair.twin.layers[at](pair.x))
    pair.check()


def test_what_is_changed_after_a_step_that_has_failed_is_kept(fails):
    pair = Pair()
    pair.edit(doubled, 1)
    fails(_weights.Weights, "set")
    with pytest.raises(WeighbridgeError):
        pair.step()
    pair.edit(lambda layer: layer.weight.mul_(3), 1)
    pair.check()


def test_a_warning_that_is_an_error_loses_no_change():
    pair = Pair()
    old = pair.model.layers[0].weight.data
    pair.edit(doubled, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="uses the memory"):
            pair.step()
        pair.check_weights()
    del old
    pair.check()


def test_no_memory_to_separate_weights_loses_no_change(fails):
    pair = Pair()

    def swapped(model):
        model.layers[0].weight.data = model.layers[1].weight.data  # in another weight's home
        model.layers[2].weight.data = model.layers[2].weight.data * 3

    swapped(pair.model)
    swapped(pair.twin)
    fails(_changes, "like", error=torch.OutOfMemoryError("none"))
    with pytest.raises(torch.OutOfMemoryError):
        pair.step()
    pair.check()


@pytest.mark.parametrize("name", ["replace", "compact"])
def test_a_reconcile_that_fails_loses_no_change(fails, name):
    pair = Pair()
    pair.edit(doubled, 1, 2)
    fails(Offloader, name)
    with pytest.raises(WeighbridgeError):
        pair.handle.reconcile()
    pair.check_weights()
    pair.check()


def test_a_repack_that_fails_loses_no_change(fails):
    pair = Pair()

    def change(layer):
        another(layer)
        layer.extra = torch.nn.Parameter(torch.ones(WIDTH), requires_grad=False)

    fails(Offloader, "add")
    with pytest.raises(WeighbridgeError), pair.handle.repack() as modules:
        for name, layer in modules:
            if name == "layers.2":
                change(layer)
    change(pair.twin.layers[2])
    assert torch.equal(pair.step(), pair.twin(pair.x))
    pair.check()


@pytest.mark.parametrize(("name", "skip"), [("add", 0), ("add", 1), ("remove", 0)])
def test_a_weight_becomes_a_subclass_although_a_call_has_failed(fails, name, skip):
    pair = Pair()
    pair.edit(subclass, 1)
    fails(Offloader, name, skip)
    with pytest.raises(WeighbridgeError, match="not now"):
        pair.step()
    for at in (0, 2, 3):
        assert torch.equal(pair.model.layers[at](pair.x), pair.twin.layers[at](pair.x))
    pair.check()


@pytest.mark.parametrize("name", ["add", "remove"])
def test_a_tie_ends_although_a_call_has_failed(fails, name):
    pair = Pair(Tied)
    new = torch.randn(WIDTH, WIDTH)
    for model in (pair.model, pair.twin):
        model.layers[4].weight = torch.nn.Parameter(new.clone(), requires_grad=False)
    fails(Offloader, name)
    with pytest.raises(WeighbridgeError, match="not now"):
        pair.step()
    assert torch.equal(pair.step(), pair.twin(pair.x))
    pair.check()
    assert "layers.4.weight" in [info.name for info in pair.handle.offloader.parameter_infos()]


def test_a_counted_edit_is_copied_although_a_step_did_not_begin(fails):
    pair = Pair(overlap_steps=True)
    pair.step()
    pair.edit(lambda layer: layer.weight.mul_(2), 0)
    fails(Offloader, "begin_step")
    with pytest.raises(WeighbridgeError):
        pair.step()
    pair.check()


@pytest.mark.parametrize("name", ["copy_bytes", "homes_at", "where_of"])
@pytest.mark.parametrize("skip", [0, 2])
@pytest.mark.parametrize("steps_next", [True, False])
def test_what_was_changed_while_weights_moved_is_kept_by_an_error(fails, name, skip, steps_next):
    pair = Pair(fixed_addresses=True)

    def up(*_):
        pair.handle.resize(device_bytes=64 << 20, wait=False)

    hook = pair.model.layers[0].register_forward_hook(up)
    pair.step()
    hook.remove()
    pair.edit(lambda layer: layer.weight.data.mul_(2), *range(6))
    fails(_moves, name, skip, torch.OutOfMemoryError("none"))
    with contextlib.suppress(torch.OutOfMemoryError):  # unless all has arrived before
        while pair.handle.resize_advance().pending_units:
            pass
    if steps_next:
        assert torch.equal(pair.step(), pair.twin(pair.x))
    while pair.handle.resize_advance().pending_units:
        pass
    assert torch.equal(pair.step(), pair.twin(pair.x))
    pair.check_weights()


@pytest.mark.parametrize("again", [True, False])
def test_an_interrupted_sleep_is_undone_by_wake(fails, again):
    pair = Pair(fixed_addresses=True)
    pair.handle.resize(device_bytes=64 << 20)
    held = pair.handle.resize_advance().device_bytes
    fails(Offloader, "_resize", error=KeyboardInterrupt(), after=True)
    with pytest.raises(KeyboardInterrupt):
        pair.handle.sleep()
    if again:
        pair.handle.sleep()
    pair.handle.wake()
    assert pair.handle.resize_advance().device_bytes == held
    assert torch.equal(pair.step(), pair.twin(pair.x))


class Counts(Scale):
    """Changes its weight in its forward."""

    def forward(self, x):
        found = super().forward(x)
        self.weight.add_(1)
        return found


class Changing(Net):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([Scale(), Counts(), Scale(), Scale()])


@pytest.mark.parametrize("skip", range(4))
@pytest.mark.parametrize("name", ["version_of", "copy_bytes"])
def test_an_interrupt_while_weights_are_taken_home(fails, name, skip):
    pair = Pair(Changing, verify="off")
    pair.twin(pair.x)
    left = fails(_window, name, skip, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        while left[0] > 0:
            before = pair.twin.layers[1].weight.clone()
            pair.twin(pair.x)
            pair.step()
    pair.handle.reset()
    if name == "version_of" and skip == 0:  # before the layer that changes its weight
        pair.twin.layers[1].weight.copy_(before)
    pair.check_weights()
    for _ in range(2):
        assert torch.equal(pair.step(), pair.twin(pair.x))
        pair.check_weights()
    pair.handle.remove()
    assert torch.equal(pair.step(), pair.twin(pair.x))
