"""The command line: ``python -m weighbridge plan``, ``quantize``, ``experts``, ``compress``."""
