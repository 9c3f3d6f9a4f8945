//! libFuzzer's entry to `plans`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weighbridge_fuzz::plans::run(data));
