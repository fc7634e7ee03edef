//! Colours and tables. Colours are used only on a terminal that supports them, and not if `NO_COLOR`
//! is set.

use std::borrow::Cow;
use std::env;
use std::ffi::OsStr;
use std::fmt::Write as _;

/// A colour, named by its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Colour {
    /// Normal state.
    Good,
    /// Unusual, but not an error.
    Warning,
    /// An error.
    Bad,
    Heading,
    /// Less important text.
    Dim,
}

impl Colour {
    fn code(self) -> &'static str {
        match self {
            Colour::Good => "32",
            Colour::Warning => "33",
            Colour::Bad => "31",
            Colour::Heading => "1",
            Colour::Dim => "2",
        }
    }
}

/// Says whether output is coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Style {
    colours: bool,
}

impl Style {
    /// The style for a terminal, or for an output that is not one.
    pub(crate) fn of(terminal: bool) -> Self {
        let (no_color, term) = (env::var_os("NO_COLOR"), env::var_os("TERM"));
        Self { colours: terminal && colours_enabled(no_color.as_deref(), term.as_deref()) }
    }

    pub(crate) fn paint(self, colour: Colour, text: &str) -> Cow<'_, str> {
        if self.colours && !text.is_empty() {
            Cow::Owned(format!("\x1b[{}m{text}\x1b[0m", colour.code()))
        } else {
            Cow::Borrowed(text)
        }
    }

    /// Escapes control characters, which could move the cursor. The colour distinguishes an escaped
    /// character from text that looks the same.
    pub(crate) fn printable(self, text: &str) -> String {
        let mut shown = String::with_capacity(text.len());
        for char in text.chars() {
            if char.is_control() {
                shown.push_str(&self.paint(Colour::Warning, &char.escape_debug().to_string()));
            } else {
                shown.push(char);
            }
        }
        shown
    }
}

/// Follows <https://no-color.org>. Without `TERM`, the terminal is assumed to support no colours.
fn colours_enabled(no_color: Option<&OsStr>, term: Option<&OsStr>) -> bool {
    no_color.is_none_or(OsStr::is_empty) && term.is_some_and(|term| !term.is_empty() && term != "dumb")
}

/// Escapes control characters, without colours.
pub(crate) fn printable(text: &str) -> String {
    Style { colours: false }.printable(text)
}

/// One cell of a table.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    pub(crate) text: String,
    colour: Option<Colour>,
}

impl Cell {
    pub(crate) fn coloured(text: impl Into<String>, colour: Colour) -> Self {
        Self { text: text.into(), colour: Some(colour) }
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self { text, colour: None }
    }
}

/// The heading row of a table.
pub(crate) fn heading<const N: usize>(names: [&str; N]) -> [Cell; N] {
    names.map(|name| Cell::coloured(name, Colour::Heading))
}

/// Formats rows as lines with aligned columns. The last column is not padded.
pub(crate) fn table<const N: usize>(rows: &[[Cell; N]], style: Style) -> Vec<String> {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.text.chars().count());
        }
    }
    rows.iter().map(|row| line(row, &widths, style)).collect()
}

fn line<const N: usize>(row: &[Cell; N], widths: &[usize; N], style: Style) -> String {
    let mut line = String::new();
    for (width, cell) in widths.iter().zip(row) {
        let padding = width + 2 - cell.text.chars().count();
        match cell.colour {
            Some(colour) => line.push_str(&style.paint(colour, &cell.text)),
            None => line.push_str(&cell.text),
        }
        // Writing to a `String` cannot fail.
        let _ = write!(line, "{:padding$}", "");
    }
    line.truncate(line.trim_end().len());
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Style = Style { colours: false };
    const COLOURS: Style = Style { colours: true };

    #[test]
    fn only_control_characters_are_escaped() {
        let text = "a\n\u{1b}[2J\u{9b}\"é\\";
        assert_eq!(printable(text), "a\\n\\u{1b}[2J\\u{9b}\"é\\");
        assert!(COLOURS.printable(text).starts_with("a\x1b[33m\\n\x1b[0m"));
    }

    #[test]
    fn columns_are_aligned_by_characters() {
        let rows = [["KEY", "STATE"], ["größe", "held"]]
            .map(|row| row.map(|cell| Cell::coloured(cell, Colour::Good)));
        assert_eq!(table(&rows, PLAIN), ["KEY    STATE", "größe  held"]);
        let without = |line: &String| line.replace("\x1b[32m", "").replace("\x1b[0m", "");
        let coloured = table(&rows, COLOURS);
        assert_eq!(coloured.iter().map(without).collect::<Vec<_>>(), table(&rows, PLAIN));
        assert!(coloured[1].contains("\x1b[32mgröße\x1b[0m  "), "{coloured:?}");
    }

    #[test]
    fn colours_depend_on_no_color_and_term() {
        let enabled = |no_color: Option<&str>, term: Option<&str>| {
            colours_enabled(no_color.map(OsStr::new), term.map(OsStr::new))
        };
        assert!(enabled(None, Some("xterm")) && enabled(Some(""), Some("xterm")));
        assert!(!enabled(Some("1"), Some("xterm")) && !enabled(Some("0"), Some("xterm")));
        assert!(!enabled(None, Some("dumb")) && !enabled(None, Some("")) && !enabled(None, None));
    }
}
