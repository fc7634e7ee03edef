//! The word at the cursor of an unfinished command line, and what it can be.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::{Arg, Command, CommandFactory};

use crate::args::{Cli, DIR};

/// The kinds of words at the cursor that a shell cannot know.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A key.
    Key(Keys),
    /// A key behind `=`, in the word of an option.
    Value(Keys),
    /// The directory of a store, or a key of the default store, if there is one.
    Dir(Option<Keys>),
    File,
    /// A part of the command that `run` or `lock` starts, which begins with the word at this index.
    Command(usize),
}

/// The keys that fit.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Keys {
    /// Of this store.
    pub(super) dir: PathBuf,
    /// Those that have a record.
    pub(super) records: bool,
    /// Those that are locked.
    pub(super) locks: bool,
    pub(super) prefix: String,
    /// They are on the command line already.
    pub(super) given: Vec<OsString>,
    /// Whether a key may begin with a hyphen. Otherwise the program would take it for an option.
    pub(super) hyphen: bool,
}

/// The words of a command line before the cursor.
struct Words<'a> {
    task: Command,
    /// The value of `--dir`.
    dir: Option<&'a OsStr>,
    has_prefix: bool,
    /// The arguments that are no options.
    arguments: Vec<&'a OsStr>,
    /// The word at the cursor is the value of this option.
    option: Option<Arg>,
    /// All options are before this word.
    options_ended: bool,
}

/// The place of the last word. The words are those after the name of the program. `default` is the value of the
/// variable [`DIR`].
pub(super) fn of(words: &[OsString], default: Option<&OsStr>) -> Option<Place> {
    let (word, before) = words.split_last()?;
    let mut program = Cli::command();
    // Gives each subcommand the options of the program.
    program.build();
    let words = match Words::parse(&program, before)? {
        Ok(words) => words,
        Err(command) => return Some(Place::Command(command)),
    };
    words.place(word, default.filter(|dir| !dir.is_empty()))
}

impl<'a> Words<'a> {
    /// `None`: there is no subcommand. `Err`: the command of `run` or `lock` begins with the word at this index.
    fn parse(program: &Command, before: &'a [OsString]) -> Option<Result<Self, usize>> {
        let mut task = None;
        let (mut dir, mut has_prefix, mut arguments) = (None, false, vec![]);
        let (mut option, mut options_ended): (Option<&Arg>, _) = (None, false);
        for (index, word) in before.iter().enumerate() {
            let value;
            if option.is_some() {
                value = Some(word.as_os_str());
            } else if options_ended || !is_option(word) {
                match task {
                    None => task = Some(program.find_subcommand(word)?),
                    Some(_) => arguments.push(word.as_os_str()),
                }
                continue;
            } else if word == "--" {
                if task?.get_positionals().any(Arg::is_last_set) {
                    return Some(Err(index + 1));
                }
                options_ended = true;
                continue;
            } else {
                (option, value) = find(task.unwrap_or(program), word)?;
            }
            match (option.map(|option| option.get_id().as_str()), value) {
                (Some("store"), Some(value)) => dir = Some(value),
                (Some("prefix"), Some(_)) => has_prefix = true,
                _ => {}
            }
            if value.is_some() {
                option = None;
            }
        }
        let option = option.cloned();
        Some(Ok(Self { task: task?.clone(), dir, has_prefix, arguments, option, options_ended }))
    }

    /// The rules of `args::place`.
    fn place(&self, word: &OsStr, default: Option<&OsStr>) -> Option<Place> {
        if let Some(option) = &self.option {
            return if option.get_id() == "prefix" {
                self.beginning(word, default).map(Place::Key)
            } else {
                None
            };
        }
        if !self.options_ended && is_option(word) {
            let value = OsStr::from_bytes(word.as_bytes().strip_prefix(b"--prefix=")?);
            self.has("prefix").then_some(())?;
            return self.beginning(value, default).map(Place::Value);
        }
        let count = self.arguments.len();
        let dir_is_missing = self.dir.is_none() && count == 0 && self.has("dir");
        if self.has("key") && !self.has_prefix {
            if dir_is_missing {
                return Some(Place::Dir(default.and_then(|dir| self.keys(dir, word, &[]))));
            }
            let (dir, given) = match self.dir {
                Some(dir) => (dir, &*self.arguments),
                None => (self.arguments[0], &self.arguments[1..]),
            };
            let takes_more = given.is_empty() || self.takes_keys();
            return takes_more.then(|| self.keys(dir, word, given)).flatten().map(Place::Key);
        }
        if dir_is_missing {
            return Some(Place::Dir(None));
        }
        let file = usize::from(self.dir.is_none());
        (self.has("file") && count == file).then_some(Place::File)
    }

