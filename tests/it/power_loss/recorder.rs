//! Records the effect of each of the child's system calls on the disk.

use std::collections::{HashMap, HashSet};
use std::ffi::CStr;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use nix::libc;
use nix::sys::ptrace;
use nix::unistd::Pid;

use super::disk::{BASE, Disk, Effect, Interner, Node, Tree};
use super::normalize::Normalizer;
use super::recover::materialize;
use super::sequences::{KEYS, Mark, Receipt, Sequence, store_below};
use crate::support::children::Child;
use crate::support::trace::{At, Traced};

/// An entry of the log.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Mark(Mark),
    Effect(Effect),
}

/// Lets a child play these sequences, and returns the log of each. Returns `None` if `ptrace` is
/// forbidden and the tests may be skipped.
pub(crate) fn record(sequences: &[Sequence]) -> Option<Vec<Vec<Event>>> {
    let dir = crate::support::in_memory();
    for number in 0..sequences.len() {
        std::fs::create_dir(dir.path().join(number.to_string())).unwrap();
    }
    let child = Child::start("power-loss", &(dir.path(), sequences));
    let interner = Interner::default();
    let below = |at: usize| store_below(sequences[at].start);
    let mut recorder = Recorder::new(dir.path().to_owned(), &child, &interner);
    recorder.sequences = sequences;
    recorder.run(child, sequences.len(), &below, &|_| (Disk::new(&interner), Normalizer::default()))
}

/// A tree, and the path of the store in it.
pub(crate) type Damaged = (Box<Tree>, &'static str);

/// Lets a child open the stores in these trees, and returns the log of each recovery.
pub(crate) fn record_recoveries(trees: &[Damaged], interner: &Interner) -> Option<Vec<Vec<Event>>> {
    let dir = crate::support::in_memory();
    for (number, (tree, _)) in trees.iter().enumerate() {
        let base = dir.path().join(number.to_string());
        std::fs::create_dir(&base).unwrap();
        materialize(&base, tree, interner);
    }
    let stores: Vec<_> = trees.iter().map(|(_, below)| *below).collect();
    let child = Child::start("power-loss-recovery", &(dir.path(), &stores));
    let recorder = Recorder::new(dir.path().to_owned(), &child, interner);
    recorder.run(child, trees.len(), &|at| stores[at], &|at| {
        let tree = &trees[at].0;
        let names = tree.iter().map(|(path, _)| interner.path_of(*path));
        let names = names.map(|path| path.rsplit('/').next().unwrap_or_default().to_owned());
        (Disk::holding(interner, tree), Normalizer::of_recovery(names))
    })
}

/// A system call, before or after it was made.
pub(crate) struct Call {
    pub(crate) number: i64,
    pub(crate) arguments: [u64; 5],
    pub(crate) result: i64,
}

impl Call {
    /// The call at which a traced thread is stopped.
    pub(crate) fn of(thread: Pid) -> Self {
        let registers = ptrace::getregs(thread).unwrap();
        Self {
            number: registers.orig_rax.cast_signed(),
            arguments: [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8],
            result: registers.rax.cast_signed(),
        }
    }
}

/// A process whose calls are recorded.
struct Process {
    memory: std::fs::File,
    /// The nodes of its descriptors below the base directory.
    open: HashMap<u64, Node>,
}

impl Process {
    fn of(child: &Child) -> Self {
        let memory = std::fs::File::open(format!("/proc/{}/mem", child.pid().as_raw_pid())).unwrap();
        Self { memory, open: HashMap::new() }
    }
}

pub(crate) struct Recorder<'a> {
    sequences: &'a [Sequence],
    dir: PathBuf,
    processes: Vec<Process>,
    /// The one whose call is recorded.
    current: usize,
    /// The directories of the current sequence: the model's base directory, and the store.
    base: PathBuf,
    store: PathBuf,
    disk: Disk<'a>,
    /// The memory that the processes share about the log. It is not synced, and it means nothing after a restart.
    ignored: HashSet<Node>,
    normalizer: Normalizer,
    logs: Vec<Vec<Event>>,
    /// A sequence has just started.
    started: bool,
}

impl<'a> Recorder<'a> {
    fn new(dir: PathBuf, child: &Child, interner: &'a Interner) -> Self {
        Self {
            sequences: &[],
            base: dir.clone(),
            store: dir.clone(),
            dir,
            processes: vec![Process::of(child)],
            current: 0,
            disk: Disk::new(interner),
            ignored: HashSet::new(),
            normalizer: Normalizer::default(),
            logs: Vec::new(),
            started: false,
        }
    }

