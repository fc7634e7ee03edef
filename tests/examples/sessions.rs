//! The pre-forked workers of a server share sessions that expire. A session is created by one worker, used through
//! any of them, extended by each use, and gone when nobody has used it for a while.
//!
//! ```sh
//! cargo run --example sessions
//! ```
//!
//! The parent opens the store and forks its workers, which use the inherited handle. It plays the part of the load
//! balancer, too: it sends each request to the next worker, through a pipe.

use std::error::Error;
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Write};
use std::path::Path;
use std::process::exit;
use std::time::{Duration, Instant};
use std::{io, thread};

use record_store::UpdateOptions;
use record_store::{Durability, FileSystemOptions, FileSystemRecordStore, LockOptions, RecordStoreExt};
use serde::{Deserialize, Serialize};

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

const WORKERS: usize = 4;
/// A session expires when it was not used for this time. A real one lives for minutes or hours.
const TIME_TO_LIVE: Duration = Duration::from_secs(2);

#[derive(Serialize, Deserialize)]
struct Session {
    user: String,
    requests: u32,
}

fn main() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let store = open(dir.path())?;
    // A lock of the parent: no worker has a part in it.
    let running = store.lock("server", LockOptions::new())?;
    let mut workers = (0..WORKERS).map(|_| Worker::fork(&store)).collect::<Result<Vec<_>>>()?;
    // Each request goes to the next worker.
    let mut ask = |request: &str| {
        workers.rotate_left(1);
        workers[0].send(request)?;
        workers[0].receive()
    };

    for user in ["ada", "grace", "linus"] {
        assert_eq!(ask(&format!("sign-in {user}"))?, "welcome");
    }
    assert_eq!(ask("sign-in ada")?, "already signed in"); // says another worker than before

    // Grace signs out. Ada goes on, and each use extends her session. Linus does nothing any more.
    assert_eq!(ask("sign-out grace")?, "goodbye");
    let start = Instant::now();
    while start.elapsed() < TIME_TO_LIVE + TIME_TO_LIVE / 4 {
        thread::sleep(TIME_TO_LIVE / 8);
        assert_ne!(ask("1 ada")?, NOT_SIGNED_IN);
    }
    for user in ["ada", "grace", "linus"] {
        println!("request of {user} after {:.1?}: {}", start.elapsed(), ask(&format!("1 {user}"))?);
    }
    assert!(store.exists("session/ada")?);
    assert!(!store.exists("session/grace")? && !store.exists("session/linus")?);

    // An expired record reads as absent. Its file stays until it is written again or swept.
    let swept = store.sweep()?;
    println!("the sweep removed {} expired session", swept.records);
    assert_eq!(swept.records, 1, "only that of linus: grace's was removed when she signed out");

    // Linus comes back, and all workers serve him at the same time. No request is lost.
    assert_eq!(ask("sign-in linus")?, "welcome");
    for worker in &mut workers {
        worker.send("25 linus")?;
    }
    for worker in &mut workers {
        println!("a worker served 25 requests of linus; the last one was number {}", worker.receive()?);
    }
    let linus: Session = store.read("session/linus")?.ok_or("expired")?.result;
    println!("the session of {} has {} requests", linus.user, linus.requests);
    assert_eq!(linus.requests, 100);
    running.release()?;
    workers.into_iter().try_for_each(Worker::stop)
}

fn open(dir: &Path) -> record_store::Result<FileSystemRecordStore> {
    // Sessions need not survive a power loss, so nothing has to be synced to the disk.
    FileSystemOptions::new().durability(Durability::Relaxed).open(dir)
}

// ---- A worker: answers one line for each line of its input.

fn worker(store: &FileSystemRecordStore, requests: PipeReader, mut answers: PipeWriter) -> Result<()> {
    for line in BufReader::new(requests).lines() {
        let line = line?;
        let Some((action, user)) = line.split_once(' ') else { break };
        let answer = match action {
            "sign-in" => sign_in(store, user)?,
            "sign-out" => sign_out(store, user)?,
            _ => use_session(store, user, action.parse()?)?,
        };
        writeln!(answers, "{answer}")?;
    }
    Ok(())
}

const NOT_SIGNED_IN: &str = "not signed in";

fn key_of(user: &str) -> String {
    format!("session/{user}")
}

/// How a session is written. Its time to live starts again with each write.
fn options() -> UpdateOptions {
    UpdateOptions::new()
        .lock(LockOptions::new().acquire_timeout(Duration::from_secs(10)))
        .time_to_live(TIME_TO_LIVE)
}

fn sign_in(store: &FileSystemRecordStore, user: &str) -> Result<String> {
    let mut created = false;
    // If several workers do this at the same time, one of them creates the session.
    store.get_or_compute(key_of(user), options(), || {
        created = true;
        Ok(Session { user: user.to_owned(), requests: 0 })
    })?;
    Ok(if created { "welcome" } else { "already signed in" }.to_owned())
}

fn sign_out(store: &FileSystemRecordStore, user: &str) -> Result<String> {
    // The lock waits for requests that other workers are serving.
    let guard = store.lock(key_of(user), LockOptions::new())?;
    let existed = guard.remove()?;
    guard.release()?;
    Ok(if existed { "goodbye" } else { NOT_SIGNED_IN }.to_owned())
}

/// Serves this number of requests, and returns the number of the last one.
fn use_session(store: &FileSystemRecordStore, user: &str, count: u32) -> Result<String> {
    let mut requests = 0;
    for _ in 0..count {
        let outcome = store.update(key_of(user), options(), |session: Option<Session>| {
            // An error of the closure leaves the record as it is, and is the result of `update`.
            let mut session = session.ok_or_else(|| record_store::Error::other(NOT_SIGNED_IN))?;
            session.requests += 1;
            Ok(session)
        });
        match outcome {
            Ok(session) => requests = session.requests,
            Err(error) if error.source().is_some_and(|it| it.to_string() == NOT_SIGNED_IN) => {
                return Ok(NOT_SIGNED_IN.to_owned());
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(requests.to_string())
}

// ---- The parent's side of a worker.

struct Worker {
    process: libc::pid_t,
    requests: PipeWriter,
    answers: BufReader<PipeReader>,
}

impl Worker {
    #[expect(unsafe_code, reason = "fork")]
    fn fork(store: &FileSystemRecordStore) -> Result<Self> {
        let (requests_of_worker, requests) = io::pipe()?;
        let (answers, answers_of_worker) = io::pipe()?;
        // SAFETY: this process has only one thread, so the child may do everything.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error().into()),
            0 => match worker(store, requests_of_worker, answers_of_worker) {
                Ok(()) => exit(0),
                Err(error) => {
                    eprintln!("a worker failed: {error}");
                    exit(1);
                }
            },
            process => Ok(Self { process, requests, answers: BufReader::new(answers) }),
        }
    }

    fn send(&mut self, request: &str) -> Result<()> {
        Ok(writeln!(self.requests, "{request}")?)
    }

    fn receive(&mut self) -> Result<String> {
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        Ok(answer.strip_suffix('\n').ok_or("the worker ended early")?.to_owned())
    }

    #[expect(unsafe_code, reason = "waitpid")]
    fn stop(mut self) -> Result<()> {
        self.send("stop")?;
        let mut status = 0;
        // SAFETY: the pointer is valid for the call.
        let ended = unsafe { libc::waitpid(self.process, &raw mut status, 0) };
        if ended == self.process && status == 0 { Ok(()) } else { Err("a worker failed".into()) }
    }
}
