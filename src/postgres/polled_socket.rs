//! The socket of a connection whose bytes the blocking calls move themselves. No runtime knows it: a thread sleeps in `poll`
//! until it is ready.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use tokio::io::ReadBuf;

use crate::process::ParentOnlySocket;

#[derive(Debug)]
pub(super) struct PolledSocket {
    /// Dropped first: the number of the descriptor may be used again as soon as the socket is closed.
    _parent_only: ParentOnlySocket,
    stream: Stream,
    /// Whether there may be something to read. It saves the reads that would only say that there is nothing.
    is_readable: AtomicBool,
    /// Whether something was read since this was cleared.
    has_read: AtomicBool,
    waits_to_read: AtomicBool,
    waits_to_write: AtomicBool,
    bell: Bell,
}

/// The events that a connection waits for.
pub(super) type Interest = PollFlags;

/// A read clears its part of the buffer first, so that part must not be much larger than the data.
const READ_AT_ONCE: usize = 64 << 10;

/// Not every system can wait longer at once.
const LONGEST_PAUSE: Duration = Duration::from_hours(24);

#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

impl PolledSocket {
    /// `stream` does not block.
    pub(super) fn new(stream: Stream) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            _parent_only: ParentOnlySocket::register(stream.as_fd())?,
            stream,
            is_readable: AtomicBool::new(true),
            has_read: AtomicBool::new(false),
            waits_to_read: AtomicBool::new(false),
            waits_to_write: AtomicBool::new(false),
            bell: Bell::new()?,
        }))
    }

    /// The next read asks the system again.
    pub(super) fn may_be_readable(&self) {
        self.is_readable.store(true, Ordering::Relaxed);
    }

    /// Whether something was read since the last call of this.
    pub(super) fn take_has_read(&self) -> bool {
        self.has_read.swap(false, Ordering::Relaxed)
    }

    /// A poll of the connection begins: it says anew what it waits for.
    pub(super) fn begin_poll(&self) {
        self.waits_to_read.store(false, Ordering::Relaxed);
        self.waits_to_write.store(false, Ordering::Relaxed);
    }

    /// The events that the last poll of the connection has left it waiting for.
    pub(super) fn interest(&self) -> Interest {
        let flag =
            |waits: &AtomicBool, flag| if waits.load(Ordering::Relaxed) { flag } else { PollFlags::empty() };
        flag(&self.waits_to_read, PollFlags::IN) | flag(&self.waits_to_write, PollFlags::OUT)
    }

    pub(super) fn bell(&self) -> &Bell {
        &self.bell
    }

    pub(super) fn read(&self, buffer: &mut ReadBuf<'_>) -> io::Result<()> {
        let read = if self.is_readable.load(Ordering::Relaxed) {
            let unfilled = buffer.initialize_unfilled_to(buffer.remaining().min(READ_AT_ONCE));
            let length = unfilled.len();
            let read = uninterrupted(|| match &self.stream {
                Stream::Tcp(stream) => (&*stream).read(unfilled),
                Stream::Unix(stream) => (&*stream).read(unfilled),
            });
            // A short read has left nothing. The end of the stream is there to stay.
            let is_readable = read.as_ref().is_ok_and(|read| [length, 0].contains(read));
            self.is_readable.store(is_readable, Ordering::Relaxed);
            read
        } else {
            Err(io::ErrorKind::WouldBlock.into())
        };
        self.waits_to_read.store(would_block(&read), Ordering::Relaxed);
        let read = read?;
        self.has_read.fetch_or(read > 0, Ordering::Relaxed);
        buffer.advance(read);
        Ok(())
    }

    pub(super) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let written = uninterrupted(|| match &self.stream {
            Stream::Tcp(stream) => (&*stream).write(bytes),
            Stream::Unix(stream) => (&*stream).write(bytes),
        });
        self.waits_to_write.store(would_block(&written), Ordering::Relaxed);
        written
    }

    pub(super) fn shutdown(&self) -> io::Result<()> {
        match &self.stream {
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Stream::Unix(stream) => stream.shutdown(Shutdown::Write),
        }
    }
}

fn would_block(outcome: &io::Result<usize>) -> bool {
    outcome.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

/// Repeats a call that a signal has interrupted.
fn uninterrupted(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

/// Wakes the thread that polls a socket. Only one thread at a time may sleep with it: of two, one would take the ring of the
/// other.
#[derive(Clone, Debug)]
pub(super) struct Bell(Arc<Pair>);

#[derive(Debug)]
struct Pair {
    /// Dropped first, as above.
    _parent_only: [ParentOnlySocket; 2],
    rung: UnixStream,
    heard: UnixStream,
}

impl Bell {
    fn new() -> io::Result<Self> {
        let (rung, heard) = UnixStream::pair()?;
        rung.set_nonblocking(true)?;
        heard.set_nonblocking(true)?;
        let register = |socket: &UnixStream| ParentOnlySocket::register(socket.as_fd());
        Ok(Self(Arc::new(Pair { _parent_only: [register(&rung)?, register(&heard)?], rung, heard })))
    }

    pub(super) fn ring(&self) {
        // If the buffer is full, it is rung already.
        let _ = (&self.0.rung).write(&[0]);
    }

    fn heard(&self) -> &UnixStream {
        &self.0.heard
    }
}

/// Sleeps until one of the sockets is ready, the bell rings, or it is this time. It may also return for no reason.
pub(super) fn poll(sockets: &[(Arc<PolledSocket>, Interest)], bell: &Bell, until: Option<Instant>) {
    let pause = until.map(|until| until.saturating_duration_since(Instant::now()).min(LONGEST_PAUSE));
    let pause = pause.and_then(|pause| Timespec::try_from(pause).ok());
    let mut polled: Vec<_> =
        sockets.iter().map(|(socket, interest)| PollFd::new(&socket.stream, *interest)).collect();
    polled.push(PollFd::new(bell.heard(), PollFlags::IN));
    match rustix::event::poll(&mut polled, pause.as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        // The caller polls its future again, and comes back.
        Err(_) => std::thread::sleep(Duration::from_millis(1)),
    }
    for (polled, (socket, _)) in polled.iter().zip(sockets) {
        if !polled.revents().is_empty() {
            socket.may_be_readable();
        }
    }
    if polled.last().is_some_and(|bell| !bell.revents().is_empty()) {
        let mut rings = [0; 64];
        let _ = bell.heard().read(&mut rings);
    }
}
