//! `basalt`: the data daemon and its command line.
use std::process::ExitCode;

fn main() -> ExitCode {
    nbd_server::cli::run(std::env::args_os())
}
