"""Weights that a resize moves: what is changed in place, in any way, before, after and meanwhile,
is what steps read; what something else still uses of the memory that they have left raises."""

from __future__ import annotations

import dataclasses

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import weighbridge.torch as wt  # noqa: E402
from weighbridge import Status, WeighbridgeError  # noqa: E402
from weighbridge.errors import make  # noqa: E402
from weighbridge.offloader import Offloader  # noqa: E402

PIECE = 2 << 20
WIDTH = 64
LAYERS = 6
ALL = 1 << 30
DROPPED = "has left by a resize"


class Net(torch.nn.Module):
    """Layers of one piece each."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def net():
    torch.manual_seed(0)
    return Net().requires_grad_(False).eval()


def by_data(weight):
    weight.data.mul_(1.25)


def by_merge(weight):
    """As peft merges an adapter."""
    weight.data += torch.full_like(weight, 0.125)


def by_copy(weight):
    weight.data.copy_(weight.flip(0) * 0.5)


def by_add(weight):
    weight.data.view(-1)[::3].add_(0.25)


def by_count(weight):
    weight.mul_(0.75)


def by_assignment(weight):
    weight.data = weight.data * 1.5


EDITS = [by_data, by_merge, by_copy, by_add, by_count, by_assignment]
UNCOUNTED = EDITS[:4]


class Pair:
    """An offloaded model and a resident one that are changed alike."""

    def __init__(self, **options):
        self.model, self.twin = net(), net()
        options = {"offload_bytes": ALL, "transfer_mode": "prefetch", **options}
        self.handle = wt.offload(self.model, fixed_addresses=True, **options)
        self.least = self.handle.stats.slot_bytes
        self.x = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1))
        self.check("at the commit")

    def up(self, wait=True):
        self.handle.resize(device_bytes=64 << 20, wait=wait)

    def down(self, wait=True):
        self.handle.resize(device_bytes=self.least, wait=wait)

    def edit(self, how, layers=range(LAYERS)):
        for model in (self.model, self.twin):
            for at in layers:
                how(model.layers[at].weight)
                how(model.layers[at].bias)

    def finish(self):
        for _ in range(10_000):
            if not self.handle.resize_advance().pending_units:
                return
        raise AssertionError("the resize does not end")

    def check(self, when):
        assert torch.equal(self.model(self.x), self.twin(self.x)), f"WRONG numbers {when}"
        self.check_state(when)

    def check_state(self, when):
        state = self.model.state_dict()
        for name, wanted in self.twin.state_dict().items():
            assert torch.equal(state[name], wanted), f"WRONG {name} in state_dict() {when}"
            assert torch.equal(self.model.get_parameter(name), wanted), f"WRONG {name} {when}"
            if self.handle.offloader.parameter_info(name).placement == "offloaded":
                assert torch.equal(self.handle.read(name), wanted), f"WRONG {name} by read() {when}"

    def remove(self):
        self.handle.remove()
        self.check_removed()

    def check_removed(self):
        for name, wanted in self.twin.state_dict().items():
            assert torch.equal(self.model.get_parameter(name), wanted), f"WRONG {name} at the end"


@pytest.mark.parametrize("transfer_mode", ["prefetch", "on-demand"])
@pytest.mark.parametrize("how", EDITS)
def test_an_edit_after_a_resize_upwards_counts(how, transfer_mode):
    pair = Pair(transfer_mode=transfer_mode)
    pair.up()
    for turn in range(2):
        pair.edit(how)
        pair.check(f"in turn {turn}")
    pair.remove()


@pytest.mark.parametrize("keep_host_copy", [False, True])
@pytest.mark.parametrize("how", EDITS)
def test_edits_between_resizes_count(how, keep_host_copy):
    pair = Pair(keep_host_copy=keep_host_copy)
    pair.edit(how)
    for turn in range(2):
        pair.up()
        pair.edit(how)
        if turn:
            pair.check("on the device")
        pair.down()
        pair.check("after it has left")
        pair.edit(how)
        pair.check("in host memory")
    pair.remove()


@pytest.mark.parametrize("asleep", [False, True])
def test_parameters_made_of_the_data_of_weights_keep_their_bytes(asleep):
    """Such as those of weight_norm, which the offloader does not hold."""
    pair = Pair()
    pair.up()
    for model in (pair.model, pair.twin):
        for layer in model.layers:
            layer = torch.nn.utils.weight_norm(layer)
            layer.register_buffer("bias_before", layer.bias.data[1:])
    wanted = {name: tensor.clone() for name, tensor in pair.twin.state_dict().items()}
    for turn in range(2):
        pair.down()
        if asleep:
            pair.handle.sleep()
            pair.handle.wake()
        assert torch.equal(pair.model(pair.x), pair.twin(pair.x)), f"WRONG numbers in turn {turn}"
        state = pair.model.state_dict()
        assert state.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert torch.equal(state[name], tensor), f"WRONG {name} in turn {turn}"
        pair.up()
    pair.handle.remove()
    assert torch.equal(pair.model(pair.x), pair.twin(pair.x)), "WRONG numbers at the end"


@pytest.mark.parametrize("keep_host_copy", [False, True])
@pytest.mark.parametrize("how", EDITS)
def test_edits_before_and_after_sleep_count(how, keep_host_copy):
    pair = Pair(keep_host_copy=keep_host_copy, offload_bytes=4 * (WIDTH + 1) * WIDTH * 4)
    assert any(info.placement == "resident" for info in pair.handle.offloader.parameter_infos())
    pair.up()
    pair.edit(how)
    pair.handle.sleep()
    offloaded = [
        at
        for at in range(LAYERS)
        if pair.handle.offloader.parameter_info(f"layers.{at}.weight").placement == "offloaded"
        and pair.handle.offloader.parameter_info(f"layers.{at}.bias").placement == "offloaded"
    ]
    pair.edit(how, offloaded)  # they have bytes in host memory
    pair.handle.wake()
    pair.edit(how)
    pair.check("after it woke")
    pair.down()
    pair.check("with less")
    pair.handle.sleep()
    pair.handle.wake()
    pair.check("after it woke again")
    pair.remove()


@pytest.mark.parametrize("keep_host_copy", [False, True])
@pytest.mark.parametrize("how", [*UNCOUNTED, by_count])
@pytest.mark.parametrize("resident", [0, 3])
def test_edits_count_while_a_resize_goes_on(how, keep_host_copy, resident):
    """In the middle of a step, whose groups are in use, it begins to move them."""
    offloaded = (LAYERS - resident) * (WIDTH + 1) * WIDTH * 4
    pair = Pair(keep_host_copy=keep_host_copy, offload_bytes=offloaded)
    moves = [pair.up, pair.down, pair.up, pair.down]
    for turn, move in enumerate(moves):
        hook = pair.model.layers[turn].register_forward_hook(lambda *_, go=move: go(wait=False))
        pair.check(f"in the step of move {turn}")
        hook.remove()
        for step in range(3):
            pair.edit(how, range(step, LAYERS))
            if step:
                pair.handle.resize_advance()
                pair.edit(how, range(step))
            pair.check(f"in step {step} of move {turn}")
        pair.edit(how)
        pair.finish()
        pair.check(f"after move {turn}")
    pair.remove()


@pytest.mark.parametrize("keep_host_copy", [False, True])
@pytest.mark.parametrize("how", [*UNCOUNTED, by_count])
def test_edits_count_while_it_falls_asleep(how, keep_host_copy):
    pair = Pair(keep_host_copy=keep_host_copy, offload_bytes=3 * (WIDTH + 1) * WIDTH * 4)
    pair.handle.resize(device_bytes=0, wait=False)
    for at in range(LAYERS):
        try:
            pair.model.layers[at].weight.sum(), pair.model.layers[at].bias.sum()
        except RuntimeError as error:
            assert "asleep" in str(error)
        else:
            pair.edit(how, [at])
    pair.finish()
    pair.handle.resize(device_bytes=64 << 20)
    pair.check("after it woke")
    pair.remove()


def test_a_call_of_the_offloader_itself_is_followed():
    pair = Pair()
    stream = pair.handle._weights.stream()
    pair.handle.offloader.resize(64 << 20, stream)
    pair.edit(by_data)
    pair.check("after a resize")
    pair.handle.offloader.sleep(stream)
    pair.handle.offloader.wake(stream)
    pair.check("after sleep")
    pair.remove()


@pytest.mark.parametrize("wait", [True, False])
def test_an_arbiter_that_moves_weights_is_followed(wait):
    one, two = Pair(), Pair()
    shared = wt.Arbiter(one.least + two.least + 5 * PIECE)
    for pair in (one, two):
        shared.add(pair.handle)
    for turn, pair in enumerate([one, two, one, two]):
        progress = shared.use(pair.handle, wait=wait)
        while not progress.ready:
            one.edit(by_data, [turn])
            progress = shared.advance()
        pair.edit(by_merge)
        for edited in (one, two):
            if not shared.member_info(edited.handle).asleep:
                edited.check(f"in turn {turn}")
    for pair in (one, two):
        shared.remove(pair.handle)
        pair.remove()


def test_weights_with_one_memory_move_together():
    class Tied(Net):
        def __init__(self):
            super().__init__()
            self.layers[5].weight = self.layers[0].weight
            self.layers[4].weight = torch.nn.Parameter(self.layers[1].weight.data)
            self.layers[3].weight = torch.nn.Parameter(self.layers[2].weight.data.t())

    torch.manual_seed(0)
    model = Tied().requires_grad_(False)
    torch.manual_seed(0)
    twin, x = Tied().requires_grad_(False), torch.randn(3, WIDTH)
    handle = wt.offload(model, offload_bytes=ALL, transfer_mode="on-demand", fixed_addresses=True)
    least = handle.stats.slot_bytes
    for turn, budget in enumerate([64 << 20, least, 64 << 20, 0, 64 << 20]):
        handle.resize(device_bytes=budget)
        for edited in (model, twin) if budget else ():
            edited.layers[turn].weight.data.mul_(1.5)
            assert torch.equal(edited.layers[4].weight, edited.layers[1].weight)
            assert torch.equal(edited.layers[3].weight, edited.layers[2].weight.t())
        if budget:
            assert torch.equal(model(x), twin(x)), f"in turn {turn}"


def test_what_a_weight_has_left_raises():
    pair = Pair()
    weight = pair.model.layers[2].weight
    name = "layers.2.weight"
    in_host_memory = [weight.data, weight.view(-1)[::2], pair.model.state_dict()[name]]
    pair.up()
    on_device = [weight.data, weight.t(), pair.model.state_dict()[name]]
    for left in in_host_memory:
        with pytest.raises(RuntimeError, match=DROPPED):
            left.mul_(2)
    on_device[0].mul_(2)
    pair.twin.layers[2].weight.mul_(2)
    for view, like in zip(on_device, [weight, weight.t(), weight]):
        assert torch.equal(view, like)
    pair.check("through a view")
    pair.down()
    for left in on_device:
        with pytest.raises(RuntimeError, match=DROPPED):
            left.sum()
    pair.check("in host memory")
    pair.remove()


def test_exchanged_memory_goes_with_the_weights():
    pair = Pair()
    for model in (pair.model, pair.twin):
        first, second = (model.layers[at].weight for at in range(2))
        first.data, second.data = second.data, first.data
    pair.up()
    assert torch.equal(pair.model(pair.x), pair.twin(pair.x))
    pair.check("after a resize")
    pair.remove()


def test_memory_that_no_weight_leaves_is_used_on():
    pair = Pair()
    for move, where in [(pair.down, "in host memory"), (pair.up, "on the device")]:
        if move == pair.up:
            move()
        kept = [p.data for p in pair.model.parameters()]
        move()
        for view in [*kept, *pair.twin.parameters()]:
            view.mul_(2)
        pair.check(where)


class Keeps(torch.nn.Module):
    """A layer that keeps a view of its weight, as some kernels want it."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(WIDTH, WIDTH))
        self.view = None

    def forward(self, x):
        if self.view is None:
            self.view = self.weight.t()
        return x @ self.view


