//! Watching the whole store. The server notifies only those that wait for a change of one record, so all records are listed
//! from time to time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::core::Core;
use super::limits::{Context, Limits, RECHECK_INTERVAL};
use super::pages::Pages;
use super::record_info::selected;
use super::statements::Query;
use super::timer::{Timer, until};
use crate::changes::CHANGES;
use crate::changes::polling::PAUSE_FACTOR;
use crate::{ListOptions, RecordVersion, Result, SeenRecords, WaitOptions};

/// What a watch keeps between two calls.
struct Polls {
    next: Instant,
    listing: Option<Listing>,
}

/// A listing that has begun.
struct Listing {
    /// The last id that was listed. `None`: there are no more.
    after: Option<Vec<u8>>,
    spent: Duration,
}

const CONTEXT: Context<'static> = Context { operation: CHANGES, key: None };

pub(super) async fn changes(core: &Arc<Core>, seen: &mut SeenRecords, options: WaitOptions) -> Result<bool> {
    let limits = Limits::new(&options);
    let mut polls = seen.take_state().unwrap_or(Polls { next: Instant::now(), listing: None });
    let outcome = polls.poll(core, seen, &limits).await;
    seen.keep_state(polls);
    outcome
}

impl Polls {
    async fn poll(&mut self, core: &Arc<Core>, seen: &mut SeenRecords, limits: &Limits) -> Result<bool> {
        loop {
            limits.check_cancelled(CONTEXT)?;
            if self.listing.is_some() || Instant::now() >= self.next {
                self.list(core, seen, limits).await?;
            }
            if !seen.has_begun() {
                if self.listing.is_none() {
                    seen.begin();
                    return Ok(false);
                }
                continue;
            }
            if seen.has_changes() {
                return Ok(true);
            }
            if limits.is_over() {
                return Ok(false);
            }
            if self.listing.is_none() {
                self.sleep(limits).await;
            }
        }
    }

    /// Lists a page.
    async fn list(&mut self, core: &Arc<Core>, seen: &mut SeenRecords, limits: &Limits) -> Result<()> {
        let begun = Instant::now();
        let mut listing = self.listing.take().unwrap_or_else(|| {
            seen.begin_listing();
            Listing { after: Some(Vec::new()), spent: Duration::ZERO }
        });
        let options = ListOptions::new().prefix(seen.options().get_prefix());
        let mut pages = Pages::new(core, Query::Records, 0).selected(options).after(listing.after.clone());
        // The first listing may take longer than the call.
        let unlimited = Limits::none();
        let limits = if seen.has_begun() { limits } else { &unlimited };
        let page = match pages.next_within(CHANGES, limits).await {
            Ok(page) => page,
            Err(error) => {
                self.listing = Some(listing);
                return Err(error);
            }
        };
        for row in &page {
            match selected(core, row) {
                Ok(Some(record)) => seen.observe(record.key(), record.version()),
                Ok(None) => {}
                // A read of that record reports it. The listing goes on.
                Err(error) if error.is_corrupt() => {}
                Err(error) => return Err(error.of_operation(CHANGES)),
            }
        }
        listing.after = pages.last();
        listing.spent += begun.elapsed();
        if listing.after.is_some() {
            self.listing = Some(listing);
            return Ok(());
        }
        // Each page is one look at all records between two ids: a record that is in none was not there then.
        for key in seen.unlisted() {
            seen.observe(&key, RecordVersion::ABSENT);
        }
        self.next = Instant::now() + RECHECK_INTERVAL.max(listing.spent.saturating_mul(PAUSE_FACTOR));
        Ok(())
    }

    async fn sleep(&self, limits: &Limits) {
        let cancelled = Arc::new(Notify::new());
        let _on_cancel = limits.cancellation().map(|cancellation| {
            let notify = Arc::clone(&cancelled);
            cancellation.on_cancel(move || notify.notify_one())
        });
        let at = limits.deadline().map_or(self.next, |deadline| deadline.min(self.next));
        until(Timer::at(at), cancelled.notified()).await;
    }
}
