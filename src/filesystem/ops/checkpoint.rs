//! Emptying the commit log at once.

use std::time::Duration;

use crate::Result;
use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::protocol::limits::Limits;

pub(crate) fn checkpoint(core: &Core) -> Result<bool> {
    let context = Context::whole("checkpoint");
    core.check_writable(context)?;
    let Some(log) = &core.log else { return Ok(true) };
    let is_done = log.checkpoint_all(&core.options, &Limits::new(&TIMEOUT.into()), context)?;
    if is_done {
        log.shrink(context);
    }
    Ok(is_done)
}

/// A checkpoint takes less, unless a process is stopped or the disk is very busy.
const TIMEOUT: Duration = Duration::from_secs(2);
