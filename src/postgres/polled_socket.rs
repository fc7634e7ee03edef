//! The socket of a connection whose bytes the blocking calls move themselves. No runtime knows it: a thread sleeps in `poll`
//! until it is ready.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::io::ReadBuf;

use crate::process::ParentOnlySocket;

#[derive(Debug)]
pub(super) struct PolledSocket {
    /// Dropped first: the number of the descriptor may be used again as soon as the socket is closed.
    _parent_only: ParentOnlySocket,
    stream: Stream,
    /// Whether there may be something to read. It saves the reads that would only say that there is nothing.
    is_readable: AtomicBool,
    bell: Bell,
}

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
            bell: Bell::new()?,
        }))
    }

    pub(super) fn may_be_readable(&self) {
        self.is_readable.store(true, Ordering::Relaxed);
    }

    pub(super) fn bell(&self) -> &Bell {
        &self.bell
    }

    pub(super) fn read(&self, buffer: &mut ReadBuf<'_>) -> io::Result<()> {
        if !self.is_readable.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let unfilled = buffer.initialize_unfilled();
        let length = unfilled.len();
        let read = uninterrupted(|| match &self.stream {
            Stream::Tcp(stream) => (&*stream).read(unfilled),
            Stream::Unix(stream) => (&*stream).read(unfilled),
        });
        // A short read has left nothing. The end of the stream is there to stay.
        self.is_readable.store(read.as_ref().is_ok_and(|read| [length, 0].contains(read)), Ordering::Relaxed);
        buffer.advance(read?);
        Ok(())
    }

    pub(super) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        uninterrupted(|| match &self.stream {
            Stream::Tcp(stream) => (&*stream).write(bytes),
            Stream::Unix(stream) => (&*stream).write(bytes),
        })
    }

    pub(super) fn shutdown(&self) -> io::Result<()> {
        match &self.stream {
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Stream::Unix(stream) => stream.shutdown(Shutdown::Write),
        }
    }
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

/// Wakes the thread that polls a socket.
#[derive(Clone, Debug)]
pub(super) struct Bell(Arc<[UnixStream; 2]>);

impl Bell {
    fn new() -> io::Result<Self> {
        let (rung, heard) = UnixStream::pair()?;
        rung.set_nonblocking(true)?;
        heard.set_nonblocking(true)?;
        Ok(Self(Arc::new([rung, heard])))
    }

    pub(super) fn ring(&self) {
        // If the buffer is full, it is rung already.
        let _ = (&self.0[0]).write(&[0]);
    }

    fn heard(&self) -> &UnixStream {
        &self.0[1]
    }
}

/// Sleeps until one of the sockets is ready, the bell rings, or it is this time. It may also return for no reason.
pub(super) fn poll(sockets: &[(Arc<PolledSocket>, PollFlags)], bell: &Bell, until: Option<Instant>) {
    let pause = until.map(|until| until.saturating_duration_since(Instant::now()));
    // A longer time than the system can express is no limit.
    let pause = pause.and_then(|pause| Timespec::try_from(pause).ok());
    let mut polled: Vec<_> =
        sockets.iter().map(|(socket, interest)| PollFd::new(&socket.stream, *interest)).collect();
    polled.push(PollFd::new(bell.heard(), PollFlags::IN));
    // If it fails, the caller polls its future again, and sleeps again.
    let _ = rustix::event::poll(&mut polled, pause.as_ref());
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
