//! The event that a call waits for happens at each step of its way to sleep. From then on the call must not sleep until
//! the end of a pause: that would be a lost wake, which only the next check of the files makes good.
//!
//! No clock decides. The kernel says whether a sleep was ended by a wake or by its timeout.

use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc;
use record_store::RecordWatch;

use super::*;

/// A call that waits while `holder` has the lock and the record is `first`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Kind {
    Acquire,
    Read,
    WaitForLock,
    Watch,
}

/// The event that it waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Release,
    Break,
    BreakByToken,
    Cancel,
    Write,
    Remove,
}

/// Waits for the key of each line that the parent sends. `cancel` cancels the wait.
pub(super) fn wait(stage: &Stage) {
    let (dir, kind): (PathBuf, Kind) = stage.argument();
    let store = open_with(&dir, Durability::Relaxed);
    loop {
        let key = &*stage.receive();
        let (cancellation, has_begun) = (Cancellation::new(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let canceller = scope.spawn(|| {
                // Until then, the other thread reads what the parent sends.
                while !has_begun.load(Ordering::SeqCst) {
                    std::thread::yield_now();
                }
                if stage.receive() == "cancel" {
                    cancellation.cancel();
                    stage.send("cancelled");
                    stage.expect("end");
                }
            });
            let watch = store.watch(key).unwrap();
            let done = perform(stage, "", || {
                has_begun.store(true, Ordering::SeqCst);
                describe(wait_for(&store, key, kind, watch, &cancellation))
            });
            canceller.join().unwrap();
            let _ = store.release_lock(key, Claim::current());
            stage.send(&done);
        });
    }
}

fn wait_for(
    store: &FileSystemRecordStore,
    key: &str,
    kind: Kind,
    mut watch: RecordWatch<'_, FileSystemRecordStore>,
    cancellation: &Cancellation,
) -> Result<String> {
    let limits = WaitOptions::new().timeout(PATIENCE).cancellation(cancellation);
    match kind {
        Kind::Acquire => {
            let options = LockOptions::new().acquire_timeout(PATIENCE).cancellation(cancellation);
            store.acquire_lock(key, options)?;
        }
        Kind::Read => {
            store
                .read_with::<String>(key, ReadOptions::new().timeout(PATIENCE).cancellation(cancellation))?;
        }
        Kind::WaitForLock => assert!(store.wait_for_lock(key, limits)?),
        Kind::Watch => assert!(watch.next(limits)?.is_some()),
    }
    Ok("done".into())
}

/// The call at which the waiter is stopped.
struct Stop {
    call: String,
    is_entry: bool,
}

struct Waiter {
    traced: Traced,
    stop: Stop,
    has_ended: bool,
}

impl Waiter {
    fn step(&mut self) {
        self.has_ended |= self.traced.step() == At::End;
        let call = self.traced.describe().trim_end().to_owned();
        self.stop = Stop { call, is_entry: !self.stop.is_entry };
    }

    /// Whether it is stopped at a sleep in the table. The mutexes of the process use private futexes.
    fn sleeps(&self) -> bool {
        let mut words = self.stop.call.split(' ');
        let futex = (words.next(), words.nth(1));
        futex == (Some(&*libc::SYS_futex.to_string()), Some("0x0"))
    }

    /// Runs `event`. If it makes no progress because the waiter is in a latch, advances the waiter.
    fn run_beside(&mut self, event: impl FnOnce() + Send) {
        std::thread::scope(|scope| {
            let (sender, done) = channel();
            scope.spawn(move || {
                event();
                sender.send(())
            });
            while done.recv_timeout(millis(10)) == Err(RecvTimeoutError::Timeout) && !self.has_ended {
                self.step();
            }
        });
    }

    /// The waiter's process cancels the wait.
    fn cancel(&mut self) {
        self.traced.child().send("cancel");
        let mut pauses = 0;
        while self.traced.child().try_receive().is_none() {
            std::thread::sleep(millis(1));
            pauses += 1;
            if pauses > 10 && !self.has_ended {
                self.step();
            }
        }
    }

