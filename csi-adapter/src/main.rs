//! `basalt-csi`: the Container Storage Interface driver. This version only says what it is.
use std::io::Write as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    let line = "basalt-csi: the CSI driver is not part of this release; use basalt";
    match writeln!(std::io::stderr(), "{line}") {
        Ok(()) | Err(_) => ExitCode::FAILURE,
    }
}
