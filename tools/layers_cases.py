"""Small repositories with the kinds of violations that tools/layers.py must find, or with none."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Callable, NamedTuple

MEMORY = {
    "src/lib.rs": "mod device; mod memory;",
    "src/memory/mod.rs": "pub mod buffer;",
    "src/memory/buffer.rs": "pub struct Buffer;",
}
DEVICE_USES_BUFFER = "device imports src/memory/buffer.rs"


class Case(NamedTuple):
    """A repository, and a part of the message of each violation in it."""

    name: str
    files: dict[str, str]
    wrong: list[str]
    wider: int = 0


def rust(name: str, lib: str, wrong: list[str], wider: int = 0, **files: str) -> Case:
    """A case of files in src; ``a__b`` is a/b.rs."""
    named = {f"src/{path.replace('__', '/')}.rs": text for path, text in files.items()}
    return Case(name, {"src/lib.rs": lib, **named}, wrong, wider)


def up(name: str, device: str, wrong: str = DEVICE_USES_BUFFER) -> Case:
    """A case in which the floor ``device`` uses the floor ``memory`` above it."""
    return Case(name, {**MEMORY, "src/device.rs": device}, [wrong])


CASES = [
    rust(
        "imports that look down, comments, strings and lifetimes are fine",
        "pub mod capi; mod os; mod error; mod status;",
        [],
        capi="use crate::os::{self, page::{Page as P, r#type}};\n// use crate::nothing::X;\n"
        "fn f<'a>(x: &'a P) -> char { os::page::get(); \"use crate::y::Z;\"; '\"' }\n"
        'const KERNEL: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernel"));\n',
        os__mod="#![allow(unsafe_code)]\npub mod page;\npub use crate::error::Error as Failure;",
        os__page="use std::sync::Arc; use crate::error::Error; pub struct Page; pub fn get() {}"
        "pub fn r#type() {}",
        error="// allow(unsafe_code)\nuse crate::status::Status; pub struct Error;",
        status="pub struct Status;",
    ),
    up("a nested use", "use crate::{memory::{buffer::{Buffer as B, self}}};"),
    up("a public use", "pub(crate) use crate::memory::buffer::*;"),
    up("a path in code", "fn f() -> crate::memory::buffer::Buffer { todo!() }"),
    up("super", "use super::memory::buffer::Buffer;"),
    up("super from a block", "mod inner { fn f(_: super::super::memory::buffer::Buffer) {} }"),
    up(
        "a path through an imported module", "use crate::memory as m; fn f(_: m::buffer::Buffer) {}"
    ),
    up(
        "production code after tests",
        "#[cfg(test)] mod tests { fn f() {} }\nuse crate::memory::buffer::Buffer;",
    ),
    rust(
        "a re-export leads to the file that defines the item",
        "mod os; mod device;",
        ["os/mod.rs:1: os imports src/device", "page.rs:1: os imports", "proc.rs:2: os imports"],
        os__mod="pub mod page; mod proc; pub use crate::device::Device;",
        os__proc="\nuse super::*;",
        os__page="use crate::os::Device; pub struct Page;",
        device="pub struct Device;",
    ),
    rust(
        "a circle through a module that only re-exports",
        "mod memory;",
        ["circle:\n    src/memory/a.rs:1 imports src/memory/b.rs\n    src/memory/b.rs:2 imports"],
        memory__mod="mod a; mod b; pub use {a::A, b::*};",
        memory__a="use super::B; pub struct A(B);",
        memory__b="pub struct B;\nfn f(_: crate::memory::A) {}",
    ),
    rust(
        "a parent with code and a child that uses it",
        "mod memory;",
        ["circle"],
        memory="mod child; use child::Child; pub struct Parent(Child);",
        memory__child="use super::Parent; pub struct Child;",
    ),
    rust(
        "plan is pure",
        "mod plan; mod quant; mod device; mod os;",
        ["plan imports src/device.rs: plan may use os, tensor", "plan imports src/quant.rs"],
        plan="use crate::device::D;\nuse crate::quant::Q;\nuse crate::os::O;",
        quant="pub struct Q;",
        device="pub struct D;",
        os="pub struct O;",
    ),
    rust(
        "neighbours do not use each other",
        "mod quant; mod codec;",
        ["quant imports src/codec.rs"],
        quant="use crate::codec::C;",
        codec="pub struct C;",
    ),
    rust(
        "error uses status only",
        "mod error; mod tensor;",
        ["error imports src/tensor.rs"],
        error="use crate::tensor::T;",
        tensor="pub struct T;",
    ),
    rust(
        "unsafe code", "mod memory;", ["allows unsafe"], memory="#![allow(unsafe_code)]\nfn f() {}"
    ),
    rust(
        "files from outside of src",
        "mod memory;",
        ["takes ../tests/a.rs", "takes ../tests/b.rs"],
        memory='#[path = "../tests/a.rs"]\nmod a;\ninclude!("../tests/b.rs");',
    ),
    rust("a file on no floor", "mod extra;", ["is on no floor"], extra="fn f() {}"),
    rust("a file that nothing declares", "", ["no file declares"], memory="fn f() {}"),
    rust(
        "tests may use one floor more and form a circle",
        "mod device; mod memory;",
        [],
        2,
        device="mod tests; pub struct D;\n#[cfg(test)]\nmod inside { use crate::memory::M; }",
        device__tests="use crate::memory::M; use super::D;",
        memory="use crate::device::D; pub struct M;",
    ),
    rust(
        "tests may not use two floors more",
        "mod device; mod quant;",
        ["tests of device may use"],
        device="#[cfg(test)]\nuse crate::quant::Q;",
        quant="pub struct Q;",
    ),
    rust(
        "a name that is nowhere",
        "mod os; mod memory;",
        ["cannot find where"],
        memory="use crate::os::Missing;",
        os__mod="mod page;",
        os__page="pub struct Page;",
    ),
    Case(
        "Python: a circle through functions and the package, but not for types",
        {
            "src/lib.rs": "",
            **{
                f"bindings/python/src/weighbridge/{name}.py": text
                for name, text in {
                    "__init__": "from .a import A",
                    "a": "def f():\n    from . import b",
                    "b": "from weighbridge.a import A",
                    "c": "from . import A\nimport weighbridge.d",
                    "d": "import typing\nif typing.TYPE_CHECKING:\n    from .c import C",
                }.items()
            },
        },
        ["a.py:2 imports bindings/python/src/weighbridge/b.py\n    bindings/python"],
    ),
    Case(
        "headers: a circle of includes, but not in comments",
        {
            "src/lib.rs": "",
            "include/weighbridge.h": "#include <stdint.h>\n#include <weighbridge/a.h>",
            "include/weighbridge/a.h": "/*\n#include <weighbridge.h>\n*/",
            "bindings/cpp/weighbridge/x.hpp": '#include "y.hpp"\n#include <weighbridge.h>',
            "bindings/cpp/weighbridge/y.hpp": '\n# include "weighbridge/x.hpp"',
        },
        ["x.hpp:1 imports bindings/cpp/weighbridge/y.hpp\n    bindings/cpp/weighbridge/y.hpp:2"],
    ),
]


def run(check: Callable[[Path], tuple[list[str], list[str]]]) -> int:
    """Checks every case; 1 if one has other violations than it should."""
    failed = 0
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder).resolve()
            for path, text in case.files.items():
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_text(text)
            wrong, wider = check(root)
        missed = [part for part in case.wrong if not any(part in line for line in wrong)]
        if missed or len(wrong) != len(case.wrong) or len(wider) != case.wider:
            failed += 1
            print(f"FAIL {case.name}: expected {case.wrong} and {case.wider} wider imports, found:")
            print(*wrong, *wider, sep="\n")
    print(f"layers self-test: {len(CASES) - failed} passed, {failed} failed")
    return 1 if failed else 0
