//! A terminal with a user: the program runs in a pseudo-terminal, and the test reads the output and
//! types.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::ExitStatus;
use std::sync::mpsc::{Receiver, channel};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};

use super::*;

pub(super) struct Terminal {
    /// The user's end.
    master: File,
    /// Keeps the terminal open after the program has ended.
    slave: File,
    output: Receiver<Vec<u8>>,
    seen: Vec<u8>,
    program: Child,
    /// The terminal modes before the program started.
    before: String,
}

impl Terminal {
    /// Runs `command` on a terminal of 24 rows and 80 columns.
    pub(super) fn start(command: &Command) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, vec![]).unwrap().into_string().unwrap();
        let noctty = rustix::fs::OFlags::NOCTTY.bits().cast_signed();
        let slave = File::options().read(true).write(true).custom_flags(noctty).open(name).unwrap();
        tcsetwinsize(&slave, size(24, 80)).unwrap();
        let before = format!("{:?}", tcgetattr(&slave).unwrap());
        let end = || Stdio::from(OwnedFd::from(slave.try_clone().unwrap()));
        // A new session, so that the terminal's signals reach the program.
        let mut session = Command::new("setsid");
        session.arg("--ctty").arg(command.get_program()).args(command.get_args());
        session.env("TERM", "xterm").env_remove("NO_COLOR").env_remove("CLICOLOR_FORCE").env_remove("CI");
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => session.env(name, value),
                None => session.env_remove(name),
            };
        }
        session.current_dir(command.get_current_dir().unwrap());
        super::with_default_signals(&mut session);
        let program = session.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        let master = File::from(master);
        let output = read_in_background(master.try_clone().unwrap());
        Self { master, slave, output, seen: vec![], program, before }
    }

    pub(super) fn type_in(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    pub(super) fn resize(&self, rows: u16, columns: u16) {
        tcsetwinsize(&self.slave, size(rows, columns)).unwrap();
    }

    /// Whether the terminal modes are the same as before.
    pub(super) fn is_restored(&self) -> bool {
        format!("{:?}", tcgetattr(&self.slave).unwrap()) == self.before
    }

    pub(super) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.program), signal).unwrap();
    }

    /// The whole output, with the escape sequences.
    pub(super) fn raw(&self) -> String {
        String::from_utf8_lossy(&self.seen).into_owned()
    }

    /// Waits until the output meets the condition, and returns the output.
    #[track_caller]
    pub(super) fn wait_until(&mut self, what: &str, condition: impl Fn(&str) -> bool) -> String {
        let start = Instant::now();
        loop {
            let raw = self.raw();
            if condition(&raw) {
                return raw;
            }
            let more = self.output.recv_timeout(TIMEOUT.saturating_sub(start.elapsed()));
            let Ok(more) = more else { panic!("timed out waiting for: {what}\n{raw:?}") };
            self.seen.extend(more);
        }
    }

    /// Waits until the screen, as drawn by the last complete frame, meets the condition.
    /// Returns the screen.
    #[track_caller]
    pub(super) fn wait_until_screen(&mut self, what: &str, condition: impl Fn(&str) -> bool) -> String {
        screen(&self.wait_until(what, |raw| screen(raw).is_some_and(|screen| condition(&screen)))).unwrap()
    }

    /// Waits until the program has ended. Returns its status and its whole output.
    pub(super) fn end(mut self) -> (ExitStatus, String) {
        let status = self.program.wait().unwrap();
        assert!(self.is_restored());
        // This comes after the whole output of the program.
        self.slave.write_all("\0the end".as_bytes()).unwrap();
        let raw = self.wait_until("the end", |raw| raw.ends_with("\0the end"));
        (status, raw.trim_end_matches("\0the end").to_owned())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

fn read_in_background(mut master: File) -> Receiver<Vec<u8>> {
    let (sender, output) = channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = master.read(&mut buffer) {
            if sender.send(buffer[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    output
}

/// The last complete frame, without escape sequences.
fn screen(raw: &str) -> Option<String> {
    let (before, _) = raw.rsplit_once("\x1b[J")?;
    let (_, frame) = before.rsplit_once("\x1b[H")?;
    let mut parts = frame.split("\x1b[");
    let mut text = parts.next()?.to_owned();
    for part in parts {
        // An escape sequence ends with its first letter.
        let rest = part.find(|char: char| char.is_ascii_alphabetic()).map_or("", |at| &part[at + 1..]);
        text.push_str(rest);
    }
    Some(text.replace('\r', ""))
}
