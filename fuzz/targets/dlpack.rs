//! libFuzzer's entry to `dlpack`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weighbridge_fuzz::dlpack::run(data));
