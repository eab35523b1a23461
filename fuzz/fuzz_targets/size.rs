//! A size on the command line or in the configuration.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| nbd_server::size::fuzz_size(data));
