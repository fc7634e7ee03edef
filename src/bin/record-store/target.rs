//! The destination of an export.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tempfile::NamedTempFile;

use crate::failure::Failure;
use crate::output::Output;
use crate::signals;

/// The destination of lines. A file is created or replaced only by [`Target::finish`].
pub(crate) enum Target {
    Stdout(Output),
    /// A temporary file, which is renamed to `path` at the end.
    File {
        staged: Box<BufWriter<NamedTempFile>>,
        path: PathBuf,
    },
    /// A device or a pipe, which cannot be replaced.
    Special {
        out: BufWriter<File>,
        path: PathBuf,
    },
}

impl Target {
    /// `None` and `-` mean standard output.
    pub(crate) fn open(file: Option<&Path>) -> Result<Self, Failure> {
        let Some(file) = file.filter(|file| *file != Path::new("-")) else {
            return Ok(Self::Stdout(Output::open()));
        };
        let failed = |error| failed(file, &error);
        let path = match file.metadata() {
            Ok(metadata) if !metadata.is_file() => {
                let out = OpenOptions::new().write(true).open(file).map_err(failed)?;
                return Ok(Self::Special { out: BufWriter::new(out), path: file.to_owned() });
            }
            // A symbolic link is kept: the file that it points to is replaced.
            Ok(_) => file.canonicalize().map_err(failed)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => file.to_owned(),
            Err(error) => return Err(failed(error)),
        };
        // Keeps the mode of an existing file. A new file gets the usual default mode.
        let mode = path.metadata().map_or(0o666, |old| old.permissions().mode() & 0o777);
        let staged = removed_on_signals(|| {
            tempfile::Builder::new()
                .prefix(".record-store-")
                .suffix(".tmp")
                .permissions(Permissions::from_mode(mode))
                .tempfile_in(parent_dir(&path))
        })
        .map_err(failed)?;
        Ok(Self::File { staged: Box::new(BufWriter::new(staged)), path })
    }

    pub(crate) fn line(&mut self, line: &str) -> Result<(), Failure> {
        match self {
            Self::Stdout(out) => out.line(line),
            Self::File { staged, path } => writeln!(staged, "{line}").map_err(|error| failed(path, &error)),
            Self::Special { out, path } => writeln!(out, "{line}").map_err(|error| failed(path, &error)),
        }
    }

    /// Completes the output and publishes the file.
    pub(crate) fn finish(self) -> Result<(), Failure> {
        match self {
            Self::Stdout(out) => out.finish(),
            Self::File { staged, path } => publish(*staged, &path).map_err(|error| failed(&path, &error)),
            Self::Special { mut out, path } => out.flush().map_err(|error| failed(&path, &error)),
        }
    }
}

/// Creates a temporary file that is removed if a signal terminates this program, even during its
/// creation.
fn removed_on_signals(create: impl FnOnce() -> io::Result<NamedTempFile>) -> io::Result<NamedTempFile> {
    let path: Arc<Mutex<Option<PathBuf>>> = Arc::default();
    let path_to_remove = Arc::clone(&path);
    signals::run_before_exit(move || {
        // The mutex is held during the creation, so this waits for the path.
        if let Some(path) = &*path_to_remove.lock().unwrap_or_else(PoisonError::into_inner) {
            #[expect(
                clippy::disallowed_methods,
                reason = "the unfinished file of an export is no file of a store"
            )]
            let _ = std::fs::remove_file(path);
        }
    })?;
    let mut path = path.lock().unwrap_or_else(PoisonError::into_inner);
    let file = create()?;
    *path = Some(file.path().to_owned());
    Ok(file)
}

/// Syncs the file before the rename, so that a power loss leaves no empty file at `path`.
#[expect(clippy::disallowed_methods, reason = "the file of an export is no file of a store")]
fn publish(staged: BufWriter<NamedTempFile>, path: &Path) -> io::Result<()> {
    let staged = staged.into_inner()?;
    staged.as_file().sync_all()?;
    staged.persist(path)?;
    File::open(parent_dir(path))?.sync_all()
}

fn parent_dir(file: &Path) -> &Path {
    file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn failed(file: &Path, error: &io::Error) -> Failure {
    Failure::io(&format!("cannot write {}", file.display()), error)
}
