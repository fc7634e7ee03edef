//! The queries, each prepared once for a connection.

/// The checks of every session: standby, encoding, version of the server, number of its process.
pub(super) const CHECK: &str = "SELECT pg_is_in_recovery(), current_setting('server_encoding'), \
    current_setting('server_version_num')::integer, pg_backend_pid()";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Query {
    /// The record, and whether there is a lock at all, live or not.
    Peek,
    Read,
    Exists,
    Version,
    Write,
    Remove,
    Acquire,
    Renew,
    Release,
    BreakLock,
    LockInfo,
    AwaitFree,
    AwaitChange,
    Leave,
    Keys,
    Locks,
    HasLocks,
    Sweep,
}

const LIVES: &str = "(expires_at IS NULL OR clock_timestamp() < expires_at)";

/// The locks that one statement removes. It enters the latch of each: a change that was admitted before the end of the lock
/// may not be committed yet, and a read that finds no lock does not wait for it. A server has room for some thousand latches.
pub(super) const SWEPT_AT_ONCE: u64 = 1_000;

const INFO: &str = "l.key, l.holder, l.bound, l.token, l.owner, {schema}.since_epoch(l.acquired_at), \
    {schema}.since_epoch(l.expires_at), {schema}.left_until(l.expires_at), {schema}.lives(l.owner), l.id, l.note \
    FROM {schema}.locks l";

impl Query {
    pub(super) const COUNT: usize = Self::Sweep as usize + 1;

    /// Whether it changes anything that is not only a wait.
    pub(super) fn changes(self) -> bool {
        use Query::{Acquire, BreakLock, Leave, Release, Remove, Renew, Sweep, Write};
        matches!(self, Write | Remove | Acquire | Renew | Release | BreakLock | Leave | Sweep)
    }

    /// Whether its answer may be that the session of this process has ended.
    pub(super) fn says_gone(self) -> bool {
        matches!(self, Self::Acquire | Self::AwaitFree | Self::AwaitChange)
    }

    pub(super) fn text(self, schema: &str) -> String {
        let call = |function: &str, parameters: usize| {
            let parameters: Vec<_> = (1..=parameters).map(|number| format!("${number}")).collect();
            format!("SELECT * FROM {schema}.{function}({})", parameters.join(", "))
        };
        match self {
            Self::Peek => format!(
                "SELECT CASE WHEN {LIVES} THEN version END, CASE WHEN {LIVES} THEN result END, \
                 {schema}.left_until(expires_at), l.id IS NOT NULL \
                 FROM (SELECT $1::bytea AS id) k LEFT JOIN {schema}.records USING (id) \
                 LEFT JOIN (SELECT id FROM {schema}.locks) l USING (id)"
            ),
            Self::Read => call("read", 8),
            Self::Exists => format!("SELECT FROM {schema}.records WHERE id = $1 AND {LIVES}"),
            Self::Version => format!("SELECT version FROM {schema}.records WHERE id = $1 AND {LIVES}"),
            Self::Write => call("write", 12),
            Self::Remove => call("remove", 7),
            Self::Acquire => call("acquire", 11),
            Self::Renew => call("renew", 8),
            Self::Release => call("release", 7),
            Self::BreakLock => call("break_lock", 4),
            Self::LockInfo => format!("SELECT {INFO} WHERE l.id = $1").replace("{schema}", schema),
            Self::AwaitFree => call("await_free", 7),
            Self::AwaitChange => call("await_change", 6),
            Self::Leave => call("leave", 4),
            Self::Keys => format!(
                "SELECT id, key FROM {schema}.records WHERE id > $1 AND {LIVES} ORDER BY id LIMIT 500"
            ),
            Self::Locks => {
                format!("SELECT {INFO} WHERE l.id > $1 ORDER BY l.id LIMIT 500").replace("{schema}", schema)
            }
            Self::HasLocks => {
                format!("SELECT FROM {schema}.locks WHERE owner = $1 AND bound AND {LIVES} LIMIT 1")
            }
            Self::Sweep => format!(
                "WITH r AS (DELETE FROM {schema}.records WHERE NOT {LIVES} RETURNING 1), \
                 l AS (DELETE FROM {schema}.locks t WHERE id IN (SELECT id FROM {schema}.locks s \
                 WHERE NOT {schema}.is_live(s) LIMIT {SWEPT_AT_ONCE}) \
                 AND CASE WHEN {schema}.is_live(t) THEN false ELSE {schema}.try_enter(id) END RETURNING 1), \
                 w AS (DELETE FROM {schema}.waiters WHERE (id, number) IN (SELECT id, number FROM {schema}.waiters \
                 WHERE NOT {schema}.lives(owner) FOR UPDATE SKIP LOCKED)) \
                 SELECT (SELECT count(*) FROM r), (SELECT count(*) FROM l)"
            ),
        }
    }
}