def test_a_view_that_a_layer_keeps_is_read_in_place_at_every_budget():
    torch.manual_seed(0)
    model = torch.nn.Sequential(Keeps(), Keeps(), Keeps()).requires_grad_(False)
    torch.manual_seed(0)
    twin = torch.nn.Sequential(Keeps(), Keeps(), Keeps()).requires_grad_(False)
    x = torch.randn(2, WIDTH)
    handle = wt.offload(model, offload_bytes=ALL, transfer_mode="prefetch", fixed_addresses=True)
    least = handle.stats.slot_bytes
    assert torch.equal(model(x), twin(x))
    assert len(handle.in_place) == 3
    for budget in (64 << 20, least, 64 << 20):
        handle.resize(device_bytes=budget)
        for edited in (model, twin):
            for layer in edited:
                layer.weight.data.mul_(1.25)
        assert torch.equal(model(x), twin(x)), f"at {budget}"


def test_a_change_by_the_forward_is_found_on_the_device_too():
    class Changes(torch.nn.Linear):
        def forward(self, x):
            self.weight.data.mul_(0.5)
            return super().forward(x)

    torch.manual_seed(0)
    model = torch.nn.Sequential(*(Changes(WIDTH, WIDTH) for _ in range(3))).requires_grad_(False)
    torch.manual_seed(0)
    twin = torch.nn.Sequential(*(Changes(WIDTH, WIDTH) for _ in range(3))).requires_grad_(False)
    x = torch.randn(2, WIDTH)
    handle = wt.offload(model, offload_bytes=ALL, transfer_mode="prefetch", fixed_addresses=True)
    least = handle.stats.slot_bytes
    handle.resize(device_bytes=64 << 20)
    assert torch.equal(model(x), twin(x))
    assert set(handle.in_place) == {f"{at}.weight" for at in range(3)}
    for budget in (least, 64 << 20):
        handle.resize(device_bytes=budget)
        assert torch.equal(model(x), twin(x))


