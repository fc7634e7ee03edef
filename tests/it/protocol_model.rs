//! The lock protocol as a model, of which every order of steps is tried: three processes that
//! acquire, renew, write and release under two keys, are killed, fork, oversleep their leases, and
//! stand still anywhere for any time.
//!
//! A step is what others can notice: to enter the latch, to judge, to change, to leave. Nobody can
//! notice what is staged, so that is one step with entering. A process that is stopped is one that
//! takes no step, so every stop and continuation is among the orders that are tried. Left out: the
//! order of those who wait, readers, and changes without a lock.
//!
//! What the model decides, [`state::standing`], is compared with what the store does to real lock files.

mod decisions;
mod explore;
mod protocol;
mod state;

pub(crate) use decisions::ROLES;
use explore::{Explored, Violation};
use protocol::{Bug, OLD_TOKEN, Protocol, STUCK, Step, TWO_HOLDERS};
use state::{BOUND, KEYS, LATE_WRITE, Life, NAMED, State};

/// Explores the protocol, and sees what it promises: how many states it has.
fn explore(bug: Option<Bug>, keys: &'static [u8]) -> Result<usize, Violation> {
    let explored = Explored::new(&Protocol { bug, keys })?;
    let all_dead = |state: &State| state.processes.iter().all(|process| process.life != Life::Alive);
    for &key in keys {
        // No one may have to be killed, and for what is bound to a process no lease has to run out.
        let reliable = |step| match step {
            Step::IsKilled(_) | Step::Forks(..) | Step::Begins(_) => false,
            Step::LeaseEnds(of) => of != BOUND,
            _ => true,
        };
        let acquires = |step| matches!(step, Step::Acquires(_, of) if of == key);
        explored.always_possible(STUCK, all_dead, reliable, acquires)?;
    }
    Ok(explored.states.len())
}

#[test]
fn the_protocol_keeps_its_promises_in_every_order_of_steps() {
    let states = explore(None, &KEYS).unwrap_or_else(|violation| panic!("{violation}"));
    println!("{states} states");
    // Far fewer would mean that something can no longer happen.
    assert!(states > 10_000, "{states}");
}

fn assert_found(bug: Bug, keys: &'static [u8], what: &str) {
    let violation = explore(Some(bug), keys).expect_err("a violation");
    println!("{bug:?}: {violation}");
    assert_eq!(violation.what, what, "{bug:?}: {violation}");
}

#[test]
fn every_bug_is_found() {
    assert_found(Bug::JudgeBeforeLatch, &[BOUND], TWO_HOLDERS);
    assert_found(Bug::SkipToken, &[NAMED], LATE_WRITE);
    assert_found(Bug::UnknownIsDead, &[BOUND], TWO_HOLDERS);
    assert_found(Bug::TakeOverOutsideLatch, &[BOUND], TWO_HOLDERS);
    assert_found(Bug::ClaimPassesToChild, &[BOUND], LATE_WRITE);
    assert_found(Bug::TokensBeginAnew, &[BOUND], OLD_TOKEN);
    assert_found(Bug::DeathIsIgnored, &[BOUND], STUCK);
    assert_found(Bug::LatchOutlivesProcess, &[BOUND], STUCK);
}

/// Why a process should not fork in one thread while another changes the store, and then be killed:
/// the child has a copy of the latch that nobody unlocks.
#[test]
fn a_fork_inside_a_latch_can_keep_it() {
    assert_found(Bug::ForkInsideLatch, &[BOUND], STUCK);
}
