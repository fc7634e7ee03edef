//! The high-water mark of tokens and versions: a power loss does not let a number be given again.

use std::sync::atomic::Ordering::{Acquire, SeqCst};

use super::Log;
use super::frame::{Frame, Kind};
use crate::filesystem::context::Context;
use crate::filesystem::disk::lock_file::MAX_TOKEN;
use crate::filesystem::options::FileSystemOptions;
use crate::filesystem::protocol::latch::Latch;
use crate::{Key, Result};

/// So many tokens and versions are reserved at once. They are about microseconds: a day.
const RESERVED: u64 = 24 * 60 * 60 * 1_000_000;

impl Log {
    /// Makes sure that a power loss does not let this number be given again. Called under the key's latch, before the
    /// number is given.
    pub(crate) fn reserve_number(
        &self,
        latch: &Latch,
        options: &FileSystemOptions,
        key: &Key,
        number: u64,
        context: Context<'_>,
    ) -> Result<()> {
        let high = &self.shared.words().head.high;
        if number < high.load(Acquire) {
            return Ok(());
        }
        let reserved = number.saturating_add(RESERVED).min(MAX_TOKEN + 1);
        let frame = Frame::new(Kind::Reserved, reserved, key, &[]);
        let appended = self.append(latch, options, key, &frame, context)?;
        let synced = appended.sync(context);
        if synced.is_ok() {
            // Before the mark is taken away: the header of the emptied segment says this number or a greater one.
            high.fetch_max(reserved, SeqCst);
        }
        appended.forget();
        synced
    }
}
