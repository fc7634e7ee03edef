//! The system calls of each operation. They take most of the time of a small operation, and counting
//! them needs no clock. `cargo test system_calls -- --nocapture` prints the table.

use std::cell::Cell;
use std::path::PathBuf;

use nix::libc;
use record_store::{
    Durability, FileSystemRecordStore, LockOptions, LockToken, ReadOptions, RecordStoreExt, WriteOptions,
};

use crate::support::children::{Child, Role, Stage};
use crate::support::trace::{At, Traced, mark, perform};
use crate::support::{as_named, in_memory, named, open_with};

pub(crate) const ROLES: &[Role] = &[("counted", counted)];

/// Records for the listing, in addition to those of the other operations.
const RECORDS: usize = 1_000;

/// The store of the child, opened twice.
struct Stores {
    durable: FileSystemRecordStore,
    relaxed: FileSystemRecordStore,
    /// The tokens of the locks that the first run and the second run acquire.
    tokens: [Cell<LockToken>; 2],
}

/// An operation: its name, its system calls in order (a `+` stands for repeated calls of the same
/// kind), and the function that performs it for the n-th time.
struct Operation(&'static str, &'static str, fn(&Stores, usize));

/// The order matters: some operations need the results of earlier ones.
const OPERATIONS: &[Operation] = &[
    Operation("read", "openat fstat newfstatat newfstatat pread64 close", |stores, _| {
        assert!(stores.durable.read::<String>("present").unwrap().is_some());
    }),
    Operation(
        "read, absent",
        "openat newfstatat openat flock fstat newfstatat newfstatat flock close",
        |stores, _| {
            assert!(stores.durable.read::<String>("absent").unwrap().is_none());
        },
    ),
    // The second one asks whether records expire in this store.
    Operation("exists", "newfstatat newfstatat", |stores, _| {
        assert!(stores.durable.exists("present").unwrap());
    }),
    Operation(
        "write, durable, new",
        "fstat openat write close openat flock fstat newfstatat newfstatat openat pwrite64 linkat flock close fdatasync unlinkat close",
        |stores, n| stores.durable.write(format!("durable-{n}"), "new").unwrap(),
    ),
    Operation(
        "write, durable, existing",
        "fstat openat write close openat flock fstat newfstatat newfstatat openat pwrite64 renameat2 openat pread64 close flock close fdatasync unlinkat close",
        |stores, _| stores.durable.write("present", "newer").unwrap(),
    ),
    // Too large for the log: synced in its own file, and its staged name too, before the log tells that name.
    Operation(
        "write, durable, large",
        "fstat openat write fdatasync close openat flock fstat newfstatat newfstatat renameat openat fsync close openat pwrite64 renameat2 openat pread64 flock close fdatasync fsync pread64 close unlinkat close",
        |stores, _| stores.durable.write("present", &"x".repeat(60_000)).unwrap(),
    ),
    Operation(
        "write, relaxed, new",
        "fstat openat write close openat flock fstat newfstatat newfstatat pwrite64 linkat flock close",
        |stores, n| stores.relaxed.write(format!("relaxed-{n}"), "new").unwrap(),
    ),
    Operation(
        "write, relaxed, large",
        "fstat openat write fdatasync close openat flock fstat newfstatat newfstatat renameat openat fsync close pwrite64 renameat2 openat pread64 flock close pread64 close",
        |stores, _| {
            stores.relaxed.write("present", &"x".repeat(60_000)).unwrap();
        },
    ),
    Operation(
        "write, relaxed, existing",
        "fstat openat write close openat flock fstat newfstatat newfstatat pwrite64 renameat2 openat pread64 close flock close",
        |stores, _| stores.relaxed.write("present", "newer").unwrap(),
    ),
    Operation(
        "acquire_lock",
        "newfstatat fstat openat flock fstat newfstatat openat write close flock close",
        |stores, n| {
            stores.tokens[n]
                .set(stores.durable.acquire_lock(format!("lock-{n}"), LockOptions::new()).unwrap());
        },
    ),
    Operation(
        "renew",
        "fstat openat flock fstat openat fstat pread64 close openat write close newfstatat renameat2 unlinkat flock close",
        |stores, n| stores.durable.renew(format!("lock-{n}"), stores.tokens[n].get(), None).unwrap(),
    ),
    // The first one syncs the log, because another process has acquired the lock. This is the second one.
    Operation(
        "renew, by name, relaxed",
        "fstat openat flock fstat newfstatat openat fstat pread64 close openat write close pwrite64 newfstatat renameat2 unlinkat flock close",
        |stores, _| stores.relaxed.renew("named", named("nightly-report"), None).unwrap(),
    ),
    // The latch is left before the log is synced, except for a renewal.
    Operation(
        "acquire_lock, by name",
        "newfstatat fstat openat flock fstat newfstatat openat pwrite64 openat write close flock close fdatasync close",
        |stores, n| {
            stores.durable.acquire_lock(format!("named-{n}"), as_named("job")).unwrap();
        },
    ),
    Operation(
        "acquire_lock, by name, again",
        "newfstatat openat fstat pread64 close fstat openat flock fstat newfstatat openat fstat pread64 close openat write close openat pwrite64 fdatasync newfstatat renameat2 unlinkat close flock close",
        |stores, n| {
            stores.durable.acquire_lock(format!("named-{n}"), as_named("job")).unwrap();
        },
    ),
    Operation(
        "release_lock, by name",
        "openat flock fstat newfstatat openat fstat pread64 close openat pwrite64 unlinkat flock close fdatasync futex close",
        |stores, n| {
            stores.durable.release_lock(format!("named-{n}"), named("job")).unwrap();
        },
    ),
    Operation(
        "break_lock, by name",
        "openat flock fstat newfstatat openat fstat pread64 close openat pwrite64 unlinkat flock close fdatasync close futex",
        |stores, n| {
            assert!(stores.durable.break_lock(format!("broken-{n}")).unwrap());
        },
    ),
    // The frame is synced before the file is replaced: otherwise a power loss could leave neither.
    Operation(
        "acquire_lock, shared, beside a named holder",
        "newfstatat openat fstat pread64 close fstat openat flock fstat newfstatat openat fstat pread64 close openat write close openat pwrite64 fdatasync newfstatat renameat2 unlinkat flock close close",
        |stores, n| {
            stores.durable.acquire_lock(format!("shared-{n}"), as_named("job").shared()).unwrap();
        },
    ),
    Operation(
        "write by token, relaxed, new",
        "fstat openat write close openat flock fstat openat fstat pread64 close newfstatat pwrite64 linkat flock close",
        |stores, n| {
            stores
                .relaxed
                .write_with(format!("lock-{n}"), "newer", WriteOptions::new().claim(stores.tokens[n].get()))
                .unwrap();
        },
    ),
    Operation(
        "read by token",
        "openat fstat openat fstat pread64 close newfstatat pread64 close",
        |stores, n| {
            assert!(
                stores
                    .relaxed
                    .read_with::<String>(
                        format!("lock-{n}"),
                        ReadOptions::new().claim(stores.tokens[n].get())
                    )
                    .unwrap()
                    .is_some()
            );
        },
    ),
    Operation(
        "release_lock",
        "openat flock fstat openat fstat pread64 close unlinkat flock close futex",
        |stores, n| stores.durable.release_lock(format!("lock-{n}"), stores.tokens[n].get()).unwrap(),
    ),
    Operation("try_lock, held by name", "newfstatat openat fstat pread64 close", |stores, _| {
        assert!(stores.durable.try_lock("named", LockOptions::new()).unwrap().is_none());
    }),
    Operation(
        "try_lock, held by a process",
        "newfstatat openat fstat pread64 openat flock close close",
        |stores, _| assert!(stores.durable.try_lock("bound", LockOptions::new()).unwrap().is_none()),
    ),
    Operation("keys, 1000 records", "fcntl openat newfstatat getdents64+ close", |stores, _| {
        assert!(stores.durable.keys().unwrap().flatten().count() >= RECORDS);
    }),
    Operation(
        "remove",
        "fstat openat flock fstat newfstatat newfstatat pwrite64 renameat openat pread64 close flock close unlinkat",
        |stores, n| {
            assert!(stores.relaxed.remove(format!("relaxed-{n}")).unwrap());
        },
    ),
];

