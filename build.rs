//! Generates `include/weighbridge.h` and sets what the linker is told about the shared library.
//!
//! The committed header must be the one that the sources give: a build with a stale header fails,
//! and `WEIGHBRIDGE_HEADER=write` (that is `make header`) writes it.

use std::path::{Path, PathBuf};
use std::{env, fs};

/// Every file whose public items are part of the C interface, in the order of the header.
const INTERFACE: &[&str] = &[
    "src/status.rs",
    "src/tensor/dtype.rs",
    "src/capi/version.rs",
    "src/capi/error.rs",
    "src/capi/device.rs",
    "src/capi/device/work.rs",
    "src/capi/buffer/options.rs",
    "src/capi/buffer.rs",
    "src/capi/view.rs",
    "src/capi/dlpack.rs",
    "src/capi/safetensors.rs",
    "src/capi/parameter.rs",
    "src/capi/plan.rs",
    "src/capi/plan/contents.rs",
    "src/capi/offloader.rs",
    "src/capi/offloader/step.rs",
    "src/capi/offloader/weights.rs",
    "src/capi/quantizer.rs",
];

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    for file in INTERFACE.iter().chain(&["cbindgen.toml", "include/weighbridge.h", "Cargo.toml"]) {
        println!("cargo:rerun-if-changed={file}");
    }
    println!("cargo:rerun-if-env-changed=WEIGHBRIDGE_HEADER");

    let major = env::var("CARGO_PKG_VERSION_MAJOR").expect("cargo sets it");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libweighbridge.so.{major}");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    check_header(&root);
    compile_kernels();
    pack_kernels(&root);
}

/// The kernels for CUDA devices: PTX is text that says everything many times.
fn pack_kernels(root: &Path) {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    for name in ["quantize.sm_75.ptx", "quantize.sm_90.ptx"] {
        let path = root.join("kernels").join(name);
        println!("cargo:rerun-if-changed={}", path.display());
        let text = fs::read(&path).expect("the PTX is committed");
        let packed = miniz_oxide::deflate::compress_to_vec(&text, 10);
        fs::write(out.join(name), packed).expect("OUT_DIR can be written");
    }
}

/// The kernels for the host, once for each set of vector instructions that is chosen from at run time.
fn compile_kernels() {
    let x86 = env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64");
    let wider: &[(&str, &[&str])] =
        &[("_avx2", &["-mavx2"]), ("_avx512", &["-mavx512f", "-mavx512bw", "-mavx512vl"])];
    for (suffix, flags) in [("_plain", &[][..])].iter().chain(wider.iter().filter(|_| x86)) {
        cc::Build::new()
            .file("kernels/host.c")
            .define("WB_KERNEL", *suffix)
            .flags(*flags)
            // A product is rounded before anything is added, and loops may compute what is not used.
            .flags(["-std=c11", "-ffp-contract=off", "-fno-trapping-math"])
            .opt_level(3)
            .warnings_into_errors(true)
            .extra_warnings(true)
            .compile(&format!("weighbridge_kernels{suffix}"));
    }
    for file in ["host.c", "blocks.h", "fp8.h"] {
        println!("cargo:rerun-if-changed=kernels/{file}");
    }
}

fn check_header(root: &Path) {
    let mut config =
        cbindgen::Config::from_file(root.join("cbindgen.toml")).expect("cbindgen.toml is valid");
    let version =
        |part: &str| env::var(format!("CARGO_PKG_VERSION_{part}")).expect("cargo sets it");
    config.after_includes = config.after_includes.map(|text| {
        text.replace("@MAJOR@", &version("MAJOR"))
            .replace("@MINOR@", &version("MINOR"))
            .replace("@PATCH@", &version("PATCH"))
    });
    let mut builder = cbindgen::Builder::new().with_config(config);
    for file in INTERFACE {
        builder = builder.with_src(root.join(file));
    }
    let mut generated = Vec::new();
    builder.generate().expect("the C interface parses").write(&mut generated);
    let generated = String::from_utf8(generated)
        .expect("the sources are UTF-8")
        .replace("# Safety", "The caller promises:")
        .into_bytes();

    let path = root.join("include/weighbridge.h");
    if fs::read(&path).is_ok_and(|committed| committed == generated) {
        return;
    }
    if env::var_os("WEIGHBRIDGE_HEADER").is_some_and(|value| value == "write") {
        fs::write(&path, generated).expect("include/weighbridge.h can be written");
    } else {
        println!(
            "cargo::error=include/weighbridge.h is not what the sources give: run `make header`"
        );
    }
}
