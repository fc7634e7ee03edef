//! Checks that need another process.

use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::other_process::OtherProcess;
use super::protocol::{Answer, Request, Who};
use super::serve::count;
use super::subject::Subject;
use super::support::{
    SHORT_WAIT, assert_error, assert_prompt, in_order_of_arrival, long_lease, named, one_attempt, write_by,
};
use super::{DEATH, PATIENCE, WAKE};
use crate::{
    Claim, ErrorKind, Holder, Key, LockOptions, LockToken, ReadOptions, RecordStore, RecordStoreExt,
};

checks! { "processes":
    records_are_the_same_in_every_process(processes):
        "A record that one process writes or removes is the same for every other process, also its version.",
    the_default_holders_of_two_processes_exclude_each_other(processes):
        "The default holder of another process is another holder: it cannot acquire, release or renew the lock, nor read or change the record.",
    a_bound_holder_of_another_process_is_another_holder(processes):
        "Bound holders of the same name in two processes are two holders, and exclude each other.",
    a_named_holder_is_the_same_in_every_process(processes):
        "A named holder is the same holder in every process: each can use, acquire again and release its lock.",
    a_token_of_a_bound_lock_is_worth_nothing_elsewhere(processes):
        "Another process is refused with `LockLost` if it claims the token of a bound lock, unless the claim says that the token was passed on.",
    a_token_of_a_named_lock_is_valid_in_every_process(processes):
        "The token of a named holder's lock is valid in every process.",
    the_bound_lock_of_a_killed_process_is_free(processes):
        "A lock that is bound to a process is free within a second after the process is killed, for those who wait and for those who ask.",
    the_named_lock_of_a_killed_process_stays(processes):
        "The lock of a named holder outlives its process, and is the holder's in every other process.",
    a_waiter_that_is_killed_holds_up_nobody(processes):
        "A process that is killed while it waits does not keep those behind it from acquiring the lock.",
    a_release_wakes_the_waiters_of_another_process(processes):
        "A release wakes the acquisitions, reads and `wait_for_lock` of another process within 100 ms.",
    a_change_wakes_the_watches_of_another_process(processes):
        "A write or a removal wakes the watches of another process within 100 ms.",
    processes_are_served_in_the_order_of_arrival(processes):
        "Processes acquire the lock in the order in which they began to wait, and a newcomer does not pass them.",
    no_increment_of_several_processes_is_lost(processes):
        "Increments of several processes add up, under the lock and by `write_if_version`.",
    a_forked_child_is_another_process(processes):
        "A forked child is another process: it can use the store that it inherited, but neither the locks of its parent nor their tokens, and leaves them alone.",
}

fn records_are_the_same_in_every_process(subject: &Subject) {
    let (store, mut other) = (subject.store(), subject.other());
    let version = |store: &dyn RecordStore| store.read::<u64>("key").unwrap().unwrap().version.number();
    other.expect(&Request::read("key", Who::Current), &Answer::Number(None));
    for round in 1..=3_u8 {
        store.write("key", &round).unwrap();
        other.expect(&Request::read("key", Who::Current), &Answer::Number(Some(round.into())));
        other.expect(&Request::Version { key: "key".into() }, &Answer::Number(version(store)));
        let before = version(store);
        other.expect(&Request::write("key", Who::Current, u64::from(round) + 10), &Answer::Done);
        assert_eq!(store.read::<u8>("key").unwrap().unwrap().result, round + 10);
        assert_ne!(version(store), before, "a write in another process did not change the version");
    }
    other.expect(&Request::Remove { key: "key".into(), who: Who::Current }, &Answer::Flag(true));
    assert!(!store.exists("key").unwrap(), "the record was removed in another process");
}

