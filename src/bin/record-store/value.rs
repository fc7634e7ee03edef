//! A result as shells use it: JSON or plain text.

use std::io::{self, Read};
use std::time::Duration;

use record_store::{
    Error, ErrorKind, Json, Key, LockGuard, ReadOptions, RecordStore, RecordStoreExt, RecordVersion,
    WriteOptions,
};
use serde::Serialize;

use crate::failure::Failure;
use crate::output::Output;
use crate::store::Store;
use crate::waiting::waiting;

/// The form of a result in input and output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Json,
    /// A JSON string in the store, and its unquoted text in input and output.
    Text,
}

impl Form {
    pub(crate) fn of(text: bool) -> Self {
        if text { Form::Text } else { Form::Json }
    }
}

#[derive(Debug)]
pub(crate) enum Value {
    Json(Json),
    Text(String),
}

/// The condition of a write.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Condition {
    Nothing,
    Absent,
    Version(RecordVersion),
}

impl Condition {
    fn write<R: Serialize + ?Sized>(
        self,
        store: &Store,
        key: &Key,
        result: &R,
        options: WriteOptions,
    ) -> Result<bool, Error> {
        match self {
            Self::Nothing => store.write_with(key, result, options).map(|()| true),
            Self::Absent => store.write_if_absent(key, result, options),
            Self::Version(version) => store.write_if_version(key, version, result, options),
        }
    }
}

/// The advice for input that is not text.
const ENCODE: &str = "encode it as text, for example with base64, and store it with --text";

/// The largest accepted input: the size limit of a record.
pub(crate) const MAX_BYTES: u64 = 1 << 30;

/// Reads to the end. An input that is too large for a record is an error.
pub(crate) fn read_to_end(from: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = from.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if read as u64 > MAX_BYTES {
        return Err(too_large());
    }
    Ok(bytes)
}

pub(crate) fn too_large() -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, "larger than 1 GiB")
}

impl Value {
    /// Parses input. `what` names the input in error messages.
    pub(crate) fn parse(form: Form, bytes: &[u8], what: &str) -> Result<Self, Failure> {
        match form {
            Form::Json => serde_json::from_slice(bytes).map(Value::Json).map_err(|error| {
                let failure = Failure::bad_data(&format!("{what} is not one JSON value"), &error);
                // --text would not accept other bytes either.
                if std::str::from_utf8(bytes).is_ok() {
                    failure.advise("store it with --text")
                } else {
                    failure.advise(ENCODE)
                }
            }),
            Form::Text => {
                std::str::from_utf8(bytes).map(|text| Value::Text(text.to_owned())).map_err(|error| {
                    Failure::bad_data(&format!("{what} is not UTF-8 text"), &error).advise(ENCODE)
                })
            }
        }
    }

    /// Reads from the store. Waits while another holder has the lock. Returns `None` if there is no
    /// record.
    pub(crate) fn read(
        form: Form,
        store: &Store,
        key: &Key,
        timeout: Option<Duration>,
    ) -> Result<Option<Self>, Error> {
        let options = ReadOptions::new().timeout(timeout);
        let record = waiting(|observer| {
            store.read_raw(key, observer.into_iter().fold(options, ReadOptions::observer))
        })?;
        record.map(|record| Self::from_json(form, key, record.json)).transpose()
    }

    /// Reads from the store as the holder of the lock. `timeout` ends a wait for a stopped process.
    pub(crate) fn read_locked(
        form: Form,
        guard: &LockGuard<'_, Store>,
        timeout: Duration,
    ) -> Result<Option<Self>, Error> {
        let options = ReadOptions::new().timeout(timeout);
        let record = waiting(|observer| {
            guard.read_with::<Json>(observer.into_iter().fold(options, ReadOptions::observer))
        })?;
        record.map(|record| Self::from_json(form, guard.key(), record.result)).transpose()
    }

    pub(crate) fn from_json(form: Form, key: &Key, json: Json) -> Result<Self, Error> {
        match form {
            Form::Json => Ok(Value::Json(json)),
            Form::Text => serde_json::from_str(json.as_str())
                .map(Value::Text)
                .map_err(|error| Error::new(ErrorKind::Decode, "read").with_key(key).with_source(error)),
        }
    }

    /// Writes to the store as the holder of the lock.
    pub(crate) fn write_locked(
        &self,
        guard: &LockGuard<'_, Store>,
        options: WriteOptions,
    ) -> Result<(), Error> {
        waiting(|observer| {
            let options = observer.into_iter().fold(options, WriteOptions::observer);
            match self {
                Value::Json(json) => guard.write_with(json, options),
                Value::Text(text) => guard.write_with(text, options),
            }
        })
    }

    /// Writes to the store under this condition, and returns whether it was met. Fails while another holder has the
    /// lock.
    pub(crate) fn write(
        &self,
        store: &Store,
        key: &Key,
        condition: Condition,
        options: WriteOptions,
    ) -> Result<bool, Error> {
        waiting(|observer| {
            let options = observer.into_iter().fold(options, WriteOptions::observer);
            match self {
                Value::Json(json) => condition.write(store, key, json, options),
                Value::Text(text) => condition.write(store, key, text, options),
            }
        })
    }

    /// Prints JSON with a line feed, and text byte for byte.
    pub(crate) fn print(&self) -> Result<(), Failure> {
        let mut out = Output::open();
        match self {
            Value::Json(json) => out.line(json.as_str())?,
            Value::Text(text) => out.write(text.as_bytes())?,
        }
        out.finish()
    }
}
