//! The arguments that select a store, a record of it, or a file beside it.
//!
//! The number of arguments alone says whether the store's directory is among them. The environment
//! never changes the meaning of a command line that is complete without it: a variable that is set only makes
//! valid what would be an error without it.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;
use clap::error::ErrorKind;
use clap::{ArgMatches, Args, Command, Error, FromArgMatches, ValueHint};
use record_store::Key;

use crate::style::quoted;

/// The variable that names the store of a command line that names none: a directory, or a URL.
pub(crate) const DIR: &str = "RECORD_STORE_DIR";

/// Selects the store.
pub(crate) struct StoreArgs {
    pub(crate) dir: PathBuf,
}

/// Selects one record of a store.
pub(crate) struct RecordArgs {
    pub(crate) store: StoreArgs,
    pub(crate) key: Key,
}

/// Selects one or more records of a store.
pub(crate) struct KeysArgs {
    pub(crate) store: StoreArgs,
    /// Not empty.
    pub(crate) keys: Vec<Key>,
}

/// Selects records of a store, by their keys or by the beginning of their keys.
pub(crate) struct SelectionArgs {
    pub(crate) store: StoreArgs,
    pub(crate) selection: Selection,
}

pub(crate) enum Selection {
    /// Not empty.
    Keys(Vec<Key>),
    Prefix(String),
}

/// Selects a store, and perhaps a file that it is copied to or from.
pub(crate) struct CopyArgs {
    pub(crate) store: StoreArgs,
    pub(crate) file: Option<PathBuf>,
}

/// The store's directory, if it is not the first argument.
#[derive(Args)]
struct DirArgs {
    /// The store, in place of the argument DIR
    #[arg(id = "store", short = 'd', long = "dir", value_name = "DIR", value_hint = ValueHint::DirPath)]
    dir: Option<PathBuf>,
}

#[derive(Args)]
struct StoreWords {
    /// The store's directory, or the URL of a PostgreSQL server [default: that of --dir, or of the variable
    /// `RECORD_STORE_DIR`]
    #[arg(id = "dir", value_name = "DIR", value_hint = ValueHint::DirPath)]
    first: Option<OsString>,

    #[command(flatten)]
    dir: DirArgs,
}

#[derive(Args)]
struct RecordWords {
    /// The store's directory, or the URL of a PostgreSQL server [default: that of --dir, or of the variable
    /// `RECORD_STORE_DIR`]
    #[arg(id = "dir", value_name = "DIR", value_hint = ValueHint::DirPath)]
    first: Option<OsString>,

    /// The record's key: any text that is not empty. A single argument is the key
    #[arg(id = "key", value_name = "KEY", value_hint = ValueHint::Other)]
    second: Option<OsString>,

    #[command(flatten)]
    dir: DirArgs,
}

#[derive(Args)]
struct KeysWords {
    /// The store's directory, or the URL of a PostgreSQL server [default: that of --dir, or of the variable
    /// `RECORD_STORE_DIR`]
    #[arg(id = "dir", value_name = "DIR", value_hint = ValueHint::DirPath)]
    first: Option<OsString>,

    /// The records' keys: any text that is not empty. A single argument is a key. With --dir, all are keys
    #[arg(id = "key", value_name = "KEY", value_hint = ValueHint::Other)]
    rest: Vec<OsString>,

    #[command(flatten)]
    dir: DirArgs,
}

#[derive(Args)]
struct SelectionWords {
    #[command(flatten)]
    keys: KeysWords,

    /// In place of keys: all records whose keys begin with this text
    #[arg(id = "prefix", long, value_name = "TEXT", value_hint = ValueHint::Other)]
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    prefix: Option<String>,
}

#[derive(Args)]
struct CopyWords {
    /// The store's directory, or the URL of a PostgreSQL server [default: that of --dir, or of the variable
    /// `RECORD_STORE_DIR`]
    #[arg(id = "dir", value_name = "DIR", value_hint = ValueHint::DirPath)]
    first: Option<OsString>,

    /// The file, or - for standard input or output [default: -]. A single argument is DIR, except with --dir
    #[arg(id = "file", value_name = "FILE", value_hint = ValueHint::FilePath)]
    second: Option<OsString>,

    #[command(flatten)]
    dir: DirArgs,
}

impl TryFrom<StoreWords> for StoreArgs {
    type Error = Error;

    fn try_from(words: StoreWords) -> Result<Self, Error> {
        let dir = match (words.first, words.dir.dir) {
            (Some(_), Some(_)) => return Err(two_stores()),
            (Some(dir), None) => dir.into(),
            (None, Some(dir)) => dir,
            (None, None) => default_dir()?,
        };
        Ok(Self { dir })
    }
}

