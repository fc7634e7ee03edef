//! A pool of processes works through a list of jobs. Some jobs fail, and some workers are killed in the
//! middle of a job. Nevertheless every job is done, and its result is stored once.
//!
//! ```sh
//! cargo run --example worker_pool
//! ```
//!
//! Each job is one record. A worker acquires the lock of a job and works under it. No server hands out the
//! jobs. When a worker dies, its lock is free at once, and another worker makes the next attempt.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::process::{Child, Command};
use std::time::Duration;
use std::{env, thread};

use record_store::{FileSystemRecordStore, Holder, LockGuard, LockOptions, ReadOptions, RecordStoreExt};
use serde::{Deserialize, Serialize};

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

const JOBS: u64 = 24;
const WORKERS: usize = 4;
const MAX_ATTEMPTS: u32 = 3;

/// The record of a job.
#[derive(Serialize, Deserialize)]
struct Job {
    /// The job is to add all numbers up to this one.
    limit: u64,
    trouble: Trouble,
    attempts: u32,
    result: Option<u64>,
}

/// The problem of the first attempt.
#[derive(Serialize, Deserialize, PartialEq)]
enum Trouble {
    None,
    Fails,
    Hangs,
}

fn key_of(job: u64) -> String {
    format!("job/{job:02}")
}

fn main() -> Result<()> {
    // This program starts itself again as its workers: `worker_pool NAME DIRECTORY`.
    if let [_, name, dir] = &env::args().collect::<Vec<_>>()[..] {
        return worker(name, &FileSystemRecordStore::open(dir)?);
    }
    let dir = tempfile::tempdir()?;
    let store = FileSystemRecordStore::open(dir.path())?;
    for n in 1..=JOBS {
        let trouble = match n % 8 {
            3 => Trouble::Fails,
            6 => Trouble::Hangs,
            _ => Trouble::None,
        };
        store.write(key_of(n), &Job { limit: n * 1_000, trouble, attempts: 0, result: None })?;
    }
    let killed = supervise(&store)?;
    check(&store, killed)
}

// ---- A worker.

fn worker(name: &str, store: &FileSystemRecordStore) -> Result<()> {
    // A bound holder has a name that people recognize, and its lock ends with this process.
    let options = LockOptions::new().holder(Holder::bound(name)?);
    loop {
        let (mut attempts, mut busy) = (0, None);
        for key in (1..=JOBS).map(key_of) {
            // A quick check, without waiting for the worker that holds the lock.
            if snapshot(store, &key)?.result.is_some() {
                continue;
            }
            match store.try_lock(&key, options.clone())? {
                Some(guard) => {
                    attempt(store, guard)?;
                    attempts += 1;
                }
                None => busy = Some(key), // another worker is at this job
            }
        }
        if attempts == 0 {
            let Some(key) = busy else { return Ok(()) };
            // The other worker may fail or die. Either ends this wait, and so does its success.
            store.wait_for_lock(key, Duration::from_secs(1))?;
        }
    }
}

/// The last committed state of a job, whoever holds its lock.
fn snapshot(store: &FileSystemRecordStore, key: &str) -> Result<Job> {
    let record = store.read_with(key, ReadOptions::new().ignore_lock())?;
    Ok(record.ok_or("the job is gone")?.result)
}

/// Makes one attempt at a job, under its lock.
fn attempt(store: &FileSystemRecordStore, guard: LockGuard<'_, FileSystemRecordStore>) -> Result<()> {
    let mut job: Job = guard.read()?.ok_or("the job is gone")?.result;
    if job.result.is_some() {
        return Ok(()); // another worker did it just before this one acquired the lock
    }
    if job.attempts == MAX_ATTEMPTS {
        return Err(format!("{} failed too often", guard.key()).into());
    }
    // Written before the work begins: an attempt counts even if this process dies in it.
    job.attempts += 1;
    guard.write(&job)?;
    match job.trouble {
        Trouble::Fails if job.attempts == 1 => return Ok(()), // dropping the guard releases the lock
        Trouble::Hangs if job.attempts == 1 => thread::sleep(Duration::from_mins(1)),
        _ => thread::sleep(Duration::from_millis(20)),
    }
    job.result = Some((1..=job.limit).sum());
    guard.write(&job)?;
    // Counts the result for everybody. This is another record, and no two records change in one step: if the
    // process were killed at this point, the result would be stored but not counted.
    let name = guard.holder().name().to_owned();
    store.update("tally", LockOptions::new(), |tally: Option<BTreeMap<String, u64>>| {
        let mut tally = tally.unwrap_or_default();
        *tally.entry(name).or_default() += 1;
        Ok(tally)
    })?;
    Ok(guard.release()?)
}

// ---- The parent.

/// Runs the workers until all have ended. Kills each one that hangs, and starts another in its place. Returns
/// the number of killed workers.
fn supervise(store: &FileSystemRecordStore) -> Result<usize> {
    let start = |number: usize| -> Result<(String, Child)> {
        let name = format!("worker-{number}");
        let child = Command::new(env::current_exe()?).arg(&name).arg(store.path()).spawn()?;
        Ok((name, child))
    };
    let mut workers = (1..=WORKERS).map(start).collect::<Result<BTreeMap<_, _>>>()?;
    let mut killed = BTreeSet::new();
    while !workers.is_empty() {
        for lock in store.locks()? {
            let lock = lock?;
            if !lock.key().as_str().starts_with("job/") {
                continue;
            }
            // Here the record says which attempt hangs. A real supervisor does not know that: it compares
            // `lock.acquired_at()` with the time that a job may take.
            let job = snapshot(store, lock.key().as_str())?;
            if job.trouble != Trouble::Hangs || job.attempts != 1 || killed.contains(lock.key()) {
                continue;
            }
            let mut worker = workers.remove(lock.holder().name()).ok_or("an unknown worker")?;
            worker.kill()?; // SIGKILL: the worker cannot clean up
            worker.wait()?;
            println!("{} was killed in the middle of {}", lock.holder(), lock.key());
            killed.insert(lock.key().clone());
            workers.extend([start(WORKERS + killed.len())?]);
        }
        let mut failed = false;
        workers.retain(|_, worker| match worker.try_wait() {
            Ok(None) => true,
            ended => {
                failed |= !ended.is_ok_and(|status| status.is_some_and(|status| status.success()));
                false
            }
        });
        if failed {
            return Err("a worker failed".into());
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(killed.len())
}

/// Checks that every job is done, and done once.
fn check(store: &FileSystemRecordStore, killed: usize) -> Result<()> {
    let (mut attempts, mut failed, mut hung) = (0, 0, 0);
    for n in 1..=JOBS {
        let job: Job = store.read(key_of(n))?.ok_or("the job is gone")?.result;
        assert_eq!(job.result, Some((1..=job.limit).sum()), "{}", key_of(n));
        attempts += job.attempts as usize;
        failed += usize::from(job.trouble == Trouble::Fails);
        hung += usize::from(job.trouble == Trouble::Hangs);
    }
    let tally: BTreeMap<String, u64> = store.read("tally")?.ok_or("nothing is counted")?.result;
    for (name, done) in &tally {
        println!("jobs done by {name}: {done}");
    }
    assert_eq!(tally.values().sum::<u64>(), JOBS, "each result is counted once");
    assert_eq!(killed, hung, "each worker that hung was killed");
    assert_eq!(attempts, usize::try_from(JOBS)? + failed + killed, "no job was done again");
    println!("{JOBS} jobs done in {attempts} attempts: {failed} failed, {killed} ended with their worker");
    Ok(())
}
