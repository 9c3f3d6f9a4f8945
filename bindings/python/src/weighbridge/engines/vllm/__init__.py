"""Offloads the weights of models that vLLM serves::

    vllm serve MODEL --load-format weighbridge --cpu-offload-gb 20
    vllm serve MODEL --load-format weighbridge \\
        --additional-config '{"weighbridge": {"device_bytes": "12GiB"}}'

vLLM finds this plug-in by its entry point ``vllm.general_plugins``. Without ``--load-format
weighbridge`` it does nothing.
"""

from __future__ import annotations

import logging

_registered = False


def register() -> None:
    """Registers the load format; vLLM calls this in each of its processes, and maybe repeatedly."""
    global _registered
    if _registered:
        return
    try:
        from vllm.model_executor.model_loader import register_model_loader

        from ._loader import WeighbridgeModelLoader
    except ImportError as error:
        # It must not keep vLLM from serving models without it.
        logging.getLogger("vllm.weighbridge").warning(
            "the load format 'weighbridge' is not available in this version of vLLM: %s", error
        )
        return
    register_model_loader("weighbridge")(WeighbridgeModelLoader)
    _registered = True
