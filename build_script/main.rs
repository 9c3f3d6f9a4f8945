//! Compiles the kernels for the host, packs those for CUDA devices, and sets what the linker needs to know.

use std::env;
use std::path::{Path, PathBuf};

mod kernels;

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let major = env::var("CARGO_PKG_VERSION_MAJOR").expect("cargo sets it");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libweighbridge.so.{major}");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    // What cargo runs the compiler and the linker by (.cargo/config.toml).
    println!("cargo:rerun-if-changed=tools/rustc.sh");
    println!("cargo:rerun-if-changed=tools/link.sh");
    if !is_for_clippy() {
        kernels::compile_kernels();
    }
    kernels::pack_kernels(&root);
}

/// Clippy links nothing, and cargo keeps what it builds for clippy apart.
fn is_for_clippy() -> bool {
    env::var_os("RUSTC_WORKSPACE_WRAPPER").is_some_and(|wrapper| {
        Path::new(&wrapper).file_stem().is_some_and(|name| name == "clippy-driver")
    })
}
