//! The command line program `record-store`: records and locks for shell scripts.

mod args;
mod command;
mod completions;
mod confirm;
mod damaged;
mod duration;
mod export;
mod failure;
mod form;
mod format;
mod gc;
mod import;
mod limit;
mod list;
mod lock;
mod man;
mod names;
mod output;
mod own_lock;
mod progress;
mod records;
mod recovery;
mod remarks;
mod renew;
mod run;
mod runner;
mod signals;
mod store;
mod style;
mod target;
mod tee;
mod unlock;
mod usage;
mod value;
mod variables;
mod verify;
mod waiting;
mod watch;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Task};

fn main() -> ExitCode {
    if let Some(words) = completions::asked() {
        completions::answer(&words);
        return ExitCode::SUCCESS;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(message) => return usage::print(message),
    };
    remarks::choose(cli.progress);
    let outcome = match cli.task {
        Task::Run(args) => run::run(args),
        Task::Lock(args) => lock::lock(&args),
        Task::Get(args) => records::get(&args),
        Task::Put(args) => records::put(&args),
        Task::Rm(args) => records::rm(&args),
        Task::Ls(args) => list::keys(&args),
        Task::Stat(args) => list::stat(&args),
        Task::Locks(args) => list::locks(&args),
        Task::Renew(args) => renew::renew(&args),
        Task::Unlock(args) => unlock::unlock(&args),
        Task::Export(args) => export::export(&args),
        Task::Import(args) => import::import(&args),
        Task::Verify(args) => verify::verify(&args),
        Task::Gc(args) => gc::gc(&args),
        Task::Watch(args) => watch::watch(&args),
        Task::Completions(args) => completions::completions(&args),
        Task::Man(args) => man::man(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
