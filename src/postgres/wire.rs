//! The socket of a connection. A forked child closes its copy at once: otherwise the server would not see the end of
//! this process as long as that child lives.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::config::Host;

use super::engine::OnEngine;
use super::polled_socket::{PolledSocket, Stream};
use super::url::Endpoint;
use crate::process::{Forks, ParentOnlySocket};

/// A dead peer is noticed after 5 s + 3 × 2 s.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_PROBES: u32 = 3;

#[derive(Debug)]
pub(super) enum Wire {
    /// The engine moves the bytes.
    Engine {
        /// Dropped first: the number of the descriptor may be used again as soon as the socket is closed.
        _parent_only: ParentOnlySocket,
        socket: Socket,
    },
    /// The blocking calls move the bytes.
    Calls(Arc<PolledSocket>),
}

#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Wire {
    /// Runs on the engine.
    pub(super) async fn connect(endpoint: &Endpoint) -> io::Result<Self> {
        loop {
            let forks = Forks::observe();
            let socket = Socket::connect(endpoint).await?;
            let wire = Self::Engine { _parent_only: ParentOnlySocket::register(socket.as_fd())?, socket };
            // A child that was forked before the registration has a copy that it does not close.
            if !forks.overlap() {
                return Ok(wire);
            }
        }
    }

    /// For connections whose bytes the blocking calls move.
    pub(super) async fn connect_for_calls(endpoint: &Endpoint) -> io::Result<Self> {
        loop {
            let forks = Forks::observe();
            let endpoint = endpoint.clone();
            // The lookup of a name blocks. On the engine it has a thread of its own, and the call keeps its deadline.
            let connect = async move { Socket::connect(&endpoint).await?.into_std() };
            let wire = Self::Calls(PolledSocket::new(OnEngine::spawn(connect)?.await??)?);
            if !forks.overlap() {
                return Ok(wire);
            }
        }
    }

    /// The socket, if the blocking calls move the bytes.
    pub(super) fn polled(&self) -> Option<Arc<PolledSocket>> {
        match self {
            Self::Engine { .. } => None,
            Self::Calls(socket) => Some(Arc::clone(socket)),
        }
    }
}

impl Socket {
    async fn connect(endpoint: &Endpoint) -> io::Result<Self> {
        let port = endpoint.port;
        match &endpoint.host {
            Host::Tcp(name) => {
                let stream = match endpoint.address {
                    Some(address) => TcpStream::connect((address, port)).await?,
                    None => TcpStream::connect((name.as_str(), port)).await?,
                };
                set_options(stream.as_fd())?;
                Ok(Self::Tcp(stream))
            }
            Host::Unix(directory) => {
                Ok(Self::Unix(UnixStream::connect(directory.join(format!(".s.PGSQL.{port}"))).await?))
            }
        }
    }

    /// The socket without a runtime. It still does not block.
    fn into_std(self) -> io::Result<Stream> {
        Ok(match self {
            Self::Tcp(stream) => Stream::Tcp(stream.into_std()?),
            Self::Unix(stream) => Stream::Unix(stream.into_std()?),
        })
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

fn set_options(socket: BorrowedFd<'_>) -> io::Result<()> {
    sockopt::set_tcp_nodelay(socket, true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    #[cfg(target_os = "linux")]
    {
        sockopt::set_tcp_keepidle(socket, KEEPALIVE_IDLE)?;
        sockopt::set_tcp_keepintvl(socket, KEEPALIVE_INTERVAL)?;
        sockopt::set_tcp_keepcnt(socket, KEEPALIVE_PROBES)?;
        let patience = KEEPALIVE_IDLE + KEEPALIVE_PROBES * KEEPALIVE_INTERVAL;
        sockopt::set_tcp_user_timeout(socket, u32::try_from(patience.as_millis()).unwrap_or(u32::MAX))?;
    }
    Ok(())
}

/// If the socket is not ready, nothing is registered with the waker: the call that polls the connection asks the socket for
/// its [interest](PolledSocket::interest).
fn polled<T>(outcome: io::Result<T>) -> Poll<io::Result<T>> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
        outcome => Poll::Ready(outcome),
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Engine { socket: Socket::Tcp(stream), .. } => Pin::new(stream).poll_read(context, buffer),
            Self::Engine { socket: Socket::Unix(stream), .. } => Pin::new(stream).poll_read(context, buffer),
            Self::Calls(socket) => polled(socket.read(buffer)),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Engine { socket: Socket::Tcp(stream), .. } => Pin::new(stream).poll_write(context, bytes),
            Self::Engine { socket: Socket::Unix(stream), .. } => Pin::new(stream).poll_write(context, bytes),
            Self::Calls(socket) => polled(socket.write(bytes)),
        }
    }

    /// A socket has no buffer of its own in this process.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Engine { socket: Socket::Tcp(stream), .. } => Pin::new(stream).poll_shutdown(context),
            Self::Engine { socket: Socket::Unix(stream), .. } => Pin::new(stream).poll_shutdown(context),
            Self::Calls(socket) => Poll::Ready(socket.shutdown()),
        }
    }
}
