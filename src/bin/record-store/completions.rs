//! `completions`: prints a completion script for a shell.

use clap::CommandFactory;
use clap_complete::generate;

use crate::args::{Cli, CompletionsArgs};
use crate::failure::Failure;
use crate::output::Output;

pub(crate) fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    generate(args.shell, &mut Cli::command(), "record-store", &mut script);
    let mut out = Output::open();
    out.write(&script)?;
    out.finish()
}
