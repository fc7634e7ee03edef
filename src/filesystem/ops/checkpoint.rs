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
    log.seal(context)?;
    let limits = Limits::new(&TIMEOUT.into());
    // A thread of this process, or another one, may be emptying the log already.
    while !log.checkpoint(&core.options, context)? {
        if limits.is_over() {
            return Ok(false);
        }
        std::thread::sleep(limits.cap(PAUSE));
    }
    log.shrink(context)?;
    Ok(true)
}

/// A checkpoint takes less, unless a process is stopped or the disk is very busy.
const TIMEOUT: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(1);
