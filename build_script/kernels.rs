//! The kernels: compiled for the host, and packed for CUDA devices.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// Compiles the kernels for the host, once for each set of vector instructions to choose from.
pub fn compile_kernels() {
    let x86 = env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64");
    let wider: &[(&str, &[&str])] =
        &[("_avx2", &["-mavx2"]), ("_avx512", &["-mavx512f", "-mavx512bw", "-mavx512vl"])];
    // The codec moves bits, too.
    let moving: &[(&str, &[&str])] = &[
        ("_avx2", &["-mavx2", "-mbmi2"]),
        (
            "_avx512",
            &[
                "-mavx512f",
                "-mavx512bw",
                "-mavx512vl",
                "-mavx512vbmi",
                "-mavx512vbmi2",
                "-mbmi2",
                "-mpopcnt",
            ],
        ),
    ];
    for (file, name, wider) in
        [("host.c", "kernels", wider), ("codec.c", "codec", moving), ("experts.c", "experts", &[])]
    {
        for (suffix, flags) in [("_plain", &[][..])].iter().chain(wider.iter().filter(|_| x86)) {
            cc::Build::new()
                .file(format!("kernels/{file}"))
                .include("kernels")
                .define("WB_KERNEL", *suffix)
                .flags(*flags)
                // Products are rounded before they are added, and loops may compute unused values.
                .flags(["-std=c11", "-ffp-contract=off", "-fno-trapping-math"])
                .flag_if_supported("-fstack-protector-strong")
                .opt_level(if name == "codec" && *suffix != "_avx512" { 2 } else { 3 })
                .flag_if_supported("-ftree-vectorize")
                .warnings_into_errors(true)
                .extra_warnings(true)
                .compile(&format!("weighbridge_{name}{suffix}"));
        }
    }
    for file in
        ["host.c", "blocks.h", "fp8.h", "codec.c", "codec.h", "codec", "experts.c", "experts.h"]
    {
        println!("cargo:rerun-if-changed=kernels/{file}");
    }
}

/// Compresses the kernels for CUDA devices: PTX is repetitive text.
pub fn pack_kernels(root: &Path) {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    for name in ["codec.sm_75.ptx", "experts.sm_75.ptx", "quantize.sm_75.ptx", "quantize.sm_90.ptx"]
    {
        let path = root.join("kernels").join(name);
        println!("cargo:rerun-if-changed={}", path.display());
        let text = fs::read(&path).expect("the PTX is committed");
        let packed = miniz_oxide::deflate::compress_to_vec(&with_relative_registers(&text), 10);
        fs::write(out.join(name), packed).expect("OUT_DIR can be written");
    }
}

/// Writes the number of each register as the difference from the last one of its class, by which the
/// text compresses to half the size: code that differs only in its registers is then equal. The
/// reverse is `src/device/cuda/ptx.rs`.
fn with_relative_registers(text: &[u8]) -> Vec<u8> {
    let (mut last, mut packed, mut at) = (HashMap::new(), Vec::with_capacity(text.len()), 0);
    while at < text.len() {
        let word = |from: usize, is: fn(&u8) -> bool| {
            from + text[from..].iter().take_while(|byte| is(byte)).count()
        };
        let class = word(at + 1, u8::is_ascii_lowercase);
        let end = word(class, u8::is_ascii_digit);
        if text[at] != b'%' || class == at + 1 || end == class {
            packed.push(text[at]);
            at += 1;
            continue;
        }
        let digits = std::str::from_utf8(&text[class..end]).expect("digits are UTF-8");
        let number: i64 = digits.parse().expect("PTX numbers its registers");
        let before = last.insert(&text[at..class], number).unwrap_or(0);
        packed.extend_from_slice(&text[at..class]);
        packed.extend((number - before).to_string().bytes());
        at = end;
    }
    packed
}
