"""Types, devices and gradients of an offloaded model, or of a part of it, are changed."""

from __future__ import annotations

import pytest
import torch

from .twins import Layer, Net, Tied, forward

CHANGES = {
    "layer.double()": lambda model: model.layers[2].double(),
    "layer.half()": lambda model: model.layers[2].half(),
    "head.float()": lambda model: model.head.double(),
    "embed.to(bfloat16)": lambda model: model.embed.to(torch.bfloat16),
    "norms in another type": lambda model: [layer.norm.double() for layer in model.layers],
    "list of layers": lambda model: model.layers.to(torch.float64),
    "model.to(bfloat16)": lambda model: model.to(torch.bfloat16),
    "model.half().float()": lambda model: model.half().float(),
    "model.double() twice": lambda model: model.double().double(),
    "no change": lambda model: model.float(),
    "same device": lambda model: model.to(model.embed.weight.device),
    "channels": lambda model: model.to(memory_format=torch.channels_last),
}


class MixedLayer(Layer):
    """A layer whose norm may have a type of its own."""

    def forward(self, x):
        y = self.norm(x.to(self.norm.weight.dtype)).to(self.up.weight.dtype)
        return x + self.down(torch.relu(self.up(y))).to(x.dtype)


class Mixed(Net):
    """Its layers may have types of their own."""

    layer = MixedLayer

    def forward(self, tokens):
        return self.head(self.run_layers(tokens).to(self.head.weight.dtype))

    def run_layers(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("change", list(CHANGES))
def test_a_conversion_converts_the_true_weights(compare, change):
    def use(model):
        CHANGES[change](model)
        return forward(model), [p.dtype for p in model.parameters()]

    compare(Mixed, use)


HOLDS = {
    "state_dict": lambda model: model.state_dict(),
    "array": lambda model: [p.detach().cpu().numpy() for p in model.parameters()],
    "slice": lambda model: [p.data[:1] for p in model.parameters()],
}
CONVERSIONS = {
    "half": lambda model, converted: model.half(),
    "assigned": lambda model, converted: model.load_state_dict(converted, assign=True),
    "data": lambda model, converted: [
        setattr(weight, "data", converted[name]) for name, weight in model.named_parameters()
    ],
    "parameters": lambda model, converted: [
        model.get_submodule(name.rpartition(".")[0]).register_parameter(
            name.rpartition(".")[2], torch.nn.Parameter(converted[name], requires_grad=False)
        )
        for name, _ in list(model.named_parameters())
    ],
}


@pytest.mark.other_memory
@pytest.mark.parametrize("conversion", list(CONVERSIONS))
@pytest.mark.parametrize("hold", list(HOLDS))
def test_weights_are_converted_while_something_holds_what_they_were(compare, hold, conversion):
    """The model has the new ones, not those that are held."""

    def use(model):
        device = next(model.parameters()).device
        held = HOLDS[hold](model)
        given = {name: 1.5 * value.half().to(device) for name, value in model.state_dict().items()}
        CONVERSIONS[conversion](model, given)
        return forward(model, device), [p.dtype for p in model.parameters()], len(held)

    compare(Mixed, use)


def test_a_conversion_of_a_tied_model(compare):
    def use(model):
        model.double()
        return forward(model), model.head.weight is model.embed.weight

    compare(Tied, use)


def test_requires_grad_is_changed(compare):
    def use(model):
        model.layers.requires_grad_(False)
        return forward(model)

    compare(Net, use)


def test_train_and_eval(compare):
    def use(model):
        model.train()
        first = forward(model)
        model.eval()
        return first, forward(model)

    compare(Net, use)


def test_to_empty_loses_the_weights_as_in_torch(compare):
    def use(model):
        device = model.head.weight.device
        with torch.no_grad():
            model.layers[1].to_empty(device=device)
            for parameter in model.layers[1].parameters():
                parameter.fill_(0.25)
        return forward(model)

    compare(Net, use)


def test_a_layer_is_moved_to_the_meta_device(compare):
    def use(model):
        model.layers[1].to("meta")
        del model.layers[1]
        return forward(model)

    compare(Net, use)
