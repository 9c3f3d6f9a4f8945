"""Low-rank adapters: added before and after the offload, merged, unmerged, removed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from .twins import Net, forward


class Adapted(nn.Module):
    """A linear layer with a low-rank update."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        device = base.weight.device
        generator = torch.Generator().manual_seed(base.in_features)
        self.a = nn.Parameter(torch.randn(4, base.in_features, generator=generator).to(device))
        self.b = nn.Parameter(torch.randn(base.out_features, 4, generator=generator).to(device))

    def forward(self, x):
        return self.base(x) + x @ self.a.t() @ self.b.t()

    def merge(self) -> None:
        self.base.weight.data += self.b.data @ self.a.data
        self.b.data = torch.zeros_like(self.b.data)


def adapt(model):
    for layer in model.layers:
        layer.up = Adapted(layer.up)
    return model


def adapted() -> nn.Module:
    return adapt(Net())


def merge(model):
    for module in model.modules():
        if isinstance(module, Adapted):
            module.merge()


def test_adapters_are_added_before_the_offload(compare):
    compare(adapted, forward)


def test_adapters_are_added_after_the_offload(compare):
    compare(Net, lambda model: forward(adapt(model)))


def test_adapters_are_merged(compare):
    def use(model):
        merge(model)
        return forward(model)

    compare(adapted, use)


def test_adapters_are_added_after_the_offload_and_merged(compare):
    def use(model):
        adapt(model)
        merge(model)
        return forward(model)

    compare(Net, use)


def test_adapters_are_merged_and_their_modules_replaced(compare):
    def use(model):
        merge(model)
        for layer in model.layers:
            layer.up = layer.up.base
        return forward(model)

    compare(adapted, use)


def test_adapters_are_merged_inside_repack(compare):
    def use(model):
        merge(model)

    def of_offloaded(model, handle):
        with handle.repack() as modules:
            for _, module in modules:
                merge(module)

    compare(adapted, use, of_offloaded=of_offloaded)


def peft_model(model, peft):
    torch.manual_seed(11)
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["up", "down"], init_lora_weights=False
    )
    return peft.get_peft_model(model, config).eval()


@pytest.fixture
def peft():
    return pytest.importorskip("peft", reason="peft is not installed")


def test_peft_adapters_are_added_after_the_offload(compare, peft):
    def use(model):
        return forward(peft_model(model, peft))

    compare(Net, use)


@pytest.mark.parametrize("how", ["merge_adapter", "merge_and_unload", "unload"])
def test_peft_adapters_are_merged(compare, peft, how):
    def use(model):
        return forward(getattr(model, how)() or model)

    compare(lambda: peft_model(Net(), peft), use)


def test_peft_adapters_are_merged_and_unmerged(compare, peft):
    def use(model):
        model.merge_adapter()
        merged = forward(model)
        model.unmerge_adapter()
        return merged, forward(model)

    compare(lambda: peft_model(Net(), peft), use)


def test_peft_adapters_are_disabled_for_one_step(compare, peft):
    def use(model):
        with model.disable_adapter():
            plain = forward(model)
        return plain, forward(model)

    compare(lambda: peft_model(Net(), peft), use)


def test_peft_adapters_are_saved(compare, peft):
    """Beside offloaded weights, and after a step: those of the resident model."""

    def use(model):
        forward(model)
        return dict(peft.get_peft_model_state_dict(model))

    compare(lambda: peft_model(Net(), peft), use)


def test_a_second_peft_adapter_is_added_and_used(compare, peft):
    def use(model):
        torch.manual_seed(12)
        config = peft.LoraConfig(r=2, target_modules=["up"], init_lora_weights=False)
        model.add_adapter("second", config)
        model.set_adapter("second")
        second = forward(model.eval())
        model.set_adapter("default")
        return second, forward(model)

    compare(lambda: peft_model(Net(), peft), use)


def test_a_peft_adapter_is_renamed(compare, peft):
    """Names change under the objects, which stay where they are."""

    def use(model):
        for module in model.modules():
            for child in module.children():
                if isinstance(child, (nn.ModuleDict, nn.ParameterDict)) and "default" in child:
                    child["other"] = child.pop("default")
            if isinstance(module, peft.tuners.lora.LoraLayer):
                for held in (module.r, module.lora_alpha, module.scaling, module.use_rslora):
                    if "default" in held:
                        held["other"] = held.pop("default")
                module._active_adapter = "other"
        return forward(model)

    compare(lambda: peft_model(Net(), peft), use)


def test_a_peft_adapter_is_deleted(compare, peft):
    def use(model):
        torch.manual_seed(12)
        config = peft.LoraConfig(r=2, target_modules=["up"])
        model.add_adapter("second", config)
        model.set_adapter("second")
        model.delete_adapter("default")
        return forward(model.eval())

    compare(lambda: peft_model(Net(), peft), use)
