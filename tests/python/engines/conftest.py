"""A fake vLLM for the tests of its plug-in."""

from __future__ import annotations

import pytest

from engines import fake_vllm

from .vllm_models import VERSIONS


@pytest.fixture(params=VERSIONS)
def vllm(request, monkeypatch):
    """A fake vLLM with the plug-in registered; its offloader is closed afterwards."""
    fake = fake_vllm.install(monkeypatch, request.param)
    import weighbridge.engines.vllm as plugin

    plugin.register()
    plugin.register()  # vLLM may
    yield fake
    close = getattr(fake.get_offloader(), "close", None)
    if close is not None:
        close()
