//! The errors of a claim that the server has refused.

use super::core::Core;
use super::limits::Context;
use super::status::Status;
use crate::trace;
use crate::{Claim, Error, ErrorKind, Holder};

/// Why a record may not be read or changed on this claim.
pub(super) fn refused(
    core: &Core,
    context: Context<'_>,
    status: Status,
    claim: &Claim,
    holder: Option<Holder>,
) -> Error {
    match (status, claim) {
        (Status::Lost, Claim::Token(token) | Claim::Delegated(token)) => {
            trace::lost(context.error(ErrorKind::LockLost).with_token(*token))
        }
        (Status::Locked, _) => context.error(ErrorKind::Locked).with_holder(holder),
        (Status::Shared, Claim::Token(token) | Claim::Delegated(token)) => {
            context.error(ErrorKind::LockShared).with_token(*token)
        }
        (Status::Shared, Claim::Holder(_)) => context.error(ErrorKind::LockShared),
        _ => unexpected(core, context, status),
    }
}

/// Why a lock may not be released or renewed on this claim.
pub(super) fn not_own(
    core: &Core,
    context: Context<'_>,
    status: Status,
    claim: &Claim,
    holder: Option<Holder>,
) -> Error {
    match (status, claim) {
        (Status::Lost, Claim::Token(token) | Claim::Delegated(token)) => {
            trace::lost(context.error(ErrorKind::LockLost).with_token(*token))
        }
        (Status::NotLocked, _) => context.error(ErrorKind::NotLocked),
        (Status::Locked, Claim::Holder(claimant)) => {
            context.error(ErrorKind::NotLockHolder).with_claimant(claimant.clone()).with_holder(holder)
        }
        _ => unexpected(core, context, status),
    }
}

pub(super) fn unexpected(core: &Core, context: Context<'_>, status: Status) -> Error {
    core.error(context, ErrorKind::CorruptStore)
        .with_detail(format!("an unexpected answer: {}", status.name()))
}