/// Asserts that `who` in the other process neither holds the lock of `key` nor can use it.
fn assert_is_another(other: &mut OtherProcess, who: &Who) {
    other.expect_error(&Request::try_acquire("key", who.clone()), ErrorKind::LockTimeout);
    other.expect_error(&Request::write("key", who.clone(), 2), ErrorKind::Locked);
    other.expect_error(&Request::read("key", who.clone()), ErrorKind::LockTimeout);
    other.expect_error(&Request::Remove { key: "key".into(), who: who.clone() }, ErrorKind::Locked);
    other.expect_error(&Request::Renew { key: "key".into(), who: who.clone() }, ErrorKind::NotLockHolder);
    other.expect_error(&Request::release("key", who.clone()), ErrorKind::NotLockHolder);
}

fn the_default_holders_of_two_processes_exclude_each_other(subject: &Subject) {
    let (store, mut other) = (subject.store(), subject.other());
    let guard = store.lock("key", LockOptions::new()).unwrap();
    guard.write(&1).unwrap();
    assert_is_another(&mut other, &Who::Current);
    guard.write(&2).unwrap();
    guard.release().unwrap();
    other.acquire("key", Who::Current);
    assert_error(store.acquire_lock("key", one_attempt(&Holder::current())), ErrorKind::LockTimeout);
    assert_error(store.write("key", &3), ErrorKind::Locked);
    assert_error(store.release_lock("key", Holder::current()), ErrorKind::NotLockHolder);
}

fn a_bound_holder_of_another_process_is_another_holder(subject: &Subject) {
    let (store, mut other) = (subject.store(), subject.other());
    // The default holder of this thread is another one, although the other process knows its name.
    for me in [Holder::bound("job").unwrap(), Holder::current()] {
        let token = store.acquire_lock("key", one_attempt(&me)).unwrap();
        store.write_with("key", &1, write_by(&me)).unwrap();
        assert_is_another(&mut other, &Who::Bound(me.name().to_owned()));
        store.write_with("key", &1, write_by(token)).unwrap();
        store.release_lock("key", &me).unwrap();
    }
    let me = Holder::bound("job").unwrap();
    other.acquire("key", Who::Bound("job".into()));
    assert!(!store.is_lock_holder("key", &me).unwrap(), "taken for the holder of this process");
    assert_error(store.acquire_lock("key", one_attempt(&me)), ErrorKind::LockTimeout);
    assert_error(store.release_lock("key", &me), ErrorKind::NotLockHolder);
}

fn a_named_holder_is_the_same_in_every_process(subject: &Subject) {
    let (store, mut other) = (subject.store(), subject.other());
    let job = named("job");
    let token = store.acquire_lock("key", one_attempt(&job)).unwrap();
    assert_eq!(other.acquire("key", Who::named("job")), token.get(), "another token");
    other.expect(&Request::write("key", Who::named("job"), 1), &Answer::Done);
    other.expect(&Request::release("key", Who::named("job")), &Answer::Done);
    assert!(!store.is_locked("key").unwrap(), "the lock was released in another process");
    let next = other.acquire("key", Who::named("job"));
    assert!(next > token.get(), "token {next} after {token}");
    assert!(store.is_lock_holder("key", &job).unwrap());
    store.release_lock("key", &job).unwrap();
    other.expect(&Request::IsLocked { key: "key".into() }, &Answer::Flag(false));
}

/// The operations with a token, each of which leaves the lock and the record as they are.
fn operations(who: &Who) -> [Request; 3] {
    [
        Request::read("key", who.clone()),
        Request::write("key", who.clone(), 1),
        Request::Renew { key: "key".into(), who: who.clone() },
    ]
}

