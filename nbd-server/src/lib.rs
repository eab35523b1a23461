//! The server as a library, so that tests and benches start it in process.
