//! Bytes from a client in the transmission phase.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| nbd_server::nbd::fuzz_commands(data));