fn a_token_of_a_bound_lock_is_worth_nothing_elsewhere(subject: &Subject) {
    let (store, mut other) = (subject.store(), subject.other());
    let token = store.acquire_lock("key", LockOptions::new()).unwrap();
    store.write_with("key", &1, write_by(token)).unwrap();
    let (claimed, passed_on) = (Who::Token(token.get()), Who::Delegated(token.get()));
    for request in operations(&claimed) {
        other.expect_error(&request, ErrorKind::LockLost);
    }
    let remove = |who: &Who| Request::Remove { key: "key".into(), who: who.clone() };
    other.expect_error(&remove(&claimed), ErrorKind::LockLost);
    other.expect_error(&Request::release("key", claimed), ErrorKind::LockLost);
    assert_eq!(store.read::<u8>("key").unwrap().unwrap().result, 1, "a refused removal removed");
    for request in operations(&passed_on) {
        let answer = other.ask(&request);
        assert!(
            !matches!(answer, Answer::Failed(..)),
            "{request:?} with a token that was passed on: {answer:?}"
        );
    }
    other.expect(&remove(&passed_on), &Answer::Flag(true));
    other.expect(&Request::release("key", passed_on.clone()), &Answer::Done);
    assert!(!store.is_locked("key").unwrap());
    other.expect_error(&Request::write("key", passed_on, 2), ErrorKind::LockLost);

    let token = LockToken::new(other.acquire("key", Who::Current));
    assert_error(store.write_with("key", &3, write_by(token)), ErrorKind::LockLost);
    store.write_with("key", &4, write_by(Claim::Delegated(token))).unwrap();
}

fn a_token_of_a_named_lock_is_valid_in_every_process(subject: &Subject) {
    let (store, mut other) = (subject.store(), subject.other());
    let token = store.acquire_lock("key", one_attempt(&named("job"))).unwrap();
    for who in [Who::Token(token.get()), Who::Delegated(token.get())] {
        for request in operations(&who) {
            let answer = other.ask(&request);
            assert!(!matches!(answer, Answer::Failed(..)), "{request:?} in another process: {answer:?}");
        }
    }
    other.expect(&Request::release("key", Who::Token(token.get())), &Answer::Done);
    assert!(!store.is_locked("key").unwrap());
    assert_error(store.write_with("key", &2, write_by(token)), ErrorKind::LockLost);
}

fn the_bound_lock_of_a_killed_process_is_free(subject: &Subject) {
    let store = subject.store();
    let waits: [(&str, &(dyn Fn() -> bool + Sync)); 3] = [
        ("acquire_lock", &|| {
            let holder = named("next");
            let options = one_attempt(&holder).acquire_timeout(PATIENCE);
            store.acquire_lock("key", options).is_ok_and(|token| store.release_lock("key", token).is_ok())
        }),
        ("read", &|| store.read_with::<u8>("key", ReadOptions::new().timeout(PATIENCE)).is_ok()),
        ("wait_for_lock", &|| store.wait_for_lock("key", PATIENCE).unwrap()),
    ];
    for (number, (name, wait)) in waits.into_iter().enumerate() {
        assert_prompt(DEATH, 1, &format!("{name} after the holder was killed"), || {
            let mut other = subject.other();
            let who = if number == 0 { Who::Bound("job".into()) } else { Who::Current };
            other.acquire("key", who);
            thread::scope(|scope| {
                let waiter = scope.spawn(|| (wait(), Instant::now()));
                thread::sleep(SHORT_WAIT);
                assert!(!waiter.is_finished(), "{name} did not wait for the lock of another process");
                other.kill();
                let killed = Instant::now();
                let (is_free, end) = waiter.join().expect("no panic");
                assert!(is_free, "the lock of the killed process is not free after {PATIENCE:?}");
                end.saturating_duration_since(killed)
            })
        });
    }
    // Nobody waits.
    let mut other = subject.other();
    let token = other.acquire("key", Who::Current);
    other.kill();
    let killed = Instant::now();
    while store.is_locked("key").unwrap() {
        assert!(killed.elapsed() < PATIENCE, "the lock of a killed process is still live for `is_locked`");
        thread::sleep(Duration::from_millis(5));
    }
    let late = Claim::Delegated(LockToken::new(token));
    assert_error(store.write_with("key", &1, write_by(late)), ErrorKind::LockLost);
    store.write("key", &2).unwrap();
}

