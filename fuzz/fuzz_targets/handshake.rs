//! Bytes from a client that has not chosen an export.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| nbd_server::nbd::fuzz_handshake(data));
