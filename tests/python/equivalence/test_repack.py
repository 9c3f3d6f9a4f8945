"""What happens inside repack(), beside changes of the module at hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from .twins import Net, Tied, equal, forward, weights


def nothing(model):
    return None


def test_the_model_runs_inside_repack(compare):
    def of_offloaded(model, handle):
        wanted = forward(compare.made(Net))
        with handle.repack() as modules:
            for _ in modules:
                with compare.outcome.may_raise():
                    assert equal(forward(model), wanted), "WRONG numbers inside repack()"

    compare(Net, nothing, of_offloaded=of_offloaded)


def test_the_model_runs_inside_repack_before_and_after_the_modules(compare):
    def of_offloaded(model, handle):
        wanted = forward(compare.made(Net))
        with handle.repack() as modules:
            with compare.outcome.may_raise():
                assert equal(forward(model), wanted), "WRONG numbers inside repack()"
            for _ in modules:
                pass
            with compare.outcome.may_raise():
                assert equal(forward(model), wanted), "WRONG numbers inside repack()"

    compare(Net, nothing, of_offloaded=of_offloaded)


def test_the_module_at_hand_runs(compare):
    x = torch.linspace(-1, 1, 64).reshape(2, 32)

    def use(model):
        with torch.no_grad():
            return [layer(x.to(model.head.weight.device)) for layer in model.layers]

    def of_offloaded(model, handle):
        found = []
        with handle.repack() as modules, torch.no_grad():
            for name, module in modules:
                if name.startswith("layers."):
                    found.append(module(x.to(model.head.weight.device)))
        return found

    compare(Net, use, of_offloaded=of_offloaded)


def test_weights_of_other_modules_are_read_inside_repack(compare):
    def of_offloaded(model, handle):
        wanted = weights(compare.made(Net))
        with handle.repack() as modules:
            for _ in modules:
                with compare.outcome.may_raise():
                    found = {name: p.detach().clone() for name, p in model.named_parameters()}
                    assert equal(found, wanted), "WRONG weights inside repack()"
                with compare.outcome.may_raise():
                    assert equal(weights(model), wanted), "WRONG state_dict() inside repack()"

    compare(Net, nothing, of_offloaded=of_offloaded)


def test_weights_of_other_modules_are_edited_inside_repack(compare):
    def use(model):
        with torch.no_grad():
            for layer in model.layers:
                layer.up.weight.mul_(2)

    def of_offloaded(model, handle):
        with handle.repack() as modules:
            for turn, _ in enumerate(modules):
                if turn == 2:
                    use(model)

    compare(Net, use, of_offloaded=of_offloaded)


def test_an_error_inside_repack_keeps_what_was_done(compare):
    def use(model):
        with torch.no_grad():
            model.layers[0].up.weight.mul_(2)

    def of_offloaded(model, handle):
        with pytest.raises(ZeroDivisionError), handle.repack() as modules, torch.no_grad():
            for name, module in modules:
                if name == "layers.0":
                    module.up.weight.mul_(2)
                if name == "layers.1":
                    raise ZeroDivisionError

    compare(Net, use, of_offloaded=of_offloaded)


def test_repack_is_left_early(compare):
    def use(model):
        with torch.no_grad():
            model.layers[0].norm.bias.add_(1)

    def of_offloaded(model, handle):
        with handle.repack() as modules, torch.no_grad():
            for name, module in modules:
                if name == "layers.0":
                    module.norm.bias.add_(1)
                    break

    compare(Net, use, of_offloaded=of_offloaded)


def test_repack_inside_repack(compare):
    def of_offloaded(model, handle):
        with handle.repack() as modules:
            next(modules)
            with compare.outcome.may_raise(), handle.repack() as inner:
                for _ in inner:
                    pass
            for _ in modules:
                pass

    compare(Net, nothing, of_offloaded=of_offloaded)


def test_a_tied_weight_is_changed_inside_repack(compare):
    def use(model):
        with torch.no_grad():
            model.embed.weight.mul_(2)

    def of_offloaded(model, handle):
        with handle.repack() as modules, torch.no_grad():
            for _, module in modules:
                if isinstance(module, nn.Embedding):
                    module.weight.mul_(2)

    compare(Tied, use, of_offloaded=of_offloaded)


def test_remove_inside_repack(compare):
    def of_offloaded(model, handle):
        with handle.repack() as modules:
            for _ in modules:
                with compare.outcome.may_raise():
                    handle.remove()
                break

    model = compare.made(Net)
    wanted, state = forward(model), weights(model)
    handle = compare.offload(model)
    with compare.outcome.may_raise():
        of_offloaded(model, handle)
    with compare.outcome.may_raise():
        handle.remove()
    assert equal(weights(model), state), "WRONG weights after remove()"
    assert equal(forward(model), wanted), "WRONG numbers after remove()"
