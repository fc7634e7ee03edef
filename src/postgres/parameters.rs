//! Keys, claims and lengths of time as parameters of the queries.

use std::error::Error as StdError;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio_postgres::types::private::BytesMut;
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};

use crate::{Claim, Holder, Key, RecordVersion};

/// A parameter of a query.
#[derive(Clone, Copy, Debug)]
pub(super) enum Parameter<'a> {
    Bytes(Option<&'a [u8]>),
    Text(&'a str),
    Integer(i32),
    Long(Option<i64>),
    Flag(bool),
    List(&'a [&'a [u8]]),
    Longs(&'a [i64]),
    /// The number of this process. There has to be a session for it.
    Owner,
    /// The number of this process, or 0 if there is no session for it: then it has no bound locks.
    OwnerIfKnown,
    /// How long the server may try to enter the latch, if the session does not have that limit already.
    Patience,
}

impl Parameter<'_> {
    pub(super) fn filled(self, owner: i64, patience: Option<i32>) -> Self {
        match self {
            Self::Owner | Self::OwnerIfKnown => Self::Long(Some(owner)),
            Self::Patience => patience.map_or(self, Self::Integer),
            other => other,
        }
    }
}

impl ToSql for Parameter<'_> {
    fn to_sql(&self, kind: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn StdError + Sync + Send>> {
        match self {
            Self::Bytes(value) => value.to_sql(kind, out),
            Self::Text(value) => value.to_sql(kind, out),
            Self::Integer(value) => value.to_sql(kind, out),
            Self::Long(value) => value.to_sql(kind, out),
            Self::Flag(value) => value.to_sql(kind, out),
            Self::List(values) => values.to_sql(kind, out),
            Self::Longs(values) => values.to_sql(kind, out),
            Self::Owner | Self::OwnerIfKnown | Self::Patience => Ok(IsNull::Yes),
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

/// A claim as parameters: holder, bound, owner, token.
pub(super) fn claim_parameters(claim: &Claim) -> [Parameter<'_>; 4] {
    match claim {
        Claim::Holder(holder) => {
            let [name, bound] = holder_parameters(holder);
            [name, bound, Parameter::OwnerIfKnown, Parameter::Long(None)]
        }
        Claim::Token(token) | Claim::Delegated(token) => {
            // No token is that large.
            let number = i64::try_from(token.get()).unwrap_or(i64::MAX);
            [
                Parameter::Bytes(None),
                Parameter::Flag(matches!(claim, Claim::Delegated(_))),
                Parameter::OwnerIfKnown,
                Parameter::Long(Some(number)),
            ]
        }
    }
}

pub(super) fn holder_parameters(holder: &Holder) -> [Parameter<'_>; 2] {
    [Parameter::Bytes(Some(holder.name().as_bytes())), Parameter::Flag(holder.is_process_bound())]
}

/// A length of time in microseconds, rounded up. `None`: it does not end, or only beyond the server's calendar.
pub(super) fn microseconds(time: Option<Duration>) -> Parameter<'static> {
    const LONGEST: u128 = 200_000 * 366 * 86_400 * 1_000_000;
    let microseconds = time.map(|time| time.as_nanos().div_ceil(1_000)).filter(|it| *it <= LONGEST);
    Parameter::Long(microseconds.and_then(|it| i64::try_from(it).ok()))
}

/// The id of a key in the tables, and its latch.
#[derive(Debug)]
pub(super) struct KeyId {
    id: [u8; 32],
}

impl KeyId {
    pub(super) fn of(key: &Key) -> Self {
        Self { id: Sha256::digest(key.as_str().as_bytes()).into() }
    }

    /// The id in a row. `None`: it is none.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self { id: bytes.try_into().ok()? })
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.id
    }

    pub(super) fn id(&self) -> Parameter<'_> {
        Parameter::Bytes(Some(&self.id))
    }

    pub(super) fn latch(&self) -> Parameter<'_> {
        let [a, b, c, d, ..] = self.id;
        Parameter::Integer(i32::from_be_bytes([a, b, c, d]))
    }
}

pub(super) fn key_bytes(key: &Key) -> Parameter<'_> {
    Parameter::Bytes(Some(key.as_str().as_bytes()))
}

pub(super) fn version_of(number: Option<i64>) -> RecordVersion {
    number.map_or(RecordVersion::ABSENT, |number| RecordVersion::new(number.cast_unsigned()))
}
