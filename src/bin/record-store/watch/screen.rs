//! The whole terminal as a place to draw on, given back as it was found, whatever happens.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::termios::{
    InputModes, LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr,
};

/// Another screen, no cursor, no line breaks of the terminal's own.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";

pub(super) struct Screen {
    terminal: Arc<Terminal>,
    /// What is to be seen now.
    shown: String,
}

/// The terminal, and how it was.
struct Terminal {
    input: OwnedFd,
    output: File,
    /// `None` where the input is no terminal: there are no keys then.
    modes: Option<Termios>,
    entered: AtomicBool,
}

impl Screen {
    /// Takes the terminal over, until this is dropped. Gives it back first if the program panics, so
    /// that the message can be read.
    pub(super) fn enter(input: impl AsFd, output: impl AsFd) -> io::Result<Self> {
        let modes = input.as_fd().is_terminal().then(|| tcgetattr(&input)).transpose()?;
        let (input, output) = (input.as_fd().try_clone_to_owned()?, output.as_fd().try_clone_to_owned()?);
        let entered = AtomicBool::new(false);
        let terminal = Arc::new(Terminal { input, output: output.into(), modes, entered });
        let (kept, say) = (Arc::clone(&terminal), std::panic::take_hook());
        std::panic::set_hook(Box::new(move |panic| {
            kept.leave();
            say(panic);
        }));
        let mut screen = Self { terminal, shown: String::new() };
        screen.again()?;
        Ok(screen)
    }

    /// Takes the terminal over again, after it was used by others.
    pub(super) fn again(&mut self) -> io::Result<()> {
        self.forget();
        self.terminal.enter()
    }

    /// Whatever is to be seen now, the next frame is drawn.
    pub(super) fn forget(&mut self) {
        self.shown.clear();
    }

    /// Rows and columns.
    pub(super) fn size(&self) -> (usize, usize) {
        let size = tcgetwinsize(&self.terminal.output);
        let size = size.ok().filter(|size| size.ws_row > 0 && size.ws_col > 0);
        size.map_or((24, 80), |size| (size.ws_row.into(), size.ws_col.into()))
    }

    /// Draws the lines over what is there, in one write: nothing flickers.
    pub(super) fn draw(&mut self, lines: &[String]) -> io::Result<()> {
        let frame = format!("\x1b[H{}\x1b[K\x1b[J", lines.join("\x1b[K\r\n"));
        if frame != self.shown {
            self.terminal.write(&frame)?;
            self.shown = frame;
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
            // Keys come at once and unseen, Ctrl-C among them: it need not come as a signal.
            raw.local_modes -= LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG | LocalModes::IEXTEN;
            raw.input_modes -= InputModes::IXON;
            raw.special_codes[SpecialCodeIndex::VMIN] = 1;
            raw.special_codes[SpecialCodeIndex::VTIME] = 0;
            tcsetattr(&self.input, OptionalActions::Now, &raw)?;
        }
        self.write(ENTER)
    }

    /// Once only, however often it is called.
    fn leave(&self) {
        if self.entered.swap(false, Ordering::SeqCst) {
            // Whatever fails here, there is nobody to tell.
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
    fn a_panic_gives_the_terminal_back() {
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
            panic!("while the screen is taken");
        });
        let message = result.unwrap_err();
        assert_eq!(message.downcast_ref(), Some(&"while the screen is taken"));
        assert_eq!(modes(), before);
        let mut raw = vec![0; 1_000];
        let length = File::from(master).read(&mut raw).unwrap();
        let raw = String::from_utf8_lossy(&raw[..length]).into_owned();
        assert_eq!(raw, format!("{ENTER}\x1b[Hdrawn\x1b[K\x1b[J{LEAVE}"));
    }
}
