"""Offloads the weights of models that SGLang serves::

    WEIGHBRIDGE_SGLANG=1 python -m sglang.launch_server --model-path MODEL \\
        --cpu-offload-gb 20 --cuda-graph-backend-prefill disabled
    WEIGHBRIDGE_SGLANG='{"device_bytes": "12GiB"}' python -m sglang.launch_server ...

SGLang finds this plug-in by its entry point ``sglang.srt.plugins``. Without the variable it does
nothing.
"""

from __future__ import annotations

from ._options import given


def register() -> None:
    """Makes SGLang's offloader weighbridge's; SGLang calls this in each of its processes."""
    if given() is None:
        return
    from ._hooks import install

    install()
