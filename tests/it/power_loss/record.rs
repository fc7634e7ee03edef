//! The recorder: watches the child's system calls, and notes what each does to the disk.

use std::collections::HashMap;
use std::ffi::CStr;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use nix::libc;
use nix::sys::ptrace;
use nix::unistd::Pid;

use super::disk::{BASE, Disk, Effect, Node, Numbers};
use super::play::{Mark, Sequence, store_below};
use super::uniform::Uniform;
use crate::support::children::Child;
use crate::support::trace::{At, Traced};

/// What happened, in order.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Mark(Mark),
    Effect(Effect),
}

/// Has a child play these sequences, and returns the log of each. `None` where `ptrace` is forbidden
/// and that is allowed.
pub(crate) fn record(sequences: &[Sequence]) -> Option<Vec<Vec<Event>>> {
    let dir = crate::support::in_memory();
    for number in 0..sequences.len() {
        std::fs::create_dir(dir.path().join(number.to_string())).unwrap();
    }
    let child = Child::start("power-loss", &(dir.path(), sequences));
    let memory = std::fs::File::open(format!("/proc/{}/mem", child.pid().as_raw_pid())).unwrap();
    let (mut traced, thread) = Traced::attach(child)?;
    let thread = Pid::from_raw(thread.parse().unwrap());
    let numbers = Numbers::default();
    let mut recorder = Recorder::new(dir.path().to_owned(), memory, &numbers);
    // Each system call is two stops, and the second tells how it ended.
    while traced.step() == At::Call && traced.step() == At::Call {
        let registers = ptrace::getregs(thread).unwrap();
        recorder.note(&Call {
            number: registers.orig_rax.cast_signed(),
            arguments: [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8],
            result: registers.rax.cast_signed(),
        });
        if recorder.begun {
            let at = recorder.logs.len() - 1;
            recorder.store = recorder.base.join(store_below(sequences[at].start));
            recorder.begun = false;
        }
    }
    drop(traced);
    assert_eq!(recorder.logs.len(), sequences.len(), "the child did not play them all");
    Some(recorder.logs)
}

/// A system call that has returned.
struct Call {
    number: i64,
    arguments: [u64; 5],
    result: i64,
}

struct Recorder<'a> {
    dir: PathBuf,
    /// The child's.
    memory: std::fs::File,
    numbers: &'a Numbers,
    /// Of the sequence under way: what the model calls its base directory, and the store.
    base: PathBuf,
    store: PathBuf,
    disk: Disk<'a>,
    /// What the child's descriptors stand for, where it matters.
    open: HashMap<u64, Node>,
    uniform: Uniform,
    logs: Vec<Vec<Event>>,
    /// A sequence has just begun.
    begun: bool,
}

impl<'a> Recorder<'a> {
    fn new(dir: PathBuf, memory: std::fs::File, numbers: &'a Numbers) -> Self {
        Self {
            base: dir.clone(),
            store: dir.clone(),
            dir,
            memory,
            numbers,
            disk: Disk::new(numbers),
            open: HashMap::new(),
            uniform: Uniform::default(),
            logs: Vec::new(),
            begun: false,
        }
    }

