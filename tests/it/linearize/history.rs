//! What was asked for and what came of it, and when, by the clock that all processes of the host
//! share. Each thread keeps a log of its own, which outlives a `kill -9`: the beginning of a call
//! is in the file before the call is made.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use record_store::Holder;
use serde::{Deserialize, Serialize};

use crate::support::{Moment, now};

pub(super) const NEVER: Moment = Moment::MAX;

/// A holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) enum Who {
    Named(u32),
    /// The default holder of a thread: bound to its process.
    Thread {
        process: u32,
        thread: u32,
    },
}

impl Who {
    pub(super) fn me() -> Self {
        Self::of(&Holder::current())
    }

    pub(super) fn of(holder: &Holder) -> Self {
        if holder.is_process_bound() {
            let mut parts = holder.name().split(':').skip(1).map(|part| part.parse().unwrap());
            Self::Thread { process: parts.next().unwrap(), thread: parts.next().unwrap() }
        } else {
            Self::Named(holder.name().strip_prefix("job-").unwrap().parse().unwrap())
        }
    }

    /// As this thread would ask for it.
    pub(super) fn holder(self) -> Holder {
        match self {
            Self::Named(number) => Holder::named(format!("job-{number}")).unwrap(),
            Self::Thread { .. } => Holder::current(),
        }
    }
}

/// A claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum By {
    Holder(Who),
    Token(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Op {
    Read(By),
    Write(By, u64),
    Remove(By),
    Exists,
    Acquire(Who, Option<Duration>),
    Renew(By, Option<Duration>),
    Release(By),
    Info,
    WaitFree,
    Break,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Outcome {
    Done,
    Value(Option<u64>),
    Flag(bool),
    Acquired {
        token: u64,
        reentrant: bool,
    },
    /// The live lock: its holder, its token and what is left of its lease.
    Info(Option<(Who, u64, Option<Duration>)>),
    Locked(Who),
    Timeout(Option<Who>),
    Lost,
    NotLocked,
    NotHolder(Who),
    /// Nothing that this operation may end in.
    Failed(String),
}

/// One call, from beginning to end.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) process: u32,
    pub(super) thread: u32,
    pub(super) key: usize,
    pub(super) op: Op,
    pub(super) from: Moment,
    /// When it returned, or when its process was gone.
    pub(super) by: Moment,
    /// `None`: its process was killed in the middle.
    pub(super) outcome: Option<Outcome>,
    /// The holders of whom a renewal was under way that came to nothing, as far as that may explain
    /// what this call ended in.
    pub(super) late_renewals: Vec<Who>,
}

impl Call {
    pub(super) fn new(
        (process, thread): (u32, u32),
        key: usize,
        op: Op,
        (from, by): (Moment, Moment),
        outcome: Option<Outcome>,
    ) -> Self {
        Self { process, thread, key, op, from, by, outcome, late_renewals: Vec::new() }
    }
}

/// When a process was told to go, and when it was seen gone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Death {
    pub(super) from: Moment,
    pub(super) by: Moment,
}

/// The ends of processes, by their ids.
pub(super) type Deaths = HashMap<u32, Death>;

#[derive(Serialize, Deserialize)]
enum Line {
    Begin(usize, Op, Moment),
    End(Outcome, Moment),
}

/// A thread's log.
pub(super) struct Log(File);

impl Log {
    /// A new log, named for the thread.
    pub(super) fn create(dir: &Path) -> Self {
        let Who::Thread { process, thread } = Who::me() else { unreachable!("a thread is a thread") };
        Self(File::create_new(dir.join(format!("{process}-{thread}"))).unwrap())
    }

    pub(super) fn begin(&mut self, key: usize, op: Op) {
        self.append(&Line::Begin(key, op, now()));
    }

    pub(super) fn end(&mut self, outcome: &Outcome) {
        self.append(&Line::End(outcome.clone(), now()));
    }

    /// By one write, straight to the kernel.
    fn append(&mut self, line: &Line) {
        let mut text = serde_json::to_vec(line).unwrap();
        text.push(b'\n');
        self.0.write_all(&text).unwrap();
    }
}

/// The calls in all logs, or in those of one process.
pub(super) fn load(dir: &Path, only: Option<u32>, deaths: &Deaths) -> Vec<Call> {
    let mut calls = Vec::new();
    for name in crate::support::names_in(dir) {
        let (process, thread) = name.split_once('-').unwrap();
        let (process, thread) = (process.parse().unwrap(), thread.parse().unwrap());
        if only.is_some_and(|only| only != process) {
            continue;
        }
        let mut open = None;
        let text = std::fs::read(dir.join(&name)).unwrap();
        // What a kill cut off was not yet begun, or had not yet ended.
        for line in text.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n")) {
            match serde_json::from_slice(line).unwrap() {
                Line::Begin(key, op, from) => open = Some((key, op, from)),
                Line::End(outcome, by) => {
                    let (key, op, from) = open.take().expect("a beginning before the end");
                    calls.push(Call::new((process, thread), key, op, (from, by), Some(outcome)));
                }
            }
        }
        if let Some((key, op, from)) = open {
            let by = deaths[&process].by;
            calls.push(Call::new((process, thread), key, op, (from, by), None));
        }
    }
    calls
}
