//! The entry point of libFuzzer for `calls`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weighbridge_fuzz::calls::run(data));
