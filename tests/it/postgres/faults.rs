//! The conformance suite finds faults of this store: each is planted into the functions of a schema.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use record_store::conformance::{self, Suite};
use record_store::{PostgresRecordStore, RecordStore as _};

use super::conformance::{program, stall};
use super::server::Server;
use super::{new_url, open};

/// A function, a part of its text, and what it is replaced with.
type Change = (&'static str, &'static str, &'static str);

/// The name of a fault, the changes that plant it, and the checks that find it.
type Fault = (&'static str, &'static [Change], &'static [&'static str]);

const ENTER: &str = "done := {schema}.enter(p_hash, p_patience);";
const IS_OF: &str = "{schema}.is_of(l, p_holder, p_bound, p_owner)";
const IS_OF_ROW: &str = "{schema}.is_of(t, p_holder, p_bound, p_owner)";
const HAS_NAME: &str = "(l.holder = p_holder AND l.bound = p_bound)";

const FAULTS: &[Fault] = &[
    (
        "nobody is notified",
        &[("notify", "'record_store_'", "'nobody_'")],
        &[
            "waiting::a_waiter_is_woken_promptly",
            "processes::a_release_wakes_the_waiters_of_another_process",
            "processes::a_change_wakes_the_watches_of_another_process",
        ],
    ),
    (
        "a release notifies only those that want the lock",
        &[("notify_free", "t.kind <> 'c'", "t.kind = 'l'")],
        &["waiting::a_waiter_is_woken_promptly", "processes::a_release_wakes_the_waiters_of_another_process"],
    ),
    (
        "a write notifies nobody",
        &[
            ("write", "done := {schema}.notify_change(p_id);", ""),
            ("write_unlocked", "done := {schema}.notify_change(p_id);", ""),
        ],
        &["waiting::a_waiter_is_woken_promptly", "processes::a_change_wakes_the_watches_of_another_process"],
    ),
    (
        "a removal notifies nobody",
        &[("remove", "done := {schema}.notify_change(p_id);", "")],
        &["processes::a_change_wakes_the_watches_of_another_process"],
    ),
    (
        "there is no queue",
        &[("acquire_lock", "WHERE t.id = p_id AND t.kind = 'l' ORDER BY", "WHERE false ORDER BY")],
        &["processes::processes_are_served_in_the_order_of_arrival"],
    ),
    (
        "an acquisition does not look for a lock first",
        &[("add_lock", "NOT EXISTS (SELECT FROM {schema}.locks o WHERE o.id = p_id)", "true")],
        &["locks::another_holder_cannot_acquire_a_live_lock"],
    ),
    (
        "a write does not look for a lock first",
        &[("write_unlocked", "NOT EXISTS (SELECT FROM {schema}.locks l WHERE l.id = p_id)", "true")],
        &["records::other_holders_cannot_write_or_remove"],
    ),
    (
        "the owner's death is ignored",
        &[("lives", "SELECT NOT", "SELECT true OR NOT")],
        &["processes::the_bound_lock_of_a_killed_process_is_free"],
    ),
    (
        "a waiter's death is ignored",
        &[
            ("is_waiting", "AND {schema}.lives(w.owner)", ""),
            ("is_waiting", "interval '1 second'", "interval '1 hour'"),
        ],
        &["processes::a_waiter_that_is_killed_holds_up_nobody"],
    ),
    (
        "the time is that of the beginning of the transaction",
        &[("is_live", "clock_timestamp()", "now()")],
        &["stalled::a_change_that_waits_past_the_lease_is_refused"],
    ),
    ("a release enters no latch", &[("release_lock", ENTER, "")], STALLED),
    (
        "a guard releases without the latch",
        &[("release_lock", ENTER, "")],
        &["stalled::a_call_of_a_guard_ends_at_its_timeout"],
    ),
    ("a write enters no latch", &[("write", ENTER, ""), ("write_unlocked", ENTER, "")], STALLED),
    ("a removal enters no latch", &[("remove", ENTER, "")], STALLED),
    ("an acquisition enters no latch", &[("acquire_lock", ENTER, "")], STALLED),
    ("a renewal enters no latch", &[("renew", ENTER, "")], STALLED),
    ("a break enters no latch", &[("break_lock", ENTER, "")], STALLED),
    (
        "the latch excludes nobody",
        &[("enter", "advisory_xact_lock(", "advisory_xact_lock_shared(")],
        &["stalled::a_change_goes_on_after_the_end_of_the_other_one"],
    ),
    (
        "the latch is waited for without a limit",
        &[("enter", "p_patience::text", "'0'")],
        &["stalled::a_wait_ends_at_its_timeout"],
    ),
    (
        "a swap does not compare versions",
        &[("write", "present IS DISTINCT FROM p_version", "false")],
        &["processes::no_increment_of_several_processes_is_lost"],
    ),
    (
        "a token of a bound lock is valid in every process",
        &[("has_token", "AND (p_delegated OR NOT l.bound OR l.owner = p_owner)", "")],
        &[
            "processes::a_token_of_a_bound_lock_is_worth_nothing_elsewhere",
            "processes::a_forked_child_is_another_process",
        ],
    ),
    (
        "a token of a named lock is valid only in its process",
        &[("has_token", "NOT l.bound OR", "")],
        &["processes::a_token_of_a_named_lock_is_valid_in_every_process"],
    ),
    (
        "a bound holder is the same in every process for an acquisition",
        &[("acquire_lock", IS_OF, HAS_NAME)],
        &["processes::a_bound_holder_of_another_process_is_another_holder"],
    ),
    (
        "a bound holder is the same in every process for a change",
        &[("own", IS_OF, HAS_NAME)],
        &["processes::a_bound_holder_of_another_process_is_another_holder"],
    ),
    (
        "a bound holder is the same in every process for a release",
        &[("release_lock", IS_OF_ROW, "(t.holder = p_holder AND t.bound = p_bound)")],
        &["processes::a_bound_holder_of_another_process_is_another_holder"],
    ),
    (
        "every holder may release",
        &[("release_lock", IS_OF_ROW, "true")],
        &["processes::the_default_holders_of_two_processes_exclude_each_other"],
    ),
    (
        "a named holder is another one in each process",
        &[("acquire_lock", IS_OF, "(l.holder = p_holder AND l.owner = p_owner)")],
        &["processes::a_named_holder_is_the_same_in_every_process"],
    ),
    (
        "a named lock ends with its process",
        &[("is_live", "NOT l.bound OR", "")],
        &["processes::the_named_lock_of_a_killed_process_stays"],
    ),
    (
        "a write over a record keeps its version",
        &[
            ("write", "version = excluded.version", "version = t.version"),
            ("write_unlocked", "version = excluded.version", "version = t.version"),
        ],
        &[
            "processes::records_are_the_same_in_every_process",
            "store_changes::changes_of_another_process_are_reported",
        ],
    ),
    (
        "a swap forgets the time to live",
        &[("write", "end_after(p_time_to_live)", "end_after(CASE WHEN p_mode = 0 THEN p_time_to_live END)")],
        &["expiry::each_swap_sets_the_time_to_live"],
    ),
    (
        "a shared lock is an exclusive one",
        &[("add_lock", "p_note, p_slots\n", "p_note, NULL\n")],
        &["sharing::several_holders_share_a_lock"],
    ),
    (
        "a writer joins those that read",
        &[("has_room", "$3 IS NOT NULL AND", "")],
        &["sharing::a_shared_lock_and_an_exclusive_one_exclude_each_other"],
    ),
    (
        "one of those that share a lock may change the record",
        &[("admit", "own.slots IS NOT NULL", "false")],
        &["sharing::nobody_changes_a_record_whose_lock_is_shared"],
    ),
    (
        "only the slots of the newcomer count",
        &[("has_room", "least($2, $3)", "$3")],
        &["sharing::slots_limit_the_holders"],
    ),
    (
        "slots have no limit",
        &[("has_room", "$1 < least($2, $3)", "true")],
        &["sharing::slots_limit_the_holders", "sharing::many_threads_never_exceed_the_slots"],
    ),
    (
        "a release ends the locks of all",
        &[("release_lock", "AND NOT {schema}.is_live(t)", "")],
        &["sharing::each_holder_releases_its_own_acquisition"],
    ),
    (
        "a slot is free when all leases are over",
        &[("acquire_lock", "IF NOT {schema}.is_live(l) THEN", "IF false THEN")],
        &["sharing::each_acquisition_has_a_lease_of_its_own"],
    ),
    (
        "a renewal is of all",
        &[("renew", "AND t.token = own.token", "")],
        &["sharing::a_renewal_is_of_one_holder"],
    ),
    (
        "a repeated acquisition is of all",
        &[("acquire_lock", "AND t.token = own.token", "")],
        &["sharing::a_renewal_is_of_one_holder"],
    ),
    (
        "a shared lock becomes exclusive",
        &[("acquire_lock", "own.slots IS NOT NULL AND p_slots IS NULL", "false")],
        &["sharing::a_shared_lock_does_not_become_exclusive"],
    ),
    (
        "a break by token is of all",
        &[("break_lock", "t.token = p_token", "true")],
        &["sharing::a_break_by_token_is_of_one_holder"],
    ),
    (
        "readers pass a writer",
        &[("acquire_lock", "WHERE t.id = p_id AND t.kind = 'l' ORDER BY", "WHERE false ORDER BY")],
        &["sharing::readers_and_writers_are_served_in_order"],
    ),
    (
        "a cancelled waiter stays in the queue",
        &[("leave", "t.nonce = p_nonce", "false")],
        &["cancellation::a_cancelled_acquisition_gets_no_lock"],
    ),
];

