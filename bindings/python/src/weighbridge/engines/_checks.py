"""What no engine's model may have when its weights are offloaded."""

from __future__ import annotations

import torch

QUANTIZED = {
    "Params4bit": "bitsandbytes",
    "Int8Params": "bitsandbytes",
    "HQQLinear": "HQQ",
    "QuantLinear": "GPTQ or AWQ",
    "GGUFParameter": "GGUF",
}
"""Classes of parameters and modules whose bytes other libraries move, and those libraries."""


def check_plain(model: torch.nn.Module, asked: str) -> None:
    """Raises ValueError if another library places, or converts, the weights of a model.

    ``asked`` names the model in the message.
    """
    for name, module in model.named_modules():
        where = f"{asked}.{name}" if name else asked
        hook = getattr(module, "_hf_hook", None)
        if hook is not None:
            raise ValueError(
                f"{where} has accelerate's {type(hook).__name__}, which moves its weights: load "
                "the model without device_map and without accelerate's offload, or call "
                "accelerate.hooks.remove_hook_from_module(model, recurse=True) first"
            )
        kinds = [(where, type(module))]
        kinds += [(f"{where}.{own}", type(p)) for own, p in module._parameters.items()]
        for place, kind in kinds:
            library = QUANTIZED.get(kind.__name__)
            own = kind.__module__.startswith("transformers.models.")  # I-BERT has a QuantLinear
            if library is not None and not own:
                raise ValueError(
                    f"{place} is a {kind.__module__}.{kind.__qualname__} of {library}, which moves "
                    "and converts its bytes itself: load the model without that quantization; "
                    "quantize=QuantizeOptions(...) keeps weights in FP8"
                )
