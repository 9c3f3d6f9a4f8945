"""What benches/pack_peers.sh fetched. Whatever is not there is not measured."""

from __future__ import annotations

import contextlib
import importlib
import sys
import traceback
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType

from report import ROOT, Report

FOLDER = ROOT / "build" / "wheels"


def load(path: str) -> ModuleType:
    """Returns the module of a file by itself, without its package, which may need more."""
    _find()
    file = FOLDER / path
    if not file.exists():
        raise ImportError(f"{file} is not there: run benches/pack_peers.sh")
    spec = spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not a module")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_of_nvidia(name: str) -> ModuleType:
    """Returns a module of ``nvidia``, a package of which parts may be installed elsewhere."""
    _find()
    if not (FOLDER / "nvidia").exists():
        raise ImportError(f"{FOLDER}/nvidia is not there: run benches/pack_peers.sh")
    package = importlib.import_module("nvidia")
    if str(FOLDER / "nvidia") not in package.__path__:
        package.__path__.append(str(FOLDER / "nvidia"))
    return importlib.import_module(f"nvidia.{name}")


def _find() -> None:
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))


@contextlib.contextmanager
def or_not_measured(report: Report, peer: str) -> Iterator[None]:
    """Prints that a peer is not there. One that is, and fails, is a bar that is missed, so that the
    rest is measured, and that the result says it."""
    try:
        yield
    except ImportError as error:
        print(f"not measured: {peer}: {error}", flush=True)
    except Exception as error:  # what others' code raises
        traceback.print_exc()
        report.bar(f"{peer} ran ({type(error).__name__}: {error})", 0, ">=", 1)
