//! A model of the lock protocol, explored in every order of steps. Three processes acquire, renew,
//! write and release under two keys. They are killed, fork, sleep past their leases, and stop anywhere
//! for any time.
//!
//! A step is something that other processes can notice: enter the latch, check the lock, change it,
//! leave the latch. Others cannot notice staging, so it is one step with entering. A stopped process is
//! one that takes no step, so every stop and continuation is among the explored orders. The model leaves
//! out the order of waiters, readers, and changes without a lock.
//!
//! One test compares the model's decision, [`state::access`], with the decision of the store on real
//! lock files.

mod decisions;
mod explore;
mod protocol;
mod state;

use explore::{Explored, Violation};
use protocol::{Bug, NOT_ACQUIRABLE, OLD_TOKEN, Protocol, Step, TWO_HOLDERS};
use state::{BOUND, KEYS, LATE_WRITE, Life, NAMED, State};

/// Explores the protocol and checks its guarantees. Returns the number of states.
fn explore(bug: Option<Bug>, keys: &'static [u8]) -> Result<usize, Violation> {
    let explored = Explored::new(&Protocol { bug, keys })?;
    let all_dead = |state: &State| state.processes.iter().all(|process| process.life != Life::Alive);
    for &key in keys {
        // Progress must not depend on a kill, nor on the expiry of a lease that is bound to a process.
        let reliable = |step| match step {
            Step::IsKilled(_) | Step::Forks(..) | Step::Starts(_) => false,
            Step::LeaseExpires(of) => of != BOUND,
            _ => true,
        };
        let acquires = |step| matches!(step, Step::Acquires(_, of) if of == key);
        explored.always_possible(NOT_ACQUIRABLE, all_dead, reliable, acquires)?;
    }
    Ok(explored.states.len())
}

#[test]
fn the_protocol_keeps_its_guarantees_in_every_order_of_steps() {
    let states = explore(None, &KEYS).unwrap_or_else(|violation| panic!("{violation}"));
    println!("{states} states");
    // Far fewer states would mean that some step is no longer possible.
    assert!(states > 10_000, "{states}");
}

fn assert_found(bug: Bug, keys: &'static [u8], expected: &str) {
    let violation = explore(Some(bug), keys).expect_err("a violation");
    println!("{bug:?}: {violation}");
    assert_eq!(violation.rule, expected, "{bug:?}: {violation}");
}

#[test]
fn the_exploration_finds_every_bug() {
    assert_found(Bug::CheckBeforeLatch, &[BOUND], TWO_HOLDERS);
    assert_found(Bug::IgnoreToken, &[NAMED], LATE_WRITE);
    assert_found(Bug::UnknownIsDead, &[BOUND], TWO_HOLDERS);
    assert_found(Bug::TakeOverOutsideLatch, &[BOUND], TWO_HOLDERS);
    assert_found(Bug::ClaimPassesToChild, &[BOUND], LATE_WRITE);
    assert_found(Bug::TokensStartAgain, &[BOUND], OLD_TOKEN);
    assert_found(Bug::DeathIsIgnored, &[BOUND], NOT_ACQUIRABLE);
    assert_found(Bug::LatchOutlivesProcess, &[BOUND], NOT_ACQUIRABLE);
}

/// Why a child that is forked without the C library should call `after_fork` at once: if another thread changes
/// the store during the fork, and the parent is killed then, the child has a copy of the latch that nobody
/// unlocks.
#[test]
fn a_fork_inside_a_latch_can_keep_the_latch_locked() {
    assert_found(Bug::ForkInsideLatch, &[BOUND], NOT_ACQUIRABLE);
}
