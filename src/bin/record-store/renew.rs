//! `renew`: restarts the lease of a lock.

use record_store::{Claim, OpenMode, RecordStoreExt};

use crate::args::{DurabilityArgs, RenewArgs};
use crate::failure::Failure;
use crate::records::{LATCH_TIMEOUT, open_to_write};

pub(crate) fn renew(args: &RenewArgs) -> Result<(), Failure> {
    let durability = DurabilityArgs { relaxed: false };
    let store = open_to_write(&args.record.store, &durability, OpenMode::Existing)?;
    Ok(store.renew_with(&args.record.key, Claim::Delegated(args.token), args.hold, LATCH_TIMEOUT)?)
}
