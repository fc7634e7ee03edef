//! One connection to the server, checked and set up.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OnceCell;
use tokio_postgres::config::Host;
use tokio_postgres::tls::NoTls;
use tokio_postgres::types::ToSql;
use tokio_postgres::{AsyncMessage, Client, Connection, Notification, Row, Statement};

use super::block_on::wake_caller_on;
use super::failure::Failure;
use super::limits::LATCH_SLICE;
use super::polled_socket::PolledSocket;
use super::statements::{self, Query};
use super::timer::{Timer, until};
use super::tls::Connector;
use super::url::{Endpoint, Target};
use super::wire::Wire;
use crate::ErrorKind;

/// The settings that a store relies on, and the server's side of the keepalive. Timeouts that the database or the role may set do not
/// end a session that is idle on purpose. A plan is made once for each statement, and looks for the rows of a key in an index: a
/// plan that was made for a small table would stay when the table has grown.
const SETUP: &str = "SET search_path = pg_catalog; \
    SET default_transaction_isolation = 'read committed'; \
    SET enable_seqscan = off; SET enable_bitmapscan = off; SET jit = off; \
    SET statement_timeout = 0; \
    SET idle_in_transaction_session_timeout = 0; \
    SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 3; \
    SELECT set_config(name, CASE name WHEN 'tcp_user_timeout' THEN '11000' WHEN 'plan_cache_mode' THEN 'force_generic_plan' \
            ELSE '0' END, false) FROM pg_settings \
        WHERE name IN ('idle_session_timeout', 'transaction_timeout', 'tcp_user_timeout', 'plan_cache_mode'); \
    SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'";

/// Limits how long a statement waits for something that is locked.
pub(super) fn set_limit(limit: Option<Duration>) -> String {
    format!("SET lock_timeout = {}", limit.unwrap_or_default().as_millis())
}

/// A connection that is used by one call at a time.
pub(super) struct Session {
    pub(super) client: Client,
    /// Has to be dropped after the client: only without one does the connection tell the server that it ends.
    own: Option<OwnConnection>,
    /// The number of the server's process.
    pub(super) backend: i32,
    /// One for each query. On the heap, because a session is moved as a part of futures.
    prepared: Box<[OnceCell<Statement>]>,
}

/// The thread that moves the bytes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MovedBy {
    /// The engine.
    Engine,
    /// The thread of the blocking call that uses the connection.
    Call,
}

/// The connection of a session whose bytes its calls move.
struct OwnConnection {
    /// `None`: it has ended.
    moving: Mutex<Option<Pin<Box<dyn Future<Output = ()> + Send>>>>,
    socket: Arc<PolledSocket>,
}

impl OwnConnection {
    /// Sends and receives what can be sent and received now.
    fn move_bytes(&self, context: &mut Context<'_>) {
        self.socket.begin_poll();
        let mut present = self.moving.lock().unwrap_or_else(PoisonError::into_inner);
        // If it panics, it is gone, and the drop does not poll it again.
        let Some(mut moving) = present.take() else { return };
        if moving.as_mut().poll(context).is_pending() {
            *present = Some(moving);
        }
    }

    /// Whether the connection has ended. Nobody has listened to the server since the last call, so this does.
    fn is_over(&self) -> bool {
        // By an earlier call.
        self.socket.take_has_read();
        loop {
            self.socket.may_be_readable();
            self.move_bytes(&mut Context::from_waker(Waker::noop()));
            // The end may come right after a message, such as that of a shutdown.
            if !self.socket.take_has_read() {
                return self.moving.lock().unwrap_or_else(PoisonError::into_inner).is_none();
            }
        }
    }
}

impl Drop for OwnConnection {
    fn drop(&mut self) {
        self.move_bytes(&mut Context::from_waker(Waker::noop()));
        // The server has to see the end now, although the events of a call may keep the socket open for a moment.
        let _ = self.socket.shutdown();
    }
}

/// Receives the events of a connection.
pub(super) trait Listener: Clone + Send + 'static {
    fn notified(&self, notification: &Notification);
    /// The connection has ended.
    fn ended(&self);
}

/// Nothing is expected.
#[derive(Clone)]
pub(super) struct NoListener;

impl Listener for NoListener {
    fn notified(&self, _: &Notification) {}
    fn ended(&self) {}
}

/// Connects to the first host that answers and is no standby, beginning with the one that was the last to do so. Runs where
/// the bytes are moved.
pub(super) async fn connect(
    target: Arc<Target>,
    moved_by: MovedBy,
    listener: impl Listener,
    deadline: Option<Instant>,
) -> Result<Session, Failure> {
    let hosts = target.hosts();
    let first = target.last_host.load(Ordering::Relaxed);
    let mut failure = None;
    for tried in 0..hosts.len() {
        let number = (first + tried) % hosts.len();
        // A host that does not answer must leave time for the others.
        let left = u32::try_from(hosts.len() - tried).unwrap_or(u32::MAX);
        let share = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()) / left);
        let limit = share.into_iter().chain(target.config.get_connect_timeout().copied()).min();
        let end = limit.and_then(|limit| Instant::now().checked_add(limit));
        let attempt = connect_to(&target, &hosts[number], moved_by, listener.clone());
        match until(Timer::at(end), attempt).await {
            Some(Ok(session)) => {
                target.last_host.store(number, Ordering::Relaxed);
                return Ok(session);
            }
            // Of a standby and a host that cannot be reached, the latter may be the primary.
            Some(Err(Failure::Standby)) if matches!(failure, Some(Failure::Unreachable(_))) => {}
            Some(Err(next)) => failure = Some(next),
            None => failure = Some(Failure::unreachable()),
        }
    }
    Err(failure.unwrap_or_else(Failure::unreachable))
}

