//! The failures between this process and the server, and whether the outcome is known.

use std::io;

use tokio_postgres::error::{Severity, SqlState};

use super::limits::Context;
use crate::{Error, ErrorKind};

/// Why a step at the server failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The server refused, and nothing was changed.
    Refused(tokio_postgres::Error),
    /// The latch, or a row or a table, was locked for too long. Nothing was changed.
    Busy,
    /// The connection was lost, so the answer, if there was one, is not known.
    Lost(Option<tokio_postgres::Error>),
    /// There was no answer in time.
    NoAnswer,
    /// The session that stands for this process has ended. Nothing was changed.
    Gone,
    /// The server could not be reached. Nothing was sent.
    Unreachable(Box<dyn std::error::Error + Send + Sync>),
    /// The server is a standby. During a failover it may become the primary. Nothing was sent.
    Standby,
    /// TLS is not possible as `sslmode` asks for it. Waiting does not help.
    Insecure(Box<dyn std::error::Error + Send + Sync>),
    /// The server, or the store on it, is not usable. Waiting does not help.
    Unusable(ErrorKind, String),
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        let Some(refusal) = error.as_db_error() else {
            return Self::Lost(Some(error));
        };
        // The session ends. A commit may have been under way.
        let is_end = matches!(refusal.parsed_severity(), Some(Severity::Fatal | Severity::Panic));
        match *refusal.code() {
            _ if is_end => Self::Lost(Some(error)),
            SqlState::LOCK_NOT_AVAILABLE => Self::Busy,
            // The statement was prepared in another session.
            SqlState::INVALID_SQL_STATEMENT_NAME | SqlState::DUPLICATE_PSTATEMENT => Self::pooler(),
            SqlState::UNDEFINED_TABLE | SqlState::UNDEFINED_FUNCTION | SqlState::INVALID_SCHEMA_NAME => {
                Self::Unusable(ErrorKind::StoreRemoved, String::new())
            }
            _ => Self::Refused(error),
        }
    }
}

impl Failure {
    /// There is a pooler in between that gives every transaction another session.
    pub(super) fn pooler() -> Self {
        let detail = "there is a pooler in between that gives every transaction another session. Connect to the \
                      server itself, or let the pooler work in session mode";
        Self::Unusable(ErrorKind::UnsupportedServer, detail.into())
    }

    /// The server could not be reached in time.
    pub(super) fn unreachable() -> Self {
        Self::Unreachable(io::Error::from(io::ErrorKind::TimedOut).into())
    }

    /// The failure of the first step of a connection. `address` is not repeated in the error.
    pub(super) fn of_connect(error: tokio_postgres::Error) -> Self {
        match error.code() {
            // A restart, or too many connections: it may end.
            Some(
                &(SqlState::CANNOT_CONNECT_NOW
                | SqlState::TOO_MANY_CONNECTIONS
                | SqlState::ADMIN_SHUTDOWN
                | SqlState::CRASH_SHUTDOWN),
            )
            | None
                if !is_about_tls(&error) =>
            {
                Self::Unreachable(error.into())
            }
            None => Self::Insecure(error.into()),
            // Wrong password, unknown database and so on.
            Some(_) => Self::Refused(error),
        }
    }

    /// Whether it may be over if the same is done again. Only what changes nothing twice may be repeated.
    pub(super) fn is_temporary(&self) -> bool {
        match self {
            // Sweeps and evictions remove many rows, in any order. The server has undone one of them.
            Self::Refused(error) => error.code() == Some(&SqlState::T_R_DEADLOCK_DETECTED),
            Self::Lost(_) | Self::NoAnswer | Self::Gone | Self::Unreachable(_) | Self::Standby => true,
            Self::Busy | Self::Insecure(_) | Self::Unusable(..) => false,
        }
    }

    /// Whether only another session may succeed: after a failover this one is at a server that cannot be written.
    pub(super) fn is_of_session(&self) -> bool {
        match self {
            Self::Refused(error) => error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION),
            failure => matches!(failure, Self::Lost(_) | Self::Unusable(..)),
        }
    }

    /// Whether something may have been changed at the server.
    pub(super) fn is_outcome_unknown(&self) -> bool {
        matches!(self, Self::Lost(_) | Self::NoAnswer)
    }

    /// The error of the operation. `address` is the place.
    pub(super) fn into_error(self, context: Context<'_>, address: &str) -> Error {
        let io = || context.error(ErrorKind::Io).with_address(address);
        match self {
            Self::Refused(source) => {
                io().with_detail("do this on the server: it refused").with_source(Refusal::from(source))
            }
            // The callers repeat, or turn this into a timeout.
            Self::Busy => io().with_detail("enter the latch of the key"),
            Self::Lost(None) => io()
                .with_detail("get the answer of the server: the connection is lost")
                .with_source(io::Error::from(io::ErrorKind::ConnectionReset)),
            Self::Lost(Some(source)) => io()
                .with_detail("get the answer of the server: the connection is lost")
                .with_source(Refusal::from(source)),
            Self::Gone => io().with_detail("keep a session at the server"),
            Self::NoAnswer => io()
                .with_detail("get the answer of the server in time")
                .with_source(io::Error::from(io::ErrorKind::TimedOut)),
            Self::Standby => context
                .error(ErrorKind::UnsupportedServer)
                .with_address(address)
                .with_detail("it is a standby, which can neither be written nor be trusted to be up to date"),
            Self::Insecure(source) => io().with_detail("begin TLS with the server").with_source(source),
            Self::Unreachable(source) => io().with_detail("reach the server").with_source(source),
            Self::Unusable(kind, detail) if detail.is_empty() => context.error(kind).with_address(address),
            Self::Unusable(kind, detail) => context.error(kind).with_address(address).with_detail(detail),
        }
    }
}

/// Whether the server has no TLS, or a certificate that is not good. A connection that breaks during the handshake is
/// neither.
fn is_about_tls(error: &tokio_postgres::Error) -> bool {
    use std::error::Error as _;
    let is_broken = |error: &io::Error| error.kind() != io::ErrorKind::InvalidData;
    error.to_string().starts_with("error performing TLS handshake")
        && !error.source().and_then(|source| source.downcast_ref()).is_some_and(is_broken)
}

/// The message of the server in one line. The error of the driver itself would show only that it is one.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
struct Refusal {
    text: String,
    #[source]
    source: Option<io::Error>,
}

impl From<tokio_postgres::Error> for Refusal {
    fn from(error: tokio_postgres::Error) -> Self {
        // The detail of the server's error can have values of rows in it; the message has none.
        let text = match error.as_db_error() {
            Some(refusal) => format!("{} (SQLSTATE {})", refusal.message(), refusal.code().code()),
            None => error.to_string(),
        };
        Self { text, source: None }
    }
}