    #[allow(clippy::many_single_char_names, reason = "arguments have no names before the call is known")]
    fn note(&mut self, call: &Call) {
        let [a, b, c, d, e] = call.arguments;
        if call.result < 0 {
            return;
        }
        let cwd = libc::AT_FDCWD.cast_unsigned().into();
        let creates = |flags: u64| flags & libc::O_CREAT as u64 != 0;
        match call.number {
            libc::SYS_write if a == 1 => self.heard(b, call.result),
            libc::SYS_write => self.write(a, None, b, call.result),
            libc::SYS_pwrite64 => self.write(a, Some(d), b, call.result),
            libc::SYS_open => self.opened(cwd, a, creates(b), b, call.result),
            libc::SYS_openat => self.opened(a, b, creates(c), c, call.result),
            libc::SYS_close => {
                self.open.remove(&a);
            }
            libc::SYS_fsync | libc::SYS_fdatasync => {
                if let Some(&node) = self.open.get(&a) {
                    self.effect(Effect::Sync { node });
                }
            }
            libc::SYS_ftruncate => {
                if let Some(&file) = self.open.get(&a) {
                    self.effect(Effect::Truncate { file, length: usize::try_from(b).unwrap() });
                }
            }
            libc::SYS_mkdir => self.made(cwd, a),
            libc::SYS_mkdirat => self.made(a, b),
            libc::SYS_unlink | libc::SYS_rmdir => self.unlinked(cwd, a),
            libc::SYS_unlinkat => self.unlinked(a, b),
            libc::SYS_rename => self.renamed((cwd, a), (cwd, b)),
            libc::SYS_renameat => self.renamed((a, b), (c, d)),
            libc::SYS_renameat2 if low(e) == libc::RENAME_EXCHANGE => self.exchanged((a, b), (c, d)),
            libc::SYS_renameat2 => {
                assert!(
                    [0, libc::RENAME_NOREPLACE].contains(&low(e)),
                    "a rename by {e:#x} is not understood"
                );
                self.renamed((a, b), (c, d));
            }
            libc::SYS_link => self.linked((cwd, a), (cwd, b)),
            libc::SYS_linkat => self.linked((a, b), (c, d)),
            libc::SYS_dup | libc::SYS_dup2 | libc::SYS_dup3 => self.duplicated(a, call.result),
            libc::SYS_fcntl
                if [libc::F_DUPFD, libc::F_DUPFD_CLOEXEC]
                    .map(libc::c_int::cast_unsigned)
                    .contains(&low(b)) =>
            {
                self.duplicated(a, call.result);
            }
            libc::SYS_fallocate => self.allocated(a, low(b), c + d),
            // Whoever begins to use these has to say here what they do.
            libc::SYS_writev | libc::SYS_pwritev | libc::SYS_pwritev2 => {
                assert!(!self.open.contains_key(&a), "system call {} is not understood", call.number);
            }
            libc::SYS_copy_file_range
            | libc::SYS_sendfile
            | libc::SYS_splice
            | libc::SYS_openat2
            | libc::SYS_creat
            | libc::SYS_truncate
            | libc::SYS_symlink
            | libc::SYS_symlinkat
            | libc::SYS_mknod
            | libc::SYS_mknodat
            | libc::SYS_msync
            | libc::SYS_sync
            | libc::SYS_syncfs => {
                panic!("system call {} is not understood", call.number)
            }
            _ => {}
        }
    }

    fn effect(&mut self, effect: Effect) {
        self.disk.apply(&effect);
        self.push(Event::Effect(effect));
    }

    fn push(&mut self, event: Event) {
        if let Some(log) = self.logs.last_mut() {
            log.push(event);
        }
    }

    /// The child tells of its progress on its standard output.
    fn heard(&mut self, at: u64, length: i64) {
        let text = self.bytes(at, length);
        let Some(mark) = text.strip_prefix(b"@").and_then(|text| serde_json::from_slice(text).ok()) else {
            return;
        };
        if let Mark::Begin(number) = mark {
            self.base = self.dir.join(number.to_string());
            self.disk = Disk::new(self.numbers);
            self.open.clear();
            self.uniform = Uniform::default();
            self.logs.push(Vec::new());
            self.begun = true;
            return;
        }
        self.note_mapped();
        let mark = match mark {
            Mark::Return(position, token) => Mark::Return(position, token.map(|it| self.uniform.token(it))),
            mark => mark,
        };
        self.push(Event::Mark(mark));
    }

    /// What the child has stored through its map since the last look: a write of the part that
    /// changed, and never synced.
    fn note_mapped(&mut self) {
        let path = self.store.join(".store/events");
        let (Some(file), Ok(now)) = (self.resolve_path(&path), std::fs::read(&path)) else { return };
        let now = self.uniform.table(now);
        let before = self.disk.content(file);
        let same = |(x, y): (&u8, &u8)| x == y;
        let Some(first) = before.iter().zip(&now).position(|pair| !same(pair)) else { return };
        let last = before.iter().zip(&now).rposition(|pair| !same(pair)).unwrap();
        self.effect(Effect::Write { file, offset: first, data: now[first..=last].to_vec() });
    }

    fn write(&mut self, fd: u64, offset: Option<u64>, at: u64, length: i64) {
        let Some(&file) = self.open.get(&fd) else { return };
        let mut data = self.uniform.content(&self.bytes(at, length));
        let there = self.disk.content(file).len();
        if offset == Some(0) && there > 0 {
            // A lock file that is blanked or filled: what covers the file there covers it here too,
            // where all times and numbers have the same length.
            if data.iter().all(|&byte| byte == 0) {
                data = vec![0; there];
            } else if data.len() < there {
                data.resize(there, b'\n');
            }
        }
        // Files are written from their beginning to their end, or at a position.
        let offset = offset.map_or(there, |offset| usize::try_from(offset).unwrap());
        self.effect(Effect::Write { file, offset, data });
    }

