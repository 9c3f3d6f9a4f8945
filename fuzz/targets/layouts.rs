//! The entry point of libFuzzer for `layouts`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weighbridge_fuzz::layouts::run(data));
