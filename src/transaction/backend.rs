//! The store of a transaction: one whose calls block, or one whose calls are futures.

use std::future::ready;
use std::sync::Arc;

use super::end::End;
use crate::compute::Call;
use crate::{
    Claim, Holder, IsolationLevel, Json, Key, LockGuard, LockOptions, LockToken, RawRecord, ReadOptions,
    RecordStore, Result, WriteOptions,
};

/// The calls of a transaction. Those that block are ready at once.
///
/// It is used as a trait object, so the type of an asynchronous transaction does not name the type of the store. If it
/// did, and that type had a lifetime in it, as `dyn RecordStore` has, the compiler could not see that the future of a
/// closure which gets the transaction is `Send`.
pub(crate) trait Backend<'s>: Send + Sync {
    fn default_holder(&self) -> Holder;
    fn supports_isolation_level(&self, level: IsolationLevel) -> bool;
    fn lock(&self, key: Key, options: LockOptions) -> Call<'_, Result<Box<dyn HeldLock<'s> + 's>>>;
    fn exists<'a>(&'a self, key: &'a Key) -> Call<'a, Result<bool>>;
    fn read<'a>(&'a self, key: &'a Key, options: ReadOptions) -> Call<'a, Result<Option<RawRecord>>>;
    /// The future owns all that it needs: it may outlive the one that polled it first.
    fn write(&self, key: &Key, result: &Arc<Json>, options: WriteOptions) -> Call<'s, Result<()>>;

    /// Where the rest of a dropped transaction runs, if that has to wait. `None`: nothing can wait for it.
    fn background(&self) -> Option<Background<'s>> {
        None
    }
}

/// Runs a future to its end, and returns one that waits for it.
pub(crate) type Background<'s> = Box<dyn FnOnce(Call<'s, ()>) -> Call<'s, ()> + 's>;

/// The lock of a transaction. If it is dropped, it is released as its guard is.
pub(crate) trait HeldLock<'s>: Send + Sync {
    fn token(&self) -> LockToken;
    fn claim(&self, operation: &'static str) -> Result<Claim>;

    /// Releases the lock. An error is not reported: the record is written by now, or nothing is.
    fn release(self: Box<Self>, end: &End) -> Call<'s, ()>;

    /// From now on, the same holder cannot acquire the lock before it is released.
    fn give_up(&self) {}
}

impl<'s, S: RecordStore + ?Sized> Backend<'s> for &'s S {
    fn default_holder(&self) -> Holder {
        Holder::current()
    }

    fn supports_isolation_level(&self, level: IsolationLevel) -> bool {
        self.supports_isolation_level_raw(level)
    }

    fn lock(&self, key: Key, options: LockOptions) -> Call<'_, Result<Box<dyn HeldLock<'s> + 's>>> {
        let guard = LockGuard::acquire(*self, key, options);
        Box::pin(ready(guard.map(|guard| Box::new(guard) as _)))
    }

    fn exists<'a>(&'a self, key: &'a Key) -> Call<'a, Result<bool>> {
        Box::pin(ready(self.exists_raw(key)))
    }

    fn read<'a>(&'a self, key: &'a Key, options: ReadOptions) -> Call<'a, Result<Option<RawRecord>>> {
        Box::pin(ready(self.read_raw(key, options)))
    }

    fn write(&self, key: &Key, result: &Arc<Json>, options: WriteOptions) -> Call<'s, Result<()>> {
        Box::pin(ready(self.write_raw(key, result, options)))
    }
}

impl<'s, S: RecordStore + ?Sized> HeldLock<'s> for LockGuard<'s, S> {
    fn token(&self) -> LockToken {
        self.token()
    }

    fn claim(&self, operation: &'static str) -> Result<Claim> {
        self.claim(operation)
    }

    fn release(self: Box<Self>, end: &End) -> Call<'s, ()> {
        let _ = self.release_within(end.wait_for_release());
        Box::pin(ready(()))
    }
}
