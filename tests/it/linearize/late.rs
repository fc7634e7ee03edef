//! Renewals that come too late. The library puts the new lease in place first and then sees that the
//! old one was over already, takes the lock away, and says so. For a moment in between, whoever looks
//! sees the new lease: a lock that lives on, or, if the new lease is the shorter one, a lock that is
//! over before its time. Its holder gets nothing by that and nobody else gets in, so it is allowed
//! to whoever looks beside such a call.

use std::collections::HashMap;

use super::history::{By, Call, Op, Outcome, Who};
use crate::support::Moment;

/// Notes with the calls of one key which late renewals they were beside.
pub(super) fn mark(calls: &mut [Call]) {
    let holders = holders(calls);
    let holder = |by| match by {
        By::Holder(who) => Some(who),
        By::Token(token) => holders.get(&token).copied(),
    };
    let mut late: Vec<(Moment, Moment, Who)> = Vec::new();
    let mut longest = 0;
    for call in calls.iter() {
        if let Some(who) = renewed_in_vain(call).and_then(holder) {
            late.push((call.from, call.by, who));
            longest = longest.max(call.by - call.from);
        }
    }
    late.sort_unstable_by_key(|(from, ..)| *from);
    for call in calls {
        // Whoever began before this cannot have been under way any more.
        let first = late.partition_point(|(from, ..)| *from < call.from.saturating_sub(longest));
        let beside = late[first..].iter().take_while(|(from, ..)| *from <= call.by);
        let beside = beside.filter(|(_, by, who)| *by >= call.from && may_speak_of(call, *who, holder));
        call.late_renewals = beside.map(|(.., who)| *who).collect();
    }
}

/// Who took the locks with these tokens.
fn holders(calls: &[Call]) -> HashMap<u64, Who> {
    let holder = |call: &Call| match (call.op, call.outcome.as_ref()?) {
        (Op::Acquire(who, _), Outcome::Acquired { token, .. }) => Some((*token, who)),
        (_, Outcome::Info(Some((who, token, _)))) => Some((*token, *who)),
        _ => None,
    };
    calls.iter().filter_map(holder).collect()
}

/// The claim of a call that may have tried to renew a lease, and did not.
fn renewed_in_vain(call: &Call) -> Option<By> {
    match (call.op, &call.outcome) {
        (Op::Renew(by, _), None | Some(Outcome::Lost | Outcome::NotLocked)) => Some(by),
        (Op::Acquire(..), Some(Outcome::Acquired { reentrant: true, .. })) => None,
        (Op::Acquire(who, _), _) => Some(By::Holder(who)),
        _ => None,
    }
}

/// Whether the call may have looked at this holder's lock, going by what it ended in.
fn may_speak_of(call: &Call, holder: Who, holder_of: impl Fn(By) -> Option<Who>) -> bool {
    match (call.op, &call.outcome) {
        (_, Some(Outcome::Timeout(Some(who)) | Outcome::Info(Some((who, ..))))) => *who == holder,
        (Op::Info | Op::WaitFree, Some(_)) => true,
        (Op::Read(by @ By::Token(_)), Some(_)) => holder_of(by) == Some(holder),
        _ => false,
    }
}
