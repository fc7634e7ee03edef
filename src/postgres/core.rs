//! The base of all operations: the connections of this process, and a way to call the server that always returns.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::engine::Local;
use super::failure::Failure;
use super::limits::{Context, LatchLimit, Limits};
use super::options::PostgresOptions;
use super::owner::OwnerHandle;
use super::parameters::Parameter;
use super::pool::{Check, Pool};
use super::schema::{self, Found, SchemaName, StoreNumbers};
use super::session::Session;
use super::statements::Query;
use super::status::Status;
use super::timer::{Timer, until};
use super::url::Target;
use crate::pauses::Pauses;
use crate::process::PerProcess;
use crate::{Error, ErrorKind, Holder, Key, Result, StoreIdentity};

/// A store on a server, as one handle knows it.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) target: Arc<Target>,
    pub(super) schema: SchemaName,
    pub(super) quoted_schema: String,
    pub(super) options: PostgresOptions,
    numbers: StoreNumbers,
    here: PerProcess<Option<Local<Arc<Here>>>>,
}

/// The connections of this process. A forked child has connections of its own.
#[derive(Debug)]
pub(super) struct Here {
    pub(super) pool: Arc<Pool>,
    pub(super) owner: OwnerHandle,
}

/// Whether a call may be made again if its answer is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    /// It changes nothing, or the same if it is made twice.
    Yes,
    /// The error says that the outcome is not known.
    No,
}

/// The first and the longest pause before a server that cannot be reached is tried again.
const PAUSES: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(250)];

impl Core {
    /// Opens the store at the target.
    pub(super) async fn open(target: Target, options: PostgresOptions) -> Result<Self> {
        let context = Context::whole("open");
        let name = options.schema.as_deref().or(target.schema.as_deref()).unwrap_or("record_store");
        let schema = SchemaName::new(name)?;
        let target = Arc::new(target);
        let limits = Limits::none();
        let deadline = limits.network_deadline(options.patience);
        let pool = Pool::new(Arc::clone(&target), options.connections);
        let opened = async {
            retried(deadline, async || {
                let lease = pool.lease(deadline, Check::Closed).await?;
                let found = find_or_create(&lease, &schema, options.creates).await?;
                Ok(found)
            })
            .await
        };
        let opened = match until(Timer::at(deadline), opened).await {
            Some(opened) => opened.map_err(|error| error.into_error(context, &target.address))?,
            None => return Err(Failure::NoAnswer.into_error(context, &target.address)),
        };
        let numbers = match opened {
            Found::Store(numbers) => numbers,
            found => return Err(refusal(&found, context, &schema).with_address(target.address.clone())),
        };
        let core = Self {
            quoted_schema: schema.quoted(),
            schema,
            options,
            numbers,
            here: PerProcess::new(),
            target,
        };
        let owner = OwnerHandle::of(core.identity(), &core.target, &core.quoted_schema);
        let here = Arc::new(Here { pool, owner });
        *core.here.lock() = Some(Local::new(Arc::clone(&here)));
        // A time of its own: to make a store may have taken the most of the first one.
        let deadline = Limits::none().network_deadline(core.options.patience);
        let check = retried(deadline, async || core.check_sessions(&here, deadline).await);
        let checked = until(Timer::at(deadline), check).await;
        match checked {
            Some(Ok(())) => Ok(core),
            Some(Err(failure)) => Err(failure.into_error(context, &core.target.address)),
            None => Err(Failure::NoAnswer.into_error(context, &core.target.address)),
        }
    }

    pub(super) fn identity(&self) -> StoreIdentity {
        StoreIdentity::new("postgres", self.numbers)
    }

    pub(super) fn here(&self) -> Arc<Here> {
        let mut here = self.here.lock();
        if let Some(here) = here.as_ref().and_then(Local::get) {
            return Arc::clone(here);
        }
        let new = Arc::new(Here {
            pool: Pool::new(Arc::clone(&self.target), self.options.connections),
            owner: OwnerHandle::of(self.identity(), &self.target, &self.quoted_schema),
        });
        *here = Some(Local::new(Arc::clone(&new)));
        new
    }