async fn connect_to(
    target: &Target,
    endpoint: &Endpoint,
    moved_by: MovedBy,
    listener: impl Listener,
) -> Result<Session, Failure> {
    let wire = match moved_by {
        MovedBy::Engine => Wire::connect(endpoint).await,
        MovedBy::Call => Wire::connect_for_calls(endpoint).await,
    };
    let wire = wire.map_err(|error| Failure::Unreachable(error.into()))?;
    let socket = wire.polled();
    let tls = match &endpoint.host {
        Host::Tcp(name) => Connector::new(target, name).map_err(Failure::Insecure)?,
        Host::Unix(_) => None,
    };
    let mut config = target.config.clone();
    match tls {
        None => {
            config.ssl_mode(tokio_postgres::config::SslMode::Disable);
            let connect = connecting(socket.clone(), config.connect_raw(wire, NoTls));
            let (client, connection) = connect.await.map_err(Failure::of_connect)?;
            begin(client, connection, socket, listener).await
        }
        Some(tls) => {
            let connect = connecting(socket.clone(), config.connect_raw(wire, tls));
            let (client, connection) = connect.await.map_err(Failure::of_connect)?;
            begin(client, connection, socket, listener).await
        }
    }
}

/// The output of a future that reads and writes the socket, if there is one.
async fn connecting<F: Future>(socket: Option<Arc<PolledSocket>>, future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|context| {
        if let Some(socket) = &socket {
            socket.begin_poll();
        }
        let polled = future.as_mut().poll(context);
        if let (Poll::Pending, Some(socket)) = (&polled, &socket) {
            wake_caller_on(context, socket);
        }
        polled
    })
    .await
}

/// Sets the session up, and checks what has to be so for every session, also after a failover.
async fn begin<S, T>(
    client: Client,
    mut connection: Connection<S, T>,
    socket: Option<Arc<PolledSocket>>,
    listener: impl Listener,
) -> Result<Session, Failure>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let moving = async move {
        while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
            if let AsyncMessage::Notification(notification) = message {
                listener.notified(&notification);
            }
        }
        drop(connection);
        listener.ended();
    };
    let own = if let Some(socket) = socket {
        Some(OwnConnection { moving: Mutex::new(Some(Box::pin(moving))), socket })
    } else {
        tokio::spawn(moving);
        None
    };
    let prepared = (0..Query::COUNT).map(|_| OnceCell::new()).collect();
    let mut session = Session { client, own, backend: 0, prepared };
    let setup = format!("{SETUP}; {}", set_limit(Some(LATCH_SLICE)));
    session.run(session.client.batch_execute(&setup)).await?;
    let row = session.run(session.client.query_one(statements::CHECK, &[])).await?;
    if row.get::<_, bool>(0) {
        return Err(Failure::Standby);
    }
    if row.get::<_, &str>(1) != "UTF8" {
        let detail = format!("the encoding of the database is {}, and not UTF8", row.get::<_, &str>(1));
        return Err(Failure::Unusable(ErrorKind::UnsupportedServer, detail));
    }
    if row.get::<_, i32>(2) < 120_000 {
        let detail = "PostgreSQL 12 or later is necessary";
        return Err(Failure::Unusable(ErrorKind::UnsupportedServer, detail.into()));
    }
    session.backend = row.get(3);
    Ok(session)
}

impl Session {
    /// The output of a future that uses the client. The bytes move as long as this is polled.
    pub(super) async fn run<F: Future>(&self, future: F) -> F::Output {
        let Some(own) = &self.own else { return future.await };
        let mut future = pin!(future);
        poll_fn(|context| {
            let mut polled = future.as_mut().poll(context);
            if polled.is_pending() {
                own.move_bytes(context);
                polled = future.as_mut().poll(context);
            }
            if polled.is_pending() {
                wake_caller_on(context, &own.socket);
            }
            polled
        })
        .await
    }

    /// Runs a query that is prepared once for each connection.
    pub(super) async fn query(
        &self,
        query: Query,
        schema: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Failure> {
        let prepare = || async { self.client.prepare(&query.text(schema)).await };
        let run = async {
            let statement = self.prepared[query as usize].get_or_try_init(prepare).await?;
            if !query.is_for_many_rows() {
                return Ok(self.client.query(statement, parameters).await?);
            }
            // All that it has done would be undone if it gave up at one row that is locked.
            self.client.batch_execute(&set_limit(None)).await?;
            let answer = self.client.query(statement, parameters).await;
            self.client.batch_execute(&set_limit(Some(LATCH_SLICE))).await?;
            Ok(answer?)
        };
        self.run(run).await
    }

    pub(super) fn moved_by(&self) -> MovedBy {
        if self.own.is_some() { MovedBy::Call } else { MovedBy::Engine }
    }

    /// Whether the connection has ended, also if that has just arrived.
    pub(super) fn is_closed(&self) -> bool {
        self.own.as_ref().is_some_and(OwnConnection::is_over) || self.has_ended()
    }

    /// Whether it is known that the connection has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.client.is_closed()
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("backend", &self.backend).finish_non_exhaustive()
    }
}