fn the_named_lock_of_a_killed_process_stays(subject: &Subject) {
    let (store, mut other) = (subject.store(), subject.other());
    let token = other.acquire("key", Who::named("job"));
    other.kill();
    // A bound lock would be free by then.
    thread::sleep(DEATH);
    assert!(store.is_locked("key").unwrap(), "the named holder's lock ended with a process");
    let info = store.lock_info("key").unwrap().expect("a live lock");
    assert_eq!((info.holder(), info.token().get()), (&named("job"), token));
    assert_error(store.write("key", &1), ErrorKind::Locked);
    let again = store.acquire_lock("key", one_attempt(&named("job"))).unwrap();
    assert_eq!(again.get(), token, "the holder's own lock has another token");
    store.write_with("key", &1, write_by(again)).unwrap();
    store.release_lock("key", again).unwrap();
}

fn a_waiter_that_is_killed_holds_up_nobody(subject: &Subject) {
    let store = subject.store();
    let first = store.acquire_lock("key", long_lease(&named("first"))).unwrap();
    let mut killed = subject.other();
    killed.send(&waiting_acquisition("killed"));
    thread::sleep(SHORT_WAIT);
    let mut behind = subject.other();
    behind.send(&waiting_acquisition("behind"));
    thread::sleep(SHORT_WAIT);
    killed.kill();
    store.release_lock("key", first).unwrap();
    let start = Instant::now();
    let (answer, _) = behind.receive(PATIENCE);
    assert!(matches!(answer, Answer::Number(Some(_))), "the waiter behind the killed one: {answer:?}");
    assert!(start.elapsed() < PATIENCE / 2, "the waiter behind the killed one waited {:?}", start.elapsed());
}

/// A request that waits for the lock. With the lease, a check fails instead of hanging.
fn waiting_acquisition(name: &str) -> Request {
    Request::Acquire { key: "key".into(), who: Who::named(name), hold: Some(PATIENCE), timeout: None }
}

fn a_release_wakes_the_waiters_of_another_process(subject: &Subject) {
    let (store, mut other) = (subject.store(), subject.other());
    let holder = named("holder");
    let read = Request::Read { key: "key".into(), who: Who::Current, timeout: None };
    let wait = Request::WaitForLock { key: "key".into(), timeout: None };
    for request in [waiting_acquisition("next"), read, wait] {
        let acquires = matches!(request, Request::Acquire { .. });
        assert_prompt(WAKE, 3, &format!("{request:?} in another process, after a release,"), || {
            store.acquire_lock("key", long_lease(&holder)).unwrap();
            other.send(&request);
            thread::sleep(WAKE);
            store.release_lock("key", &holder).unwrap();
            let released = Instant::now();
            let (answer, woken) = other.receive(PATIENCE);
            assert!(!matches!(answer, Answer::Failed(..)), "{request:?} in another process: {answer:?}");
            if acquires {
                other.expect(&Request::release("key", Who::named("next")), &Answer::Done);
            }
            woken.saturating_duration_since(released)
        });
    }
}

fn a_change_wakes_the_watches_of_another_process(subject: &Subject) {
    let (store, mut other) = (subject.store(), subject.other());
    let key = Key::new("key").unwrap();
    let changes: [&dyn Fn(); 2] =
        [&|| store.write("key", &1).unwrap(), &|| assert!(store.remove("key").unwrap())];
    for change in changes {
        assert_prompt(WAKE, 3, "a watch in another process, after a change,", || {
            store.write("key", &0).unwrap();
            let seen = store.version_raw(&key).unwrap().number();
            other.send(&Request::WaitForChange { key: "key".into(), seen, timeout: Some(PATIENCE) });
            thread::sleep(WAKE);
            change();
            let start = Instant::now();
            let (answer, woken) = other.receive(PATIENCE * 2);
            assert_eq!(answer, Answer::Flag(true), "a watch in another process");
            woken.saturating_duration_since(start)
        });
    }
}

