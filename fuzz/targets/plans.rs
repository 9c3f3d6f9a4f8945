//! The entry point of libFuzzer for `plans`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weighbridge_fuzz::plans::run(data));
