//! Peers that store all values in one file.

use std::hint::black_box;
use std::path::Path;
use std::time::Duration;

use heed::types::{Bytes, Str};
use heed::{EnvFlags, EnvOpenOptions};
use record_store::Durability;
use redb::{ReadableDatabase, ReadableTable, TableDefinition};
use rusqlite::{Connection, OptionalExtension, TransactionBehavior};

use crate::work::{About, Job, Peer, Work, changed, decode, encode};

/// One database for each durability.
pub(crate) struct Sqlite {
    full: Connection,
    normal: Connection,
}

/// Far longer than a writer waits for the others.
const BUSY_TIMEOUT: Duration = Duration::from_mins(1);

const PUT: &str = "INSERT INTO records VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2";
const GET: &str = "SELECT value FROM records WHERE key = ?1";

impl Sqlite {
    pub(crate) fn new(dir: &Path) -> Self {
        let open = |synchronous: &str| {
            let database = Connection::open(dir.join(synchronous)).expect("the database opens");
            database.busy_timeout(BUSY_TIMEOUT).expect("a setting");
            database.pragma_update(None, "journal_mode", "WAL").expect("a write-ahead log");
            database.pragma_update(None, "synchronous", synchronous).expect("a setting");
            let table = "CREATE TABLE IF NOT EXISTS records (key TEXT PRIMARY KEY, value BLOB NOT NULL) \
                         WITHOUT ROWID";
            database.execute(table, ()).expect("a table");
            database
        };
        Self { full: open("FULL"), normal: open("NORMAL") }
    }
}

fn sqlite_get(database: &Connection, key: &str) -> Vec<u8> {
    let mut get = database.prepare_cached(GET).expect("a statement");
    get.query_row([key], |row| row.get(0)).expect("a row")
}

fn sqlite_put(database: &Connection, key: &str, text: &[u8]) {
    let mut put = database.prepare_cached(PUT).expect("a statement");
    put.execute((key, text)).expect("written");
}

impl Peer for Sqlite {
    fn about(&self) -> About {
        About {
            name: "SQLite",
            writers: "yes, one at a time",
            compared: "WAL. Durable is `synchronous=FULL`: a commit appends pages to the log and syncs that one \
                       file. Relaxed is `NORMAL`: no sync until a checkpoint. No locks, but transactions",
        }
    }

    fn job(&mut self, work: Work) -> Option<Job<'_>> {
        let Self { full, normal } = self;
        Some(match work {
            Work::Put(Durability::Full) => Box::new(|key, value| sqlite_put(full, key, &encode(value))),
            Work::Put(_) => Box::new(|key, value| sqlite_put(normal, key, &encode(value))),
            Work::Get => Box::new(|key, _| {
                black_box(decode(&sqlite_get(normal, key)).number);
            }),
            Work::Exists => Box::new(|key, _| {
                let mut exists =
                    normal.prepare_cached("SELECT 1 FROM records WHERE key = ?1").expect("a statement");
                let found: Option<u8> =
                    exists.query_row([key], |row| row.get(0)).optional().expect("checked");
                assert!(found.is_some());
            }),
            Work::Lock => return None,
            Work::Update => Box::new(|key, _| {
                let change = normal
                    .transaction_with_behavior(TransactionBehavior::Immediate)
                    .expect("the transaction begins");
                let text = sqlite_get(&change, key);
                sqlite_put(&change, key, &changed(&text));
                change.commit().expect("committed");
            }),
        })
    }
}

pub(crate) struct Redb(redb::Database);

const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("records");

impl Redb {
    pub(crate) fn new(dir: &Path) -> Self {
        Self(redb::Database::create(dir.join("records.redb")).expect("the database opens"))
    }

    fn change(&self, key: &str, durability: redb::Durability, new: impl FnOnce(Option<Vec<u8>>) -> Vec<u8>) {
        let mut change = self.0.begin_write().expect("the transaction begins");
        change.set_durability(durability).expect("a setting");
        {
            let mut table = change.open_table(RECORDS).expect("a table");
            let old = table.get(key).expect("read").map(|value| value.value().to_vec());
            table.insert(key, new(old).as_slice()).expect("written");
        }
        change.commit().expect("committed");
    }