fn processes_are_served_in_the_order_of_arrival(subject: &Subject) {
    let store = subject.store();
    let first = named("first");
    let mut others = [(); 4].map(|()| subject.other());
    in_order_of_arrival(|gap| {
        store.acquire_lock("key", long_lease(&first)).unwrap();
        for (number, other) in others.iter_mut().enumerate() {
            other.send(&waiting_acquisition(&format!("waiter {number}")));
            thread::sleep(gap);
        }
        let mut order = Vec::new();
        // The first one does not hurry.
        others[0].signal(Signal::STOP);
        store.release_lock("key", &first).unwrap();
        let passes = store.try_lock("key", one_attempt(&named("newcomer"))).unwrap().is_some();
        others[0].signal(Signal::CONT);
        if passes {
            order.push("a newcomer".to_owned());
        }
        let start = Instant::now();
        let mut waiting: Vec<_> = (0..others.len()).collect();
        while !waiting.is_empty() {
            // Each of those that wait came earlier.
            if store.try_lock("key", one_attempt(&named("newcomer"))).unwrap().is_some() {
                order.push("a newcomer".to_owned());
            }
            assert!(start.elapsed() < PATIENCE * 2, "{waiting:?} are not woken");
            let Some(at) = waiting.iter().position(|number| others[*number].has_answered()) else { continue };
            let name = format!("waiter {}", waiting[at]);
            others[waiting.remove(at)].expect(&Request::release("key", Who::named(&name)), &Answer::Done);
            order.push(name);
        }
        (order, (0..others.len()).map(|number| format!("waiter {number}")).collect())
    });
}

fn no_increment_of_several_processes_is_lost(subject: &Subject) {
    const ROUNDS: u32 = 20;
    let store = subject.store();
    let mut others = [subject.other(), subject.other()];
    let request = Request::Count { locked: "locked".into(), swapped: "swapped".into(), rounds: ROUNDS };
    for other in &mut others {
        other.send(&request);
    }
    count(store, "locked", "swapped", ROUNDS).unwrap();
    for other in &mut others {
        let (answer, _) = other.receive(PATIENCE * 3);
        assert_eq!(answer, Answer::Done, "increments in another process");
    }
    for key in ["locked", "swapped"] {
        let result = store.read::<u32>(key).unwrap().unwrap().result;
        assert_eq!(result, 3 * ROUNDS, "increments of {key:?}");
    }
}

fn a_forked_child_is_another_process(subject: &Subject) {
    let (store, mut parent) = (subject.store(), subject.other());
    let in_child = |request: Request| Request::InForkedChild(Box::new(request));
    store.write("record", &7).unwrap();
    let token = parent.acquire("key", Who::Current);
    for _ in 0..2 {
        parent.expect(&in_child(Request::read("record", Who::Current)), &Answer::Number(Some(7)));
        for request in [
            Request::try_acquire("key", Who::Current),
            Request::write("key", Who::Token(token), 1),
            Request::release("key", Who::Current),
        ] {
            let kind = match request {
                Request::Acquire { .. } => ErrorKind::LockTimeout,
                Request::Write { .. } => ErrorKind::LockLost,
                _ => ErrorKind::NotLockHolder,
            };
            parent.expect_error(&in_child(request), kind);
        }
        // The end of the child ends neither the lock nor the session of its parent.
        assert!(store.is_locked("key").unwrap(), "the parent's lock ended with its child");
        parent.expect(&Request::write("key", Who::Token(token), 2), &Answer::Done);
        // A lock that the child acquires ends with the child, and not with its parent.
        let Answer::Number(Some(_)) = parent.ask(&in_child(Request::try_acquire("child", Who::Current)))
        else {
            panic!("a forked child cannot acquire a free lock");
        };
        assert!(store.wait_for_lock("child", PATIENCE).unwrap(), "the lock of an ended child is not free");
    }
    parent.expect(&Request::release("key", Who::Token(token)), &Answer::Done);
}
