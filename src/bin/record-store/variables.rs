//! The environment variables for the commands of `run` and `lock`.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::Command;

use record_store::{Key, LockGuard, LockToken, RecordStore};

use crate::args::DIR;
use crate::store::{self, Store};

const KEY: &str = "RECORD_STORE_KEY";
const TOKEN: &str = "RECORD_STORE_TOKEN";

/// The lock under which a command runs.
pub(crate) struct Variables<'a> {
    dir: OsString,
    key: &'a Key,
    token: LockToken,
}

impl<'a> Variables<'a> {
    /// `given` is the store as the user named it.
    pub(crate) fn new(store: &Store, guard: &'a LockGuard<'_, dyn RecordStore>, given: &Path) -> Self {
        let dir = match store.files() {
            Some(files) => files.path().into(),
            None => without_password(given.as_os_str()),
        };
        Self { dir, key: guard.key(), token: guard.token() }
    }

    /// Sets the variables. `None`, without a lock: then those of another lock, under which this program runs, must not
    /// be taken for this one's.
    pub(crate) fn set(variables: Option<Self>, command: &mut Command) {
        let Some(Self { dir, key, token }) = variables else {
            command.env_remove(KEY).env_remove(TOKEN);
            return;
        };
        command.env(DIR, dir).env(KEY, key.as_str()).env(TOKEN, token.to_string());
    }
}

/// The token of the lock under which this program runs, if that is the key's lock.
pub(crate) fn own_token(key: &Key) -> Option<LockToken> {
    let is_own = std::env::var_os(KEY).is_some_and(|own| own == key.as_str());
    let token = std::env::var(TOKEN).ok().filter(|_| is_own)?;
    token.parse().ok()
}

/// The URL without its password, which every process of the user could read in the environment of the command, and
/// which the command might print. If it is there already, because the URL comes from there, it stays.
fn without_password(given: &OsStr) -> OsString {
    match given.to_str() {
        Some(url) if std::env::var_os(DIR).as_deref() != Some(given) => store::without_password(url).into(),
        _ => given.to_owned(),
    }
}
