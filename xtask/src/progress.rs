//! What the user sees of a long step: a turning line on a terminal, one plain line anywhere else.

use std::io::IsTerminal;
use std::sync::LazyLock;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// All that turn, one below the other: several steps may be under way.
static TURNING: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Prints a line that stays, above what turns.
pub(crate) fn say(line: &str) {
    TURNING.suspend(|| println!("{line}"));
}

/// A step under way; its line vanishes when it ends.
pub(crate) struct Step {
    spinner: Option<ProgressBar>,
}

impl Step {
    /// Announces a step.
    pub(crate) fn start(what: impl Into<String>) -> Self {
        let what = what.into();
        if !std::io::stderr().is_terminal() {
            eprintln!("{what}");
            return Self { spinner: None };
        }
        let style =
            ProgressStyle::with_template("{spinner} {msg} ({elapsed})").expect("the template is valid");
        let spinner = TURNING.add(ProgressBar::new_spinner().with_style(style).with_message(what));
        spinner.enable_steady_tick(Duration::from_millis(100));
        Self { spinner: Some(spinner) }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
    }
}
