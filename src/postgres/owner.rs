//! The session that stands for this process at the server: with it, all bound locks of this process are free.
//!
//! It has locked a random number, the process's number as an owner, and listens. The calls of this process run on
//! other sessions, so that the server can ask whether this one lives. All handles of a store share it: what a thread
//! has acquired through one of them, it has acquired.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_postgres::Notification;
use tokio_postgres::types::ToSql;

use super::engine::{Local, engine};
use super::failure::Failure;
use super::pool;
use super::schema::random;
use super::session::{Listener, Session, set_limit};
use super::statements::Query;
use super::timer::{Timer, until};
use super::unknown::Unknown;
use super::url::Target;
use crate::StoreIdentity;
use crate::process::PerProcess;

/// The owners of this process, one for each store. They stay, but only as empty ones.
static OWNERS: PerProcess<HashMap<StoreIdentity, Local<Arc<Owner>>>> = PerProcess::new();

/// The session of this process at one store, and all that depends on it.
#[derive(Debug)]
pub(super) struct Owner {
    /// How to connect: as the first of the present handles does.
    target: Mutex<Arc<Target>>,
    schema: String,
    /// The handles of the store in this process.
    handles: AtomicUsize,
    /// So many handles there have been.
    opened: AtomicUsize,
    session: Mutex<Option<Arc<OwnerSession>>>,
    /// The numbers of the sessions that this process has lost, and that the server may still take for living ones.
    lost: Mutex<Vec<i64>>,
    /// Locked by the call that connects.
    connecting: tokio::sync::Mutex<()>,
    waiters: Arc<Waiters>,
    /// The acquisitions of this process whose outcome is not known, through any handle.
    pub(super) unknown: Unknown,
}

#[derive(Debug)]
struct OwnerSession {
    number: i64,
    session: Session,
}

/// The sleeping calls of this process, each by its nonce.
#[derive(Debug, Default)]
struct Waiters(Mutex<HashMap<i64, Arc<Notify>>>);

impl Waiters {
    fn lock(&self) -> MutexGuard<'_, HashMap<i64, Arc<Notify>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone)]
struct Notifies(Arc<Waiters>);

impl Listener for Notifies {
    fn notified(&self, notification: &Notification) {
        let nonce = notification.payload().parse();
        if let Some(waiter) = nonce.ok().and_then(|nonce: i64| self.0.lock().get(&nonce).cloned()) {
            waiter.notify_one();
        }
    }

    /// All have to wait anew, under another number.
    fn ended(&self) {
        self.0.lock().values().for_each(|waiter| waiter.notify_one());
    }
}

/// One handle's share of an owner.
#[derive(Debug)]
pub(super) struct OwnerHandle(Arc<Owner>);

impl OwnerHandle {
    /// The owner of this process at the store.
    pub(super) fn of(identity: StoreIdentity, target: &Arc<Target>, schema: &str) -> Self {
        let mut owners = OWNERS.lock();
        let known = owners.get(&identity).and_then(Local::get).cloned();
        let owner = known.unwrap_or_else(|| {
            let owner = Arc::new(Owner {
                target: Mutex::new(Arc::clone(target)),
                schema: schema.to_owned(),
                handles: AtomicUsize::new(0),
                opened: AtomicUsize::new(0),
                session: Mutex::default(),
                lost: Mutex::default(),
                connecting: tokio::sync::Mutex::default(),
                waiters: Arc::default(),
                unknown: Unknown::default(),
            });
            owners.insert(identity, Local::new(Arc::clone(&owner)));
            owner
        });
        owner.opened.fetch_add(1, Ordering::SeqCst);
        if owner.handles.fetch_add(1, Ordering::SeqCst) == 0 {
            *owner.target() = Arc::clone(target);
        }
        Self(owner)
    }
}

impl std::ops::Deref for OwnerHandle {
    type Target = Arc<Owner>;

