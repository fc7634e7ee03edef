//! The store on a PostgreSQL server: the contract among the processes of several hosts.

mod block_on;
mod clock;
mod core;
mod engine;
mod evict;
mod failure;
mod finding;
#[cfg(feature = "tokio")]
mod futures;
mod limits;
mod lock_errors;
mod lock_info;
mod locks;
mod options;
mod owner;
mod pages;
mod parameters;
mod polled_socket;
mod pool;
mod record_info;
mod records;
mod schema;
mod schema_check;
mod session;
mod statements;
mod status;
mod store_changes;
mod timer;
mod tls;
mod unknown;
mod url;
mod verify;
mod waiting;
mod watching;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use self::block_on::block_on;
use self::core::Core;
use self::limits::Limits;
use self::url::Target;
use crate::{
    Acquired, BreakOptions, Claim, Evicted, EvictionPolicy, Expected, IsolationLevel, Json, Key, ListOptions,
    Listing, LockInfo, LockOptions, RawRecord, ReadOptions, RecordInfo, RecordStore, RecordVersion,
    RemoveOptions, Result, SeenRecords, StoreIdentity, WaitOptions, WriteOptions,
};

pub use self::finding::{PostgresChecked, PostgresFinding, PostgresProblem};
pub use self::options::PostgresOptions;
pub use self::records::PostgresSwept;
pub use self::verify::PostgresVerification;

#[cfg(doc)]
use crate::{Error, ErrorKind};

/// Records and locks on a PostgreSQL server, for the processes of several hosts.
///
/// It keeps the same contract as the file store, so a program changes one line: this in the place of
/// [`FileSystemRecordStore::open`](crate::FileSystemRecordStore::open). The page
/// [when one host is not enough](crate::guide::postgres) says how to move, what changes, and how the server has to be
/// set up.
///
/// ```no_run
/// use record_store::{LockOptions, PostgresOptions, PostgresRecordStore, RecordStoreExt};
///
/// let store = PostgresRecordStore::connect("postgres://app@db.example/app", PostgresOptions::new())?;
/// let guard = store.lock("visits", LockOptions::new())?;
/// let visits: u64 = guard.read()?.map_or(0, |record| record.result);
/// guard.write(&(visits + 1))?;
/// guard.release()?;
/// # Ok::<(), record_store::Error>(())
/// ```
///
/// # Differences from files
///
/// * **Time** is that of the server, for leases and times to live.
/// * **Lost answers.** If the connection breaks after a change was sent, nobody can know whether it was made. The
///   error says so: [`Error::is_outcome_unknown`]. Reads, acquisitions and renewals are repeated by the store itself.
///   After a write of unknown outcome, write again, with
///   [`write_if_version`](crate::RecordStoreExt::write_if_version) if others write too. After an acquisition of unknown
///   outcome, acquire again as the same holder: the lock that the lost call may have acquired is found, and counts as
///   this acquisition.
/// * **The session.** One connection stands for the process. If it ends, because the server restarts or someone ends
///   it, the process's [bound](crate::Holder::is_process_bound) locks are free, and every claim with their tokens is
///   [`ErrorKind::LockLost`]. The store connects again by itself.
/// * **Deaths.** If a process is killed, its bound locks are free within a second. If its host vanishes or the network
///   is cut, they are free when the server's keepalive gives up, after about 11 seconds.
/// * **Calls end.** If the server cannot be reached or does not answer, a call fails with [`ErrorKind::Io`] when its
///   own timeout is over, but not earlier than after a second, or without one after
///   [`PostgresOptions::patience`]. A wait for a lock lasts as long as its timeout says, while the server answers.
///
/// Clones share their connections. A forked child gets connections of its own, and locks of its own.
#[derive(Clone, Debug)]
pub struct PostgresRecordStore(Arc<Core>);

