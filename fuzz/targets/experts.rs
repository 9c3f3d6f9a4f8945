//! The entry point of libFuzzer for `experts`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weighbridge_fuzz::experts::run(data));
