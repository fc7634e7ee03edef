//! Arguments of `watch`.

use std::time::Duration;

use clap::{Args, ValueHint};

use super::{StoreArgs, duration};

/// Show locks and records as they change
///
/// On a terminal, this shows a screen with two tables. The first one lists the locks, the oldest
/// first: key, holder, whether the process that acquired the lock is alive, how long the lock has been
/// held, and the remaining lease. The second one lists the most recently written records. q or Ctrl-C
/// quits.
///
/// Otherwise, and with --json, this prints one line per change: time, event (locked, released, expired,
/// abandoned, written, removed), key, and the holder of the lock or the size of the record, separated
/// by tabs. The first lines are the locks that are already held. Control characters are escaped.
/// Changes that are undone within a short time may be missing.
#[derive(Args)]
#[command(after_help = "\
Examples:
  record-store watch cache
  record-store watch cache | grep --line-buffered abandoned
  record-store watch cache --json | jq -r 'select(.change == \"written\") | .key'

Each line of --json is an object with the fields
  at, change, key, holder and token (null: not about a lock), size (null: not written)")]
pub(crate) struct WatchArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,

    /// Polling interval, such as 500ms, for what the system does not report: ages, expiry of leases,
    /// and every change if the system reports no changes of directories, or the store is on a server
    #[arg(long, value_name = "TIME", value_parser = interval, default_value = "1s", value_hint = ValueHint::Other)]
    pub(crate) interval: Duration,

    /// Print each change as a JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = duration(text)?;
    if interval < Duration::from_millis(10) {
        return Err("must be at least 10ms".to_owned());
    }
    Ok(interval)
}
