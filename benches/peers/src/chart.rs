//! The chart of the results: one panel for each workload, with one dot for each peer that supports it,
//! on a common logarithmic axis. Plain SVG, for light and dark pages.

use std::fmt::Write;
use std::time::Duration;

use crate::table::{Cell, Results, Row, micros};

/// The axis, in powers of ten of a microsecond.
const FROM: i32 = 0;
const TO: i32 = 5;

const WIDTH: usize = 960;
const COLUMNS: usize = 2;
const COLUMN: usize = WIDTH / COLUMNS;
const ROW_HEIGHT: usize = 17;
/// The space above and below the rows of a panel.
const HEAD: usize = 34;
const FOOT: usize = 30;
/// The space left and right of the axis of a panel.
const LEFT: usize = 110;
const RIGHT: usize = 130;
/// The space above the panels.
const TOP: usize = 48;

const STYLE: &str = "\
text { font: 12px system-ui, sans-serif; fill: #24292f }
.title { font-size: 15px; font-weight: 600 } .head { font-weight: 600 }
.small { font-size: 10px; fill: #57606a } .end { text-anchor: end } .middle { text-anchor: middle }
.grid { stroke: #d0d7de; stroke-width: 1 } .floor { stroke: #8250df; stroke-width: 1.5; stroke-dasharray: 4 3 }
.back { fill: #ffffff } .other { fill: #6e7781 } .ours { fill: #cf5c00 } .bare { fill: #8250df }
text.ours { font-weight: 600 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .small { fill: #9198a1 } .grid { stroke: #30363d } .floor { stroke: #b083f0 }
.back { fill: #0d1117 } .other { fill: #9198a1 } .ours { fill: #ff9d45 } .bare { fill: #b083f0 }
}";

pub(crate) fn draw(results: &Results) -> String {
    let mut panels = String::new();
    let mut bottoms = [TOP; COLUMNS];
    for (number, row) in results.rows.iter().enumerate() {
        let column = number % COLUMNS;
        let (x, y) = (column * COLUMN, bottoms[column]);
        bottoms[column] += panel(&mut panels, results, row, (x, y));
        // The panels of one row start at the same height.
        if column == COLUMNS - 1 {
            bottoms = [bottoms.into_iter().max().unwrap_or(TOP); COLUMNS];
        }
    }
    let height = bottoms.into_iter().max().unwrap_or(TOP) + 10;
    let machine = escaped(&results.machine);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" role=\"img\">\n<title>Median time of each operation, by store</title>\n\
         <style>\n{STYLE}\n</style>\n<rect class=\"back\" width=\"{WIDTH}\" height=\"{height}\"/>\n\
         <text class=\"title\" x=\"12\" y=\"22\">Median time of one operation, logarithmic</text>\n\
         <text class=\"small\" x=\"12\" y=\"38\">{machine}. \
         In parentheses: the ratio to the bare system calls for one file per record in the same \
         round.</text>\n{panels}</svg>\n"
    )
}

/// Draws a panel with its upper left corner at `(x, y)`. Returns its height.
fn panel(out: &mut String, results: &Results, row: &Row, (x, y): (usize, usize)) -> usize {
    let mut dots: Vec<(usize, Cell)> =
        row.cells.iter().enumerate().filter_map(|(at, cell)| Some((at, (*cell)?))).collect();
    dots.sort_by_key(|(_, cell)| cell.median);
    let (top, bottom) = (y + HEAD, y + HEAD + dots.len() * ROW_HEIGHT);
    let _ = writeln!(out, "<text class=\"head\" x=\"{}\" y=\"{}\">{}</text>", x + 12, y + 22, row.name);
    for (power, label) in (FROM..=TO).zip(["1 µs", "10 µs", "100 µs", "1 ms", "10 ms", "100 ms"]) {
        let at = on_axis(x, Duration::from_micros(10_u64.pow(power.unsigned_abs())));
        let _ = writeln!(out, "<path class=\"grid\" d=\"M{at:.1} {top}V{bottom}\"/>");
        let below = bottom + 13;
        let _ = writeln!(out, "<text class=\"small middle\" x=\"{at:.1}\" y=\"{below}\">{label}</text>");
    }
    if let Some(floor) = row.cells[0] {
        let at = on_axis(x, floor.median);
        let _ = writeln!(out, "<path class=\"floor\" d=\"M{at:.1} {top}V{bottom}\"/>");
    }
    for (index, (peer, cell)) in dots.iter().enumerate() {
        let class = ["bare", "ours"].get(*peer).unwrap_or(&"other");
        let (at, middle) = (on_axis(x, cell.median), top + index * ROW_HEIGHT + ROW_HEIGHT / 2);
        let (name, base) = (escaped(results.peers[*peer].name), middle + 4);
        let left = x + LEFT - 8;
        let _ = writeln!(out, "<text class=\"{class} end\" x=\"{left}\" y=\"{base}\">{name}</text>");
        let _ = writeln!(out, "<circle class=\"{class}\" cx=\"{at:.1}\" cy=\"{middle}\" r=\"4.5\"/>");
        let right = x + COLUMN - RIGHT + 10;
        let text = if *peer == 0 {
            micros(cell.median)
        } else {
            format!("{} ({:.2}×)", micros(cell.median), cell.ratio)
        };
        let _ = writeln!(out, "<text class=\"{class}\" x=\"{right}\" y=\"{base}\">{text}</text>");
    }
    HEAD + dots.len() * ROW_HEIGHT + FOOT
}

/// The horizontal position of a time in the panel that starts at `x`.
#[expect(clippy::cast_precision_loss, reason = "a width in pixels")]
fn on_axis(x: usize, time: Duration) -> f64 {
    let (left, right) = ((x + LEFT) as f64, (x + COLUMN - RIGHT) as f64);
    let part = ((time.as_secs_f64() * 1e6).log10() - f64::from(FROM)) / f64::from(TO - FROM);
    left + part.clamp(0.0, 1.0) * (right - left)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