    /// Runs to the end of the wait. Fails if a sleep that begins now is ended by its timeout.
    fn finish(mut self, position: &str) -> Child {
        let mut has_entered = self.stop.is_entry && self.sleeps();
        while !self.has_ended {
            self.step();
            if self.sleeps() && self.stop.is_entry {
                has_entered = true;
            } else if self.sleeps() {
                let is_lost = has_entered && self.traced.returned() == -i64::from(libc::ETIMEDOUT);
                assert!(!is_lost, "{position}: a wake was lost");
            }
        }
        self.traced.release()
    }
}

/// Tries every step of the way to sleep.
fn every_wake(kind: Kind, event: Event) {
    let dir = tempdir().unwrap();
    let store = open_with(dir.path(), Durability::Relaxed);
    let mut child = Child::start("wait", &(dir.path(), kind));
    for step in 1.. {
        let what = format!("{event:?} in step {step} of {kind:?}");
        let Some((next, is_last)) = abort_if_hung(&what, || wake_at(&store, child, kind, event, step)) else {
            return;
        };
        child = next;
        if is_last {
            assert!(step > 5, "slept after {step} steps");
            return;
        }
    }
}

/// Stops the child at one step of its wait. Returns it, and whether that is the last step. `None` where tracing is not
/// possible.
fn wake_at(
    store: &FileSystemRecordStore,
    mut child: Child,
    kind: Kind,
    event: Event,
    step: usize,
) -> Option<(Child, bool)> {
    let key = &*format!("key-{step}");
    store.write(key, "first").unwrap();
    let token = store.acquire_lock(key, as_named("holder")).unwrap();
    child.send(key);
    let (traced, _) = Traced::attach(child)?;
    let start = Stop { call: String::new(), is_entry: false };
    let mut waiter = Waiter { traced, stop: start, has_ended: false };
    let mut watches_for_deaths = kind == Kind::Watch;
    let mut is_last = false;
    for _ in 0..step {
        waiter.step();
        // The first sleeps are short. Deaths are reported only after them.
        watches_for_deaths |= waiter.stop.call.starts_with(&format!("{} ", libc::SYS_inotify_add_watch));
        is_last = watches_for_deaths && waiter.stop.is_entry && waiter.sleeps();
        if is_last {
            break;
        }
    }
    assert!(!waiter.has_ended, "{kind:?} ended before the {event:?}");
    let position = format!("{event:?} in step {step} of {kind:?}, at {}", waiter.stop.call);
    match event {
        Event::Release => waiter.run_beside(|| store.release_lock(key, token).unwrap()),
        Event::Break => waiter.run_beside(|| assert!(store.break_lock(key).unwrap())),
        Event::BreakByToken => {
            waiter.run_beside(|| {
                assert!(store.break_lock_with(key, BreakOptions::new().token(token)).unwrap());
            });
        }
        Event::Cancel => waiter.cancel(),
        Event::Write => waiter.run_beside(|| {
            store.write_with(key, "second", WriteOptions::new().claim(token)).unwrap();
        }),
        Event::Remove => waiter.run_beside(|| {
            assert!(store.remove_with(key, RemoveOptions::new().claim(token)).unwrap());
        }),
    }
    let mut child = waiter.finish(&position);
    child.send("end");
    let expected = if event == Event::Cancel { "cancelled" } else { "done" };
    assert_eq!(child.receive(), expected, "{position}");
    Some((child, is_last))
}

#[test]
fn a_release_or_a_break_wakes_a_waiter_at_every_step_of_its_way_to_sleep() {
    for event in [Event::Release, Event::Break, Event::BreakByToken] {
        every_wake(Kind::Acquire, event);
    }
}

#[test]
fn a_release_or_a_break_wakes_a_reader_at_every_step_of_its_way_to_sleep() {
    for event in [Event::Release, Event::Break, Event::BreakByToken] {
        every_wake(Kind::Read, event);
        every_wake(Kind::WaitForLock, event);
    }
}

#[test]
fn a_change_wakes_a_watcher_at_every_step_of_its_way_to_sleep() {
    every_wake(Kind::Watch, Event::Write);
    every_wake(Kind::Watch, Event::Remove);
}

#[test]
fn a_cancellation_ends_a_wait_at_every_step_of_its_way_to_sleep() {
    for kind in [Kind::Acquire, Kind::Read, Kind::WaitForLock, Kind::Watch] {
        every_wake(kind, Event::Cancel);
    }
}
