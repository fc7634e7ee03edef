//! Peers that run as a server process. Each server is started for this run on its own socket, and is
//! killed at its end, also after a panic.

mod etcd;
mod redis;

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub(crate) use etcd::Etcd;
pub(crate) use redis::Redis;

use crate::work::{About, Job, Peer, Work};

/// Far longer than a server needs to start.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A running server. Killed when dropped.
struct Server(Child);

/// A peer, and the servers that it is a client of.
pub(crate) struct Served<P> {
    client: P,
    _servers: Vec<Server>,
    /// The sockets or the address of the servers, for the clients of other processes.
    pub(crate) place: TempDir,
}

impl<P: Peer> Peer for Served<P> {
    fn about(&self) -> About {
        self.client.about()
    }

    fn job(&mut self, work: Work) -> Option<Job<'_>> {
        self.client.job(work)
    }
}

impl Server {
    /// `None`, after a message, if it is not installed.
    fn start(mut command: Command, package: &str) -> Option<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        match command.spawn() {
            Ok(child) => Some(Self(child)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let program = command.get_program().display();
                eprintln!("Skipping {program}: it is not installed. It is in Debian's package {package}.");
                None
            }
            Err(error) => panic!("{command:?}: {error}"),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Retries until the attempt succeeds: a server needs some time before it listens.
fn retry_until_started<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(done) = attempt() {
            return done;
        }
        assert!(start.elapsed() < START_TIMEOUT, "the server does not answer");
        std::thread::sleep(Duration::from_millis(10));
    }
}