impl PostgresRecordStore {
    /// [`connect`](Self::connect) as a future, for programs on Tokio. Open stores are used as futures through
    /// [`AsyncRecordStore`](crate::asynchronous::AsyncRecordStore): no call waits on a thread, except for
    /// [`lock_all`](crate::asynchronous::AsyncRecordStore::lock_all), listings and keep-alives.
    ///
    /// # Errors
    ///
    /// As for [`connect`](Self::connect).
    #[cfg(feature = "tokio")]
    pub async fn connect_async(url: &str, options: PostgresOptions) -> Result<Self> {
        Self::open(url, options).await
    }

    /// Connects to a server, and makes the store if it is missing: a schema with a few tables and functions.
    ///
    /// The URL has the form `postgres://user:password@host:port/database?parameters`, several hosts separated by
    /// commas. Of the parameters of libpq, `sslmode`, `sslrootcert`, `application_name`, `options`, `host`, `hostaddr`,
    /// `port`, `user`, `password`, `dbname`, `connect_timeout` and `channel_binding` are supported; `schema` is the same as
    /// [`PostgresOptions::schema`]. Special characters in a password are percent-encoded. Without a password, the
    /// environment variable `PGPASSWORD` is used. With `sslmode=verify-full` the connection is encrypted and the
    /// server's certificate is verified, by the roots of the system or the file `sslrootcert`; `prefer`, the default,
    /// and `require` encrypt without verification.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidUrl`]; [`ErrorKind::UnsupportedServer`] for a standby, a database that is not in UTF-8, or a
    /// pooler that gives each transaction another session; [`ErrorKind::UnsupportedFormat`] if a newer version of this
    /// crate made the store; [`ErrorKind::NotAStore`] if the schema has other tables, or if the options forbid to make
    /// the store; [`ErrorKind::Io`] if the server cannot be reached within the
    /// [patience](PostgresOptions::patience), or refuses. No error contains the password.
    pub fn connect(url: &str, options: PostgresOptions) -> Result<Self> {
        block_on(Self::open(url, options))
    }

    async fn open(url: &str, options: PostgresOptions) -> Result<Self> {
        Ok(Self(Arc::new(Core::open(Target::parse(url)?, options).await?)))
    }

    /// Whether a text is the URL of a server, and not the path of a directory.
    ///
    /// ```
    /// use record_store::PostgresRecordStore;
    ///
    /// assert!(PostgresRecordStore::is_url("postgres://localhost/app"));
    /// assert!(!PostgresRecordStore::is_url("records"));
    /// ```
    #[must_use]
    pub fn is_url(text: &str) -> bool {
        url::is_url(text)
    }

    /// The address of the server, for people: hosts, ports and the database, without user and password.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.0.target.address
    }

    /// The schema of the store.
    #[must_use]
    pub fn schema(&self) -> &str {
        self.0.schema.name()
    }

    /// Removes expired records, expired and abandoned locks, and what waiters of dead processes have left. None of it has
    /// an effect, but it takes up space.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the server cannot be reached or refuses.
    pub fn sweep(&self) -> Result<PostgresSwept> {
        block_on(records::sweep(&self.0, &Limits::none()))
    }

    /// Checks the store, and changes nothing: the tables and functions of the schema, the rights of this role, that each
    /// record is in the row of its key and its result is JSON, that each lock can be read, and that no version and no
    /// token is greater than the last number that was given. It reads every record once, waits for no lock, and can run
    /// while other processes use the store.
    ///
    /// Expired records, and the locks and waiters of processes that are gone, are findings, too, but
    /// [no damage](PostgresProblem::is_damage): [`sweep`](Self::sweep) removes them.
    ///
    /// An item is an error if a part of the store could not be checked; the check goes on with the next part.
    ///
    /// ```no_run
    /// use record_store::{PostgresOptions, PostgresRecordStore};
    ///
    /// let store = PostgresRecordStore::connect("postgres://app@db.example/app", PostgresOptions::new().existing())?;
    /// let mut verification = store.verify();
    /// for finding in &mut verification {
    ///     let finding = finding?;
    ///     println!("{}: {}", finding.place, finding.problem);
    /// }
    /// println!("{} records checked", verification.checked().records);
    /// # Ok::<(), record_store::Error>(())
    /// ```
    #[must_use]
    pub fn verify(&self) -> PostgresVerification<'_> {
        verify::verify(&self.0)
    }
}

