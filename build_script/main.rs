//! Compiles the kernels for the host, packs those for CUDA devices, and sets what the linker needs to know.

use std::env;
use std::path::PathBuf;

mod kernels;

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let major = env::var("CARGO_PKG_VERSION_MAJOR").expect("cargo sets it");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libweighbridge.so.{major}");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    kernels::compile_kernels();
    kernels::pack_kernels(&root);
}
