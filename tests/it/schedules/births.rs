//! A sweep beside a process that becomes an owner: until its file is locked, it looks like that of a dead process.

use nix::libc;

use super::*;

fn assert_alive(store: &FileSystemRecordStore, key: &str, outcome: &Outcome) {
    assert_eq!(outcome.answer, "done", "{}", outcome.position);
    assert!(store.is_locked(key).unwrap(), "{}: the owner looks dead", outcome.position);
}

#[test]
fn a_sweep_makes_no_new_owner_look_dead() {
    // Each process creates its owner file once.
    at_every_step(Operation::Acquire, prepare_nothing, |store, key, mut actor, step| {
        actor.advance(step);
        store.sweep().unwrap();
        let outcome = actor.finish();
        assert_alive(store, key, &outcome);
        outcome
    });
}

/// The sweep has taken a new owner file for that of a dead process, and is stopped before it has removed it.
#[test]
fn a_sweep_removes_no_owner_file_that_was_locked_meanwhile() {
    at_every_later_step(Operation::Sweep, prepare_nothing, |store, key, mut sweep, step| {
        let task = Task {
            dir: store.path().to_owned(),
            key: key.to_owned(),
            operation: Operation::Acquire,
            is_durable: false,
        };
        let (traced, _) = Traced::attach(Child::start("actor", &task)).expect("the sweep is traced, too");
        let mut birth = Actor::new(Operation::Acquire, traced);
        // The first file that it locks is its owner file.
        while !birth.traced.describe().starts_with(&format!("{} ", libc::SYS_flock)) {
            assert_eq!(birth.traced.step(), At::Call);
        }
        sweep.advance(step);
        let born = birth.finish();
        let outcome = sweep.finish();
        assert_eq!(outcome.answer, "done", "{}", outcome.position);
        assert_alive(
            store,
            key,
            &Outcome { position: format!("{}, {}", born.position, outcome.position), ..born },
        );
        outcome
    });
}