    fn deref(&self) -> &Arc<Owner> {
        &self.0
    }
}

impl Drop for OwnerHandle {
    /// The last handle ends the session, unless locks that were acquired without a guard depend on it: these end
    /// with the process.
    fn drop(&mut self) {
        if self.0.handles.fetch_sub(1, Ordering::SeqCst) == 1
            && let Ok(engine) = engine()
        {
            let owner = Arc::clone(&self.0);
            engine.spawn(async move { owner.end_if_unused().await });
        }
    }
}

impl Owner {
    /// The number of this process. Connects if there is no session, or none any more.
    pub(super) async fn number(&self, deadline: Option<Instant>) -> Result<i64, Failure> {
        if let Some(number) = self.present() {
            return Ok(number);
        }
        let Some(_connecting) = until(Timer::at(deadline), self.connecting.lock()).await else {
            return Err(Failure::Unreachable("another call is still connecting".into()));
        };
        if let Some(number) = self.present() {
            return Ok(number);
        }
        if let Some(lost) = self.session().take() {
            self.lost().push(lost.number);
        }
        let lost = self.lost().clone();
        let target = Arc::clone(&self.target());
        let session = pool::connect(&target, Notifies(Arc::clone(&self.waiters)), deadline).await?;
        let number = random();
        let begin = async {
            // The question at its end must not fail because a table is locked.
            let begin = format!("{}; LISTEN \"record_store_{number}\"", set_limit(None));
            session.client.batch_execute(&begin).await?;
            session.client.query("SELECT pg_advisory_lock($1)", &[&number]).await?;
            if !lost.is_empty() {
                let ended = session.client.query(END_SESSIONS_OF, &[&lost]).await.map_err(Failure::from);
                match ended {
                    // Without the right to end them, they end when the server's keepalive gives up.
                    Ok(_) | Err(Failure::Refused(_)) => {}
                    Err(failure) => return Err(failure),
                }
            }
            Ok(())
        };
        match until(Timer::at(deadline), begin).await {
            Some(outcome) => outcome?,
            None => return Err(Failure::unreachable()),
        }
        self.lost().retain(|number| !lost.contains(number));
        *self.session() = Some(Arc::new(OwnerSession { number, session }));
        Ok(number)
    }

    /// The server says that this number's session is gone.
    pub(super) fn is_gone(&self, number: i64) {
        self.session().take_if(|session| session.number == number);
    }

    /// Fails if the session of this number has ended.
    pub(super) async fn check(&self, number: i64) -> Result<(), Failure> {
        let session = self.session().clone().filter(|session| session.number == number);
        let Some(session) = session else { return Err(Failure::Gone) };
        session.session.client.query_one("SELECT pg_backend_pid()", &[]).await?;
        Ok(())
    }

    /// The process of the server that the session is connected to, if there is one.
    pub(super) fn backend(&self) -> Option<i32> {
        self.session().as_ref().map(|session| session.session.backend)
    }

    /// The number of this process, if there is a session.
    pub(super) fn present(&self) -> Option<i64> {
        self.session().as_ref().filter(|it| !it.session.is_closed()).map(|it| it.number)
    }

    fn target(&self) -> MutexGuard<'_, Arc<Target>> {
        self.target.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lost(&self) -> MutexGuard<'_, Vec<i64>> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn session(&self) -> MutexGuard<'_, Option<Arc<OwnerSession>>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn end_if_unused(&self) {
        let _connecting = self.connecting.lock().await;
        let opened = self.opened.load(Ordering::SeqCst);
        let session = self.session().clone();
        let Some(session) = session else { return };
        let number = [&session.number as &(dyn ToSql + Sync)];
        let locks = session.session.query(Query::HasLocks, &self.schema, &number);
        let has_locks = match until(Timer::at(Instant::now().checked_add(END_PATIENCE)), locks).await {
            Some(Ok(rows)) => !rows.is_empty(),
            // Only the end of the session proves that there are none.
            Some(Err(failure)) => !failure.is_of_session(),
            None => true,
        };
        // A handle counts before it looks for a session. So either it finds none, or it is noticed here.
        let mut present = self.session();
        let is_used = self.handles.load(Ordering::SeqCst) > 0 || self.opened.load(Ordering::SeqCst) != opened;
        if !is_used && !has_locks {
            present.take_if(|present| present.number == session.number);
        }
    }

    /// Registers a call that sleeps until it is notified under its nonce.
    pub(super) fn register(&self, nonce: i64) -> Registered {
        let notify = Arc::new(Notify::new());
        self.waiters.lock().insert(nonce, Arc::clone(&notify));
        Registered { nonce, notify, waiters: Arc::clone(&self.waiters) }
    }
}

/// The last handle waits this long for the server to say whether locks depend on the session.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// The advisory lock of a number is the one whose two halves are its own. Only the session that stood for this process
/// has locked it exclusively: the others that share it are proving that this session is gone.
const END_SESSIONS_OF: &str = "SELECT pg_terminate_backend(pid) FROM pg_locks \
    WHERE locktype = 'advisory' AND objsubid = 1 AND granted AND mode = 'ExclusiveLock' AND pid <> pg_backend_pid() \
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
    AND (classid::bigint << 32 | objid::bigint) = ANY ($1::bigint[])";

/// A sleeping call. It is no longer notified when this is dropped.
#[derive(Debug)]
pub(super) struct Registered {
    nonce: i64,
    pub(super) notify: Arc<Notify>,
    waiters: Arc<Waiters>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.waiters.lock().remove(&self.nonce);
    }
}
