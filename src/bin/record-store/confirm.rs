//! Questions on a terminal.

use std::io::{self, BufRead, IsTerminal, Write};

use crate::failure::Failure;

/// Whether there is somebody to ask.
pub(crate) fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// Asks, and reads the answer. Only yes is yes.
pub(crate) fn confirmed(question: &str) -> Result<bool, Failure> {
    let ask = |text: &str| {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| Failure::stdout(&error))
    };
    ask(&format!("{question} [y/N] "))?;
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    read.map_err(|error| Failure::io("cannot read standard input", &error))?;
    if !answer.ends_with('\n') {
        // After the end of input (Ctrl-D), the cursor is still behind the question.
        ask("\n")?;
    }
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}
