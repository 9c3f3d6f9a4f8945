//! The entry point of libFuzzer for `headers`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weighbridge_fuzz::headers::run(data));
