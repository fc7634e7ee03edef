//! A change is told to the log before anybody can see it: whoever sees it can wait until that is on the disk.

use std::path::{Path, PathBuf};

use record_store::{Durability, ReadOptions, RecordStoreExt};
use tempfile::tempdir;

use super::content::SECTOR;
use super::frames::{Frame, Header, RESERVED};
use crate::support::children::{Child, Stage};
use crate::support::trace::{At, Traced, perform};
use crate::support::{as_named, named, open, open_with};

const KEY: &str = "k";
const LOCKED: &str = "locked";

/// The child: changes records and a lock, without waiting for the disk.
pub(crate) fn change(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    let store = open_with(&dir, Durability::Relaxed);
    perform(stage, "", || {
        store.write(KEY, "first").unwrap();
        store.write(KEY, "second").unwrap();
        store.remove(KEY).unwrap();
        store.acquire_lock(LOCKED, as_named("job")).unwrap();
        store.release_lock(LOCKED, named("job")).unwrap();
    });
    stage.send("done");
}

/// The number of changes of a key that the log was told.
fn told(dir: &Path, key: &str) -> usize {
    let log = std::fs::read_dir(dir.join(".store/log")).unwrap().map(|entry| entry.unwrap().path());
    let segments =
        log.filter(|path| path.file_name().unwrap().len() == 2).map(|path| std::fs::read(path).unwrap());
    let of_segment = |bytes: Vec<u8>| {
        let header = Header::parse(&bytes).filter(|header| header.epoch > 0);
        let blocks = (1..bytes.len() / SECTOR).filter_map(|block| Frame::parse(&bytes[block * SECTOR..]));
        let of_use = |it: &Frame| Some(it.nonce) == header.map(|it| it.nonce);
        let of_key = |it: &Frame| it.kind != RESERVED && it.key == key.as_bytes() && of_use(it);
        blocks.filter(of_key).count()
    };
    segments.map(of_segment).sum()
}

#[test]
fn a_change_can_be_seen_only_after_the_log_was_told() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let child = Child::start("power-loss-change", &dir.path());
    let Some((mut child, _)) = Traced::attach(child) else { return };
    let (mut values, mut locks) = (vec![None], vec![false]);
    while child.step() == At::Call {
        let now = store.read_with::<String>(KEY, ReadOptions::new().ignore_lock()).unwrap();
        let now = now.map(|record| record.result);
        if values.last() != Some(&now) {
            values.push(now);
        }
        let now = store.is_locked(LOCKED).unwrap();
        if locks.last() != Some(&now) {
            locks.push(now);
        }
        assert!(values.len() - 1 <= told(dir.path(), KEY), "seen before it was told: {values:?}");
        assert!(locks.len() - 1 <= told(dir.path(), LOCKED), "seen before it was told: {locks:?}");
    }
    let value = |value: &str| Some(value.to_owned());
    assert_eq!(values, [None, value("first"), value("second"), None]);
    assert_eq!(locks, [false, true, false]);
}
