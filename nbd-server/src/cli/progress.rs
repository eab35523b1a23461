//! A bar on stderr for long work; only on a terminal.
use blockstore::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar that is removed when dropped, so that what is printed next stands alone.
#[derive(Debug)]
pub(super) struct Bar {
    bar: ProgressBar,
}

impl Bar {
    /// A bar for a job that counts bytes.
    pub(super) fn bytes(what: &'static str) -> Self {
        Self::new(
            what,
            "{msg} [{bar:40}] {bytes} of {total_bytes}, {eta} left",
        )
    }

    /// A bar for a job that counts something else.
    pub(super) fn counts(what: &'static str) -> Self {
        Self::new(
            what,
            "{msg} [{bar:40}] {human_pos} of {human_len}, {eta} left",
        )
    }

    fn new(what: &'static str, template: &str) -> Self {
        // Drawn at most five times a second, and never if stderr is not a terminal.
        let target = ProgressDrawTarget::stderr_with_hz(5);
        let bar = ProgressBar::with_draw_target(None, target).with_message(what);
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self { bar }
    }

    /// Shows how far the job is.
    pub(super) fn show(&self, progress: Progress) {
        self.bar.set_length(progress.total);
        self.bar.set_position(progress.done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