    /// A pooler that gives each transaction another session breaks all that this store relies on: the session that
    /// stands for the process would be anybody's.
    async fn check_sessions(&self, here: &Here, deadline: Option<Instant>) -> Result<(), Failure> {
        const NUMBER: &str = "SELECT pg_backend_pid()";
        let owner = here.owner.number(deadline).await?;
        let one = here.pool.lease(deadline, Check::Closed).await?;
        // If there may be only one, there is still that of the owner.
        let two = if self.options.connections == 1 {
            None
        } else {
            Some(here.pool.lease(deadline, Check::Closed).await?)
        };
        let lives = format!("SELECT {}.lives($1)", self.quoted_schema);
        if !one.run(one.client.query_one(&lives, &[&owner])).await?.get::<_, bool>(0)
            || Some(one.backend) == here.owner.backend()
        {
            // Unless the session has just ended.
            here.owner.check(owner).await?;
            return Err(Failure::pooler());
        }
        if let Some(two) = &two {
            for (busy, other) in [(&one, two), (two, &one)] {
                busy.run(busy.client.batch_execute("BEGIN")).await?;
                let asked = other.run(other.client.query_one(NUMBER, &[])).await;
                busy.run(busy.client.batch_execute("COMMIT")).await?;
                if asked?.get::<_, i32>(0) != other.backend || busy.backend == other.backend {
                    return Err(Failure::pooler());
                }
            }
        }
        Ok(())
    }

