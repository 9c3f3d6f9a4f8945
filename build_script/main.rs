//! Writes the C headers, compiles the kernels for the host, and sets what the linker needs to know.
//!
//! The committed headers must be those that the sources give: a build with a stale header fails,
//! and `WEIGHBRIDGE_HEADER=write` (that is `make header`) writes them.

use std::env;
use std::path::PathBuf;

use headers::CONVENTIONS;
use nouns::HEADERS;

mod declarations;
mod headers;
mod kernels;
mod nouns;

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    println!("cargo:rerun-if-env-changed=WEIGHBRIDGE_HEADER");
    for file in ["cbindgen.toml", "Cargo.toml", CONVENTIONS, "include"] {
        println!("cargo:rerun-if-changed={file}");
    }
    for file in HEADERS.iter().flat_map(|header| header.files) {
        println!("cargo:rerun-if-changed=src/{file}");
    }
    let major = env::var("CARGO_PKG_VERSION_MAJOR").expect("cargo sets it");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libweighbridge.so.{major}");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    headers::check_headers(&root);
    kernels::compile_kernels();
    kernels::pack_kernels(&root);
}