@pytest.mark.parametrize("how", EDITS)
def test_compressed_weights_count_an_edit_or_refuse_it_at_every_budget(how):
    def bfloat16():
        return net().to(torch.bfloat16)

    model, twin = bfloat16(), bfloat16()
    x = torch.randn(3, WIDTH).to(torch.bfloat16)
    names = [f"layers.{at}.weight" for at in range(LAYERS)]
    handle = wt.offload(
        model,
        offload_bytes=ALL,
        transfer_mode="prefetch",
        fixed_addresses=True,
        compress=names,
    )
    assert handle.stats.encoded_bytes > 0
    least = handle.resize_advance().device_bytes
    for budget in (64 << 20, least, 0, 64 << 20):
        handle.resize(device_bytes=budget)
        for at in range(LAYERS):
            try:
                how(model.layers[at].weight)
            except RuntimeError as error:
                assert "is compressed" in str(error)
            else:
                how(twin.layers[at].weight)
            if budget:
                how(model.layers[at].bias)
                how(twin.layers[at].bias)
        for name in names:
            model.get_parameter(name).data = twin.get_parameter(name).data * 1.5
        twin.load_state_dict(
            {**twin.state_dict(), **{n: twin.state_dict()[n] * 1.5 for n in names}}
        )
        if budget:
            assert torch.equal(model(x), twin(x)), f"at {budget}"
            for name, wanted in twin.state_dict().items():
                assert torch.equal(model.state_dict()[name], wanted)


