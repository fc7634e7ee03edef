//! A moment as a future.

use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::time::Sleep;

use super::block_on::wake_caller_at;
use super::engine::engine;

/// Is ready at a time. In a blocking call it costs nothing; otherwise it is a timer of the engine.
#[derive(Debug)]
pub(super) struct Timer {
    /// `None`: never.
    at: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timer {
    pub(super) fn at(at: impl Into<Option<Instant>>) -> Self {
        Self { at: at.into(), sleep: None }
    }
}

impl Future for Timer {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Some(at) = self.at else { return Poll::Pending };
        if Instant::now() >= at {
            return Poll::Ready(());
        }
        if wake_caller_at(context, at) {
            return Poll::Pending;
        }
        if self.sleep.is_none() {
            // Without an engine there is no connection to wait for either.
            let Ok(engine) = engine() else { return Poll::Pending };
            let _engine = engine.enter();
            self.sleep = Some(Box::pin(tokio::time::sleep_until(at.into())));
        }
        self.sleep.as_mut().map_or(Poll::Pending, |sleep| sleep.as_mut().poll(context))
    }
}

/// The output of the future, or `None` if `end`, such as a timer, is ready first.
pub(super) async fn until<F: Future>(end: impl Future<Output = ()>, future: F) -> Option<F::Output> {
    let (mut end, mut future) = (pin!(end), pin!(future));
    std::future::poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => end.as_mut().poll(context).map(|()| None),
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::time::Duration;

    use super::super::block_on::block_on;
    use super::*;

    #[test]
    fn a_timer_wakes_a_blocked_thread_and_a_task() {
        let pause = Duration::from_millis(20);
        let waits = async || {
            let start = Instant::now();
            assert!(until(Timer::at(start + pause), pending::<()>()).await.is_none());
            assert!(start.elapsed() >= pause);
            assert_eq!(until(Timer::at(None), async { 7 }).await, Some(7));
        };
        block_on(waits());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(waits());
    }
}
