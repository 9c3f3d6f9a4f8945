//! The entry point of libFuzzer for `selectors`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weighbridge_fuzz::selectors::run(data));
