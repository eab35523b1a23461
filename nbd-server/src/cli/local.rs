//! The commands that open the pool themselves: `init` and `check`.
use blockstore::{InitOptions, Store};
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::process::ExitCode;

use super::args::{Check, Init};
use super::failure::{Failure, Subject};
use super::json::Made;
use super::output::Output;
use super::progress::Bar;
use crate::size::human;

pub(super) fn init<W: Write>(init: &Init, output: &mut Output<W>) -> Result<ExitCode, Failure> {
    let options = InitOptions {
        size: init.size.map(|size| size.0),
        force: init.force,
        journal: None,
    };
    let bar = Bar::bytes("making the pool");
    let made = Store::init(&init.pool, &options, &mut |progress| bar.show(progress));
    drop(bar);
    made.map_err(|e| Failure::Store(Subject::NewPool, e))?;
    let size = File::open(&init.pool).and_then(|mut file| file.seek(SeekFrom::End(0)));
    let size = size.map_err(Failure::System)?;
    let pool = init.pool.display().to_string();
    let words = format!(
        "made pool {pool} of {}\nnext:  basalt serve {} --volume demo=1G",
        human(size),
        super::serve::quoted(&pool)
    );
    output
        .said(&Made { pool: &pool, size }, &words)
        .map_err(Failure::Output)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn check<W: Write>(check: &Check, output: &mut Output<W>) -> Result<ExitCode, Failure> {
    let bar = Bar::bytes("checking");
    let report = Store::check(&check.pool, &mut |progress| bar.show(progress));
    drop(bar);
    let report = report.map_err(|e| Failure::Store(Subject::Pool, e))?;
    let pool = check.pool.display().to_string();
    output.check(&pool, &report).map_err(Failure::Output)?;
    Ok(if report.problems.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