const STALLED: &[&str] = &[
    "stalled::a_change_that_cannot_be_made_ends_at_its_timeout",
    "stalled::a_change_that_cannot_be_made_can_be_cancelled",
];

/// Changes the functions of the store.
fn plant(store: &PostgresRecordStore, changes: &[Change]) {
    let schema = format!("\"{}\"", store.schema());
    for (function, old, new) in changes {
        let [old, new] = [old, new].map(|text| text.replace("{schema}", &schema));
        Server::shared().unwrap().sql(&format!(
            "DO $plant$ DECLARE
                old text := pg_get_functiondef('{schema}.{function}'::regproc);
                new text := replace(old, $old${old}$old$, $new${new}$new$);
            BEGIN
                IF old = new THEN RAISE 'the text is not in it'; END IF;
                EXECUTE new;
            END $plant$"
        ));
    }
}

/// Whether the check fails on a store with these changes.
fn finds(check: &str, changes: &[Change]) -> bool {
    let suite = Suite::new(|| {
        let store = open(&new_url().unwrap());
        plant(&store, changes);
        store
    });
    let suite = suite.other_process(program).stall(stall).select(|other| other.name() == check);
    match catch_unwind(AssertUnwindSafe(|| suite.run())) {
        Ok(report) => {
            assert_eq!(report.ran().len(), 1, "{check}");
            false
        }
        Err(payload) => {
            let message = payload.downcast_ref::<String>().unwrap();
            assert!(message.starts_with(&format!("1 of 1 checks failed:\n{check}\n")), "{message}");
            true
        }
    }
}

/// That the checks pass without a fault is tested in `conformance`.
#[test]
fn every_planted_fault_is_found() {
    let Some(url) = new_url() else { return };
    assert!(open(&url).identity_raw().is_some());
    let all: Vec<_> = FAULTS
        .iter()
        .flat_map(|(what, changes, checks)| checks.iter().map(move |check| (*what, *changes, *check)))
        .collect();
    let (next, missed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        // They wait more than they work.
        for _ in 0..6 {
            scope.spawn(|| {
                while let Some((what, changes, check)) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                    // On a very busy machine, a waiter may not sleep yet when the change comes that it is not told of.
                    if !(0..3).any(|_| finds(check, changes)) {
                        missed.lock().unwrap().push(format!("{check} does not find that {what}"));
                    }
                }
            });
        }
    });
    assert_eq!(missed.into_inner().unwrap(), [""; 0]);
}

/// Every check of several processes and of a stalled change has a fault.
#[test]
fn every_check_that_needs_more_than_a_store_has_a_fault() {
    for check in conformance::checks().iter().filter(|check| check.needs().is_some()) {
        let has_fault = FAULTS.iter().any(|(_, _, checks)| checks.contains(&check.name()));
        assert!(has_fault, "{}", check.name());
    }
}