def as_copied_by_graphs(monkeypatch):
    infos, info = Offloader.parameter_infos, Offloader.parameter_info

    def copied(found):
        return dataclasses.replace(found, copied_by_graphs=True)

    monkeypatch.setattr(Offloader, "parameter_infos", lambda self: [*map(copied, infos(self))])
    monkeypatch.setattr(Offloader, "parameter_info", lambda self, one: copied(info(self, one)))


@pytest.mark.parametrize("how", EDITS)
def test_a_weight_that_graphs_copy_counts_an_edit_or_refuses_it(monkeypatch, how):
    """Graphs would copy the old bytes over what is changed on the device, and eager steps read
    nothing of what is changed in host memory."""
    pair = Pair()
    monkey = monkeypatch.context()
    with monkey as patch:
        as_copied_by_graphs(patch)
        pair.up()
        weight, wanted = pair.model.layers[1].weight, pair.twin.layers[1].weight
        with pytest.raises(RuntimeError, match="graphs_dropped"):
            how(weight)
        weight.data = wanted * 2
        wanted.mul_(2)
        assert torch.equal(pair.model(pair.x), pair.twin(pair.x))
        state = {name: value * 0.5 for name, value in pair.twin.state_dict().items()}
        for model in (pair.twin, pair.model):
            model.load_state_dict(state)
        assert torch.equal(pair.model(pair.x), pair.twin(pair.x))
        saved = pair.model.state_dict()
        for name, value in pair.twin.state_dict().items():
            assert torch.equal(saved[name], value)
            assert torch.equal(pair.handle.read(name), value)
        saved["layers.0.weight"].mul_(2)  # of a copy, which changes nothing
        assert torch.equal(pair.model(pair.x), pair.twin(pair.x))
        pair.down()
        pair.edit(how)
        pair.check("in host memory")
        pair.up()
    pair.handle.resize(device_bytes=64 << 20, graphs_dropped=True)
    pair.edit(how)
    pair.check("after the graphs were dropped")
    pair.remove()