impl TryFrom<RecordWords> for RecordArgs {
    type Error = Error;

    fn try_from(words: RecordWords) -> Result<Self, Error> {
        let (dir, text) = match (words.first, words.second, words.dir.dir) {
            (Some(_), Some(_), Some(_)) => return Err(two_stores()),
            (Some(dir), Some(key), None) => (dir.into(), key),
            (Some(key), None, Some(dir)) => (dir, key),
            (Some(key), None, None) => (default_dir()?, key),
            (None, ..) => return Err(usage("the key is missing: the arguments are DIR and KEY")),
        };
        Ok(Self { store: StoreArgs { dir }, key: key(&text)? })
    }
}

impl TryFrom<KeysWords> for KeysArgs {
    type Error = Error;

    fn try_from(words: KeysWords) -> Result<Self, Error> {
        let (dir, texts) = match (words.first, words.dir.dir) {
            (Some(first), Some(dir)) => (dir, [vec![first], words.rest].concat()),
            (Some(key), None) if words.rest.is_empty() => (default_dir()?, vec![key]),
            (Some(dir), None) => (dir.into(), words.rest),
            (None, _) => return Err(usage("the key is missing: the arguments are DIR and KEY")),
        };
        let keys = texts.iter().map(|text| key(text)).collect::<Result<_, _>>()?;
        Ok(Self { store: StoreArgs { dir }, keys })
    }
}

impl TryFrom<SelectionWords> for SelectionArgs {
    type Error = Error;

    fn try_from(words: SelectionWords) -> Result<Self, Error> {
        let Some(prefix) = words.prefix else {
            let KeysArgs { store, keys } = words.keys.try_into()?;
            return Ok(Self { store, selection: Selection::Keys(keys) });
        };
        let KeysWords { first, rest, dir } = words.keys;
        if !rest.is_empty() {
            return Err(usage("give keys or --prefix, not both: with --prefix, the only argument is DIR"));
        }
        let store = StoreWords { first, dir }.try_into()?;
        Ok(Self { store, selection: Selection::Prefix(prefix) })
    }
}

impl TryFrom<CopyWords> for CopyArgs {
    type Error = Error;

    fn try_from(words: CopyWords) -> Result<Self, Error> {
        let (dir, file) = match (words.first, words.second, words.dir.dir) {
            (Some(_), Some(_), Some(_)) => return Err(two_stores()),
            (Some(dir), file, None) => (dir.into(), file),
            (file, _, Some(dir)) => (dir, file),
            (None, _, None) => (default_dir()?, None),
        };
        Ok(Self { store: StoreArgs { dir }, file: file.map(PathBuf::from) })
    }
}

/// The store that the environment names. An empty variable names none.
fn default_dir() -> Result<PathBuf, Error> {
    let dir = std::env::var_os(DIR).filter(|dir| !dir.is_empty());
    dir.map(PathBuf::from).ok_or_else(|| usage(&format!("no store: give DIR or --dir, or set {DIR}")))
}

fn key(text: &OsStr) -> Result<Key, Error> {
    let shown = || quoted(&text.to_string_lossy());
    let Some(utf8) = text.to_str() else {
        return Err(usage(&format!("a key is text in UTF-8, and {} is none", shown())));
    };
    Key::new(utf8).map_err(|error| usage(&error.to_string()))
}

fn two_stores() -> Error {
    usage("the store is given twice: leave out the argument DIR, or --dir")
}

fn usage(message: &str) -> Error {
    Error::raw(ErrorKind::MissingRequiredArgument, message)
}

/// Lets a command take the arguments of the first type as the second one.
macro_rules! resolve {
    ($words:ty as $args:ty) => {
        impl FromArgMatches for $args {
            fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
                <$words>::from_arg_matches(matches)?.try_into()
            }

            fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
                *self = Self::from_arg_matches(matches)?;
                Ok(())
            }
        }

        impl Args for $args {
            fn augment_args(command: Command) -> Command {
                <$words>::augment_args(command)
            }

            fn augment_args_for_update(command: Command) -> Command {
                <$words>::augment_args_for_update(command)
            }
        }
    };
}

resolve!(StoreWords as StoreArgs);
resolve!(RecordWords as RecordArgs);
resolve!(KeysWords as KeysArgs);
resolve!(SelectionWords as SelectionArgs);
resolve!(CopyWords as CopyArgs);
