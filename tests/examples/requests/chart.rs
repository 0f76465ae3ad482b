//! The chart: requests in each quarter of a second, how long they took, and those that were lost.

use std::fmt::Write;
use std::time::Instant;

use rorqual_tests::load::Sample;

use crate::Step;

/// One column.
const COLUMN_MS: u128 = 250;
const LEFT: f64 = 62.0;
const WIDTH: f64 = 900.0;
const PANEL: f64 = 120.0;
const TOP: f64 = 62.0;
const GAP: f64 = 40.0;

/// The two kinds of load: name, colour.
const KINDS: [(&str, &str); 2] = [("a new connection each", "#2a78b8"), ("kept connections", "#d9822b")];

struct Column {
    answered: usize,
    lost: usize,
    /// The 99th of a hundred, in milliseconds.
    p99_ms: f64,
}

/// What a panel shows of a column.
type Value = fn(&Column) -> f64;

/// An SVG image.
pub(crate) fn draw(began: Instant, steps: &[Step], new: &[Sample], kept: &[Sample]) -> String {
    let rows = [columns(began, new), columns(began, kept)];
    let count = rows.iter().map(Vec::len).max().unwrap_or(1).max(1);
    let x = |column: f64| LEFT + column * WIDTH / count as f64;
    let at = |when: Instant| x(when.saturating_duration_since(began).as_millis() as f64 / COLUMN_MS as f64);
    let height = TOP + 3.0 * PANEL + 3.0 * GAP;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {:.0} {height:.0}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        LEFT + WIDTH + 20.0
    );
    for step in steps {
        let (from, until) = (at(step.from), at(step.until));
        let _ = writeln!(
            svg,
            "<rect x=\"{from:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"#eef2f6\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            (until - from).max(2.0),
            3.0 * PANEL + 2.0 * GAP,
            (from + until) / 2.0,
            TOP - 22.0,
            step.name
        );
    }
    for (index, (name, colour)) in KINDS.iter().enumerate() {
        let left = LEFT + 200.0 * index as f64;
        let _ = writeln!(
            svg,
            "<rect x=\"{left}\" y=\"8\" width=\"10\" height=\"10\" fill=\"{colour}\"/><text x=\"{}\" \
             y=\"18\">{name}</text>",
            left + 16.0
        );
    }
    let panels: [(&str, Value); 3] = [
        ("answered per second", |column| column.answered as f64 * 1000.0 / COLUMN_MS as f64),
        ("p99, ms", |column| column.p99_ms),
        ("lost", |column| column.lost as f64),
    ];
    for (number, (title, value)) in panels.iter().enumerate() {
        let top = TOP + number as f64 * (PANEL + GAP);
        panel(&mut svg, (top, title), &rows, *value, x);
    }
    seconds(&mut svg, count, height, x);
    svg.push_str("</svg>\n");
    svg
}

fn panel(
    svg: &mut String,
    (top, title): (f64, &str),
    rows: &[Vec<Column>; 2],
    value: impl Fn(&Column) -> f64,
    x: impl Fn(f64) -> f64,
) {
    let most = rows.iter().flatten().map(&value).fold(1.0, f64::max);
    let y = |value: f64| top + PANEL - value / most * PANEL;
    let bottom = top + PANEL;
    let _ = writeln!(
        svg,
        "<path d=\"M{LEFT} {top}V{bottom}H{}\" fill=\"none\" stroke=\"#888\"/><text x=\"{LEFT}\" y=\"{}\" \
         fill=\"#555\">{title}</text><text x=\"{}\" y=\"{}\" text-anchor=\"end\">{most:.0}</text><text x=\"{}\" \
         y=\"{bottom}\" text-anchor=\"end\">0</text>",
        LEFT + WIDTH,
        top - 6.0,
        LEFT - 6.0,
        top + 10.0,
        LEFT - 6.0
    );
    for (row, (_, colour)) in rows.iter().zip(KINDS) {
        let mut path = String::new();
        for (index, column) in row.iter().enumerate() {
            let letter = if index == 0 { 'M' } else { 'L' };
            let _ = write!(path, "{letter}{:.1} {:.1}", x(index as f64 + 0.5), y(value(column)));
        }
        let _ = writeln!(svg, "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>");
    }
}

fn seconds(svg: &mut String, count: usize, height: f64, x: impl Fn(f64) -> f64) {
    let every_ms = if count > 240 { 10_000 } else { 5_000 };
    for at_ms in (0..count as u128 * COLUMN_MS).step_by(every_ms) {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#555\">{} s</text>",
            x(at_ms as f64 / COLUMN_MS as f64),
            height - GAP + 20.0,
            at_ms / 1000
        );
    }
}

fn columns(began: Instant, samples: &[Sample]) -> Vec<Column> {
    let place =
        |sample: &Sample| (sample.sent.saturating_duration_since(began).as_millis() / COLUMN_MS) as usize;
    // The last one is not whole.
    let count = samples.last().map_or(0, place);
    let mut columns: Vec<Vec<&Sample>> = vec![Vec::new(); count];
    for sample in samples {
        if let Some(column) = columns.get_mut(place(sample)) {
            column.push(sample);
        }
    }
    columns.into_iter().map(column).collect()
}

fn column(samples: Vec<&Sample>) -> Column {
    let (answered, lost): (Vec<&Sample>, Vec<&Sample>) =
        samples.into_iter().partition(|sample| sample.outcome.is_ok());
    let mut took: Vec<f64> = answered.iter().map(|sample| sample.took.as_secs_f64() * 1000.0).collect();
    took.sort_by(f64::total_cmp);
    let p99_ms = took.get(took.len() * 99 / 100).copied().unwrap_or_default();
    Column { answered: answered.len(), lost: lost.len(), p99_ms }
}
