//! A result as shells use it: JSON or plain text.

use std::io::{self, Read};
use std::time::Duration;

use record_store::{
    Claim, FileSystemRecordStore, Json, Key, LockGuard, RecordStore, RecordStoreExt, WriteOptions,
};

use crate::failure::Failure;
use crate::output::Output;

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

/// The largest accepted input: the size limit of a record.
const MAX_BYTES: u64 = 1 << 30;

/// Reads to the end. An input that is too large for a record is an error.
pub(crate) fn read_to_end(from: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = from.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if read as u64 > MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 1 GiB"));
    }
    Ok(bytes)
}

impl Value {
    /// Parses input. `what` names the input in error messages.
    pub(crate) fn parse(form: Form, bytes: Vec<u8>, what: &str) -> Result<Self, Failure> {
        match form {
            Form::Json => serde_json::from_slice(&bytes)
                .map(Value::Json)
                .map_err(|error| Failure::bad_data(&format!("{what} is not one JSON value"), &error)),
            Form::Text => String::from_utf8(bytes)
                .map(Value::Text)
                .map_err(|error| Failure::bad_data(&format!("{what} is not UTF-8 text"), &error)),
        }
    }

    /// Reads from the store. Waits while another holder has the lock. Returns `None` if there is no
    /// record.
    pub(crate) fn read(
        form: Form,
        store: &FileSystemRecordStore,
        key: &Key,
        timeout: Option<Duration>,
    ) -> Result<Option<Self>, record_store::Error> {
        let json = store.read_json(key, &Claim::current(), timeout)?;
        json.map(|json| Self::from_json(form, key, json)).transpose()
    }

    /// Reads from the store as the holder of the lock.
    pub(crate) fn read_locked(
        form: Form,
        guard: &LockGuard<'_, FileSystemRecordStore>,
    ) -> Result<Option<Self>, record_store::Error> {
        let record = guard.read::<Json>()?;
        record.map(|record| Self::from_json(form, guard.key(), record.result)).transpose()
    }

    fn from_json(form: Form, key: &Key, json: Json) -> Result<Self, record_store::Error> {
        match form {
            Form::Json => Ok(Value::Json(json)),
            Form::Text => serde_json::from_str(json.get()).map(Value::Text).map_err(|source| {
                record_store::Error::Decode { operation: "read", key: key.clone(), source }
            }),
        }
    }

    /// Writes to the store as the holder of the lock.
    pub(crate) fn write_locked(
        &self,
        guard: &LockGuard<'_, FileSystemRecordStore>,
        options: WriteOptions,
    ) -> Result<(), record_store::Error> {
        match self {
            Value::Json(json) => guard.write_with(json, options),
            Value::Text(text) => guard.write_with(text, options),
        }
    }

    /// Writes to the store without a lock. Fails while another holder has the lock.
    pub(crate) fn write(
        &self,
        store: &FileSystemRecordStore,
        key: &Key,
        options: WriteOptions,
    ) -> Result<(), record_store::Error> {
        match self {
            Value::Json(json) => store.write_with(key, json, options),
            Value::Text(text) => store.write_with(key, text, options),
        }
    }

    /// Prints JSON with a line feed, and text byte for byte.
    pub(crate) fn print(&self) -> Result<(), Failure> {
        let mut out = Output::open();
        match self {
            Value::Json(json) => out.line(json.get())?,
            Value::Text(text) => out.write(text.as_bytes())?,
        }
        out.finish()
    }
}
