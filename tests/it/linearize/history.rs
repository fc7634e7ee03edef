//! The history: the request and the outcome of each call, and their times by the clock that all processes
//! of the host share. Each thread keeps its own log. The log survives a `kill -9`: the start of a call
//! is written to the file before the call is made.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use record_store::Holder;
use serde::{Deserialize, Serialize};

use crate::support::{Moment, now};

pub(crate) const NEVER: Moment = Moment::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum HolderId {
    Named(u32),
    /// The default holder of a thread, bound to its process.
    Thread {
        process: u32,
        thread: u32,
    },
}

impl HolderId {
    pub(crate) fn current() -> Self {
        Self::of(&Holder::current())
    }

    pub(crate) fn of(holder: &Holder) -> Self {
        if holder.is_process_bound() {
            let mut parts = holder.name().split(':').skip(1).map(|part| part.parse().unwrap());
            Self::Thread { process: parts.next().unwrap(), thread: parts.next().unwrap() }
        } else {
            Self::Named(holder.name().strip_prefix("job-").unwrap().parse().unwrap())
        }
    }

    /// The holder that the calling thread passes to the store.
    pub(crate) fn holder(self) -> Holder {
        match self {
            Self::Named(number) => Holder::named(format!("job-{number}")).unwrap(),
            Self::Thread { .. } => Holder::current(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Claim {
    Holder(HolderId),
    Token(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Op {
    Read(Claim),
    Write(Claim, u64),
    /// Writes the second value if the record has the first one, or if there is none.
    Swap(Claim, Option<u64>, u64),
    Remove(Claim),
    Exists,
    Acquire(HolderId, Option<Duration>),
    /// Acquires the lock together with so many others, itself included.
    Share(HolderId, Option<Duration>, u32),
    Renew(Claim, Option<Duration>),
    Release(Claim),
    Info,
    /// All that hold the lock.
    Holders,
    WaitFree,
    Break,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Outcome {
    Done,
    Value(Option<u64>),
    /// The value and the version of the record.
    Record(u64, u64),
    Flag(bool),
    Acquired {
        token: u64,
        reentrant: bool,
    },
    /// The live lock: its holder, its token and its remaining lease.
    Info(Option<(HolderId, u64, Option<Duration>)>),
    /// All that hold the lock, with their tokens.
    Holders(Vec<(HolderId, u64)>),
    Locked(HolderId),
    Timeout(Option<HolderId>),
    Lost,
    /// The claimant shares the lock.
    Shared,
    NotLocked,
    NotHolder(HolderId),
    /// An error that no operation may return here.
    Failed(String),
}

/// One call.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) process: u32,
    pub(crate) thread: u32,
    pub(crate) key: usize,
    pub(crate) op: Op,
    pub(crate) start: Moment,
    /// When the call returned, or when its process was gone.
    pub(crate) end: Moment,
    /// `None` if the process was killed during the call.
    pub(crate) outcome: Option<Outcome>,
    /// The holders whose failed renewals were concurrent with this call and may explain its outcome.
    pub(crate) late_renewals: Vec<HolderId>,
}

impl Call {
    pub(crate) fn new(
        (process, thread): (u32, u32),
        key: usize,
        op: Op,
        (start, end): (Moment, Moment),
        outcome: Option<Outcome>,
    ) -> Self {
        Self { process, thread, key, op, start, end, outcome, late_renewals: Vec::new() }
    }
}

/// The bounds of a process's death: when it was asked to exit or killed, and when it was seen gone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Death {
    pub(crate) earliest: Moment,
    pub(crate) latest: Moment,
}

/// The deaths of processes, by process id.
pub(crate) type Deaths = HashMap<u32, Death>;

#[derive(Serialize, Deserialize)]
enum Entry {
    Start(usize, Op, Moment),
    End(Outcome, Moment),
}

/// A thread's log.
pub(crate) struct Log(File);

impl Log {
    /// Creates the log of the calling thread.
    pub(crate) fn create(dir: &Path) -> Self {
        let HolderId::Thread { process, thread } = HolderId::current() else {
            unreachable!("the default holder is a thread")
        };
        Self(File::create_new(dir.join(format!("{process}-{thread}"))).unwrap())
    }

    pub(crate) fn start(&mut self, key: usize, op: Op) {
        self.append(&Entry::Start(key, op, now()));
    }

    pub(crate) fn end(&mut self, outcome: &Outcome) {
        self.append(&Entry::End(outcome.clone(), now()));
    }

    /// Appends with a single unbuffered write, so that the entry survives a kill.
    fn append(&mut self, entry: &Entry) {
        let mut text = serde_json::to_vec(entry).unwrap();
        text.push(b'\n');
        self.0.write_all(&text).unwrap();
    }
}

/// The calls in all logs, or in those of one process.
pub(crate) fn load(dir: &Path, only: Option<u32>, deaths: &Deaths) -> Vec<Call> {
    let mut calls = Vec::new();
    for name in crate::support::names_in(dir) {
        let (process, thread) = name.split_once('-').unwrap();
        let (process, thread) = (process.parse().unwrap(), thread.parse().unwrap());
        if only.is_some_and(|only| only != process) {
            continue;
        }
        let mut open = None;
        let text = std::fs::read(dir.join(&name)).unwrap();
        // An entry that a kill cut off belongs to a call that had not yet started, or not yet ended.
        for line in text.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n")) {
            match serde_json::from_slice(line).unwrap() {
                Entry::Start(key, op, start) => open = Some((key, op, start)),
                Entry::End(outcome, end) => {
                    let (key, op, start) = open.take().expect("a start before the end");
                    calls.push(Call::new((process, thread), key, op, (start, end), Some(outcome)));
                }
            }
        }
        if let Some((key, op, start)) = open {
            let end = deaths[&process].latest;
            calls.push(Call::new((process, thread), key, op, (start, end), None));
        }
    }
    calls
}
