//! Arguments of all subcommands: what they say while they work.

use clap::Args;

/// Selects what is printed on standard error beside errors.
#[derive(Args, Clone, Copy)]
pub(crate) struct ProgressArgs {
    /// Print nothing but errors on standard error: no progress, no warnings, and not whom it waits for
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,

    /// Show no progress, and do not say whom it waits for
    #[arg(long, global = true)]
    pub(crate) no_progress: bool,
}
