//! `complete-keys`: tells the completion scripts what the word at the cursor can be.
//!
//! It is no subcommand of the program, so that neither help nor manual pages nor suggestions show it. The scripts of
//! `completions` call `record-store complete-keys -- WORD…` with the words up to the cursor. The first line of the answer
//! is `keys`, `value`, `dirs`, `files` or `command N`, and the lines after it are keys. No answer means that the rest of
//! the script knows more.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use record_store::{Key, ListOptions, Listing, RecordStoreExt, Result};

use super::place::{Keys, Place, default_dir, of};
use crate::args::StoreArgs;
use crate::output::Output;
use crate::records::open_to_read;
use crate::store::Store;
use crate::style::printable;

/// The user waits for the answer and cannot see why it takes long.
const TIME_LIMIT: Duration = Duration::from_secs(1);

/// Nobody reads a longer list.
const MAX_KEYS: usize = 256;

/// The words of a command line, if a completion script has called this program.
pub(crate) fn asked() -> Option<Vec<OsString>> {
    let mut arguments = std::env::args_os().skip(1);
    let is_asked = arguments.next()? == "complete-keys" && arguments.next()? == "--";
    is_asked.then(|| arguments.collect())
}

/// Prints the answer. Every error only makes it shorter: a message would appear in the middle of the command line.
pub(crate) fn answer(words: &[OsString]) {
    let Some(place) = of(words, default_dir().as_deref()) else { return };
    let (first, keys) = match place {
        Place::Key(keys) => ("keys".to_owned(), Some(keys)),
        Place::Value(keys) => ("value".to_owned(), Some(keys)),
        Place::Dir(keys) => ("dirs".to_owned(), keys),
        Place::File => ("files".to_owned(), None),
        Place::Command(index) => (format!("command {index}"), None),
    };
    let mut lines = vec![first];
    lines.extend(keys.map(in_time).unwrap_or_default());
    let mut out = Output::open();
    let _ = out.lines(&lines).and_then(|()| out.finish());
}

/// The keys, or none if the store does not tell all of them in time: a part would complete the word to a wrong one.
fn in_time(keys: Keys) -> Vec<String> {
    let (sender, found) = channel();
    // It ends with the program.
    let search = thread::Builder::new().spawn(move || sender.send(find(&keys)));
    search.ok().and_then(|_| found.recv_timeout(TIME_LIMIT).ok()).and_then(Result::ok).unwrap_or_default()
}

fn find(wanted: &Keys) -> Result<Vec<String>> {
    let store = open_to_read(&StoreArgs { dir: wanted.dir.clone() })?;
    let mut shortlist = Shortlist::default();
    let mut add = |key: &Key| {
        if fits(key.as_str(), wanted) {
            shortlist.add(key.as_str());
        }
    };
    if wanted.records {
        // Other keys are still useful if the name of one file is damaged.
        records(&store, &wanted.prefix)?.flatten().for_each(|key| add(&key));
    }
    if wanted.locks {
        store.locks()?.flatten().for_each(|lock| add(lock.key()));
    }
    Ok(shortlist.into_keys())
}

/// The keys that have a record. On a server, only those with the prefix.
fn records<'a>(store: &'a Store, prefix: &str) -> Result<Listing<'a, Key>> {
    if store.files().is_some() {
        // Unlike `records`, this does not wait until what it tells is on the disk.
        return store.keys();
    }
    let records = store.records(ListOptions::new().prefix(prefix))?;
    Ok(Box::new(records.map(|record| Ok(record?.key().clone()))))
}

/// Nobody can see what an invisible character does to a command line, and a line feed would end the key.
fn fits(key: &str, wanted: &Keys) -> bool {
    key.starts_with(&wanted.prefix)
        && (wanted.hyphen || !key.starts_with('-'))
        && !wanted.given.iter().any(|given| given.as_os_str() == OsStr::new(key))
        && printable(key) == key
}

/// The first keys in their order, and the last one: the common beginning of these is that of all.
#[derive(Default)]
struct Shortlist {
    first: BTreeSet<String>,
    last: String,
}

impl Shortlist {
    fn add(&mut self, key: &str) {
        if *key > *self.last {
            key.clone_into(&mut self.last);
        }
        if self.first.len() < MAX_KEYS || self.first.last().is_some_and(|last| *key < **last) {
            self.first.insert(key.to_owned());
        }
        if self.first.len() > MAX_KEYS {
            self.first.pop_last();
        }
    }

    fn into_keys(mut self) -> Vec<String> {
        if !self.last.is_empty() {
            self.first.insert(self.last);
        }
        self.first.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_is_cut_and_keeps_the_common_beginning() {
        let mut shortlist = Shortlist::default();
        assert_eq!(Shortlist::default().into_keys(), [""; 0]);
        for number in (0..1000).rev().chain(0..1000) {
            shortlist.add(&format!("k{number:04}"));
        }
        let keys = shortlist.into_keys();
        assert_eq!(keys.len(), MAX_KEYS + 1);
        assert!(keys.is_sorted());
        assert_eq!((&*keys[0], &*keys[MAX_KEYS - 1], &*keys[MAX_KEYS]), ("k0000", "k0255", "k0999"));
    }
}
