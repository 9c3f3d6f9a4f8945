"""torch.compile before and after the offload, and layers whose arguments hide their tensors."""

from __future__ import annotations

import dataclasses
import re
import shutil

import pytest
import torch
from torch import nn

from weighbridge.torch._weights import Weights
from weighbridge.torch._window import Window

from .twins import TOKENS, Net, equal, forward

AOT = pytest.mark.parametrize("backend", ["aot_eager"])
REPEATS = pytest.mark.repeats
EVERY = pytest.mark.parametrize("backend", [pytest.param("eager", marks=REPEATS), "aot_eager"])


@pytest.fixture(autouse=True)
def fresh():
    """No code of the tests before."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def small():
    """A net whose parameters need no gradients: nothing but the offload changes for a compiler."""
    return Net(3).requires_grad_(False)


@dataclasses.dataclass
class State:
    """What layers hand on, in place of a tensor."""

    x: torch.Tensor


class InOut(nn.Module):
    """Takes an object and returns another one."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 32)

    def forward(self, state):
        return State(torch.tanh(self.linear(state.x)))


class InPlace(InOut):
    """Changes the object that it takes, and returns nothing."""

    def forward(self, state):
        state.x = torch.tanh(self.linear(state.x))


class Nothing(InOut):
    """Takes the tensor from an attribute, and stores the result there."""

    def forward(self, state):
        self.result = torch.tanh(self.linear(state.x))


class Objects(Net):
    """Hands a dataclass from layer to layer."""

    def __init__(self, layer) -> None:
        super().__init__()
        self.layers = nn.ModuleList([layer() for _ in range(4)])
        self.requires_grad_(False)

    def forward(self, tokens):
        state = State(self.embed(tokens))
        for layer in self.layers:
            state = layer(state) or state
            if hasattr(layer, "result"):
                state = State(layer.result)
        return self.head(state.x)


class Counted(nn.Module):
    """Has no tensor among its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 32))

    def forward(self, count: int):
        return self.weight[:count] * 2


class Counts(Net):
    def __init__(self) -> None:
        super().__init__()
        self.position = Counted()

    def forward(self, tokens):
        x = self.embed(tokens) + self.position(tokens.shape[1])
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class CallsForward(Net):
    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer.forward(x)
        return self.head(x)


class ReadsOthers(Net):
    def forward(self, tokens):
        x = self.embed(tokens)
        for at, layer in enumerate(self.layers):
            x = layer(x) * self.layers[at - 1].norm.weight
        return self.head(x)


class Breaks(Net):
    """The compiler breaks the graph between layers."""

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
            torch._dynamo.graph_break()
        return self.head(x)


BUILDS = {
    "layers": small,
    "objects": lambda: Objects(InOut),
    "objects changed in place": lambda: Objects(InPlace),
    "results in attributes": lambda: Objects(Nothing),
    "no tensor among the arguments": Counts,
    "forward called directly": CallsForward,
    "weights read by other layers": ReadsOthers,
    "graph breaks": Breaks,
}


def close(found, wanted, backend):
    """Inductor does not fuse across a layer's border when it is offloaded: it rounds otherwise."""
    if backend == "inductor":
        return torch.allclose(found, wanted, rtol=1e-4, atol=1e-5)
    return equal(found, wanted)


def steps(compare, program, wanted, backend, what):
    """Runs a compiled model twice."""
    for _ in range(2):
        with compare.outcome.may_raise():
            assert close(forward_of(program), wanted, backend), f"WRONG numbers {what}"


def forward_of(program):
    device = next(program.parameters()).device
    with torch.no_grad():
        return program(torch.tensor(TOKENS, device=device))


@EVERY
@pytest.mark.parametrize("build", list(BUILDS))
def test_a_model_is_compiled_after_the_offload(compare, backend, build):
    resident, model = compare.made(BUILDS[build]), compare.made(BUILDS[build])
    wanted = forward(resident)
    handle = compare.offload(model)
    with compare.outcome.may_raise():
        assert equal(forward(model), wanted), "WRONG numbers without the compiler"
    program = torch.compile(model, backend=backend)
    steps(compare, program, wanted, backend, "of compiled code")
    handle.remove()
    steps(compare, program, wanted, backend, "of compiled code after remove()")
    assert equal(forward(model), wanted), "WRONG numbers after remove()"


@AOT
@pytest.mark.parametrize("how", ["before any step", "after a step", "in place"])
def test_a_model_is_compiled_before_the_offload(compare, backend, how):
    resident, model = compare.made(small), compare.made(small)
    wanted = forward(resident)
    if how == "in place":
        model.compile(backend=backend)
        program = model
    else:
        program = torch.compile(model, backend=backend)
    if how != "before any step":
        assert close(forward_of(program), wanted, backend)
    handle = compare.offload(model)
    steps(compare, program, wanted, backend, "of code compiled before the offload")
    handle.remove()
    steps(compare, program, wanted, backend, "after remove()")


@AOT
def test_layers_are_compiled_before_the_offload(compare, backend):
    """Regional compilation."""
    resident, model = compare.made(small), compare.made(small)
    wanted = forward(resident)
    for layer in model.layers:
        layer.compile(backend=backend)
    assert close(forward(model), wanted, backend)
    handle = compare.offload(model)
    steps(compare, model, wanted, backend, "of layers compiled before the offload")
    handle.remove()
    steps(compare, model, wanted, backend, "after remove()")


@AOT
def test_it_is_offloaded_compiled_removed_and_offloaded_again(compare, backend):
    resident, model = compare.made(small), compare.made(small)
    wanted = forward(resident)
    program = torch.compile(model, backend=backend)
    for turn in range(3):
        handle = compare.offload(model)
        steps(compare, program, wanted, backend, f"in offload {turn}")
        handle.remove()
        steps(compare, program, wanted, backend, f"after remove {turn}")