    fn opened(&mut self, dir: u64, path: u64, creates: bool, flags: u64, fd: i64) {
        let fd = fd.cast_unsigned();
        self.open.remove(&fd);
        let Some((dir, name)) = self.place(dir, path) else { return };
        if name.is_empty() {
            self.open.insert(fd, dir);
            return;
        }
        let node = if let Some(node) = self.disk.lookup(dir, &name) {
            if flags & libc::O_TRUNC as u64 != 0 {
                self.effect(Effect::Truncate { file: node, length: 0 });
            }
            node
        } else {
            assert!(creates, "{name}: it was there before, and nobody made it");
            self.effect(Effect::Create { dir, name: name.clone() });
            self.disk.lookup(dir, &name).unwrap()
        };
        self.open.insert(fd, node);
    }

    fn duplicated(&mut self, fd: u64, new: i64) {
        if let Some(&node) = self.open.get(&fd) {
            self.open.insert(new.cast_unsigned(), node);
        }
    }

    fn made(&mut self, dir: u64, path: u64) {
        if let Some((dir, name)) = self.place(dir, path) {
            self.effect(Effect::Mkdir { dir, name });
        }
    }

    fn unlinked(&mut self, dir: u64, path: u64) {
        if let Some((dir, name)) = self.place(dir, path) {
            self.effect(Effect::Unlink { dir, name });
        }
    }

    fn renamed(&mut self, from: (u64, u64), to: (u64, u64)) {
        if let (Some(from), Some(to)) = (self.place(from.0, from.1), self.place(to.0, to.1)) {
            self.effect(Effect::Rename { from, to });
        }
    }

    fn exchanged(&mut self, one: (u64, u64), other: (u64, u64)) {
        if let (Some(one), Some(other)) = (self.place(one.0, one.1), self.place(other.0, other.1)) {
            self.effect(Effect::Exchange { one, other });
        }
    }

    /// Room on the disk for what is in the file already changes nothing that anybody can read.
    fn allocated(&self, fd: u64, mode: u32, end: u64) {
        let Some(&file) = self.open.get(&fd) else { return };
        assert!(
            mode == 0 && usize::try_from(end).unwrap() <= self.disk.content(file).len(),
            "an allocation that changes the file is not understood"
        );
    }

    fn linked(&mut self, from: (u64, u64), to: (u64, u64)) {
        if let (Some(from), Some((dir, name))) = (self.place(from.0, from.1), self.place(to.0, to.1)) {
            let node = self.disk.lookup(from.0, &from.1).unwrap();
            self.effect(Effect::Link { node, dir, name });
        }
    }

    /// The directory and the name that a path argument means, made uniform. `None` outside of the
    /// base directory; an empty name is the base directory itself.
    fn place(&mut self, dir: u64, path: u64) -> Option<(Node, String)> {
        let path = PathBuf::from(self.text(path));
        let (mut at, path) = if path.is_absolute() {
            (BASE, path.strip_prefix(&self.base).ok()?.to_owned())
        } else {
            (*self.open.get(&low(dir).into())?, path)
        };
        let mut names: Vec<String> = components(&path);
        let last = names.pop().unwrap_or_default();
        for name in names {
            at = self.disk.lookup(at, &name).expect("a directory that was made");
        }
        Some((at, self.uniform.name(&last)))
    }

    fn resolve_path(&self, path: &Path) -> Option<Node> {
        let path = path.strip_prefix(&self.base).ok()?;
        components(path).iter().try_fold(BASE, |at, name| self.disk.lookup(at, name))
    }

    fn bytes(&self, at: u64, length: i64) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(length).unwrap()];
        self.memory.read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    /// The child's C string.
    fn text(&self, at: u64) -> String {
        let mut bytes = vec![0; libc::PATH_MAX as usize];
        // It may end just before a page that is not there.
        let page = 4096 - usize::try_from(at % 4096).unwrap();
        let mut length = self.memory.read_at(&mut bytes[..page], at).unwrap();
        if !bytes[..length].contains(&0) {
            length += self.memory.read_at(&mut bytes[length..], at + length as u64).unwrap();
        }
        CStr::from_bytes_until_nul(&bytes[..length]).unwrap().to_str().unwrap().to_owned()
    }
}

/// What an `int` is of a register.
fn low(register: u64) -> u32 {
    u32::try_from(register & u64::from(u32::MAX)).unwrap()
}

fn components(path: &Path) -> Vec<String> {
    let names = path.components().filter(|part| *part != Component::CurDir).map(|part| match part {
        Component::Normal(name) => name.to_str().unwrap().to_owned(),
        other => panic!("{}: {other:?} is not understood", path.display()),
    });
    names.collect()
}
