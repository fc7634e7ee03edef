//! The names that other programs have for the subcommands.

/// The subcommand that does what the name means elsewhere, and what it does.
pub(crate) fn usual(name: &str) -> Option<(&'static str, &'static str)> {
    Some(match &*name.to_ascii_lowercase() {
        "compute" | "exec" | "once" | "memo" | "memoize" | "cache" => ("run", "run a command once per key"),
        "cat" | "show" | "read" | "fetch" | "print" | "load" => ("get", "print a record's result"),
        "set" | "write" | "store" | "save" | "add" | "update" => ("put", "store a record"),
        "del" | "delete" | "remove" | "unset" | "erase" | "unlink" | "drop" => ("rm", "remove a record"),
        "list" | "keys" | "dir" => ("ls", "list the keys"),
        "who" | "holders" | "list-locks" | "lslocks" => ("locks", "list the locks"),
        "release" | "break" | "break-lock" | "force-unlock" => ("unlock", "release another holder's lock"),
        "dump" | "backup" => ("export", "write all records to one file"),
        "restore" => ("import", "store the records of one file"),
        "check" | "fsck" | "validate" => ("verify", "check the files of a store"),
        "clean" | "cleanup" | "prune" | "sweep" | "vacuum" | "expire" => {
            ("gc", "remove what has expired or is left over")
        }
        "monitor" | "follow" | "tail" | "top" => ("watch", "show changes as they happen"),
        "completion" | "complete" => ("completions", "print a completion script"),
        "manpage" | "manpages" | "manual" => ("man", "write the manual pages"),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn a_usual_name_means_a_subcommand_and_is_none() {
        let command = crate::args::Cli::command();
        let is_subcommand = |name: &str| command.find_subcommand(name).is_some();
        for name in ["exec", "cat", "set", "del", "DELETE", "list", "who", "break", "dump", "restore"] {
            assert!(!is_subcommand(name) && is_subcommand(usual(name).unwrap().0), "{name}");
        }
        for name in ["fsck", "prune", "top", "completion", "manual"] {
            assert!(!is_subcommand(name) && is_subcommand(usual(name).unwrap().0), "{name}");
        }
        // Not even where a similar name exists.
        for subcommand in command.get_subcommands() {
            assert_eq!(usual(subcommand.get_name()), None);
        }
    }
}
