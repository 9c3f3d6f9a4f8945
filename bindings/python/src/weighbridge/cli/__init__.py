"""The command line: ``python -m weighbridge plan``, ``quantize`` and ``compress``."""
