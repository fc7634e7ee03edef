//! Full-screen drawing on the terminal. The terminal is restored at the end, even after a panic.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::termios::{
    InputModes, LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr,
};

/// Switches to the alternate screen, hides the cursor and disables automatic line wrap.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";

pub(super) struct Screen {
    terminal: Arc<Terminal>,
    /// The frame that is currently displayed. Empty if unknown.
    displayed: String,
}

/// The terminal and its original modes.
struct Terminal {
    input: OwnedFd,
    output: File,
    /// `None` if the input is not a terminal.
    modes: Option<Termios>,
    entered: AtomicBool,
}

impl Screen {
    /// Takes control of the terminal until this value is dropped. A panic hook restores the terminal
    /// before the panic message is printed: otherwise the message would be lost.
    pub(super) fn enter(input: impl AsFd, output: impl AsFd) -> io::Result<Self> {
        let modes = input.as_fd().is_terminal().then(|| tcgetattr(&input)).transpose()?;
        let (input, output) = (input.as_fd().try_clone_to_owned()?, output.as_fd().try_clone_to_owned()?);
        let entered = AtomicBool::new(false);
        let terminal = Arc::new(Terminal { input, output: output.into(), modes, entered });
        let (hook_terminal, previous_hook) = (Arc::clone(&terminal), std::panic::take_hook());
        std::panic::set_hook(Box::new(move |panic| {
            hook_terminal.leave();
            previous_hook(panic);
        }));
        let mut screen = Self { terminal, displayed: String::new() };
        screen.resume()?;
        Ok(screen)
    }

    /// Takes control of the terminal again, after other programs have used it.
    pub(super) fn resume(&mut self) -> io::Result<()> {
        self.invalidate();
        self.terminal.enter()
    }

    /// Forces the next frame to be drawn, even if it is equal to the previous one.
    pub(super) fn invalidate(&mut self) {
        self.displayed.clear();
    }

    /// The number of rows and columns.
    pub(super) fn size(&self) -> (usize, usize) {
        let size = tcgetwinsize(&self.terminal.output);
        let size = size.ok().filter(|size| size.ws_row > 0 && size.ws_col > 0);
        size.map_or((24, 80), |size| (size.ws_row.into(), size.ws_col.into()))
    }

    /// Overwrites the screen with one write and without erasing it first, to avoid flicker.
    pub(super) fn draw(&mut self, lines: &[String]) -> io::Result<()> {
        let frame = format!("\x1b[H{}\x1b[K\x1b[J", lines.join("\x1b[K\r\n"));
        if frame != self.displayed {
            self.terminal.write(&frame)?;
            self.displayed = frame;
        }
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.terminal.leave();
    }
}

impl Terminal {
    fn enter(&self) -> io::Result<()> {
        self.entered.store(true, Ordering::SeqCst);
        if let Some(modes) = &self.modes {
            let mut raw = modes.clone();
            // Keys are not echoed and are available immediately. Ctrl-C is a key, not a signal.
            raw.local_modes -= LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG | LocalModes::IEXTEN;
            raw.input_modes -= InputModes::IXON;
            raw.special_codes[SpecialCodeIndex::VMIN] = 1;
            raw.special_codes[SpecialCodeIndex::VTIME] = 0;
            tcsetattr(&self.input, OptionalActions::Now, &raw)?;
        }
        self.write(ENTER)
    }

    /// Restores the terminal. Does nothing if it is already restored.
    fn leave(&self) {
        if self.entered.swap(false, Ordering::SeqCst) {
            // Errors cannot be reported here.
            let _ = self.write(LEAVE);
            if let Some(modes) = &self.modes {
                let _ = tcsetattr(&self.input, OptionalActions::Now, modes);
            }
        }
    }

    fn write(&self, text: &str) -> io::Result<()> {
        (&self.output).write_all(text.as_bytes())
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::io::Read;

    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

    use super::*;

    #[test]
    fn a_panic_restores_the_terminal() {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, vec![]).unwrap().into_string().unwrap();
        let slave = File::options().read(true).write(true).open(name).unwrap();
        let modes = || format!("{:?}", tcgetattr(&slave).unwrap());
        let before = modes();
        let result = std::panic::catch_unwind(|| {
            let mut screen = Screen::enter(&slave, &slave).unwrap();
            screen.draw(&["drawn".to_owned()]).unwrap();
            assert_ne!(modes(), before);
            panic!("while the screen is active");
        });
        let message = result.unwrap_err();
        assert_eq!(message.downcast_ref(), Some(&"while the screen is active"));
        assert_eq!(modes(), before);
        let mut raw = vec![0; 1_000];
        let length = File::from(master).read(&mut raw).unwrap();
        let raw = String::from_utf8_lossy(&raw[..length]).into_owned();
        assert_eq!(raw, format!("{ENTER}\x1b[Hdrawn\x1b[K\x1b[J{LEAVE}"));
    }
}
