//! The other process: it carries out the requests of a check.

use std::io::Write as _;
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;
use std::{io, process, thread};

use super::protocol::{Answer, MARK, Request};
use crate::{
    Key, LockOptions, ReadOptions, RecordStore, RecordStoreExt, RecordVersion, RemoveOptions, WaitOptions,
    WriteOptions,
};

/// Carries out the requests of a check on this store, which the program of [`Suite::other_process`] has opened, until the
/// check needs this process no longer. Then the process ends.
///
/// Standard input and output belong to the suite from here on.
///
/// # Panics
///
/// If standard input has anything but requests of the suite: nothing else starts a program that calls this.
///
/// [`Suite::other_process`]: super::Suite::other_process
pub fn serve<S: RecordStore + ?Sized>(store: &S) -> ! {
    let (sender, requests) = mpsc::channel();
    // Not on the thread that carries out the requests, so that this process ends with the check in any case.
    thread::spawn(move || {
        for line in io::stdin().lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
        process::exit(0);
    });
    send(&Answer::Ready);
    for line in requests {
        let request: Request = serde_json::from_str(&line).expect("a request of the suite");
        match request {
            Request::InForkedChild(request) => in_forked_child(&store, &request),
            request => send(&carry_out(&store, &request)),
        }
    }
    process::exit(0)
}

/// The present test binary as a program for [`Suite::other_process`](super::Suite::other_process): it runs only the test
/// of this name. That test opens the store and calls [`serve`], or does nothing if it was not started in this way.
///
/// ```no_run
/// # #[cfg(feature = "conformance")] {
/// use record_store::{FileSystemRecordStore, conformance};
///
/// #[test]
/// fn the_store_keeps_the_contract() {
///     let root = tempfile::tempdir().unwrap();
///     let number = std::cell::Cell::new(0);
///     let open = || {
///         number.set(number.get() + 1);
///         FileSystemRecordStore::open(root.path().join(number.get().to_string())).unwrap()
///     };
///     let suite = conformance::Suite::new(open).other_process(|store| {
///         let mut program = conformance::test_binary("tests::other_process");
///         program.env("STORE_OF_THE_SUITE", store.path());
///         program
///     });
///     suite.run();
/// }
///
/// /// Not a test: what the suite starts.
/// #[test]
/// fn other_process() {
///     if let Some(dir) = std::env::var_os("STORE_OF_THE_SUITE") {
///         conformance::serve(&FileSystemRecordStore::open(dir).unwrap());
///     }
/// }
/// # }
/// ```
///
/// # Panics
///
/// If the path of the present program is not known.
#[must_use]
pub fn test_binary(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("the path of this program"));
    command.args(["--exact", test, "--nocapture", "--test-threads=1", "--quiet"]);
    command
}

fn send(answer: &Answer) {
    let answer = serde_json::to_string(answer).expect("an answer is JSON");
    let mut output = io::stdout().lock();
    // A test runner may have left an unfinished line.
    let _ = writeln!(output, "\n{MARK}{answer}").and_then(|()| output.flush());
}

fn carry_out(store: &dyn RecordStore, request: &Request) -> Answer {
    let done = |()| Answer::Done;
    match request {
        Request::Read { key, who, timeout } => {
            let options = ReadOptions::new().claim(who.claim()).timeout(*timeout);
            Answer::of(store.read_with::<u64>(key, options), |record| {
                Answer::Number(record.map(|record| record.result))
            })
        }
        Request::Write { key, who, result } => {
            Answer::of(store.write_with(key, result, WriteOptions::new().claim(who.claim())), done)
        }
        Request::Remove { key, who } => {
            Answer::of(store.remove_with(key, RemoveOptions::new().claim(who.claim())), Answer::Flag)
        }
        Request::Version { key } => {
            Answer::of(store.version_raw(&checked(key)), |version| Answer::Number(version.number()))
        }
        Request::WaitForChange { key, seen, timeout } => {
            let seen = seen.map_or(RecordVersion::ABSENT, RecordVersion::new);
            let wait = WaitOptions::new().timeout(*timeout);
            Answer::of(store.wait_for_change_raw(&checked(key), seen, wait), |version| {
                Answer::Flag(version.is_some())
            })
        }
        Request::Acquire { key, who, hold, timeout } => {
            let options = LockOptions::new().holder(who.holder()).hold_timeout(*hold);
            Answer::of(store.acquire_lock(key, options.acquire_timeout(*timeout)), |token| {
                Answer::Number(Some(token.get()))
            })
        }
        Request::Renew { key, who } => Answer::of(store.renew(key, who.claim(), None), done),
        Request::Release { key, who } => Answer::of(store.release_lock(key, who.claim()), done),
        Request::IsLocked { key } => Answer::of(store.is_locked(key), Answer::Flag),
        Request::WaitForLock { key, timeout } => {
            Answer::of(store.wait_for_lock(key, WaitOptions::new().timeout(*timeout)), Answer::Flag)
        }
        Request::Count { locked, swapped, rounds } => {
            Answer::of(count(store, locked, swapped, *rounds), done)
        }
        // A forked child has no children.
        Request::InForkedChild(_) => Answer::Failed(String::new(), "a forked child cannot fork".into()),
    }
}

/// Increments the number of a record under its lock, and then that of another one by swaps, so many times each.
///
/// Not in turns: the processes get the lock one after another, so few of their swaps would meet.
pub(super) fn count(store: &dyn RecordStore, locked: &str, swapped: &str, rounds: u32) -> crate::Result<()> {
    for _ in 0..rounds {
        store.update(locked, LockOptions::new(), |old: Option<u64>| {
            // So that others have the time to wait, and to be late.
            thread::sleep(Duration::from_micros(200));
            Ok(old.unwrap_or(0) + 1)
        })?;
    }
    for _ in 0..rounds {
        while !increment_by_swap(store, swapped)? {}
    }
    Ok(())
}

/// `false`: another process was faster.
fn increment_by_swap(store: &dyn RecordStore, key: &str) -> crate::Result<bool> {
    let seen = store.read::<u64>(key)?;
    let version = seen.as_ref().map_or(RecordVersion::ABSENT, |record| record.version);
    let next = seen.map_or(0, |record| record.result) + 1;
    // So that others have the time to swap it.
    thread::sleep(Duration::from_millis(1));
    store.write_if_version(key, version, &next, WriteOptions::new())
}

fn checked(key: &str) -> Key {
    Key::new(key).expect("a key")
}

#[allow(unsafe_code, reason = "a fork")]
fn in_forked_child(store: &dyn RecordStore, request: &Request) {
    // SAFETY: the child carries out one request, on the only thread that it has, and ends without destructors. It needs
    // memory for that, which the C library's fork allows.
    match unsafe { libc::fork() } {
        -1 => send(&Answer::Failed(String::new(), format!("no fork: {}", io::Error::last_os_error()))),
        0 => {
            #[cfg(target_os = "linux")]
            let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
            send(&carry_out(store, request));
            // SAFETY: nothing of the parent may be ended by this child.
            unsafe { libc::_exit(0) }
        }
        child => {
            let child = rustix::process::Pid::from_raw(child);
            let _ = rustix::process::waitpid(child, rustix::process::WaitOptions::empty());
        }
    }
}
