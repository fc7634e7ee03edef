//! What a holder has given up, and what is still being done about it.
//!
//! A dropped guard is released in the background, and so is a lock that came for a future which was
//! dropped. Until that is done the lock is still its holder's. If the same holder asked again just
//! then, it would be given that very lock, as an inner one, and see it released under its hands. So
//! it waits first until everything that it gave up is gone.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use tokio::sync::Semaphore;

use crate::per_process::PerProcess;
use crate::{Holder, Key};

type Place = (Holder, Key);

/// Each has a semaphore without permits, closed when it is gone. A child has given up nothing.
static LEAVING: PerProcess<HashMap<Place, Vec<Arc<Semaphore>>>> = PerProcess::new();

/// As long as this is there, its holder may still have the lock that it gave up.
pub(super) struct Leaving {
    place: Place,
    gone: Arc<Semaphore>,
}

impl Leaving {
    pub(super) fn begin(holder: &Holder, key: &Key) -> Self {
        let (place, gone) = ((holder.clone(), key.clone()), Arc::new(Semaphore::new(0)));
        LEAVING.lock().entry(place.clone()).or_default().push(Arc::clone(&gone));
        Self { place, gone }
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        let mut leaving = LEAVING.lock();
        if let Some(those) = leaving.get_mut(&self.place) {
            those.retain(|other| !Arc::ptr_eq(other, &self.gone));
            if those.is_empty() {
                leaving.remove(&self.place);
            }
        }
        drop(leaving);
        self.gone.close();
    }
}

/// Waits until there is nothing left of what this holder gave up.
pub(super) async fn gone(holder: &Holder, key: &Key) {
    let place = (holder.clone(), key.clone());
    loop {
        let first = LEAVING.lock().get(&place).and_then(|those| those.first().cloned());
        let Some(first) = first else { return };
        // There never is a permit: it ends when the semaphore is closed.
        let _ = first.acquire().await;
    }
}

/// An acquisition under way, shared by the future that wants it and the thread that makes it.
#[derive(Default)]
pub(super) struct Attempt {
    given_up: OnceLock<Leaving>,
}

impl Attempt {
    /// The future is gone. The thread is not, as long as it shares this.
    pub(super) fn give_up(&self, holder: &Holder, key: &Key) {
        self.given_up.get_or_init(|| Leaving::begin(holder, key));
    }
}
