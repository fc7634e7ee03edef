//! Renewals that come too late. The library first writes the new lease. Then it sees that the old lease
//! had already expired, removes the lock, and returns an error. In between, a concurrent call that
//! checks the lock sees the new lease: a lock that is still live, or, if the new lease is the shorter
//! one, a lock that has expired early. The holder gains nothing and nobody else gets in, so a
//! concurrent call may return such a result.

use std::collections::HashMap;

use super::history::{Call, Claim, HolderId, Op, Outcome};
use crate::support::Moment;

/// Records with each call of one key the late renewals that were concurrent with it.
pub(super) fn mark(calls: &mut [Call]) {
    let holders = holders(calls);
    let holder = |claim| match claim {
        Claim::Holder(holder) => Some(holder),
        Claim::Token(token) => holders.get(&token).copied(),
    };
    let ends = ends_of_acquisitions(calls);
    let mut late: Vec<(Moment, Moment, HolderId)> = Vec::new();
    let mut longest = 0;
    for call in calls.iter() {
        if let Some(renewer) = failed_renewal(call, &ends).and_then(holder) {
            late.push((call.start, call.end, renewer));
            longest = longest.max(call.end - call.start);
        }
    }
    late.sort_unstable_by_key(|(start, ..)| *start);
    for call in calls {
        // A renewal that started earlier than this ended before the call started.
        let first = late.partition_point(|(start, ..)| *start < call.start.saturating_sub(longest));
        let concurrent = late[first..].iter().take_while(|(start, ..)| *start <= call.end);
        let concurrent = concurrent
            .filter(|(_, end, renewer)| *end >= call.start && may_have_checked(call, *renewer, holder));
        call.late_renewals = concurrent.map(|(.., renewer)| *renewer).collect();
    }
}

/// The holders of the locks, by token.
fn holders(calls: &[Call]) -> HashMap<u64, HolderId> {
    let holder = |call: &Call| match (call.op, call.outcome.as_ref()?) {
        (Op::Acquire(holder, _) | Op::Share(holder, ..), Outcome::Acquired { token, .. }) => {
            Some((*token, holder))
        }
        (_, Outcome::Info(Some((holder, token, _)))) => Some((*token, *holder)),
        _ => None,
    };
    calls.iter().filter_map(holder).collect()
}

/// When the acquisition of each token had returned.
fn ends_of_acquisitions(calls: &[Call]) -> HashMap<u64, Moment> {
    let end = |call: &Call| match (call.op, call.outcome.as_ref()?) {
        (Op::Acquire(..) | Op::Share(..), Outcome::Acquired { token, reentrant: false }) => {
            Some((*token, call.end))
        }
        _ => None,
    };
    calls.iter().filter_map(end).collect()
}

/// The claim of a call that may have attempted to renew a lease without success. An acquisition tries again after that. If
/// its holder has meanwhile acquired the lock elsewhere, it is re-entrant in the end.
fn failed_renewal(call: &Call, ends: &HashMap<u64, Moment>) -> Option<Claim> {
    match (call.op, &call.outcome) {
        (Op::Renew(claim, _), None | Some(Outcome::Lost | Outcome::NotLocked)) => Some(claim),
        (Op::Acquire(..) | Op::Share(..), Some(Outcome::Acquired { token, reentrant: true }))
            if ends.get(token).is_some_and(|end| *end < call.start) =>
        {
            None
        }
        (Op::Acquire(holder, _) | Op::Share(holder, ..), _) => Some(Claim::Holder(holder)),
        _ => None,
    }
}

/// Whether the outcome of the call may depend on a check of this holder's lock.
fn may_have_checked(call: &Call, holder: HolderId, holder_of: impl Fn(Claim) -> Option<HolderId>) -> bool {
    match (call.op, &call.outcome) {
        (_, Some(Outcome::Timeout(Some(current)) | Outcome::Info(Some((current, ..))))) => *current == holder,
        (Op::Info | Op::Holders | Op::WaitFree, Some(_)) => true,
        (Op::Read(claim @ Claim::Token(_)), Some(_)) => holder_of(claim) == Some(holder),
        _ => false,
    }
}
