"""Packages that weighbridge uses where they are installed, and does without otherwise."""

from __future__ import annotations

from importlib import import_module


def need(package: str, extra: str, asked: str) -> None:
    """Raises ImportError if ``asked`` needs a package that is not installed."""
    try:
        import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:  # it is installed, and lacks one of its own
            raise
        raise ImportError(
            f"{asked} needs {package}, which is not installed: "
            f"install it, or weighbridge with it: pip install 'weighbridge[{extra}]'",
            name=package,
        ) from None
