//! Prints the output of a command while it runs.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use crate::failure::Failure;

/// Prints in a thread of its own. So a reader that has stopped neither stops the command nor keeps the key locked.
pub(crate) struct Tee(JoinHandle<io::Result<()>>);

impl Tee {
    /// Prints what is sent, until the sender is dropped.
    pub(crate) fn start() -> Result<(Sender<Vec<u8>>, Self), Failure> {
        let (sender, parts) = channel();
        let thread = thread::Builder::new().name("tee".into()).spawn(move || print(&parts));
        let thread = thread.map_err(|error| Failure::io("cannot start a thread", &error))?;
        Ok((sender, Self(thread)))
    }

    /// Waits until all is printed. The sender must be dropped.
    pub(crate) fn finish(self) -> Result<(), Failure> {
        let printed = self.0.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")));
        printed.map_err(|error| Failure::stdout(&error))
    }
}

fn print(parts: &Receiver<Vec<u8>>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for part in parts {
        out.write_all(&part)?;
        out.flush()?;
    }
    Ok(())
}
