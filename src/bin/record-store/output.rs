//! Standard output.

use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};

use crate::failure::Failure;
use crate::style::Style;

/// Buffered standard output. Call [`Output::finish`] at the end, which flushes the buffer and reports
/// errors.
pub(crate) struct Output {
    out: BufWriter<StdoutLock<'static>>,
    terminal: bool,
}

impl Output {
    pub(crate) fn open() -> Self {
        let out = io::stdout().lock();
        let terminal = out.is_terminal();
        Self { out: BufWriter::new(out), terminal }
    }

    pub(crate) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// The style for this output: coloured or plain.
    pub(crate) fn style(&self) -> Style {
        Style::of(self.out.get_ref())
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.out.write_all(bytes).map_err(|error| Failure::stdout(&error))
    }

    pub(crate) fn line(&mut self, text: &str) -> Result<(), Failure> {
        self.write(text.as_bytes())?;
        self.write(b"\n")
    }

    pub(crate) fn lines(&mut self, lines: &[String]) -> Result<(), Failure> {
        lines.iter().try_for_each(|line| self.line(line))
    }

    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        self.out.flush().map_err(|error| Failure::stdout(&error))
    }

    pub(crate) fn finish(mut self) -> Result<(), Failure> {
        self.flush()
    }
}