def test_a_replacement_is_refused_while_a_resize_goes_on_and_works_after_it():
    """It is not forgotten: the step that finds it raises, and so does the next one."""
    pair = Pair()
    hook = pair.model.layers[3].register_forward_hook(lambda *_: pair.up(wait=False))
    pair.check("in the step")
    hook.remove()
    pending = pair.handle.resize_advance().pending_units
    pair.edit(by_assignment, [0])
    for _ in range(2):
        try:
            pair.check("while it goes on")
        except WeighbridgeError as error:
            assert pending and error.status == Status.BUSY
    pair.finish()
    pair.check("after it")
    pair.remove()


@pytest.mark.parametrize("status", [Status.BUSY, Status.DEVICE_MEMORY])
def test_a_replacement_that_fails_for_a_while_is_not_forgotten(status, monkeypatch):
    """Each step raises until the offloader takes it; none runs on the bytes of before."""
    replace, left = Offloader.replace, [3 * 2]

    def fails_for_a_while(self, *arguments):
        if left[0]:
            left[0] -= 1
            raise make(status, "not now")
        replace(self, *arguments)

    pair = Pair()
    pair.up()
    pair.edit(by_assignment, [0])
    monkeypatch.setattr(Offloader, "replace", fails_for_a_while)
    for _ in range(3):
        with pytest.raises(WeighbridgeError, match="read where they are until it can: not now"):
            pair.model(pair.x)
        pair.check_state("while it cannot be taken")
    pair.check("when it is")
    pair.down()
    pair.check("elsewhere")
    pair.remove()


@pytest.mark.parametrize("again", ["assign", "copy"])
def test_weights_that_cannot_be_taken_keep_their_bytes(again):
    """Others that were loaded before them are taken, and what failed spoils no later step."""
    pair = Pair()
    pair.up()
    pair.down()
    good = {name: 1.5 * value for name, value in pair.twin.state_dict().items()}
    given = {name: good[name] for name in good if name < "layers.3"}
    taken = {name: value for name, value in given.items() if name != "layers.2.weight"}
    given["layers.2.weight"] = given["layers.2.weight"].half()
    with pytest.raises(WeighbridgeError, match=r"'layers\.2\.weight': .* keep the bytes of before"):
        pair.model.load_state_dict(given, strict=False, assign=True)
        pair.model(pair.x)
    pair.twin.load_state_dict(taken, strict=False)
    for turn in range(2):
        pair.check(f"after the refusal, in turn {turn}")
    for model in (pair.model, pair.twin):
        model.load_state_dict({k: v.clone() for k, v in good.items()}, assign=again == "assign")
    for turn in range(2):
        pair.check(f"after another load, in turn {turn}")
    pair.remove()
