//! Colours, where people see them: on a terminal that knows them, unless `NO_COLOR` asks for none.

use std::borrow::Cow;
use std::env;
use std::ffi::OsStr;
use std::fmt::Write as _;

/// What a colour is to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ink {
    /// As it should be.
    Good,
    /// Worth a look.
    Odd,
    /// Wrong.
    Bad,
    /// A heading.
    Head,
    /// Of less weight.
    Faint,
}

impl Ink {
    fn code(self) -> &'static str {
        match self {
            Ink::Good => "32",
            Ink::Odd => "33",
            Ink::Bad => "31",
            Ink::Head => "1",
            Ink::Faint => "2",
        }
    }
}

/// Whether there are colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Style {
    colours: bool,
}

impl Style {
    /// For what goes to a terminal, or does not.
    pub(crate) fn of(terminal: bool) -> Self {
        let (no_color, term) = (env::var_os("NO_COLOR"), env::var_os("TERM"));
        Self { colours: terminal && wanted(no_color.as_deref(), term.as_deref()) }
    }

    pub(crate) fn paint(self, ink: Ink, text: &str) -> Cow<'_, str> {
        if self.colours && !text.is_empty() {
            Cow::Owned(format!("\x1b[{}m{text}\x1b[0m", ink.code()))
        } else {
            Cow::Borrowed(text)
        }
    }

    /// Text without control characters, which could move the cursor. Colours tell what is escaped
    /// from what only looks so.
    pub(crate) fn printable(self, text: &str) -> String {
        let mut shown = String::with_capacity(text.len());
        for char in text.chars() {
            if char.is_control() {
                shown.push_str(&self.paint(Ink::Odd, &char.escape_debug().to_string()));
            } else {
                shown.push(char);
            }
        }
        shown
    }
}

/// As <https://no-color.org> has it; a terminal without a name is taken to be a plain one.
fn wanted(no_color: Option<&OsStr>, term: Option<&OsStr>) -> bool {
    no_color.is_none_or(OsStr::is_empty) && term.is_some_and(|term| !term.is_empty() && term != "dumb")
}

/// Text without control characters, and without colours.
pub(crate) fn printable(text: &str) -> String {
    Style { colours: false }.printable(text)
}

/// One place of a table.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    pub(crate) text: String,
    ink: Option<Ink>,
}

impl Cell {
    pub(crate) fn ink(text: impl Into<String>, ink: Ink) -> Self {
        Self { text: text.into(), ink: Some(ink) }
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self { text, ink: None }
    }
}

/// A heading of a table.
pub(crate) fn heading<const N: usize>(names: [&str; N]) -> [Cell; N] {
    names.map(|name| Cell::ink(name, Ink::Head))
}

/// Rows as columns that line up, a line each. The last column is not filled up.
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
        let fill = width + 2 - cell.text.chars().count();
        match cell.ink {
            Some(ink) => line.push_str(&style.paint(ink, &cell.text)),
            None => line.push_str(&cell.text),
        }
        // Writing to a `String` cannot fail.
        let _ = write!(line, "{:fill$}", "");
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
    fn control_characters_are_escaped_and_nothing_else() {
        let text = "a\n\u{1b}[2J\u{9b}\"é\\";
        assert_eq!(printable(text), "a\\n\\u{1b}[2J\\u{9b}\"é\\");
        assert!(COLOURS.printable(text).starts_with("a\x1b[33m\\n\x1b[0m"));
    }

    #[test]
    fn columns_line_up_by_characters() {
        let rows =
            [["KEY", "STATE"], ["größe", "held"]].map(|row| row.map(|cell| Cell::ink(cell, Ink::Good)));
        assert_eq!(table(&rows, PLAIN), ["KEY    STATE", "größe  held"]);
        let without = |line: &String| line.replace("\x1b[32m", "").replace("\x1b[0m", "");
        let coloured = table(&rows, COLOURS);
        assert_eq!(coloured.iter().map(without).collect::<Vec<_>>(), table(&rows, PLAIN));
        assert!(coloured[1].contains("\x1b[32mgröße\x1b[0m  "), "{coloured:?}");
    }

    #[test]
    fn who_wants_colours() {
        let wants = |no_color: Option<&str>, term: Option<&str>| {
            wanted(no_color.map(OsStr::new), term.map(OsStr::new))
        };
        assert!(wants(None, Some("xterm")) && wants(Some(""), Some("xterm")));
        assert!(!wants(Some("1"), Some("xterm")) && !wants(Some("0"), Some("xterm")));
        assert!(!wants(None, Some("dumb")) && !wants(None, Some("")) && !wants(None, None));
    }
}
