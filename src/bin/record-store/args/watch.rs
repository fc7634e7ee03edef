//! `watch`: a store as it changes.

use std::time::Duration;

use clap::Args;

use super::Store;

/// Show locks and records as they change
///
/// On a terminal: who holds which key, whether the process that took the lock is alive, for how long
/// it is held and what is left of its lease, the longest held first; and the records that were
/// written last. q or Ctrl-C quits.
///
/// Elsewhere, and with --json: a line for each change, with its time, what happened (locked,
/// released, expired, abandoned, written, removed), the key, and the lock's holder or the size of
/// the record, with tabs between. It begins with the locks that are held. Control characters are
/// escaped. What comes and goes faster than it can be looked at is not shown.
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
    pub(crate) store: Store,

    /// Look so often, such as 500ms, at what the system does not report: times, the ends of leases,
    /// and everything where it reports no changes of directories
    #[arg(long, value_name = "TIME", value_parser = interval, default_value = "1s")]
    pub(crate) interval: Duration,

    /// Print each change as a JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if interval < Duration::from_millis(10) {
        return Err("at least 10ms".to_owned());
    }
    Ok(interval)
}