    /// The keys for the value of `--prefix`.
    fn beginning(&self, value: &OsStr, default: Option<&OsStr>) -> Option<Keys> {
        let dir = self.dir.or_else(|| self.arguments.first().copied()).or(default)?;
        let is_attached = self.option.is_none();
        Some(Keys { hyphen: is_attached, ..self.keys(dir, value, &[])? })
    }

    /// `None`: no key can begin with this word.
    fn keys(&self, dir: &OsStr, word: &OsStr, given: &[&OsStr]) -> Option<Keys> {
        let task = self.task.get_name();
        let given = given.iter().map(|&key| key.to_owned()).collect();
        Some(Keys {
            dir: dir.into(),
            // A locked key need not have a record, and `unlock` of a key without a lock is an error.
            records: !matches!(task, "unlock" | "renew"),
            locks: matches!(task, "unlock" | "renew" | "lock" | "stat"),
            prefix: word.to_str()?.to_owned(),
            given,
            hyphen: self.options_ended,
        })
    }

    fn has(&self, id: &str) -> bool {
        self.task.get_arguments().any(|arg| arg.get_id() == id)
    }

    fn takes_keys(&self) -> bool {
        let keys = self.task.get_positionals().find(|arg| arg.get_id() == "key");
        keys.is_some_and(|keys| matches!(keys.get_action(), clap::ArgAction::Append))
    }
}

/// A hyphen alone is a word like others.
fn is_option(word: &OsStr) -> bool {
    word.len() > 1 && word.as_bytes().starts_with(b"-")
}

/// The option of the word, and its value if that is in the same word. No option: all of them are flags. `None`: it is
/// unknown.
fn find<'a, 'b>(task: &'a Command, word: &'b OsStr) -> Option<(Option<&'a Arg>, Option<&'b OsStr>)> {
    let takes_value = |arg: &Arg| arg.get_action().takes_values();
    let bytes = word.as_bytes();
    if let Some(long) = bytes.strip_prefix(b"--") {
        let (name, value) = match long.iter().position(|byte| *byte == b'=') {
            Some(at) => (&long[..at], Some(OsStr::from_bytes(&long[at + 1..]))),
            None => (long, None),
        };
        let mut args = task.get_arguments();
        let arg = args.find(|arg| arg.get_long().is_some_and(|long| long.as_bytes() == name))?;
        return Some((takes_value(arg).then_some(arg), value));
    }
    for (at, byte) in bytes.iter().enumerate().skip(1) {
        let arg = task.get_arguments().find(|arg| arg.get_short() == Some(char::from(*byte)))?;
        if takes_value(arg) {
            let value = &bytes[at + 1..];
            let value = value.strip_prefix(b"=").unwrap_or(value);
            return Some((Some(arg), (at + 1 < bytes.len()).then_some(OsStr::from_bytes(value))));
        }
    }
    Some((None, None))
}