@AOT
def test_a_compiled_model_is_offloaded(compare, backend):
    """The object that torch.compile returned is handed to offload()."""
    resident = compare.made(small)
    wanted = forward(resident)
    program = torch.compile(compare.made(small), backend=backend)
    assert close(forward_of(program), wanted, backend)
    handle = None
    with compare.outcome.may_raise():
        handle = compare.offload(program)
    steps(compare, program, wanted, backend, "of the compiled object")
    if handle:
        handle.remove()
    steps(compare, program, wanted, backend, "after remove()")


@AOT
def test_weights_change_between_compiled_steps(compare, backend):
    resident, model = compare.made(small), compare.made(small)
    state = {name: p.detach().clone() * 2 for name, p in resident.named_parameters()}
    handle = compare.offload(model)
    program = torch.compile(model, backend=backend)
    steps(compare, program, forward(resident), backend, "before the change")
    resident.load_state_dict(state)
    model.load_state_dict(state)
    steps(compare, program, forward(resident), backend, "after the change")
    handle.remove()
    steps(compare, program, forward(resident), backend, "after remove()")


inductor = pytest.mark.skipif(
    not (shutil.which("c++") or shutil.which("g++")), reason="there is no C++ compiler"
)


@inductor
@pytest.mark.slow
@pytest.mark.parametrize("transfer_mode", ["prefetch"])
@REPEATS
@pytest.mark.parametrize("build", ["layers", "objects", "objects changed in place"])
def test_the_default_compiler_compiles_after_the_offload(compare, build):
    test_a_model_is_compiled_after_the_offload(compare, "inductor", build)


@inductor
@REPEATS
@pytest.mark.slow
@pytest.mark.parametrize("transfer_mode", ["prefetch"])
def test_the_default_compiler_compiled_before_the_offload(compare):
    test_a_model_is_compiled_before_the_offload(compare, "inductor", "after a step")


@inductor
@REPEATS
@pytest.mark.slow
@pytest.mark.parametrize("transfer_mode", ["prefetch"])
def test_the_default_compiler_and_several_offloads(compare):
    test_it_is_offloaded_compiled_removed_and_offloaded_again(compare, "inductor")


class Square(nn.Module):
    """Its weights have as many numbers as its results for TOKENS."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)

    def forward(self, x):
        return x + torch.tanh(self.two(torch.sin(self.one(x))))


class Squares(Net):
    layer = Square

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 8), nn.Linear(8, 50)
        self.requires_grad_(False)


@inductor
@pytest.mark.slow
@pytest.mark.parametrize("transfer_mode", ["prefetch"])
def test_the_default_compiler_keeps_other_tensors_out_of_the_slots(compare, monkeypatch):
    """A CUDA device shows the numbers. The code for a CPU never uses an operator's results, so
    there it shows that they are not even freed."""
    monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
    resident, model = compare.made(Squares), compare.made(Squares)
    compare.offload(model)
    forward(model)
    program = torch.compile(model)
    found, codes = torch._inductor.utils.run_and_get_code(forward_of, program)
    assert close(found, forward(resident), "inductor"), "WRONG numbers of compiled code"
    (code,) = codes
    acquired = re.findall(r"(buf\d+) = torch.ops.weighbridge.acquire_\d+", code)
    slots = [name for of in acquired for name in re.findall(rf"(buf\d+) = {of}\[\d+\]", code)]
    assert len(slots) >= 3 * 6, code
    assert not [name for name in slots if f"del {name}\n" in code or f"= {name};" in code], code


@EVERY
@pytest.mark.parametrize("transfer_mode", ["prefetch"])
def test_steps_after_the_first_are_compiled(compare, backend, monkeypatch):
    """Code that a compiler left out would run, too, but as slowly as without it."""
    model = compare.made(small)
    compare.offload(model)
    program = torch.compile(model, backend=backend)
    forward_of(program)
    acquired = []
    own = Weights.acquire_slots
    monkeypatch.setattr(
        Weights,
        "acquire_slots",
        lambda self, group, layout: acquired.append(group) or own(self, group, layout),
    )
    monkeypatch.setattr(Window, "run", lambda *_: pytest.fail("a layer ran without the compiler"))
    forward_of(program)
    assert len(acquired) == 5, "an embedding, three layers and a head"


def multiply(weight):
    weight.mul_(2)


def multiply_data(weight):
    weight.data.mul_(2)


def set_data(weight):
    weight.data = weight.data * 2


def set_double(weight):
    weight.data = weight.data.double() * 2


def edit(model, change):
    with torch.no_grad():
        for layer in model.layers:
            change(layer.norm.weight)


@AOT
@pytest.mark.parametrize(
    ("change", "overlap"),
    [
        (multiply, False),
        (multiply, True),
        (multiply_data, False),  # excluded by overlap_steps
        (set_data, False),
        (set_data, True),
        pytest.param(set_double, False, marks=pytest.mark.other_memory),
    ],
)
def test_edits_between_compiled_steps_count(compare, backend, change, overlap):
    if overlap and change is multiply_data:
        return  # what overlap_steps excludes
    resident, model = compare.made(small), compare.made(small)
    handle = compare.offload(model, overlap_steps=overlap)
    program = torch.compile(model, backend=backend)
    for _ in range(2):
        assert equal(forward_of(program), forward(resident))
    for edited in (resident, model):
        edit(edited, change)
    if change is set_double:
        with pytest.raises(RuntimeError):
            forward(resident)
        with pytest.raises(RuntimeError):
            forward_of(program)
    else:
        assert equal(forward_of(program), forward(resident)), "WRONG numbers after the edit"
    handle.remove()