    fn read<T>(&self, key: &str, use_value: impl FnOnce(&[u8]) -> T) -> T {
        let reader = self.0.begin_read().expect("the transaction begins");
        let value = reader.open_table(RECORDS).expect("a table").get(key).expect("read");
        use_value(value.expect("a value").value())
    }
}

impl Peer for Redb {
    fn about(&self) -> About {
        About {
            name: "redb",
            writers: "no: one process has the file open",
            compared: "durable is `Durability::Immediate`, relaxed is `None`, which even a crash of the \
                       process loses. No locks, but transactions",
        }
    }

    fn job(&mut self, work: Work) -> Option<Job<'_>> {
        let this = &*self;
        let put = |durability| -> Job<'_> {
            Box::new(move |key, value| this.change(key, durability, |_| encode(value)))
        };
        Some(match work {
            Work::Put(Durability::Full) => put(redb::Durability::Immediate),
            Work::Put(_) => put(redb::Durability::None),
            Work::Get => Box::new(|key, _| {
                black_box(this.read(key, |text| decode(text).number));
            }),
            Work::Exists => Box::new(|key, _| this.read(key, |_| ())),
            Work::Lock => return None,
            Work::Update => Box::new(|key, _| {
                this.change(key, redb::Durability::None, |old| changed(&old.expect("a value")));
            }),
        })
    }
}

/// One environment for each durability.
pub(crate) struct Lmdb {
    full: Environment,
    relaxed: Environment,
}

struct Environment {
    env: heed::Env,
    records: heed::Database<Str, Bytes>,
}

impl Environment {
    fn open(dir: &Path, flags: EnvFlags) -> Self {
        std::fs::create_dir_all(dir).expect("a directory");
        let mut options = EnvOpenOptions::new();
        options.map_size(1 << 30);
        // SAFETY: only processes of this program know these files, and each opens them once. Without syncs a
        // crash of the machine may damage them, but nothing reads them afterwards.
        #[allow(unsafe_code, reason = "LMDB maps its file")]
        let env = unsafe {
            options.flags(flags);
            options.open(dir).expect("the environment opens")
        };
        let mut change = env.write_txn().expect("the transaction begins");
        let records = env.create_database(&mut change, None).expect("a database");
        change.commit().expect("committed");
        Self { env, records }
    }

    fn change(&self, key: &str, new: impl FnOnce(Option<&[u8]>) -> Vec<u8>) {
        let mut change = self.env.write_txn().expect("the transaction begins");
        let text = new(self.records.get(&change, key).expect("read"));
        self.records.put(&mut change, key, &text).expect("written");
        change.commit().expect("committed");
    }

    fn read<T>(&self, key: &str, use_value: impl FnOnce(&[u8]) -> T) -> T {
        let reader = self.env.read_txn().expect("the transaction begins");
        use_value(self.records.get(&reader, key).expect("read").expect("a value"))
    }
}

impl Lmdb {
    pub(crate) fn new(dir: &Path) -> Self {
        Self {
            full: Environment::open(&dir.join("full"), EnvFlags::empty()),
            relaxed: Environment::open(&dir.join("relaxed"), EnvFlags::NO_SYNC),
        }
    }
}

impl Peer for Lmdb {
    fn about(&self) -> About {
        About {
            name: "LMDB (heed)",
            writers: "yes, one at a time",
            compared: "durable is the default; relaxed is `NO_SYNC`, with which a power loss may damage the \
                       whole file. Reads use mapped memory. No locks, but transactions",
        }
    }

    fn job(&mut self, work: Work) -> Option<Job<'_>> {
        let Self { full, relaxed } = self;
        Some(match work {
            Work::Put(Durability::Full) => Box::new(|key, value| full.change(key, |_| encode(value))),
            Work::Put(_) => Box::new(|key, value| relaxed.change(key, |_| encode(value))),
            Work::Get => Box::new(|key, _| {
                black_box(relaxed.read(key, |text| decode(text).number));
            }),
            Work::Exists => Box::new(|key, _| relaxed.read(key, |_| ())),
            Work::Lock => return None,
            Work::Update => Box::new(|key, _| relaxed.change(key, |old| changed(old.expect("a value")))),
        })
    }
}
