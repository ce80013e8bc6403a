#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| podgate_fuzz::testing::fuzz::hang_up(data));
