//! `watch`: shows changes of a store as they happen.

mod changes;
mod frame;
mod lines;
mod model;
mod screen;
#[cfg(feature = "postgres")]
mod server;
mod source;
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
use crate::signals::SignalQueue;
use crate::store::Kind;
use crate::style::Style;
use screen::Screen;
use source::Source;
use watcher::Watcher;

/// The minimum time between two frames.
const FRAME_INTERVAL: Duration = Duration::from_millis(40);

pub(crate) fn watch(args: &WatchArgs) -> Result<(), Failure> {
    let store = open_to_read(&args.store)?;
    let mut watcher: Box<dyn Source> = match store.kind() {
        Kind::Files(files) => Box::new(Watcher::new(files.clone(), args.interval)),
        #[cfg(feature = "postgres")]
        Kind::Server(_) => Box::new(server::ServerWatcher::new(store, args.interval)?),
    };
    if args.json || !io::stdout().is_terminal() {
        print(&mut *watcher, args.json)
    } else {
        draw(&mut *watcher)
    }
}

/// Prints one line per change, until the reader closes the pipe.
fn print(watcher: &mut dyn Source, as_json: bool) -> Result<(), Failure> {
    let mut out = Output::open();
    let style = out.style();
    loop {
        for change in watcher.step()? {
            out.line(&lines::line(&change, as_json, style)?)?;
        }
        out.flush()?;
        // With no requested events, poll reports only errors and hang-up: the reader is gone.
        let stdout = io::stdout();
        let closed = PollFd::from_borrowed_fd(stdout.as_fd(), PollFlags::empty());
        let ready = wait([Some(closed), watcher.fd().map(input)], watcher.pause())?;
        if ready[0] {
            return Ok(());
        }
    }
}

/// Draws the state of the store on the terminal, until the user quits.
fn draw(watcher: &mut dyn Source) -> Result<(), Failure> {
    let failed = |error: &io::Error| Failure::io("cannot use the terminal", error);
    // Opened before the screen is entered: an unhandled signal would leave the terminal in raw mode.
    let mut signals = SignalQueue::open(&[SIGWINCH, SIGCONT]).map_err(|error| failed(&error))?;
    let stdin = io::stdin();
    let mut screen = Screen::enter(&stdin, io::stdout()).map_err(|error| failed(&error))?;
    let mut read_keys = stdin.is_terminal();
    let title = watcher.title();
    let style = Style::of(&io::stdout());
    let mut drawn_at: Option<Instant> = None;
    loop {
        watcher.step()?;
        let until_next_frame =
            drawn_at.map_or(Duration::ZERO, |drawn_at| FRAME_INTERVAL.saturating_sub(drawn_at.elapsed()));
        let mut pause = watcher.pause();
        if until_next_frame.is_zero() {
            let frame = frame::frame(&title, watcher.model(), screen.size(), style);
            screen.draw(&frame).map_err(|error| Failure::stdout(&error))?;
            drawn_at = Some(Instant::now());
        } else {
            pause = pause.min(until_next_frame);
        }
        let keys = read_keys.then(|| input(stdin.as_fd()));
        let ready = wait([keys, Some(input(signals.fd())), watcher.fd().map(input)], pause)?;
        if ready[0] {
            let mut buffer = [0; 64];
            match rustix::io::read(&stdin, &mut buffer) {
                Ok(0) => read_keys = false,
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
                SIGCONT => screen.resume().map_err(|error| failed(&error))?,
                signal if SignalQueue::is_terminating(signal) => return Err(Failure::signal(signal)),
                _ => screen.invalidate(),
            }
            drawn_at = None;
        }
    }
}

fn input(fd: BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::from_borrowed_fd(fd, PollFlags::IN)
}

/// Waits until a descriptor is ready, but not longer than `pause`. Returns for each descriptor
/// whether it is ready.
fn wait<const N: usize>(fds: [Option<PollFd<'_>>; N], pause: Duration) -> Result<[bool; N], Failure> {
    let mut polled: Vec<PollFd<'_>> = fds.iter().flatten().cloned().collect();
    // One more millisecond, so that poll does not return shortly before the work is due.
    let pause = if pause.is_zero() { pause } else { pause + Duration::from_millis(1) };
    let timeout = Timespec::try_from(pause).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 });
    match poll(&mut polled, Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(errno) => return Err(Failure::io("cannot wait for changes", &errno.into())),
    }
    let mut ready = polled.iter().map(|fd| !fd.revents().is_empty());
    Ok(fds.map(|fd| fd.is_some() && ready.next().unwrap_or(false)))
}
