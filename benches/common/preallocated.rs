//! The cheapest durable write that there is: a `pwrite` to blocks that a file already has, and an `fdatasync`.

use std::fs::File;
use std::path::Path;

/// A file whose blocks are allocated and written, so that a sync has no metadata to write.
pub(crate) struct Preallocated {
    file: File,
    at: u64,
}

const SIZE: usize = 1 << 20;

impl Preallocated {
    /// Creates the file.
    pub(crate) fn create(path: &Path) -> Self {
        std::fs::write(path, vec![0; SIZE]).expect("the file is written");
        let file = File::options().write(true).open(path).expect("the file opens");
        file.sync_all().expect("the file syncs");
        Self { file, at: 0 }
    }

    /// Writes the text behind the previous one, and starts again when the file is full.
    pub(crate) fn write(&mut self, text: &[u8]) {
        let length = text.len() as u64;
        if self.at + length > SIZE as u64 {
            self.at = 0;
        }
        let written = rustix::io::pwrite(&self.file, text, self.at).expect("the file is written");
        assert_eq!(written, text.len(), "a short write");
        rustix::fs::fdatasync(&self.file).expect("the file syncs");
        self.at += length;
    }
}
