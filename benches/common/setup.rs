//! The setup of a benchmark: how much to run, the directory to use, and a description of the machine.

use std::path::{Path, PathBuf};
use std::time::SystemTime;
use std::{env, fs};

use tempfile::TempDir;

/// How much a benchmark runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RunMode {
    /// `cargo bench`: long enough for meaningful figures.
    Full,
    /// `cargo bench -- --test` and `cargo test --benches`: only checks that everything works.
    Quick,
}

impl RunMode {
    /// Reads the arguments. Only `cargo bench` adds `--bench`.
    pub(crate) fn from_args() -> Self {
        let given = |flag| env::args().any(|arg| arg == flag);
        if given("--bench") && !given("--test") { RunMode::Full } else { RunMode::Quick }
    }

    pub(crate) fn choose<T>(self, full: T, quick: T) -> T {
        match self {
            RunMode::Full => full,
            RunMode::Quick => quick,
        }
    }
}

/// Creates a new directory on a real disk: in `RECORD_STORE_BENCH_DIR`, or else in Cargo's target
/// directory.
pub(crate) fn scratch() -> TempDir {
    let program = env::current_exe().expect("this program has a path");
    let beside_program = || program.parent().expect("this program is in a directory").join("bench-files");
    let parent = env::var_os("RECORD_STORE_BENCH_DIR").map_or_else(beside_program, PathBuf::from);
    fs::create_dir_all(&parent).expect("the benchmark's directory can be created");
    tempfile::Builder::new().prefix("bench-").tempdir_in(parent).expect("a scratch directory can be created")
}

/// One line that describes the machine, the kernel, the file system and the date.
pub(crate) fn machine(dir: &Path) -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown processor", |(_, model)| model);
    let count = std::thread::available_parallelism().map_or(0, usize::from);
    let uname = rustix::system::uname();
    let today = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    format!(
        "{} processors ({cpu}), {} {}, {}, {}",
        count,
        uname.sysname().to_string_lossy(),
        uname.release().to_string_lossy(),
        file_system(dir),
        &today[..10],
    )
}

fn file_system(dir: &Path) -> String {
    let kind = rustix::fs::statfs(dir).expect("the file system can be queried").f_type;
    let known = [
        (0xef53, "ext4"),
        (0x5846_5342, "xfs"),
        (0x9123_683e, "btrfs"),
        (0xf2f5_2010, "f2fs"),
        (0x2fc1_2fc1, "zfs"),
        (0x794c_7630, "overlayfs"),
        (0x0102_1994, "tmpfs: NOT A DISK"),
    ];
    let name = known.iter().find(|(magic, _)| kind == *magic).map(|(_, name)| *name);
    name.map_or_else(|| format!("file system {kind:#x}"), str::to_owned)
}