impl RecordStore for PostgresRecordStore {
    fn identity_raw(&self) -> Option<StoreIdentity> {
        Some(self.0.identity())
    }

    #[cfg(feature = "tokio")]
    fn futures_raw(&self) -> Option<Arc<dyn crate::store::futures::RecordStoreFutures>> {
        Some(Arc::new(self.clone()))
    }

    fn read_raw(&self, key: &Key, options: ReadOptions) -> Result<Option<RawRecord>> {
        block_on(records::read(&self.0, key, options))
    }

    fn write_raw(&self, key: &Key, result: &Json, options: WriteOptions) -> Result<()> {
        block_on(records::write(&self.0, key, result, options))
    }

    fn compare_and_swap_raw(
        &self,
        key: &Key,
        expected: Expected<'_>,
        result: &Json,
        options: WriteOptions,
    ) -> Result<bool> {
        block_on(records::compare_and_swap(&self.0, key, expected, result, options))
    }

    fn exists_raw(&self, key: &Key) -> Result<bool> {
        block_on(records::exists(&self.0, key))
    }

    fn remove_raw(&self, key: &Key, options: RemoveOptions) -> Result<bool> {
        block_on(records::remove(&self.0, key, options))
    }

    fn version_raw(&self, key: &Key) -> Result<RecordVersion> {
        block_on(watching::version(&self.0, key))
    }

    fn wait_for_change_raw(
        &self,
        key: &Key,
        seen: RecordVersion,
        options: WaitOptions,
    ) -> Result<Option<RecordVersion>> {
        block_on(watching::wait_for_change(&self.0, key, seen, options))
    }

    fn changes_raw(&self, seen: &mut SeenRecords, options: WaitOptions) -> Result<bool> {
        block_on(store_changes::changes(&self.0, seen, options))
    }

    fn keys_raw(&self) -> Result<Listing<'_, Key>> {
        records::keys(&self.0)
    }

    fn records_raw(&self, options: ListOptions) -> Result<Listing<'_, RecordInfo>> {
        record_info::records(&self.0, options)
    }

    fn record_info_raw(&self, key: &Key) -> Result<Option<RecordInfo>> {
        block_on(record_info::record_info(&self.0, key))
    }

    fn evict_raw(&self, policy: EvictionPolicy) -> Result<Evicted> {
        block_on(evict::evict(&self.0, &policy))
    }

    fn supports_isolation_level_raw(&self, level: IsolationLevel) -> bool {
        matches!(level, IsolationLevel::ReadCommitted | IsolationLevel::Serializable)
    }

    fn acquire_lock_raw(&self, key: &Key, options: LockOptions) -> Result<Acquired> {
        block_on(locks::acquire_lock(&self.0, key, options))
    }

    fn renew_raw(
        &self,
        key: &Key,
        claim: &Claim,
        hold_timeout: Option<Duration>,
        options: WaitOptions,
    ) -> Result<()> {
        block_on(locks::renew(&self.0, key, claim, hold_timeout, options))
    }

    fn release_lock_raw(&self, key: &Key, claim: &Claim, options: WaitOptions) -> Result<()> {
        block_on(locks::release_lock(&self.0, key, claim, options))
    }

    fn lock_info_raw(&self, key: &Key) -> Result<Option<LockInfo>> {
        block_on(lock_info::lock_info(&self.0, key))
    }

    fn wait_for_lock_raw(&self, key: &Key, options: WaitOptions) -> Result<bool> {
        block_on(locks::wait_for_lock(&self.0, key, options))
    }

    fn break_lock_raw(&self, key: &Key, options: BreakOptions) -> Result<bool> {
        block_on(locks::break_lock(&self.0, key, options))
    }

    fn locks_raw(&self) -> Result<Listing<'_, LockInfo>> {
        locks::locks(&self.0)
    }
}
