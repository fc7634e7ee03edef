//! The queries, each prepared once for a connection.

/// The checks of every session: standby, encoding, version of the server, number of its process.
pub(super) const CHECK: &str = "SELECT pg_is_in_recovery(), current_setting('server_encoding'), \
    current_setting('server_version_num')::integer, pg_backend_pid()";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Query {
    /// A row for the record, and one without a version for an exclusive lock, live or not.
    Peek,
    Read,
    Exists,
    Version,
    WriteUnlocked,
    Write,
    Remove,
    AcquireLock,
    Renew,
    ReleaseLock,
    BreakLock,
    LockInfo,
    WaitForLock,
    WaitForChange,
    Leave,
    Keys,
    Records,
    RecordInfo,
    Candidates,
    Evict,
    EvictSeveral,
    Locks,
    HasLocks,
    RowsOfRecords,
    LastNumber,
    Waiters,
    SchemaParts,
    Rights,
    Sweep,
}

const LIVES: &str = "(expires_at IS NULL OR clock_timestamp() < expires_at)";

/// The locks that one statement removes. It enters the latch of each: a change that was admitted before the end of the lock
/// may not be committed yet, and a read that finds no lock does not wait for it. A server has room for some thousand latches.
pub(super) const SWEPT_AT_ONCE: u64 = 1_000;

/// The records that one statement of an eviction removes. It keeps all their latches until it ends.
pub(super) const EVICTED_AT_ONCE: usize = 100;

/// The bytes of results in one page of a listing, except for a result that alone is larger.
const PAGE_BYTES: u64 = 4 << 20;

/// The description of a record.
const DESCRIPTION: &str = "id, key, version, octet_length(result)::bigint AS size, \
    {schema}.since_epoch(modified_at) AS modified, {schema}.left_until(expires_at) AS time_left";

const INFO: &str = "l.key, l.holder, l.bound, l.token, l.owner, {schema}.since_epoch(l.acquired_at), \
    {schema}.since_epoch(l.expires_at), {schema}.left_until(l.expires_at), {schema}.lives(l.owner), l.id, l.note, \
    ARRAY(SELECT -{schema}.left_until(w.since) FROM {schema}.waiters w \
    WHERE w.id = l.id AND w.kind = 'l' AND {schema}.lives(w.owner) ORDER BY w.number), l.slots \
    FROM {schema}.locks l";

/// The schema as the catalog describes it: tables and sequences, unlogged tables, columns with their types, valid primary keys,
/// functions with their bodies, those with the rights of their owner and their settings, and the version.
const SCHEMA_PARTS: &str = "WITH n AS (SELECT oid FROM pg_namespace WHERE nspname::text = $1), \
    c AS (SELECT c.* FROM pg_class c JOIN n ON n.oid = c.relnamespace) \
    SELECT 'relation', relname::text, relkind::text FROM c WHERE relkind IN ('r', 'p', 'v', 'm', 'f', 'S') \
    UNION ALL SELECT 'unlogged', relname::text, '' FROM c WHERE relpersistence = 'u' \
    UNION ALL SELECT 'column', c.relname || '.' || a.attname, \
    format_type(a.atttypid, a.atttypmod) || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END \
    FROM pg_attribute a JOIN c ON c.oid = a.attrelid WHERE c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped \
    UNION ALL SELECT 'key', c.relname::text, (SELECT string_agg(a.attname, ', ' ORDER BY k.place) \
    FROM unnest(i.indkey::smallint[]) WITH ORDINALITY k(number, place) \
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.number) \
    FROM pg_index i JOIN c ON c.oid = i.indrelid WHERE i.indisprimary AND i.indisvalid AND i.indisready \
    UNION ALL SELECT 'function', p.proname::text, p.prosrc FROM pg_proc p JOIN n ON n.oid = p.pronamespace \
    UNION ALL SELECT 'definer', p.proname::text, coalesce(array_to_string(p.proconfig, ' '), '') \
    FROM pg_proc p JOIN n ON n.oid = p.pronamespace WHERE p.prosecdef \
    UNION ALL SELECT 'version', version::text, '' FROM {schema}.store";

