//! libFuzzer's entry to `selectors`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weighbridge_fuzz::selectors::run(data));
