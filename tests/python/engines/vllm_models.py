"""Models with the ways of layers that vLLM has, and how its runners load them."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from engines import fake_vllm

LAYERS, HIDDEN = 6, 128
MATRIX = 4 * HIDDEN * HIDDEN * 4  # bytes of each of the two matrices of a layer
IDS = torch.arange(7)
VERSIONS = ["0.26.0", "0.33.0"]

BUDGETS = {
    "offload_bytes": {"weighbridge": {"offload_bytes": LAYERS * MATRIX}},
    "gb": {"offload_config__uva__cpu_offload_gb": LAYERS * MATRIX / 2**30},
    "device_bytes": {"weighbridge": {"device_bytes": 7 * MATRIX}},
    "views": {"weighbridge": {"offload_bytes": "1MiB", "transfer_mode": "zero-copy"}},
    "prefetch": {"offload_config__prefetch__offload_group_size": 2},
    "every layer": {"offload_config__prefetch__offload_group_size": 1},
}


class Method:
    """How a linear layer's weight is processed; a subclass changes it."""

    def process_weights_after_loading(self, layer):
        pass

    def weight(self, layer):
        return layer.weight


class Halved(Method):
    """Replaces the weight by one of fewer bytes, as quantization does."""

    def process_weights_after_loading(self, layer):
        layer.weight = torch.nn.Parameter(layer.weight.data.half(), requires_grad=False)

    def weight(self, layer):
        return layer.weight.float()


class Renamed(Method):
    """Repacks the weight under another name, and adds scales."""

    def process_weights_after_loading(self, layer):
        packed = layer.weight.data.t().contiguous()
        del layer.weight
        layer.packed = torch.nn.Parameter(packed, requires_grad=False)
        layer.scale = torch.nn.Parameter(torch.ones(1), requires_grad=False)

    def weight(self, layer):
        return layer.packed.t() * layer.scale


class Online(Halved):
    """The weight has no memory until it has been loaded."""

    meta = True


class Linear(torch.nn.Module):
    def __init__(self, inputs, outputs, method):
        super().__init__()
        device = "meta" if getattr(method, "meta", False) else "cpu"
        self.weight = torch.nn.Parameter(
            torch.empty(outputs, inputs, device=device), requires_grad=False
        )
        self.quant_method = method

    def forward(self, x):
        return torch.nn.functional.linear(x, self.quant_method.weight(self))


class Layer(torch.nn.Module):
    def __init__(self, method):
        super().__init__()
        self.norm = torch.nn.Parameter(torch.empty(HIDDEN), requires_grad=False)
        self.up = Linear(HIDDEN, 4 * HIDDEN, method())
        self.down = Linear(4 * HIDDEN, HIDDEN, method())

    def forward(self, positions, hidden, residual=None):
        hidden = hidden * self.norm + positions[:, None]
        residual = hidden if residual is None else residual + hidden
        return self.down(torch.tanh(self.up(hidden))), residual


class Model(torch.nn.Module):
    def __init__(self, wrap, method=Method, built=lambda layers: None, layer=Layer):
        super().__init__()
        self.embed = torch.nn.Embedding(10, HIDDEN).requires_grad_(False)
        done = []

        def layers():
            for _ in range(LAYERS):
                done.append(layer(method))
                built(done)
                yield done[-1]

        self.layers = torch.nn.ModuleList(wrap(layers()))

    def forward(self, ids):
        hidden, residual = self.embed(ids), None
        for layer in self.layers:
            hidden, residual = layer(ids, hidden, residual)
        return hidden + residual


class Absorbed(torch.nn.Module):
    """Attention that keeps parts of another module's weight as parameters, as MLA does."""

    def __init__(self, source):
        super().__init__()
        self.source = [source]

    def process_weights_after_loading(self, dtype):
        parts = self.source[0].weight.data.view(HIDDEN, 2, 2 * HIDDEN).split([1, 1], 1)
        for name, part in zip(("first", "second"), parts):
            part = part.squeeze(1).transpose(0, 1)
            self.register_parameter(name, torch.nn.Parameter(part, requires_grad=False))

    def forward(self, hidden):
        return hidden @ self.first @ self.second.t()[:, :HIDDEN]


class WithAttention(Layer):
    def __init__(self, method):
        super().__init__(method)
        self.attention = Absorbed(self.down)

    def forward(self, positions, hidden, residual=None):
        spread = torch.cat([hidden, hidden], -1)
        hidden = hidden + self.attention(spread).tanh()
        return super().forward(positions, hidden, residual)


def load(model):
    """Fills a model, in another way in every layer; online ones are processed at once."""
    generator = torch.Generator().manual_seed(5)

    def values(shape):
        return torch.randn(shape, generator=generator) * shape[-1] ** -0.5

    model.embed.weight.data.copy_(values(model.embed.weight.shape))
    for layer in model.layers:
        layer.norm.data.copy_(values(layer.norm.shape))
        for part in (layer.up, layer.down):
            if part.weight.is_meta:
                made = values(part.weight.shape)
                part.weight = torch.nn.Parameter(made, requires_grad=False)
                part.quant_method.process_weights_after_loading(part)
                part.quant_method.__dict__["process_weights_after_loading"] = lambda layer: None
            else:
                part.weight.data.copy_(values(part.weight.shape))


def model_config(method=Method, layer=Layer, **members):
    return SimpleNamespace(
        model="a model",
        dtype=torch.float32,
        hf_text_config=SimpleNamespace(tie_word_embeddings=True),
        get_num_layers=lambda parallel: LAYERS,
        get_vocab_size=lambda: 10,
        get_hidden_size=lambda: HIDDEN,
        build=lambda wrap: Model(wrap, method, layer=layer),
        load=load,
        **members,
    )


def resident(method=Method, layer=Layer):
    config = model_config(method, layer)
    model = config.build(list)
    load(model)
    for layer in model.layers:
        for part in (layer.up, layer.down):
            part.quant_method.process_weights_after_loading(part)
        if hasattr(layer, "attention"):
            layer.attention.process_weights_after_loading(torch.float32)
    return model


def start(vllm, method=Method, **options):
    """Loads a model as vLLM's runners do; returns it, its offloader and the configuration."""
    options.setdefault("weighbridge", None)
    config = fake_vllm.config(options.pop("model_config", model_config(method)), **options)
    loader = vllm.get_model_loader(config.load_config)
    model = loader.load_model(vllm_config=config, model_config=config.model_config)
    return model, vllm.get_offloader(), config


def check_equal(model, expected):
    with torch.inference_mode():
        for _ in range(3):
            assert torch.equal(model(IDS), expected(IDS))


def stats(offloader):
    return offloader._weights.offloader.stats
