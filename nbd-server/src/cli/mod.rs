//! The command line: arguments in, one command done, its output and exit code out.
mod args;
mod failure;
mod json;
mod local;
mod output;
mod progress;
mod remote;
mod serve;
mod table;

use clap::Parser;
use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use args::{Arguments, Command};
use failure::Failure;
use output::Output;

/// Runs the command that `arguments` (with the program's name first) ask for.
///
/// The exit code is 0, 1 after an error or if `check` or `scrub` found damage, 2 if the arguments
/// make no sense; `serve` answers a second signal with 128 and the signal's number.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let parsed = match Arguments::try_parse_from(&arguments) {
        Ok(parsed) => parsed,
        Err(error) => {
            return failure::report_usage(&error, arguments.iter().any(|a| a == "--json"));
        }
    };
    let (json, what) = (parsed.json, parsed.command.what());
    let mut output = Output::new(json, std::io::stdout().lock());
    let result = execute(parsed, &mut output);
    let result = result.and_then(|code| output.flush().map(|()| code).map_err(Failure::Output));
    result.unwrap_or_else(|failure| failure.report(&what, json))
}

fn execute<W: Write>(arguments: Arguments, output: &mut Output<W>) -> Result<ExitCode, Failure> {
    let Arguments {
        control, command, ..
    } = arguments;
    match command {
        Command::Init(init) => local::init(&init, output),
        Command::Check(check) => local::check(&check, output),
        Command::Serve(serve) => serve::serve(serve, control, output),
        Command::Volume(volume) => remote::run(control, async |client| {
            remote::volume(client, volume, output).await
        }),
        Command::Snapshot(snapshot) => remote::run(control, async |client| {
            remote::snapshot(client, snapshot, output).await
        }),
        Command::Status => {
            remote::run(control, async |client| remote::status(client, output).await)
        }
        Command::Scrub(scrub) => remote::run(control, async |client| {
            remote::scrub(client, scrub, output).await
        }),
    }
}
