//! The socket of a connection. A forked child closes its copy at once: otherwise the server would not see the end of
//! this process as long as that child lives.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::config::Host;

use super::url::Endpoint;
use crate::process::{Forks, ParentOnlySocket};

/// A dead peer is noticed after 5 s + 3 × 2 s.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_PROBES: u32 = 3;

#[derive(Debug)]
pub(super) struct Wire {
    /// Dropped first: the number of the descriptor may be used again as soon as the socket is closed.
    _parent_only: ParentOnlySocket,
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Wire {
    pub(super) async fn connect(endpoint: &Endpoint) -> io::Result<Self> {
        let port = endpoint.port;
        loop {
            let forks = Forks::observe();
            let socket = match &endpoint.host {
                Host::Tcp(name) => {
                    let stream = match endpoint.address {
                        Some(address) => TcpStream::connect((address, port)).await?,
                        None => TcpStream::connect((name.as_str(), port)).await?,
                    };
                    set_options(stream.as_fd())?;
                    Socket::Tcp(stream)
                }
                Host::Unix(directory) => {
                    Socket::Unix(UnixStream::connect(directory.join(format!(".s.PGSQL.{port}"))).await?)
                }
            };
            let descriptor = match &socket {
                Socket::Tcp(stream) => stream.as_fd(),
                Socket::Unix(stream) => stream.as_fd(),
            };
            let wire = Self { _parent_only: ParentOnlySocket::register(descriptor)?, socket };
            // A child that was forked before the registration has a copy that it does not close.
            if !forks.overlap() {
                return Ok(wire);
            }
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

macro_rules! delegate {
    ($self:ident, $method:ident, $($argument:expr),*) => {
        match &mut $self.get_mut().socket {
            Socket::Tcp(stream) => Pin::new(stream).$method($($argument),*),
            Socket::Unix(stream) => Pin::new(stream).$method($($argument),*),
        }
    };
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        delegate!(self, poll_read, context, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        delegate!(self, poll_write, context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, poll_flush, context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, poll_shutdown, context)
    }
}