    /// A recorder of several processes that use one store below this directory, which is empty. Tokens and versions are
    /// shifted.
    pub(crate) fn of_history(base: PathBuf, children: &[Child], interner: &'a Interner) -> Self {
        let mut recorder = Self::new(base, &children[0], interner);
        recorder.processes = children.iter().map(Process::of).collect();
        recorder.normalizer = Normalizer::shifting();
        recorder.logs.push(Vec::new());
        recorder
    }

    /// Records a call of one of several processes.
    pub(crate) fn record_call_of(&mut self, process: usize, call: &Call) {
        self.current = process;
        self.record_call(call);
    }

    /// The file or directory that a descriptor of a process refers to, if it is below the base directory.
    pub(crate) fn node_of(&self, process: usize, fd: u64) -> Option<Node> {
        self.processes[process].open.get(&fd).copied()
    }

    pub(crate) fn disk(&mut self) -> &mut Disk<'a> {
        &mut self.disk
    }

    /// The text that a process has just written.
    pub(crate) fn written(&mut self, process: usize, write: &Call) -> String {
        self.current = process;
        String::from_utf8_lossy(&self.bytes(write.arguments[1], write.result)).into_owned()
    }

    /// The last recording.
    pub(crate) fn log(&self) -> &[Event] {
        self.logs.last().map_or(&[], Vec::as_slice)
    }

    fn open(&self) -> &HashMap<u64, Node> {
        &self.processes[self.current].open
    }

    fn open_mut(&mut self) -> &mut HashMap<u64, Node> {
        &mut self.processes[self.current].open
    }

    /// Records what the child does. At the start of each log, `begin` tells what is on the disk.
    fn run(
        mut self,
        child: Child,
        logs: usize,
        below: &dyn Fn(usize) -> &'static str,
        begin: &dyn Fn(usize) -> (Disk<'a>, Normalizer),
    ) -> Option<Vec<Vec<Event>>> {
        let (mut traced, thread) = Traced::attach(child)?;
        let thread = Pid::from_raw(thread.parse().unwrap());
        // Each system call has two stops. The second one shows its result.
        while traced.step() == At::Call && traced.step() == At::Call {
            self.record_call(&Call::of(thread));
            if self.started {
                let at = self.logs.len() - 1;
                self.store = self.base.join(below(at));
                (self.disk, self.normalizer) = begin(at);
                self.started = false;
            }
        }
        drop(traced);
        assert_eq!(self.logs.len(), logs, "the child did not play them all");
        Some(self.logs)
    }

    #[allow(clippy::many_single_char_names, reason = "the meaning of the arguments depends on the call")]
    fn record_call(&mut self, call: &Call) {
        let [a, b, c, d, e] = call.arguments;
        if call.result < 0 {
            return;
        }
        let cwd = libc::AT_FDCWD.cast_unsigned().into();
        let creates = |flags: u64| flags & libc::O_CREAT as u64 != 0;
        match call.number {
            libc::SYS_write if a == 1 => self.record_mark(b, call.result),
            libc::SYS_write => self.write(a, None, b, call.result),
            libc::SYS_pwrite64 => self.write(a, Some(d), b, call.result),
            libc::SYS_open => self.open_file(cwd, a, creates(b), b, call.result),
            libc::SYS_openat => self.open_file(a, b, creates(c), c, call.result),
            libc::SYS_close => {
                self.open_mut().remove(&a);
            }
            libc::SYS_fsync | libc::SYS_fdatasync => {
                if let Some(&node) = self.open().get(&a) {
                    self.effect(Effect::Sync { node });
                }
            }
            libc::SYS_syncfs => self.effect(Effect::SyncAll),
            libc::SYS_ftruncate => {
                if let Some(&file) = self.open().get(&a) {
                    self.effect(Effect::Truncate { file, length: usize::try_from(b).unwrap() });
                }
            }
            libc::SYS_mkdir => self.make_dir(cwd, a),
            libc::SYS_mkdirat => self.make_dir(a, b),
            libc::SYS_unlink | libc::SYS_rmdir => self.unlink(cwd, a),
            libc::SYS_unlinkat => self.unlink(a, b),
            libc::SYS_rename => self.rename((cwd, a), (cwd, b)),
            libc::SYS_renameat => self.rename((a, b), (c, d)),
            libc::SYS_renameat2 if low(e) == libc::RENAME_EXCHANGE => self.exchange((a, b), (c, d)),
            libc::SYS_renameat2 => {
                assert!([0, libc::RENAME_NOREPLACE].contains(&low(e)), "a rename by {e:#x} is not supported");
                self.rename((a, b), (c, d));
            }
            libc::SYS_link => self.link((cwd, a), (cwd, b)),
            libc::SYS_linkat => self.link((a, b), (c, d)),
            libc::SYS_dup | libc::SYS_dup2 | libc::SYS_dup3 => self.duplicate(a, call.result),
            libc::SYS_fcntl
                if [libc::F_DUPFD, libc::F_DUPFD_CLOEXEC]
                    .map(libc::c_int::cast_unsigned)
                    .contains(&low(b)) =>
            {
                self.duplicate(a, call.result);
            }
            libc::SYS_fallocate => self.allocate(a, low(b), c + d),
            // The library does not use these calls. If that changes, record their effects here.
            libc::SYS_writev | libc::SYS_pwritev | libc::SYS_pwritev2 => {
                assert!(!self.open().contains_key(&a), "system call {} is not supported", call.number);
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
            | libc::SYS_sync => {
                panic!("system call {} is not supported", call.number)
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

    /// The child reports its progress on its standard output.
    fn record_mark(&mut self, at: u64, length: i64) {
        let text = self.bytes(at, length);
        let Some(mark) = text.strip_prefix(b"@").and_then(|text| serde_json::from_slice(text).ok()) else {
            return;
        };
        if let Mark::Begin(number) = mark {
            self.base = self.dir.join(number.to_string());
            self.open_mut().clear();
            self.ignored.clear();
            self.logs.push(Vec::new());
            self.started = true;
            return;
        }
        self.record_mapped_store();
        let mark = match mark {
            Mark::Return(position, receipt) => {
                let token = receipt.token.map(|it| self.normalizer.number(it));
                Mark::Return(position, Receipt { token, lease: self.lease_after(position) })
            }
            mark => mark,
        };
        self.push(Event::Mark(mark));
    }

    /// The number of the lease that the lock of the operation's key has now.
    fn lease_after(&mut self, position: usize) -> Option<usize> {
        let key = KEYS[self.sequences[self.logs.len() - 1].operations[position].key];
        let text = std::fs::read(self.store.join(format!("{key}.lock"))).ok()?;
        let lock: serde_json::Value = serde_json::from_slice(&text).ok()?;
        Some(self.normalizer.lease(lock["expires_at"].as_str()?))
    }

    /// Records what the child has stored through its mapping since the last time: a write of the changed
    /// part that is never synced.
    fn record_mapped_store(&mut self) {
        let path = self.store.join(".store/events");
        let (Some(file), Ok(now)) = (self.resolve_path(&path), std::fs::read(&path)) else { return };
        let now = Normalizer::table(now);
        let before = self.disk.content(file).to_vec();
        let same = |(x, y): (&u8, &u8)| x == y;
        let Some(first) = before.iter().zip(&now).position(|pair| !same(pair)) else { return };
        let last = before.iter().zip(&now).rposition(|pair| !same(pair)).unwrap();
        self.effect(Effect::Write { file, offset: first, data: now[first..=last].to_vec() });
    }

    fn write(&mut self, fd: u64, offset: Option<u64>, at: u64, length: i64) {
        let Some(&file) = self.open().get(&fd).filter(|file| !self.ignored.contains(file)) else { return };
        let data = self.bytes(at, length);
        let data = if self.disk.is_segment(file) {
            self.normalizer.segment(&data)
        } else {
            self.normalizer.content(&data)
        };
        // A write without an offset appends to the file: the library never seeks.
        let offset = offset.map_or_else(|| self.disk.content(file).len(), |at| usize::try_from(at).unwrap());
        self.effect(Effect::Write { file, offset, data });
    }

    fn open_file(&mut self, dir: u64, path: u64, creates: bool, flags: u64, fd: i64) {
        let fd = fd.cast_unsigned();
        self.open_mut().remove(&fd);
        let Some((dir, name)) = self.resolve(dir, path) else { return };
        if name.is_empty() {
            self.open_mut().insert(fd, dir);
            return;
        }
        let node = if let Some(node) = self.disk.lookup(dir, &name) {
            if flags & libc::O_TRUNC as u64 != 0 {
                self.effect(Effect::Truncate { file: node, length: 0 });
            }
            node
        } else {
            assert!(creates, "{name}: the recorder did not see its creation");
            self.effect(Effect::Create { dir, name: name.clone() });
            self.disk.lookup(dir, &name).unwrap()
        };
        if name == "state" {
            self.ignored.insert(node);
        }
        self.open_mut().insert(fd, node);
    }

    fn duplicate(&mut self, fd: u64, new: i64) {
        if let Some(&node) = self.open().get(&fd) {
            self.open_mut().insert(new.cast_unsigned(), node);
        }
    }

    fn make_dir(&mut self, dir: u64, path: u64) {
        if let Some((dir, name)) = self.resolve(dir, path) {
            self.effect(Effect::Mkdir { dir, name });
        }
    }

    fn unlink(&mut self, dir: u64, path: u64) {
        if let Some((dir, name)) = self.resolve(dir, path) {
            self.effect(Effect::Unlink { dir, name });
        }
    }

    fn rename(&mut self, from: (u64, u64), to: (u64, u64)) {
        if let (Some(from), Some(to)) = (self.resolve(from.0, from.1), self.resolve(to.0, to.1)) {
            self.effect(Effect::Rename { from, to });
        }
    }

    fn exchange(&mut self, one: (u64, u64), other: (u64, u64)) {
        if let (Some(one), Some(other)) = (self.resolve(one.0, one.1), self.resolve(other.0, other.1)) {
            self.effect(Effect::Exchange { one, other });
        }
    }

    /// An allocation for data that the file already has changes nothing that anybody can read.
    fn allocate(&self, fd: u64, mode: u32, end: u64) {
        let Some(&file) = self.open().get(&fd) else { return };
        assert!(
            mode == 0 && usize::try_from(end).unwrap() <= self.disk.content(file).len(),
            "an allocation that changes the file is not supported"
        );
    }

    fn link(&mut self, from: (u64, u64), to: (u64, u64)) {
        if let (Some(from), Some(to)) = (self.resolve(from.0, from.1), self.resolve(to.0, to.1)) {
            self.effect(Effect::Link { from, to });
        }
    }

    /// The directory and the normalized name that a path argument refers to. `None` if the path is not
    /// below the base directory. An empty name means the base directory itself.
    fn resolve(&mut self, dir: u64, path: u64) -> Option<(Node, String)> {
        let path = PathBuf::from(self.text(path));
        let (mut at, path) = if path.is_absolute() {
            (BASE, path.strip_prefix(&self.base).ok()?.to_owned())
        } else {
            (*self.open().get(&low(dir).into())?, path)
        };
        let mut names: Vec<String> = components(&path);
        let last = names.pop().unwrap_or_default();
        for name in names {
            at = self.disk.lookup(at, &name).expect("a known directory");
        }
        Some((at, self.normalizer.name(&last)))
    }

    fn resolve_path(&self, path: &Path) -> Option<Node> {
        let path = path.strip_prefix(&self.base).ok()?;
        components(path).iter().try_fold(BASE, |at, name| self.disk.lookup(at, name))
    }

    fn bytes(&self, at: u64, length: i64) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(length).unwrap()];
        self.processes[self.current].memory.read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    /// Reads a C string from the child's memory.
    fn text(&self, at: u64) -> String {
        let mut bytes = vec![0; libc::PATH_MAX as usize];
        // The next page may be unmapped, so it is read only if the string continues there.
        let page = 4096 - usize::try_from(at % 4096).unwrap();
        let mut length = self.processes[self.current].memory.read_at(&mut bytes[..page], at).unwrap();
        if !bytes[..length].contains(&0) {
            length += self.processes[self.current]
                .memory
                .read_at(&mut bytes[length..], at + length as u64)
                .unwrap();
        }
        CStr::from_bytes_until_nul(&bytes[..length]).unwrap().to_str().unwrap().to_owned()
    }
}

/// The value of an `int` argument in a register.
fn low(register: u64) -> u32 {
    u32::try_from(register & u64::from(u32::MAX)).unwrap()
}

fn components(path: &Path) -> Vec<String> {
    let names = path.components().filter(|part| *part != Component::CurDir).map(|part| match part {
        Component::Normal(name) => name.to_str().unwrap().to_owned(),
        other => panic!("{}: {other:?} is not supported", path.display()),
    });
    names.collect()
}
