//! Peers that provide locks but store no values.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;

use gix_lock::acquire::Fail;
use record_store::Durability;

use crate::work::{About, Job, Peer, Work, changed, encode};

/// Lock files as in git: the new content is written to the lock file itself.
pub(crate) struct Gix(pub(crate) PathBuf);

impl Gix {
    fn lock(&self, key: &str) -> gix_lock::File {
        gix_lock::File::acquire_to_update_resource(self.0.join(key), Fail::Immediately, None, 0)
            .expect("locked")
    }
}

impl Peer for Gix {
    fn about(&self) -> About {
        About {
            name: "gix-lock",
            writers: "yes, each file independently",
            compared: "lock files as in git, whose commit is the write; never synced, and the lock of a killed \
                       holder stays forever",
        }
    }

    fn job(&mut self, work: Work) -> Option<Job<'_>> {
        let put = |mut lock: gix_lock::File, text: &[u8]| {
            lock.with_mut(|file| file.write_all(text)).expect("written");
            lock.commit().expect("committed");
        };
        Some(match work {
            Work::Put(Durability::Relaxed) => Box::new(move |key, value| put(self.lock(key), &encode(value))),
            Work::Lock => Box::new(|key, _| {
                let resource = self.0.join(key);
                let lock = gix_lock::Marker::acquire_to_hold_resource(resource, Fail::Immediately, None, 0);
                drop(lock.expect("locked"));
            }),
            Work::Update => Box::new(move |key, _| {
                let lock = self.lock(key);
                let text = fs::read(self.0.join(key)).expect("read");
                put(lock, &changed(&text));
            }),
            Work::Put(_) | Work::Get | Work::Exists => return None,
        })
    }
}

fn lock_file(dir: &std::path::Path, key: &str) -> File {
    let path = dir.join(format!("{key}.lock"));
    File::options().write(true).create(true).truncate(false).open(path).expect("opened")
}

pub(crate) struct FdLock(pub(crate) PathBuf);

impl Peer for FdLock {
    fn about(&self) -> About {
        About {
            name: "fd-lock",
            writers: "-",
            compared: "open the key's file, `flock` it, unlock, close; no lease, no token, and the holder is \
                       not reported",
        }
    }

    fn job(&mut self, work: Work) -> Option<Job<'_>> {
        (work == Work::Lock).then(|| -> Job<'_> {
            Box::new(|key, _| {
                let mut lock = fd_lock::RwLock::new(lock_file(&self.0, key));
                drop(lock.write().expect("locked"));
            })
        })
    }
}

pub(crate) struct Fs2(pub(crate) PathBuf);

impl Peer for Fs2 {
    fn about(&self) -> About {
        About { name: "fs2", writers: "-", compared: "the same as fd-lock" }
    }

    fn job(&mut self, work: Work) -> Option<Job<'_>> {
        (work == Work::Lock).then(|| -> Job<'_> {
            Box::new(|key, _| {
                let file = lock_file(&self.0, key);
                fs2::FileExt::lock_exclusive(&file).expect("locked");
                fs2::FileExt::unlock(&file).expect("unlocked");
            })
        })
    }
}
