//! Breaking one acquisition's lock and no other's.

use super::FileSystemRecordStore;
use super::latch::Latch;
use super::layout::{self, Context};
use super::look::Look;
use super::publish;
use crate::{IntoKey, LockToken, Result};

impl FileSystemRecordStore {
    /// Takes away the lock of exactly this acquisition, whoever has it, live or not. `false`: it is
    /// gone, and if there is another lock now, that one stays.
    ///
    /// This is [`break_lock`](crate::RecordStoreExt::break_lock) for whoever has looked first: with
    /// the token of the [`LockInfo`](crate::LockInfo) that made up their mind, they cannot hit a
    /// lock that was taken since.
    ///
    /// # Errors
    ///
    /// [`Error::CorruptLock`](crate::Error::CorruptLock) and the like if the lock cannot be told;
    /// [`Error::ReadOnly`](crate::Error::ReadOnly), [`Error::Io`](crate::Error::Io).
    pub fn break_lock_by_token(&self, key: impl IntoKey, token: LockToken) -> Result<bool> {
        let key = &key.into_key()?;
        let context = Context::new("break_lock", key);
        self.writable(context)?;
        let latch = Latch::enter(&self.layout, key, context)?;
        let removed = match self.look(key, context)? {
            Look::Lock(found) if found.lock.token == token => {
                publish::remove(&self.layout, &layout::lock_name(key), context)?
            }
            _ => false,
        };
        drop(latch);
        if removed {
            self.events.freed(key, &self.layout);
        }
        Ok(removed)
    }
}

#[cfg(test)]
mod tests {
    use crate::{FileSystemRecordStore, Holder, LockOptions, RecordStoreExt};

    #[test]
    fn only_the_lock_of_the_token_is_broken() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileSystemRecordStore::open(dir.path()).unwrap();
        let job = Holder::named("job").unwrap();
        let options = LockOptions::new().holder(job.clone());
        let old = store.acquire_lock("k", &options).unwrap();
        store.release_lock("k", &job).unwrap();
        assert!(!store.break_lock_by_token("k", old).unwrap());
        let new = store.acquire_lock("k", &options).unwrap();
        assert!(!store.break_lock_by_token("k", old).unwrap());
        assert!(store.is_lock_holder("k", &job).unwrap());
        assert!(store.break_lock_by_token("k", new).unwrap());
        assert!(!store.is_locked("k").unwrap());
        assert!(store.write_as("k", &1, new).unwrap_err().is_lock_lost());
    }
}
