//! The entry point of libFuzzer for `codec`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weighbridge_fuzz::codec::run(data));
