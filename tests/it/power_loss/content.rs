//! The content of a file without the zeros at its end: the segments of the log consist mostly of those.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The unit that a disk writes whole or not at all.
pub(crate) const SECTOR: usize = 512;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Content {
    /// Ends with another byte than zero.
    bytes: Vec<u8>,
    length: usize,
}

impl Content {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        let mut content = Self::default();
        content.write(0, bytes);
        content
    }

    /// The bytes without the zeros at the end.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// All bytes.
    pub(crate) fn to_vec(&self) -> Vec<u8> {
        let mut all = self.bytes.clone();
        all.resize(self.length, 0);
        all
    }

    pub(crate) fn write(&mut self, offset: usize, data: &[u8]) {
        let end = offset + data.len();
        let length = self.length.max(end);
        let used = used_length(data);
        if self.bytes.len() < offset + used {
            self.bytes.resize(offset + used, 0);
        }
        self.bytes[offset..offset + used].copy_from_slice(&data[..used]);
        let rest = self.bytes.len().min(end);
        if offset + used < rest {
            self.bytes[offset + used..rest].fill(0);
        }
        self.resize(length);
    }

    pub(crate) fn resize(&mut self, length: usize) {
        self.length = length;
        self.bytes.truncate(length);
        self.bytes.truncate(used_length(&self.bytes));
    }

    /// Writes a file with this content. The zeros are a hole.
    pub(crate) fn materialize(&self, path: &Path) {
        let file = File::create(path).unwrap();
        file.write_all_at(&self.bytes, 0).unwrap();
        if self.bytes.len() < self.length {
            file.set_len(self.length as u64).unwrap();
        }
    }
}

/// The length without the zeros at the end. Compares whole pages: without optimization, a look at each byte of a
/// segment would take most of the time of the tests.
pub(crate) fn used_length(mut data: &[u8]) -> usize {
    const PAGE: usize = 4096;
    while let Some((rest, last)) = data.split_last_chunk()
        && *last == [0; PAGE]
    {
        data = rest;
    }
    data.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1)
}
