//! Where an export goes to.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tempfile::NamedTempFile;

use crate::failure::Failure;
use crate::output::Output;
use crate::signals;

/// Where lines go to. A file appears, or changes, only when [`Target::finish`] is called.
pub(crate) enum Target {
    Stdout(Output),
    /// A new file, which gets its name at the end.
    File {
        new: Box<BufWriter<NamedTempFile>>,
        name: PathBuf,
    },
    /// A device or a pipe, which cannot be replaced.
    Special {
        out: BufWriter<File>,
        name: PathBuf,
    },
}

impl Target {
    /// Nothing and `-` mean standard output.
    pub(crate) fn open(file: Option<&Path>) -> Result<Self, Failure> {
        let Some(file) = file.filter(|file| *file != Path::new("-")) else {
            return Ok(Self::Stdout(Output::open()));
        };
        let failed = |error| failed(file, &error);
        let name = match file.metadata() {
            Ok(about) if !about.is_file() => {
                let out = OpenOptions::new().write(true).open(file).map_err(failed)?;
                return Ok(Self::Special { out: BufWriter::new(out), name: file.to_owned() });
            }
            // A link stays a link: it is what it leads to that is replaced.
            Ok(_) => file.canonicalize().map_err(failed)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => file.to_owned(),
            Err(error) => return Err(failed(error)),
        };
        // The mode of a file that was there; else that of any new one.
        let mode = name.metadata().map_or(0o666, |old| old.permissions().mode() & 0o777);
        let new = discarded_by_signals(|| {
            tempfile::Builder::new()
                .prefix(".record-store-")
                .suffix(".tmp")
                .permissions(Permissions::from_mode(mode))
                .tempfile_in(dir_of(&name))
        })
        .map_err(failed)?;
        Ok(Self::File { new: Box::new(BufWriter::new(new)), name })
    }

    pub(crate) fn line(&mut self, line: &str) -> Result<(), Failure> {
        match self {
            Self::Stdout(out) => out.line(line),
            Self::File { new, name } => writeln!(new, "{line}").map_err(|error| failed(name, &error)),
            Self::Special { out, name } => writeln!(out, "{line}").map_err(|error| failed(name, &error)),
        }
    }

    /// All is written.
    pub(crate) fn finish(self) -> Result<(), Failure> {
        match self {
            Self::Stdout(out) => out.finish(),
            Self::File { new, name } => publish(*new, &name).map_err(|error| failed(&name, &error)),
            Self::Special { mut out, name } => out.flush().map_err(|error| failed(&name, &error)),
        }
    }
}

/// Makes a file that is gone when a signal ends this program, from its first moment on.
fn discarded_by_signals(make: impl FnOnce() -> io::Result<NamedTempFile>) -> io::Result<NamedTempFile> {
    let path: Arc<Mutex<Option<PathBuf>>> = Arc::default();
    let to_discard = Arc::clone(&path);
    signals::before_the_end(move || {
        // Waits for a file that is just being made.
        if let Some(path) = &*to_discard.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = std::fs::remove_file(path);
        }
    })?;
    let mut path = path.lock().unwrap_or_else(PoisonError::into_inner);
    let new = make()?;
    *path = Some(new.path().to_owned());
    Ok(new)
}

/// On the disk first, so that a power loss leaves no empty file of that name.
fn publish(new: BufWriter<NamedTempFile>, name: &Path) -> io::Result<()> {
    let new = new.into_inner()?;
    new.as_file().sync_all()?;
    new.persist(name)?;
    File::open(dir_of(name))?.sync_all()
}

fn dir_of(file: &Path) -> &Path {
    file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn failed(file: &Path, error: &io::Error) -> Failure {
    Failure::io(&format!("cannot write {}", file.display()), error)
}