/// The rights that a process needs and this role does not have, and those that the owner of a function needs to whom it lends
/// its rights.
const RIGHTS: &str = "WITH n AS (SELECT oid FROM pg_namespace WHERE nspname::text = $1), \
    c AS (SELECT c.* FROM pg_class c JOIN n ON n.oid = c.relnamespace), \
    p AS (SELECT p.* FROM pg_proc p JOIN n ON n.oid = p.pronamespace), \
    needed(role, name, privilege) AS ( \
    SELECT current_user, name, privilege FROM unnest(ARRAY['records', 'locks', 'waiters']) name, \
    unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) privilege \
    UNION SELECT current_user, 'numbers', unnest(ARRAY['USAGE', 'SELECT']) \
    UNION SELECT pg_get_userbyid(proowner), name, privilege FROM p, (VALUES ('store', 'SELECT'), ('store', 'UPDATE'), \
    ('uptime', 'SELECT'), ('uptime', 'INSERT'), ('numbers', 'SELECT'), ('numbers', 'UPDATE')) lent(name, privilege) \
    WHERE prosecdef) \
    SELECT role::text, name, privilege FROM ( \
    SELECT current_user AS role, 'FUNCTION ' || p.oid::regprocedure AS name, 'EXECUTE' AS privilege, \
    has_function_privilege(p.oid, 'EXECUTE') AS has FROM p \
    UNION ALL SELECT role, 'SEQUENCE ' || c.oid::regclass, privilege, has_sequence_privilege(role, c.oid, privilege) \
    FROM needed JOIN c ON c.relname = name AND c.relkind = 'S' \
    UNION ALL SELECT role, 'TABLE ' || c.oid::regclass, privilege, has_table_privilege(role, c.oid, privilege) \
    FROM needed JOIN c ON c.relname = name AND c.relkind = 'r' \
    ) rights WHERE NOT has ORDER BY name, privilege";

impl Query {
    pub(super) const COUNT: usize = Self::Sweep as usize + 1;

    /// Whether it changes anything that is not only a wait.
    pub(super) fn changes(self) -> bool {
        use Query::{
            AcquireLock, BreakLock, Evict, EvictSeveral, Leave, ReleaseLock, Remove, Renew, Sweep, Write,
            WriteUnlocked,
        };
        matches!(
            self,
            WriteUnlocked
                | Write
                | Remove
                | AcquireLock
                | Renew
                | ReleaseLock
                | BreakLock
                | Leave
                | Evict
                | EvictSeveral
                | Sweep
        )
    }

    /// Whether it changes many rows without the latches of their keys, or with all of them.
    pub(super) fn is_for_many_rows(self) -> bool {
        matches!(self, Self::EvictSeveral | Self::Sweep)
    }

    /// Whether its answer may be that the session of this process has ended.
    pub(super) fn says_gone(self) -> bool {
        matches!(self, Self::AcquireLock | Self::WaitForLock | Self::WaitForChange)
    }

