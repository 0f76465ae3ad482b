//! How far a waiting command is: bars on a terminal, plain lines elsewhere, nothing with `--quiet`.
//!
//! All of it goes to stderr, so that stdout holds nothing but the result.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output;
use crate::table::printable;

/// Plain lines about one thing are at least this far apart, the last one aside.
const LINE_INTERVAL: Duration = Duration::from_secs(1);

/// Shows several things by name.
pub(crate) enum Progress {
    Bars { all: MultiProgress, bars: BTreeMap<String, ProgressBar> },
    Lines { last: BTreeMap<String, (Instant, String)> },
    Quiet,
}

impl Progress {
    pub(crate) fn new(quiet: bool) -> Self {
        match (quiet, output::notes_are_seen()) {
            (true, _) => Self::Quiet,
            (false, true) => {
                let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(15));
                Self::Bars { all, bars: BTreeMap::new() }
            }
            (false, false) => Self::Lines { last: BTreeMap::new() },
        }
    }

    /// `done` of `total`; a total of 0 means that nobody knows it.
    pub(crate) fn show(&mut self, name: &str, done: u64, total: u64, text: &str) {
        let text = printable(text);
        match self {
            Self::Bars { all, bars } => {
                let bar = bars.entry(name.to_owned()).or_insert_with(|| new_bar(all, name));
                if total > 0 && bar.length() != Some(total) {
                    bar.set_length(total);
                    bar.set_style(style("{prefix:<16} [{bar:20}] {wide_msg}"));
                }
                bar.set_position(done);
                bar.set_message(text);
            }
            Self::Lines { last } => {
                let due =
                    last.get(name).is_none_or(|(at, shown)| *shown != text && at.elapsed() >= LINE_INTERVAL);
                if due {
                    output::note(&format!("{name}: {text}"));
                    last.insert(name.to_owned(), (Instant::now(), text));
                }
            }
            Self::Quiet => {}
        }
    }

    /// The last word about one thing.
    pub(crate) fn finish(&mut self, name: &str, text: &str) {
        let text = printable(text);
        match self {
            Self::Bars { all, bars } => {
                if let Some(bar) = bars.remove(name) {
                    bar.finish_and_clear();
                }
                // A line of its own above the bars that are left; a bar would leave the cursor behind it.
                all.suspend(|| output::note(&format!("{:<16} {text}", printable(name))));
            }
            Self::Lines { last } => {
                if last.get(name).is_none_or(|(_, shown)| *shown != text) {
                    output::note(&format!("{name}: {text}"));
                }
                last.insert(name.to_owned(), (Instant::now(), text));
            }
            Self::Quiet => {}
        }
    }

    /// Takes away bars that have not come to their end, so that an error stands alone.
    pub(crate) fn abandon(&mut self) {
        if let Self::Bars { bars, .. } = self {
            for bar in bars.values().filter(|bar| !bar.is_finished()) {
                bar.finish_and_clear();
            }
        }
    }
}

fn new_bar(all: &MultiProgress, name: &str) -> ProgressBar {
    let bar = all.add(ProgressBar::new_spinner());
    bar.set_style(style("{prefix:<16} {spinner} {wide_msg}"));
    bar.set_prefix(printable(name));
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}
