//! Compiles the control API's description, without a system protoc.
use std::error::Error;
use std::io::Write;

fn main() -> Result<(), Box<dyn Error>> {
    writeln!(
        std::io::stdout(),
        "cargo:rerun-if-changed=proto/control.proto"
    )?;
    let descriptors = protox::compile(["proto/control.proto"], ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