    /// Calls the server. It returns in time whatever happens to the network: see [`Limits::network_deadline`].
    pub(super) async fn call(
        &self,
        context: Context<'_>,
        limits: &Limits,
        repeat: Repeat,
        query: Query,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>> {
        let here = self.here();
        let (mut pauses, mut is_unknown) = (Pauses::new(PAUSES), false);
        let enters_latch = parameters.iter().any(|parameter| matches!(parameter, Parameter::Patience));
        let mut attempt = Attempt {
            deadline: limits.network_deadline(self.options.patience),
            latch: limits.for_latch(),
            check: if query.changes() { Check::Closed } else { Check::Nothing },
        };
        loop {
            limits.check_cancelled(context).map_err(|error| with_outcome(error, is_unknown))?;
            let failure = match self.attempt(&here, limits, attempt, query, parameters).await {
                Ok(rows) => return Ok(rows),
                Err(failure) => failure,
            };
            if matches!(failure, Failure::Busy) && !enters_latch {
                // Another program has locked a table. The server gives up after a moment, so ask again until the deadline.
                continue;
            }
            if matches!(failure, Failure::Busy) {
                if attempt.latch.is_over() {
                    return Err(with_outcome(limits.timed_out(None, context), is_unknown));
                }
                // The server answers.
                attempt.deadline = limits.network_deadline(self.options.patience);
                pauses = Pauses::new(PAUSES);
                continue;
            }
            let is_late = attempt.deadline.is_some_and(|deadline| Instant::now() >= deadline);
            if failure.is_of_session() && attempt.check == Check::Nothing && !is_late {
                // Of the connections that are left, the next one may be closed, too.
                attempt.check = Check::Closed;
                continue;
            }
            let may_repeat = !failure.is_outcome_unknown() || repeat == Repeat::Yes;
            is_unknown |= failure.is_outcome_unknown() && query.changes();
            if failure.is_temporary() {
                limits.check_cancelled(context).map_err(|error| with_outcome(error, is_unknown))?;
            }
            let next = Instant::now() + pauses.take();
            if !failure.is_temporary()
                || !may_repeat
                || attempt.deadline.is_some_and(|deadline| next >= deadline)
            {
                let error = failure.into_error(context, &self.target.address);
                return Err(with_outcome(error, is_unknown));
            }
            Timer::at(next).await;
        }
    }

    async fn attempt(
        &self,
        here: &Here,
        limits: &Limits,
        Attempt { deadline, latch, check }: Attempt,
        query: Query,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, Failure> {
        let number = if parameters.iter().any(|parameter| matches!(parameter, Parameter::Owner)) {
            limits
                .answer(deadline, pin!(here.owner.number(deadline)))
                .await
                .ok_or_else(Failure::unreachable)??
        } else {
            // Without a session, this process has no bound locks.
            here.owner.present().unwrap_or_default()
        };
        let lease = limits
            .answer(deadline, pin!(here.pool.lease(deadline, check)))
            .await
            .ok_or_else(Failure::unreachable)??;
        let patience = latch.patience();
        let filled: Vec<_> = parameters.iter().map(|it| it.filled(number, patience)).collect();
        let filled: Vec<_> = filled.iter().map(|it| it as &(dyn ToSql + Sync)).collect();
        let outcome = limits.answer(deadline, pin!(lease.query(query, &self.quoted_schema, &filled))).await;
        match outcome {
            None => {
                lease.discard();
                Err(Failure::NoAnswer)
            }
            Some(Err(failure)) if failure.is_of_session() => {
                lease.discard();
                Err(failure)
            }
            Some(outcome) => {
                let is_gone = |rows: &Vec<Row>| {
                    query.says_gone()
                        && rows.first().is_some_and(|row| row.get::<_, i32>(0) == Status::Gone.number())
                };
                if outcome.as_ref().is_ok_and(is_gone) {
                    here.owner.is_gone(number);
                    return Err(Failure::Gone);
                }
                outcome
            }
        }
    }

    /// [`call`](Self::call) of a function, whose answer begins with its status.
    pub(super) async fn call_function(
        &self,
        context: Context<'_>,
        limits: &Limits,
        repeat: Repeat,
        query: Query,
        parameters: &[Parameter<'_>],
    ) -> Result<(Status, Row)> {
        let mut rows = self.call(context, limits, repeat, query, parameters).await?;
        let answer = rows.pop().and_then(|row| Some((Status::of(row.get(0))?, row)));
        answer.ok_or_else(|| self.error(context, ErrorKind::CorruptStore).with_detail("an unknown answer"))
    }

    pub(super) fn error(&self, context: Context<'_>, kind: ErrorKind) -> Error {
        context.error(kind).with_address(self.target.address.clone())
    }

    /// The holder in these columns.
    pub(super) fn holder_in(row: &Row, name: usize, bound: usize) -> Option<Holder> {
        let name = String::from_utf8(row.get::<_, Option<Vec<u8>>>(name)?).ok()?;
        Holder::new(name, row.get(bound)).ok()
    }
}

/// One attempt of a call.
#[derive(Clone, Copy)]
struct Attempt {
    /// When it no longer waits for the network.
    deadline: Option<Instant>,
    latch: LatchLimit,
    check: Check,
}

fn with_outcome(error: Error, is_unknown: bool) -> Error {
    if is_unknown { error.with_unknown_outcome() } else { error }
}

/// Repeats while the server cannot be reached, until the deadline. A standby is refused at once: unlike in a call, there
/// is no reason to expect that it becomes the primary.
async fn retried<T>(
    deadline: Option<Instant>,
    attempt: impl AsyncFn() -> Result<T, Failure>,
) -> Result<T, Failure> {
    let mut pauses = Pauses::new(PAUSES);
    loop {
        let failure = match attempt().await {
            // Another process makes or upgrades the store, which locks its tables.
            Err(Failure::Busy) => Failure::NoAnswer,
            Err(failure) if failure.is_temporary() && !matches!(failure, Failure::Standby) => failure,
            outcome => return outcome,
        };
        let next = Instant::now() + pauses.take();
        if deadline.is_some_and(|deadline| next >= deadline) {
            return Err(failure);
        }
        Timer::at(next).await;
    }
}

async fn find_or_create(session: &Session, schema: &SchemaName, creates: bool) -> Result<Found, Failure> {
    match session.run(schema::find(&session.client, schema)).await? {
        Found::Nothing if !creates => Ok(Found::Nothing),
        Found::Nothing | Found::OlderVersion => {
            // Boxed, because it is large.
            session.run(Box::pin(schema::create_or_upgrade(&session.client, schema))).await
        }
        found => Ok(found),
    }
}

/// The error of a schema that is no store of this version.
fn refusal(found: &Found, context: Context<'_>, schema: &SchemaName) -> Error {
    let schema = schema.name();
    match found {
        Found::NewerVersion(version) => context
            .error(ErrorKind::UnsupportedFormat)
            .with_detail(format!("the schema {schema} has version {version}")),
        Found::Foreign => context
            .error(ErrorKind::NotAStore)
            .with_detail(format!("the schema {schema} has other tables: choose another one")),
        Found::Nothing | Found::OlderVersion | Found::Store(_) => {
            context.error(ErrorKind::NotAStore).with_detail(format!("there is no schema {schema}"))
        }
    }
}

/// The key in a column.
pub(super) fn key_in(core: &Arc<Core>, context: Context<'_>, row: &Row, column: usize) -> Result<Key> {
    let text = String::from_utf8(row.get(column)).map_err(|error| {
        core.error(context, ErrorKind::CorruptStore).with_detail("a key is not UTF-8").with_source(error)
    })?;
    Key::new(text)
}
