//! A result as shells use it: JSON, plain text or any bytes.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::io::{self, Read};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD as BASE64;
use record_store::{
    Error, ErrorKind, Json, Key, LockGuard, RawRecord, ReadOptions, RecordStore, RecordStoreExt,
    RecordVersion, WriteOptions,
};

use crate::failure::Failure;
use crate::form::Form;
use crate::output::Output;
use crate::store::{MAX_BYTES, Store};
use crate::waiting::waiting;

#[derive(Debug)]
pub(crate) enum Value {
    Json(Json),
    Text(String),
    Bytes(Vec<u8>),
}

/// A result in the store.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) value: Value,
    pub(crate) version: RecordVersion,
    /// `None`: it does not expire.
    pub(crate) time_left: Option<Duration>,
}

impl Stored {
    pub(crate) fn new(form: Form, key: &Key, record: RawRecord) -> Result<Self, Error> {
        let RawRecord { version, time_left, .. } = record;
        Ok(Self { value: Value::from_json(form, key, record.json)?, version, time_left })
    }

    /// Reads from the store. Waits while another holder has the lock. `None`: there is no record.
    pub(crate) fn read(
        form: Form,
        store: &Store,
        key: &Key,
        options: ReadOptions,
    ) -> Result<Option<Self>, Error> {
        let record = waiting(|observer| store.read_raw(key, options.observer(observer)))?;
        record.map(|record| Self::new(form, key, record)).transpose()
    }
}

/// The condition of a write.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Condition {
    Nothing,
    Absent,
    Version(RecordVersion),
}

impl Condition {
    fn write(self, store: &Store, key: &Key, result: &Json, options: WriteOptions) -> Result<bool, Error> {
        match self {
            Self::Nothing => store.write_with(key, result, options).map(|()| true),
            Self::Absent => store.write_if_absent(key, result, options),
            Self::Version(version) => store.write_if_version(key, version, result, options),
        }
    }
}

/// The advice for input that is not text.
const AS_BYTES: &str = "store it with --bytes";

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
                    failure.advise(AS_BYTES)
                }
            }),
            Form::Text => {
                std::str::from_utf8(bytes).map(|text| Value::Text(text.to_owned())).map_err(|error| {
                    Failure::bad_data(&format!("{what} is not UTF-8 text"), &error).advise(AS_BYTES)
                })
            }
            Form::Bytes => Ok(Value::Bytes(bytes.to_vec())),
        }
    }

    fn from_json(form: Form, key: &Key, json: Json) -> Result<Self, Error> {
        let failed = |error: Box<dyn StdError + Send + Sync>| {
            Error::new(ErrorKind::Decode, "read").with_key(key).with_source(error)
        };
        let text = || serde_json::from_str::<String>(json.as_str()).map_err(|error| failed(error.into()));
        Ok(match form {
            Form::Json => Value::Json(json),
            Form::Text => Value::Text(text()?),
            Form::Bytes => Value::Bytes(BASE64.decode(text()?).map_err(|error| failed(error.into()))?),
        })
    }

    /// The result in the store.
    fn to_json(&self) -> Result<Cow<'_, Json>, Error> {
        let string = |text: &str| Json::encode(text).map(Cow::Owned);
        match self {
            Value::Json(json) => Ok(Cow::Borrowed(json)),
            Value::Text(text) => string(text),
            Value::Bytes(bytes) => string(&BASE64.encode(bytes)),
        }
    }

    /// Writes to the store as the holder of the lock.
    pub(crate) fn write_locked(
        &self,
        guard: &LockGuard<'_, impl RecordStore + ?Sized>,
        options: WriteOptions,
    ) -> Result<(), Error> {
        let json = self.to_json()?;
        waiting(|observer| guard.write_with(&*json, options.observer(observer)))
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
        let json = self.to_json()?;
        waiting(|observer| {
            let options = options.observer(observer);
            condition.write(store, key, &json, options)
        })
    }

    pub(crate) fn print(self) -> Result<(), Failure> {
        let mut out = Output::open();
        out.write(&self.into_output())?;
        out.finish()
    }

    /// JSON with a line feed, and all else byte for byte.
    pub(crate) fn into_output(self) -> Vec<u8> {
        match self {
            Value::Json(json) => format!("{}\n", json.as_str()).into_bytes(),
            Value::Text(text) => text.into_bytes(),
            Value::Bytes(bytes) => bytes,
        }
    }
}
