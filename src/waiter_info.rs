//! The description of a call that waits for a lock.

use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A description of one call that waits to acquire a lock, at one moment. [`LockInfo::waiters`](crate::LockInfo::waiters)
/// has them.
///
/// Serialized, it has the time as `waiting_seconds`, a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaiterInfo {
    waited: Duration,
    process: Option<u32>,
    host: Option<String>,
}

impl WaiterInfo {
    /// A call of an unknown process that has waited for this long. Stores create these.
    #[must_use]
    pub fn new(waited: Duration) -> Self {
        Self { waited, process: None, host: None }
    }

    /// Sets the process that waits: its number on its host, and the name of the host.
    #[must_use]
    pub fn with_process(mut self, process: u32, host: impl Into<Option<String>>) -> Self {
        self.process = Some(process);
        self.host = host.into();
        self
    }

    /// A call of this process.
    pub(crate) fn of_this_process(waited: Duration) -> Self {
        let host = hostname::get().unwrap_or_default();
        Self::new(waited).with_process(std::process::id(), host.to_string_lossy().into_owned())
    }

    /// The time since the call began to wait.
    #[must_use]
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// The number of its process, on its host and in its PID namespace. `None`: unknown.
    #[must_use]
    pub fn process(&self) -> Option<u32> {
        self.process
    }

    /// The name of its host, which may be that of a container. `None`: unknown.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }
}

/// A [`WaiterInfo`] as it is serialized.
#[derive(Serialize, Deserialize)]
struct Fields {
    waiting_seconds: f64,
    process: Option<u32>,
    host: Option<String>,
}

impl Serialize for WaiterInfo {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { waited, process, host } = self;
        let fields = Fields { waiting_seconds: waited.as_secs_f64(), process: *process, host: host.clone() };
        fields.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for WaiterInfo {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Fields { waiting_seconds, process, host } = Fields::deserialize(deserializer)?;
        let waited = Duration::try_from_secs_f64(waiting_seconds).map_err(D::Error::custom)?;
        Ok(Self { waited, process, host })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_survives_serialization() {
        for waiter in [
            WaiterInfo::new(Duration::from_millis(1_500)),
            WaiterInfo::new(Duration::ZERO).with_process(7, "a host".to_owned()),
        ] {
            let text = serde_json::to_string(&waiter).unwrap();
            assert_eq!(serde_json::from_str::<WaiterInfo>(&text).unwrap(), waiter, "{text}");
        }
        assert!(serde_json::from_str::<WaiterInfo>(r#"{"waiting_seconds":-1}"#).is_err());
    }
}
