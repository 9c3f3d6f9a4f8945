"""The command line: ``python -m weighbridge plan`` and ``quantize``."""
