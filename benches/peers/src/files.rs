//! Peers that store each value in its own file.

use std::fs::{self, File};
use std::hint::black_box;
use std::io::Write;
use std::path::{Path, PathBuf};

use record_store::{Durability, FileSystemOptions, FileSystemRecordStore, LockOptions, RecordStoreExt};

use crate::invoice::{Invoice, SHORT, invoice};
use crate::preallocated::Preallocated;
use crate::raw::RawDir;
use crate::work::{About, Job, Peer, Work, decode, encode};

/// The bare system calls.
pub(crate) struct Floor {
    raw: RawDir,
    record: Vec<u8>,
}

impl Floor {
    pub(crate) fn new(dir: &Path) -> Self {
        // The bytes of a record and, with about the same size, of a lock, encoded beforehand.
        let result = String::from_utf8(encode(&invoice(SHORT))).expect("JSON is text");
        let record = format!(r#"{{"key":"invoice-000","crc32":"00000000","result":{result}}}"#);
        Self { raw: RawDir::open(dir), record: record.into_bytes() }
    }

    fn lock(&self, key: &str) {
        drop(self.raw.create(&format!("{key}.lock"), &self.record));
    }

    fn unlock(&self, key: &str) {
        self.raw.unlink(&format!("{key}.lock"));
    }
}

impl Peer for Floor {
    fn about(&self) -> About {
        About {
            name: "system calls",
            writers: "-",
            compared: "what every store with one file per record needs: create, write, rename, and two syncs \
                       if durable; open, fstat, read, close, parse; stat; create by `O_EXCL`, \
                       write, close, unlink",
        }
    }

    fn job(&mut self, work: Work) -> Option<Job<'_>> {
        let (raw, record) = (&self.raw, &self.record);
        Some(match work {
            Work::Put(durability) => Box::new(move |key, _| raw.publish(key, record, durability)),
            Work::Get => Box::new(|key, _| drop(raw.read::<Invoice>(key))),
            Work::Exists => Box::new(|key, _| assert!(raw.stat(key))),
            Work::Lock => Box::new(|key, _| {
                self.lock(key);
                self.unlock(key);
            }),
            Work::Update => Box::new(|key, _| {
                self.lock(key);
                drop(raw.read::<Invoice>(key));
                raw.publish(key, record, Durability::Relaxed);
                self.unlock(key);
            }),
        })
    }
}

/// The cheapest durable write.
pub(crate) struct OneSync {
    file: Preallocated,
    record: Vec<u8>,
}

impl OneSync {
    /// Each process has a file of its own.
    pub(crate) fn new(dir: &Path) -> Self {
        let file = Preallocated::create(&dir.join(std::process::id().to_string()));
        Self { file, record: encode(&invoice(SHORT)) }
    }
}

impl Peer for OneSync {
    fn about(&self) -> About {
        About {
            name: "one sync",
            writers: "-",
            compared: "what every durable write needs: `pwrite` to blocks that a file already has, and \
                       `fdatasync`",
        }
    }

    fn job(&mut self, work: Work) -> Option<Job<'_>> {
        let Self { file, record } = self;
        match work {
            Work::Put(Durability::Full) => Some(Box::new(|_, _| file.write(record))),
            _ => None,
        }
    }
}

/// This crate.
pub(crate) struct Ours {
    durable: FileSystemRecordStore,
    relaxed: FileSystemRecordStore,
}

impl Ours {
    pub(crate) fn new(dir: &Path) -> Self {
        let open =
            |durability| FileSystemOptions::new().durability(durability).open(dir).expect("the store opens");
        Self { durable: open(Durability::Full), relaxed: open(Durability::Relaxed) }
    }
}

impl Peer for Ours {
    fn about(&self) -> About {
        About {
            name: "record-store",
            writers: "yes, each key independently",
            compared: "`write` under `Durability::Full` and `Relaxed`, `read`, `exists`, `lock` and `release`, \
                       `lock` with `read` and `write`",
        }
    }

    fn job(&mut self, work: Work) -> Option<Job<'_>> {
        let Self { durable, relaxed } = self;
        Some(match work {
            Work::Put(Durability::Full) => Box::new(|key, value| durable.write(key, value).expect("written")),
            Work::Put(_) => Box::new(|key, value| relaxed.write(key, value).expect("written")),
            Work::Get => Box::new(|key, _| {
                let record = relaxed.read::<Invoice>(key).expect("read");
                black_box(record.expect("a record").result.number);
            }),
            Work::Exists => Box::new(|key, _| assert!(relaxed.exists(key).expect("checked"))),
            Work::Lock => Box::new(|key, _| {
                let guard = relaxed.lock(key, LockOptions::new()).expect("locked");
                guard.release().expect("released");
            }),
            Work::Update => Box::new(|key, _| {
                let guard = relaxed.lock(key, LockOptions::new()).expect("locked");
                let mut value = guard.read::<Invoice>().expect("read").expect("a record").result;
                value.number += 1;
                guard.write(&value).expect("written");
                guard.release().expect("released");
            }),
        })
    }
}

/// A temporary file that is renamed, as many programs do it themselves.
pub(crate) struct Tempfile(pub(crate) PathBuf);

impl Peer for Tempfile {
    fn about(&self) -> About {
        About {
            name: "tempfile",
            writers: "yes, the last write wins",
            compared: "`NamedTempFile` in the same directory, `persist`; if durable, with `sync_data` and \
                       `fsync` of the directory; no checksum, no locks",
        }
    }

    fn job(&mut self, work: Work) -> Option<Job<'_>> {
        let dir = &self.0;
        Some(match work {
            Work::Put(durability) => Box::new(move |key, value| {
                let mut file = tempfile::NamedTempFile::new_in(dir).expect("created");
                file.write_all(&encode(value)).expect("written");
                if durability == Durability::Full {
                    file.as_file().sync_data().expect("synced");
                }
                file.persist(dir.join(key)).expect("renamed");
                if durability == Durability::Full {
                    File::open(dir).and_then(|dir| dir.sync_all()).expect("synced");
                }
            }),
            Work::Get => Box::new(move |key, _| {
                black_box(decode(&fs::read(dir.join(key)).expect("read")).number);
            }),
            Work::Exists => Box::new(move |key, _| assert!(dir.join(key).exists())),
            Work::Lock | Work::Update => return None,
        })
    }
}

pub(crate) struct Cacache(pub(crate) PathBuf);

impl Peer for Cacache {
    fn about(&self) -> About {
        About {
            name: "cacache",
            writers: "yes, the last write wins",
            compared: "`write_sync` of new content, `read_sync`, `metadata_sync`: a file named by its hash and \
                       an index entry, never synced; a read checks the hash",
        }
    }

    fn job(&mut self, work: Work) -> Option<Job<'_>> {
        let dir = &self.0;
        Some(match work {
            Work::Put(Durability::Relaxed) => Box::new(move |key, value| {
                cacache::write_sync(dir, key, encode(value)).expect("written");
            }),
            Work::Get => Box::new(move |key, _| {
                black_box(decode(&cacache::read_sync(dir, key).expect("read")).number);
            }),
            Work::Exists => Box::new(move |key, _| {
                assert!(cacache::metadata_sync(dir, key).expect("checked").is_some());
            }),
            Work::Put(_) | Work::Lock | Work::Update => return None,
        })
    }
}
