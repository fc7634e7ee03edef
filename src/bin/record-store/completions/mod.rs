//! `completions`: prints a completion script for a shell.

mod keys;
mod place;

use clap::{Command, CommandFactory};
use clap_complete::{Shell, generate};

use crate::args::{Cli, CompletionsArgs};
use crate::failure::Failure;
use crate::output::Output;
pub(crate) use keys::{answer, asked};

pub(crate) fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut out = Output::open();
    out.write(with_keys(args.shell, &script(args.shell)).as_bytes())?;
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

/// Adds functions that ask the program for keys, in the shells for which they are written. The generator cannot do that.
fn with_keys(shell: Shell, script: &str) -> String {
    match shell {
        Shell::Bash => {
            let functions = concat!(include_str!("keys.bash"), "\nif [[ ");
            let (body, registration) = script.rsplit_once("\nif [[ ").unwrap_or((script, ""));
            // They need arrays and options that earlier versions do not have.
            let registration = registration.replacen("-F _record_store ", "-F __record_store_complete ", 1);
            format!("{body}{functions}{registration}")
        }
        Shell::Zsh => {
            const BEGIN: &str = "\n_record-store() {\n";
            let asks = concat!(
                "\n",
                include_str!("keys.zsh"),
                "_record-store() {\n    _record-store_ask\n    local asked=$?\n    (( asked == 2 )) || return asked\n"
            );
            script.replacen(BEGIN, asks, 1)
        }
        Shell::Fish => {
            let takes_key = |line: &str| line.contains(" -l prefix ") && line.ends_with(" -r -f");
            let lines = script.lines().map(|line| {
                let offers = if takes_key(line) {
                    " -a \"(__fish_record_store_ask; __fish_record_store_offer)\""
                } else {
                    ""
                };
                format!("{line}{offers}\n")
            });
            lines.collect::<String>() + include_str!("keys.fish")
        }
        _ => script.to_owned(),
    }
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
