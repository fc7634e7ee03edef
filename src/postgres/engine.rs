//! The thread of this process for what no blocking call does on its own thread. It makes connections, moves the bytes of
//! those that futures use and of the one that stands for the process, runs the timers of futures, and finishes the work that
//! a dropped call has left.
//!
//! The first connection starts it. It ends with the process, because nothing else may shut a runtime down: that would
//! block, and a panic follows if it happens inside of another runtime. A forked child has an engine of its own.

use std::future::pending;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::thread;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::process::{PerProcess, ProcessId};

static ENGINE: PerProcess<Option<Local<Handle>>> = PerProcess::new();

/// The engine of this process. Fails if no thread can be started.
pub(super) fn engine() -> io::Result<Handle> {
    let mut engine = ENGINE.lock();
    if let Some(engine) = engine.as_ref().and_then(Local::get) {
        return Ok(engine.clone());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let run = move || runtime.block_on(pending::<()>());
    thread::Builder::new().name("record-store".into()).spawn(run)?;
    *engine = Some(Local::new(handle.clone()));
    Ok(handle)
}

/// The output of a future that runs on the engine. If this is dropped, the future is, too.
pub(super) struct OnEngine<T>(JoinHandle<T>);

impl<T: Send + 'static> OnEngine<T> {
    pub(super) fn spawn(future: impl Future<Output = T> + Send + 'static) -> io::Result<Self> {
        Ok(Self(engine()?.spawn(future)))
    }
}

impl<T> Future for OnEngine<T> {
    type Output = io::Result<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        let output = ready!(Pin::new(&mut self.0).poll(context));
        Poll::Ready(output.map_err(io::Error::from))
    }
}

impl<T> Drop for OnEngine<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A value that a forked child must neither use nor drop: it would write to the connections of its parent, or wait
/// for a mutex that a thread of the parent holds.
#[derive(Debug)]
pub(super) struct Local<T> {
    value: Option<T>,
    process: ProcessId,
}

impl<T> Local<T> {
    pub(super) fn new(value: T) -> Self {
        Self { value: Some(value), process: ProcessId::current() }
    }

    /// `None`: this is a forked child.
    pub(super) fn get(&self) -> Option<&T> {
        self.value.as_ref().filter(|_| self.process.is_here())
    }
}

impl<T> Drop for Local<T> {
    fn drop(&mut self) {
        if !self.process.is_here() {
            std::mem::forget(self.value.take());
        }
    }
}
