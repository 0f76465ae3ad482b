//! What the user sees of a build, on stderr: steps that come and go on a terminal, lines elsewhere.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use rorqual_proto::wire::{BuildEvent, build_event};

use crate::output;
use crate::table::printable;

/// Lines of a failed step that are shown once more.
const LAST_LINES: usize = 20;

/// How to show a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Style {
    // As steps on a terminal, as lines elsewhere.
    #[default]
    Auto,
    // As lines.
    Plain,
    // As steps.
    Tty,
    // Not at all.
    Quiet,
}

/// Shows a build.
pub(super) struct Show {
    steps: BTreeMap<u32, Step>,
    screen: Screen,
}

enum Screen {
    Terminal(MultiProgress),
    Lines,
    Nothing,
}

/// One step that goes on.
struct Step {
    name: String,
    begun: Instant,
    /// Output whose line has not ended.
    rest: Vec<u8>,
    last: Vec<String>,
    bars: Option<(ProgressBar, ProgressBar)>,
}

impl Show {
    pub(super) fn new(style: Style) -> Self {
        let terminal =
            || Screen::Terminal(MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(15)));
        let screen = match style {
            Style::Quiet => Screen::Nothing,
            Style::Plain => Screen::Lines,
            Style::Tty => terminal(),
            Style::Auto if output::notes_are_seen() => terminal(),
            Style::Auto => Screen::Lines,
        };
        Self { steps: BTreeMap::new(), screen }
    }

    pub(super) fn event(&mut self, event: BuildEvent) {
        let kind = event.kind();
        match kind {
            build_event::Kind::Started => self.started(event.step, printable(&event.text)),
            build_event::Kind::Output => self.output(event.step, &event.data),
            build_event::Kind::Done | build_event::Kind::Cached | build_event::Kind::Failed => {
                self.ended(event.step, kind)
            }
            build_event::Kind::Warning => self.note(&format!("warning: {}", printable(&event.text))),
            build_event::Kind::Unspecified => {}
        }
    }

    fn note(&self, text: &str) {
        match &self.screen {
            Screen::Terminal(all) => all.suspend(|| output::note(text)),
            Screen::Lines => output::note(text),
            Screen::Nothing => {}
        }
    }

    fn started(&mut self, step: u32, name: String) {
        let bars = match &self.screen {
            Screen::Terminal(all) => {
                let head = bar(all, "{spinner} {wide_msg} {elapsed}");
                head.set_message(name.clone());
                head.enable_steady_tick(Duration::from_millis(100));
                let tail = bar(all, "    {wide_msg:.dim}");
                Some((head, tail))
            }
            Screen::Lines => {
                output::note(&format!("#{step} {name}"));
                None
            }
            Screen::Nothing => None,
        };
        self.steps
            .insert(step, Step { name, begun: Instant::now(), rest: Vec::new(), last: Vec::new(), bars });
    }

    fn output(&mut self, step: u32, bytes: &[u8]) {
        let Some(state) = self.steps.get_mut(&step) else { return };
        state.rest.extend_from_slice(bytes);
        let mut lines = Vec::new();
        while let Some(end) = state.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = state.rest.drain(..=end).collect();
            lines.push(printable(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n'])));
        }
        for line in lines {
            state.line(line, step, &self.screen);
        }
    }

    fn ended(&mut self, step: u32, kind: build_event::Kind) {
        let Some(mut state) = self.steps.remove(&step) else { return };
        if !state.rest.is_empty() {
            let rest = printable(&String::from_utf8_lossy(&std::mem::take(&mut state.rest)));
            state.line(rest, step, &self.screen);
        }
        let seconds = state.begun.elapsed().as_secs_f64();
        if let Some((head, tail)) = &state.bars {
            head.finish_and_clear();
            tail.finish_and_clear();
        }
        match &self.screen {
            Screen::Terminal(_) => {
                let text = match kind {
                    build_event::Kind::Cached => format!("=> CACHED {}", state.name),
                    build_event::Kind::Failed => format!("=> FAILED {}  {seconds:.1}s", state.name),
                    _ => format!("=> {}  {seconds:.1}s", state.name),
                };
                self.note(&text);
                if kind == build_event::Kind::Failed {
                    for line in &state.last {
                        self.note(&format!("   {line}"));
                    }
                }
            }
            Screen::Lines => output::note(&match kind {
                build_event::Kind::Cached => format!("#{step} CACHED"),
                build_event::Kind::Failed => format!("#{step} FAILED {seconds:.1}s"),
                _ => format!("#{step} DONE {seconds:.1}s"),
            }),
            // The reason alone would leave the user in the dark.
            Screen::Nothing if kind == build_event::Kind::Failed => {
                for line in &state.last {
                    output::note(line);
                }
            }
            Screen::Nothing => {}
        }
    }

    /// The result has come.
    pub(super) fn done(&mut self) {
        self.clear();
    }

    /// The build has failed; its reason stands alone.
    pub(super) fn failed(&mut self) {
        self.clear();
    }

    fn clear(&mut self) {
        for (_, state) in std::mem::take(&mut self.steps) {
            if let Some((head, tail)) = state.bars {
                head.finish_and_clear();
                tail.finish_and_clear();
            }
        }
    }
}

impl Step {
    fn line(&mut self, line: String, step: u32, screen: &Screen) {
        if let Screen::Lines = screen {
            output::note(&format!("#{step} {:.3} {line}", self.begun.elapsed().as_secs_f64()));
        }
        if let Some((_, tail)) = &self.bars {
            tail.set_message(line.clone());
        }
        if self.last.len() == LAST_LINES {
            self.last.remove(0);
        }
        self.last.push(line);
    }
}

fn bar(all: &MultiProgress, template: &str) -> ProgressBar {
    let bar = all.add(ProgressBar::new_spinner());
    bar.set_style(
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner()),
    );
    bar
}
