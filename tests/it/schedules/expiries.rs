//! A record whose time ends while it is read beside a section of another holder.

use super::*;

/// Long enough to begin a section on a busy machine.
const TIME_TO_LIVE: Duration = Duration::from_millis(100);

/// The record expires inside the section, and the reader is stopped meanwhile. That the record is gone was true only
/// while the lock was held, so the reader must not say so (I5).
#[test]
fn a_read_reports_no_end_of_a_record_that_came_inside_a_section() {
    at_every_later_step(Operation::Read, prepare_nothing, |store, key, mut actor, step| {
        store.write_with(key, "first", WriteOptions::new().time_to_live(TIME_TO_LIVE)).unwrap();
        actor.advance(step);
        let section = store.lock(key, as_named("holder")).unwrap();
        // Otherwise this schedule proves nothing.
        let expires_inside = value(&section).is_some();
        while store.exists(key).unwrap() {
            std::thread::sleep(millis(1));
        }
        let outcome = actor.finish();
        let is_allowed = matches!(&*outcome.answer, "first" | "timeout");
        assert!(is_allowed || !expires_inside, "{}: {}", outcome.position, outcome.answer);
        section.release().unwrap();
        outcome
    });
}