/// The value of the variable.
pub(super) fn default_dir() -> Option<OsString> {
    std::env::var_os(DIR)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(line: &[&str], default: Option<&str>) -> Option<Place> {
        let words: Vec<_> = line.iter().map(OsString::from).collect();
        of(&words, default.map(OsStr::new))
    }

    /// The place, its store and the beginning of the key, in short.
    fn shown(line: &[&str], default: Option<&str>) -> String {
        let keys = |keys: &Keys| format!("{}:{}", keys.dir.display(), keys.prefix);
        match place(line, default) {
            None => "-".to_owned(),
            Some(Place::Key(found)) => keys(&found),
            Some(Place::Value(found)) => format!("={}", keys(&found)),
            Some(Place::Dir(found)) => format!("dir {}", found.as_ref().map(keys).unwrap_or_default()),
            Some(Place::File) => "file".to_owned(),
            Some(Place::Command(index)) => format!("command {index}"),
        }
    }

    #[test]
    fn the_place_is_that_of_the_program() {
        for (line, without, with) in [
            (&[""][..], "-", "-"),
            (&["ge"], "-", "-"),
            (&["-q", "get", ""], "dir ", "dir v:"),
            (&["get", "k"], "dir ", "dir v:k"),
            (&["get", "d", "k"], "d:k", "d:k"),
            (&["get", "d", "a", ""], "d:", "d:"),
            (&["get", "--dir", "d", "k"], "d:k", "d:k"),
            (&["get", "--dir=d", "a", "k"], "d:k", "d:k"),
            (&["get", "-d", "d", "k"], "d:k", "d:k"),
            (&["get", "-qdd", "k"], "d:k", "d:k"),
            (&["get", "-d=d", "k"], "d:k", "d:k"),
            (&["get", "--wait", "5s", "d", "k"], "d:k", "d:k"),
            (&["get", "--wait", ""], "-", "-"),
            (&["get", "--dir", ""], "-", "-"),
            (&["get", "d", "-"], "d:-", "d:-"),
            (&["get", "d", "--"], "-", "-"),
            (&["get", "d", "--js"], "-", "-"),
            (&["get", "d", "--", "--js"], "d:--js", "d:--js"),
            (&["get", "--unknown", "d", "k"], "-", "-"),
            (&["put", "d", "k"], "d:k", "d:k"),
            (&["put", "d", "a", "k"], "-", "-"),
            (&["put", "--dir", "d", "a", "k"], "-", "-"),
            (&["rm", "--prefix", "k"], "-", "v:k"),
            (&["rm", "--prefix=k"], "-", "=v:k"),
            (&["rm", "d", "--prefix", "k"], "d:k", "d:k"),
            (&["rm", "d", "--prefix=k"], "=d:k", "=d:k"),
            (&["rm", "--dir", "d", "--prefix", ""], "d:", "d:"),
            (&["rm", "--prefix", "a", ""], "dir ", "dir "),
            (&["rm", "--prefix", "a", "d", ""], "-", "-"),
            (&["ls", "d", "--prefix", "k"], "d:k", "d:k"),
            (&["get", "d", "--prefix=k"], "-", "-"),
            (&["ls", ""], "dir ", "dir "),
            (&["ls", "d", ""], "-", "-"),
            (&["export", ""], "dir ", "dir "),
            (&["export", "d", ""], "file", "file"),
            (&["export", "--dir", "d", ""], "file", "file"),
            (&["export", "d", "f", ""], "-", "-"),
            (&["man", ""], "dir ", "dir "),
            (&["completions", ""], "-", "-"),
            (&["help", "get", ""], "-", "-"),
            (&["run", "d", "k", "--", ""], "command 4", "command 4"),
            (&["run", "k", "--", "ls", "-"], "command 3", "command 3"),
            (&["lock", "--note", "n", "k", "--", "ls", "--", "x"], "command 5", "command 5"),
        ] {
            assert_eq!(shown(line, None), without, "{line:?}");
            assert_eq!(shown(line, Some("")), without, "{line:?}");
            assert_eq!(shown(line, Some("v")), with, "{line:?} with the variable");
        }
    }

    #[test]
    fn each_subcommand_gets_the_keys_that_it_can_use() {
        for (task, records, locks) in [
            ("get", true, false),
            ("put", true, false),
            ("rm", true, false),
            ("run", true, false),
            ("lock", true, true),
            ("stat", true, true),
            ("unlock", false, true),
            ("renew", false, true),
        ] {
            let Some(Place::Key(keys)) = place(&[task, "d", ""], None) else { panic!("{task}") };
            assert_eq!((keys.records, keys.locks), (records, locks), "{task}");
        }
    }

    #[test]
    fn keys_with_a_hyphen_and_given_keys_are_told() {
        let hyphen = |line: &[&str]| match place(line, None) {
            Some(Place::Key(keys) | Place::Value(keys)) => keys.hyphen,
            other => panic!("{other:?}"),
        };
        assert!(!hyphen(&["get", "d", ""]) && hyphen(&["get", "d", "--", ""]));
        assert!(!hyphen(&["rm", "d", "--prefix", ""]) && hyphen(&["rm", "d", "--prefix="]));
        let Some(Place::Key(keys)) = place(&["get", "d", "a", "b", ""], None) else { panic!() };
        assert_eq!(keys.given, ["a", "b"]);
    }
}
