//! `man`: writes the manual pages.

use std::fs;
use std::io;
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_mangen::Man;

use crate::args::{Cli, ManArgs};
use crate::failure::Failure;

pub(crate) fn man(args: &ManArgs) -> Result<(), Failure> {
    fs::create_dir_all(&args.dir).map_err(|error| failed(&args.dir, &error))?;
    let mut command = Cli::command().disable_help_subcommand(true);
    // Gives each subcommand its whole name.
    command.build();
    write(&command, &args.dir)?;
    command.get_subcommands().try_for_each(|subcommand| write(subcommand, &args.dir))
}

fn write(command: &Command, dir: &Path) -> Result<(), Failure> {
    let man = Man::new(command.clone()).source(concat!("record-store ", env!("CARGO_PKG_VERSION")));
    let path = dir.join(man.get_filename());
    let mut page = Vec::new();
    let written = man.render(&mut page).and_then(|()| {
        let page = with_sections(&String::from_utf8_lossy(&page));
        fs::write(&path, in_ascii(&page))
    });
    written.map_err(|error| failed(&path, &error))
}

/// Gives the end of the help, which clap calls "extra", the sections that people expect, and keeps its lines.
fn with_sections(page: &str) -> String {
    let Some((help, extra)) = page.split_once(".SH EXTRA\nExamples:\n") else { return page.to_owned() };
    let (extra, rest) = extra.split_at(extra.find(".SH ").unwrap_or(extra.len()));
    let extra = extra.replace("Exit codes:\n", ".fi\n.SH EXIT STATUS\n.nf\n");
    format!("{help}.SH EXAMPLES\n.nf\n{extra}.fi\n{rest}")
}

/// Older formatters take each byte for a character.
fn in_ascii(page: &str) -> String {
    let escaped = |char: char| {
        if char.is_ascii() { char.to_string() } else { format!("\\[u{:04X}]", u32::from(char)) }
    };
    page.chars().map(escaped).collect()
}

fn failed(path: &Path, error: &io::Error) -> Failure {
    Failure::io(&format!("cannot write {}", path.display()), error)
}
