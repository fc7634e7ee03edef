//! `watch`: a store as it changes.

mod changes;
mod frame;
mod lines;
mod model;
mod screen;
mod watcher;

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use signal_hook::consts::signal::{SIGCONT, SIGINT, SIGWINCH};

use crate::args::WatchArgs;
use crate::failure::Failure;
use crate::output::Output;
use crate::records::open_to_read;
use crate::signals::Inbox;
use crate::style::Style;
use screen::Screen;
use watcher::Watcher;

/// Between two frames, however much changes.
const PAUSE: Duration = Duration::from_millis(40);

pub(crate) fn watch(args: &WatchArgs) -> Result<(), Failure> {
    let watcher = Watcher::new(open_to_read(&args.store)?, args.interval);
    if args.json || !io::stdout().is_terminal() { print(watcher, args.json) } else { draw(watcher) }
}

/// A line for each change, until nobody reads them.
fn print(mut watcher: Watcher, as_json: bool) -> Result<(), Failure> {
    let mut out = Output::open();
    let style = out.style();
    loop {
        for change in watcher.step()? {
            out.line(&lines::line(&change, as_json, style)?)?;
        }
        out.flush()?;
        // The standard output, for its end only.
        let stdout = io::stdout();
        let gone = PollFd::from_borrowed_fd(stdout.as_fd(), PollFlags::empty());
        let ready = wait([Some(gone), watcher.fd().map(input)], watcher.pause())?;
        if ready[0] {
            return Ok(());
        }
    }
}

/// A picture of all, until somebody wants an end.
fn draw(mut watcher: Watcher) -> Result<(), Failure> {
    let failed = |error: &io::Error| Failure::io("cannot use the terminal", error);
    // First, so that no signal finds the terminal taken and nobody to give it back.
    let mut signals = Inbox::open(&[SIGWINCH, SIGCONT]).map_err(|error| failed(&error))?;
    let stdin = io::stdin();
    let mut screen = Screen::enter(&stdin, io::stdout()).map_err(|error| failed(&error))?;
    let mut keys = stdin.is_terminal();
    let title = watcher.store().path().display().to_string();
    let style = Style::of(true);
    let mut drawn: Option<Instant> = None;
    loop {
        watcher.step()?;
        let wait_to_draw = drawn.map_or(Duration::ZERO, |drawn| PAUSE.saturating_sub(drawn.elapsed()));
        let mut pause = watcher.pause();
        if wait_to_draw.is_zero() {
            let frame = frame::frame(&title, watcher.model(), screen.size(), style);
            screen.draw(&frame).map_err(|error| Failure::stdout(&error))?;
            drawn = Some(Instant::now());
        } else {
            pause = pause.min(wait_to_draw);
        }
        let typed = keys.then(|| input(stdin.as_fd()));
        let ready = wait([typed, Some(input(signals.fd())), watcher.fd().map(input)], pause)?;
        if ready[0] {
            let mut buffer = [0; 64];
            match rustix::io::read(&stdin, &mut buffer) {
                Ok(0) => keys = false,
                Ok(length) => match buffer[..length].iter().find(|key| b"qQ\x03".contains(key)) {
                    Some(3) => return Err(Failure::signal(SIGINT)),
                    Some(_) => return Ok(()),
                    None => {}
                },
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(errno) => return Err(failed(&errno.into())),
            }
        }
        for signal in signals.take() {
            match signal {
                SIGCONT => screen.again().map_err(|error| failed(&error))?,
                ending if Inbox::is_ending(ending) => return Err(Failure::signal(ending)),
                _ => screen.forget(),
            }
            drawn = None;
        }
    }
}

fn input(fd: BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::from_borrowed_fd(fd, PollFlags::IN)
}

/// Waits until one of them is ready, but not longer than `pause`. Tells which are.
fn wait<const N: usize>(fds: [Option<PollFd<'_>>; N], pause: Duration) -> Result<[bool; N], Failure> {
    let mut polled: Vec<PollFd<'_>> = fds.iter().flatten().cloned().collect();
    // A millisecond more, rather than to wake up too early and wait for nothing.
    let pause = if pause.is_zero() { pause } else { pause + Duration::from_millis(1) };
    let time = Timespec::try_from(pause).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 });
    match poll(&mut polled, Some(&time)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(errno) => return Err(Failure::io("cannot wait for changes", &errno.into())),
    }
    let mut revents = polled.iter().map(|fd| !fd.revents().is_empty());
    Ok(fds.map(|fd| fd.is_some() && revents.next().unwrap_or(false)))
}