/// The allocator makes system calls of its own when it takes memory from the system or gives it back.
#[allow(unsafe_code, reason = "mallopt")]
fn keep_freed_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: any number is allowed as a threshold.
    unsafe {
        assert_eq!(libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX), 1);
    }
    drop([(); 8].map(|()| vec![1_u8; 100_000]));
}

/// The child: runs each operation once to warm up, and once more to be counted.
fn counted(stage: &Stage) {
    keep_freed_memory();
    let dir: PathBuf = stage.argument();
    let stores = Stores {
        // By default.
        durable: FileSystemRecordStore::open(&dir).unwrap(),
        relaxed: open_with(&dir, Durability::Relaxed),
        tokens: [0; 2].map(|none| Cell::new(LockToken::new(none))),
    };
    perform(stage, "", || {
        for Operation(_, _, run) in OPERATIONS {
            run(&stores, 0);
            mark();
            run(&stores, 1);
            mark();
        }
    });
}

#[test]
fn each_operation_makes_exactly_the_listed_system_calls() {
    let dir = in_memory();
    let store = open_with(dir.path(), Durability::Relaxed);
    store.write("present", "old").unwrap();
    for n in 0..RECORDS {
        store.write(format!("invoice-{n:06}"), "listed").unwrap();
    }
    for key in ["broken-0", "broken-1"] {
        store.acquire_lock(key, as_named("job")).unwrap();
    }
    for key in ["shared-0", "shared-1"] {
        store.acquire_lock(key, as_named("first").shared()).unwrap();
    }
    // A segment that gets full would take calls of its own.
    assert!(store.checkpoint().unwrap());
    let _named = store.lock("named", as_named("nightly-report")).unwrap();
    let _bound = store.lock("bound", LockOptions::new()).unwrap();
    let Some((mut traced, _)) = Traced::attach(Child::start("counted", &dir.path())) else { return };
    println!("| operation | calls | which |\n| --- | --: | --- |");
    let mut different = Vec::new();
    for Operation(name, calls, _) in OPERATIONS {
        calls_to_mark(&mut traced);
        let made = calls_to_mark(&mut traced);
        let which = in_runs(&made);
        println!("| {name} | {} | {which} |", made.len());
        let most = calls.split(' ').count() + RECORDS / 100;
        if which != *calls || made.len() > most {
            different.push(name);
        }
    }
    // If you change the system calls of an operation, update the list above.
    assert!(different.is_empty(), "not the listed system calls: {different:?}");
}

