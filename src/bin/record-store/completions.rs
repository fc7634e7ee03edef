//! `completions`: prints a completion script for a shell.

use clap::{Command, CommandFactory};
use clap_complete::{Shell, generate};

use crate::args::{Cli, CompletionsArgs};
use crate::failure::Failure;
use crate::output::Output;

pub(crate) fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut out = Output::open();
    out.write(script(args.shell).as_bytes())?;
    out.finish()
}

fn script(shell: Shell) -> String {
    const NAME: &str = "record-store";
    // In the scripts for bash, the generator names a subcommand once with "__" and once with "__subcmd__" in the
    // place of the hyphen, so that none is found. A name without a hyphen has neither. The last word of the lines
    // that register the script is the name of the program.
    const NAME_FOR_BASH: &str = "record_store";
    let name = if shell == Shell::Bash { NAME_FOR_BASH } else { NAME };
    let mut script = Vec::new();
    generate(shell, &mut command(), name, &mut script);
    let script = String::from_utf8_lossy(&script).into_owned();
    script.replace(&format!(" -o default {NAME_FOR_BASH}\n"), &format!(" -o default {NAME}\n"))
}

/// The command for the generator. In the scripts for zsh, arguments that may be left out would be taken for parts of the
/// command that `run` and `lock` start.
fn command() -> Command {
    Cli::command().mut_subcommands(|task| {
        task.mut_args(|arg| {
            let is_place = ["dir", "key"].contains(&arg.get_id().as_str());
            if is_place { arg.required(true) } else { arg }
        })
    })
}
