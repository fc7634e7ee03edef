//! Colours, tables and the width of text on a terminal.

use std::borrow::Cow;
use std::fmt::Write as _;

use anstream::stream::RawStream;
use anstream::{AutoStream, ColorChoice};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

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
    pub(crate) const PLAIN: Self = Self { colours: false };

    /// The style for a stream: coloured if it is a terminal that supports colours. The environment can forbid
    /// colours (`NO_COLOR`) or request them (`CLICOLOR_FORCE`).
    pub(crate) fn of(stream: &impl RawStream) -> Self {
        Self { colours: AutoStream::choice(stream) != ColorChoice::Never }
    }

    pub(crate) fn paint(self, colour: Colour, text: &str) -> Cow<'_, str> {
        if self.colours && !text.is_empty() {
            Cow::Owned(format!("\x1b[{}m{text}\x1b[0m", colour.code()))
        } else {
            Cow::Borrowed(text)
        }
    }

    /// Escapes what could move the cursor, reorder the text or be invisible. The colour distinguishes an
    /// escaped character from text that looks the same.
    pub(crate) fn printable(self, text: &str) -> String {
        let mut shown = String::with_capacity(text.len());
        for char in text.chars() {
            // A combining mark at the beginning would change what stands before the text.
            if is_printable(char) && !(shown.is_empty() && char.width() == Some(0)) {
                shown.push(char);
            } else {
                shown.push_str(&self.paint(Colour::Warning, &char.escape_default().to_string()));
            }
        }
        shown
    }
}

/// Escapes what [`Style::printable`] escapes, without colours.
pub(crate) fn printable(text: &str) -> String {
    Style::PLAIN.printable(text)
}

/// Whether people can see the character. They cannot see control characters, direction marks, joiners, fillers,
/// variation selectors and special spaces.
fn is_printable(char: char) -> bool {
    match char {
        ' '..='~' => true,
        // Letters and marks that are invisible.
        '\u{34f}'
        | '\u{115f}'..='\u{1160}'
        | '\u{17b4}'..='\u{17b5}'
        | '\u{180b}'..='\u{180f}'
        | '\u{3164}'
        | '\u{fe00}'..='\u{fe0f}'
        | '\u{ffa0}'
        | '\u{e0100}'..='\u{e01ef}' => false,
        // `{:?}` escapes the others. After another character, it does not escape combining marks.
        _ => format!(" {char}").escape_debug().count() == 2,
    }
}

/// The longest excerpt of a text from the command line that a message shows, in characters.
const SHOWN: usize = 80;

/// A text from the command line, cut if it is long.
pub(crate) fn shortened(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(SHOWN) {
        None => Cow::Borrowed(text),
        Some((cut, _)) => Cow::Owned(format!("{}…", &text[..cut])),
    }
}

/// A text from the command line as messages show it: quoted and escaped, and cut if it is long.
pub(crate) fn quoted(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        None => format!("{text:?}"),
        Some((cut, _)) => format!("{:?}…", &text[..cut]),
    }
}

/// Cuts the text to `width` columns, with an ellipsis at the end.
pub(crate) fn fit(text: &str, width: usize) -> Cow<'_, str> {
    if text.width() <= width {
        return Cow::Borrowed(text);
    }
    if width == 0 {
        return Cow::Borrowed("");
    }
    let mut kept = String::new();
    for char in text.chars() {
        kept.push(char);
        // The width of a text can be less than the sum of its characters' widths.
        if kept.width() >= width {
            kept.pop();
            break;
        }
    }
    kept.push('…');
    Cow::Owned(kept)
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
            *width = (*width).max(cell.text.width());
        }
    }
    rows.iter().map(|row| line(row, &widths, style)).collect()
}

fn line<const N: usize>(row: &[Cell; N], widths: &[usize; N], style: Style) -> String {
    let mut line = String::new();
    for (width, cell) in widths.iter().zip(row) {
        let padding = width + 2 - cell.text.width();
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

    const COLOURS: Style = Style { colours: true };

    #[test]
    fn only_characters_without_a_shape_are_escaped() {
        let text = "a\n\u{1b}[2J\u{9b}\"é\\";
        assert_eq!(printable(text), "a\\n\\u{1b}[2J\\u{9b}\"é\\");
        assert!(COLOURS.printable(text).starts_with("a\x1b[33m\\n\x1b[0m"));
        for seen in ["größe", "gro\u{308}ße", "表", "한글", "שלום", "नमस्ते", "🦀", "~ '`"]
        {
            assert_eq!(printable(seen), seen);
        }
        let unseen = "\0\u{7f}\u{a0}\u{ad}\u{61c}\u{200b}\u{200d}\u{202e}\u{2028}\u{2066}\u{3000}\u{3164}\u{fe0f}\u{feff}\u{e0001}";
        for char in unseen.chars() {
            let escaped = format!("a\\u{{{:x}}}", u32::from(char));
            assert_eq!(printable(&format!("a{char}")), escaped);
        }
        // It would change the character before the text.
        assert_eq!(printable("\u{308}o"), "\\u{308}o");
    }

    #[test]
    fn columns_are_aligned_by_width() {
        let rows = [["KEY", "STATE"], ["größe", "held"], ["表🦀", "held"], ["gro\u{308}ße", "held"]]
            .map(|row| row.map(|cell| Cell::coloured(cell, Colour::Good)));
        let lines = ["KEY    STATE", "größe  held", "表🦀   held", "gro\u{308}ße  held"];
        assert_eq!(table(&rows, Style::PLAIN), lines);
        let without = |line: &String| line.replace("\x1b[32m", "").replace("\x1b[0m", "");
        let coloured = table(&rows, COLOURS);
        assert_eq!(coloured.iter().map(without).collect::<Vec<_>>(), lines);
        assert!(coloured[1].contains("\x1b[32mgröße\x1b[0m  "), "{coloured:?}");
    }

    #[test]
    fn a_text_is_cut_to_columns() {
        for (text, width, cut) in [
            ("größe", 5, "größe"),
            ("größe", 4, "grö…"),
            ("größe", 1, "…"),
            ("表表表", 6, "表表表"),
            ("表表表", 5, "表表…"),
            // Half of a character is not shown.
            ("表表表", 4, "表…"),
            ("gro\u{308}ße", 4, "gro\u{308}…"),
            ("größe", 0, ""),
        ] {
            assert_eq!(fit(text, width), cut, "{text} {width}");
        }
    }

    #[test]
    fn a_long_text_is_cut_in_messages() {
        assert_eq!(quoted("a\"\u{202e}"), "\"a\\\"\\u{202e}\"");
        assert_eq!(quoted(&"ä".repeat(80)).chars().count(), 82);
        assert_eq!(quoted(&"ä".repeat(81)), format!("\"{}\"…", "ä".repeat(80)));
    }
}