/// Shows repeated `getdents64` calls as one.
fn in_runs(made: &[String]) -> String {
    let runs = made.chunk_by(|one, next| one == next && one == "getdents64");
    runs.map(|run| if run.len() > 1 { format!("{}+", run[0]) } else { run[0].clone() })
        .collect::<Vec<_>>()
        .join(" ")
}

/// The system calls up to the next mark, by name.
fn calls_to_mark(traced: &mut Traced) -> Vec<String> {
    let mut made = Vec::new();
    loop {
        // Each system call has two stops, before and after it.
        let at = traced.step();
        let call = traced.describe();
        traced.step();
        match at {
            At::End => return made,
            At::Call if is_of_debug_builds(&call) => {}
            At::Call => made.push(name_of(&call)),
        }
    }
}

/// In debug builds the standard library checks that a descriptor is open before it closes it.
fn is_of_debug_builds(call: &str) -> bool {
    let mut words = call.split(' ');
    let number = words.next().and_then(|number| number.parse().ok());
    number == Some(libc::SYS_fcntl) && words.nth(1) == Some("0x1") && libc::F_GETFD == 1
}

fn name_of(call: &str) -> String {
    let name = match call.split(' ').next().unwrap().parse().unwrap() {
        libc::SYS_openat => "openat",
        libc::SYS_close => "close",
        libc::SYS_fstat => "fstat",
        libc::SYS_newfstatat => "newfstatat",
        libc::SYS_statx => "statx",
        libc::SYS_read => "read",
        libc::SYS_pread64 => "pread64",
        libc::SYS_write => "write",
        libc::SYS_pwrite64 => "pwrite64",
        libc::SYS_fsync => "fsync",
        libc::SYS_fdatasync => "fdatasync",
        libc::SYS_flock => "flock",
        libc::SYS_renameat => "renameat",
        libc::SYS_renameat2 => "renameat2",
        libc::SYS_linkat => "linkat",
        libc::SYS_unlinkat => "unlinkat",
        libc::SYS_getdents64 => "getdents64",
        libc::SYS_fcntl => "fcntl",
        libc::SYS_futex => "futex",
        libc::SYS_getpid => "getpid",
        libc::SYS_gettid => "gettid",
        libc::SYS_uname => "uname",
        libc::SYS_brk => "brk",
        libc::SYS_mmap => "mmap",
        libc::SYS_munmap => "munmap",
        _ => return call.split(' ').next().unwrap().to_owned(),
    };
    name.to_owned()
}