    pub(super) fn text(self, schema: &str) -> String {
        let call = |function: &str, parameters: usize| {
            let parameters: Vec<_> = (1..=parameters).map(|number| format!("${number}")).collect();
            format!("SELECT * FROM {schema}.{function}({})", parameters.join(", "))
        };
        match self {
            Self::Peek => format!(
                "SELECT version, result, {schema}.left_until(expires_at) FROM {schema}.records WHERE id = $1 \
                 UNION ALL SELECT NULL, NULL, NULL FROM {schema}.locks WHERE id = $1 AND slots IS NULL"
            ),
            Self::Read => call("read", 8),
            Self::Exists => format!("SELECT FROM {schema}.records WHERE id = $1 AND {LIVES}"),
            Self::Version => format!("SELECT version FROM {schema}.records WHERE id = $1 AND {LIVES}"),
            Self::WriteUnlocked => format!("SELECT {schema}.write_unlocked($1, $2, $3, $4, $5, $6)"),
            Self::Write => call("write", 12),
            Self::Remove => call("remove", 7),
            Self::AcquireLock => call("acquire_lock", 12),
            Self::Renew => call("renew", 8),
            Self::ReleaseLock => call("release_lock", 7),
            Self::BreakLock => call("break_lock", 4),
            Self::LockInfo => {
                format!("SELECT {INFO} WHERE l.id = $1 ORDER BY l.token").replace("{schema}", schema)
            }
            Self::WaitForLock => call("wait_for_lock", 7),
            Self::WaitForChange => call("wait_for_change", 6),
            Self::Leave => call("leave", 4),
            Self::Keys => format!(
                "SELECT id, key FROM {schema}.records WHERE id > $1 AND {LIVES} ORDER BY id LIMIT 500"
            ),
            // A page ends after so many records, or after so many bytes. Its last row is there whether it has the prefix
            // or not: it says where the next page begins.
            Self::Records => format!(
                "SELECT id, key, version, size, modified, time_left, \
                 CASE WHEN $3::boolean AND is_selected THEN result END, is_selected FROM ( \
                 SELECT *, lead(id) OVER (ORDER BY id) IS NULL AS is_last FROM ( \
                 SELECT *, sum(cost) OVER (ORDER BY id) - cost AS bytes_before FROM ( \
                 SELECT *, CASE WHEN $3::boolean AND is_selected THEN size ELSE 0 END AS cost FROM ( \
                 SELECT {DESCRIPTION}, result, \
                 {LIVES} AND substr(key, 1, octet_length($2::bytea)) = $2::bytea AS is_selected \
                 FROM {{schema}}.records WHERE id > $1 ORDER BY id LIMIT 2000) a) b) c \
                 WHERE bytes_before < {PAGE_BYTES}) d WHERE is_selected OR is_last ORDER BY id"
            )
            .replace("{schema}", schema),
            Self::RecordInfo => {
                format!("SELECT {DESCRIPTION} FROM {{schema}}.records WHERE id = $1 AND {LIVES}")
                    .replace("{schema}", schema)
            }
            Self::Candidates => format!(
                "SELECT id, version, octet_length(result)::bigint, {schema}.since_epoch(modified_at), \
                 {schema}.since_epoch(clock_timestamp()) \
                 FROM {schema}.records WHERE id > $1 AND {LIVES} ORDER BY id LIMIT 2000"
            ),
            Self::Evict => call("evict", 4),
            Self::EvictSeveral => call("evict_several", 3),
            // A page has all rows of a key.
            Self::Locks => format!(
                "SELECT {INFO} WHERE l.id IN (SELECT DISTINCT id FROM {{schema}}.locks WHERE id > $1 \
                 ORDER BY id LIMIT 500) ORDER BY l.id, l.token"
            )
            .replace("{schema}", schema),
            Self::HasLocks => {
                format!("SELECT FROM {schema}.locks WHERE owner = $1 AND bound AND {LIVES} LIMIT 1")
            }
            Self::RowsOfRecords => format!(
                "SELECT id, key, version, result, is_expired FROM ( \
                 SELECT *, sum(size) OVER (ORDER BY id) - size AS bytes_before FROM ( \
                 SELECT id, key, version, result, octet_length(result)::bigint AS size, NOT {LIVES} AS is_expired \
                 FROM {schema}.records WHERE id > $1 ORDER BY id LIMIT 500) a) b \
                 WHERE bytes_before < {PAGE_BYTES} ORDER BY id"
            ),
            Self::LastNumber => format!("SELECT last_value FROM {schema}.numbers"),
            Self::Waiters => format!(
                "SELECT count(*), count(*) FILTER (WHERE NOT lives) FROM {schema}.waiters LEFT JOIN \
                 (SELECT owner, {schema}.lives(owner) AS lives FROM \
                 (SELECT DISTINCT owner FROM {schema}.waiters) o) l USING (owner)"
            ),
            Self::SchemaParts => SCHEMA_PARTS.replace("{schema}", schema),
            Self::Rights => RIGHTS.to_owned(),
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
