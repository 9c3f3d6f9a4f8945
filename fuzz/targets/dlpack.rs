//! The entry point of libFuzzer for `dlpack`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weighbridge_fuzz::dlpack::run(data));
