//! Calls, as blocking methods or as futures: what a guard or a transaction does is written once, for both.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::thread;

use crate::{
    Acquired, Claim, Error, ErrorKind, Key, LockInfo, LockOptions, RecordStore, Result, WaitOptions,
};

/// The calls of a guard. Those of a store block, so their futures are ready when they are polled first.
pub(crate) trait Calls {
    async fn acquire_lock(&self, key: &Key, options: LockOptions) -> Result<Acquired>;
    async fn release_lock(&self, key: &Key, claim: &Claim, options: WaitOptions) -> Result<()>;
    async fn lock_info(&self, key: &Key) -> Result<Option<LockInfo>>;
    /// Does something that waits for a moment, such as for the end of a thread.
    async fn wait(&self, wait: impl FnOnce() + Send + 'static);
}

impl<S: RecordStore + ?Sized> Calls for S {
    async fn acquire_lock(&self, key: &Key, options: LockOptions) -> Result<Acquired> {
        self.acquire_lock_raw(key, options)
    }

    async fn release_lock(&self, key: &Key, claim: &Claim, options: WaitOptions) -> Result<()> {
        self.release_lock_raw(key, claim, options)
    }

    async fn lock_info(&self, key: &Key) -> Result<Option<LockInfo>> {
        self.lock_info_raw(key)
    }

    async fn wait(&self, wait: impl FnOnce() + Send + 'static) {
        wait();
    }
}

/// Makes a call whose futures block. It is an error, and a bug, if one of them is not ready at once.
pub(crate) fn block<T, E: From<Error>>(
    operation: &'static str,
    call: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    match poll_once(call) {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => {
            let error = Error::new(ErrorKind::Thread, operation);
            Err(error.with_source("a call that blocks has returned without its outcome").into())
        }
    }
}

pub(crate) fn poll_once<T>(call: impl Future<Output = T>) -> Poll<T> {
    pin!(call).poll(&mut Context::from_waker(Waker::noop()))
}

/// The output of a future, or its panic.
pub(crate) async fn caught<T>(call: impl Future<Output = T>) -> thread::Result<T> {
    let mut call = pin!(call);
    poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(context))) {
        Ok(polled) => polled.map(Ok),
        Err(panic) => Poll::Ready(Err(panic)),
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[test]
    fn a_call_that_does_not_block_is_an_error_and_does_not_hang() {
        assert_eq!(block::<_, Error>("read", ready(Ok(1))).unwrap(), 1);
        let error = block::<(), Error>("read", pending()).unwrap_err();
        assert_eq!((error.kind(), error.operation()), (ErrorKind::Thread, "read"));
    }
}
