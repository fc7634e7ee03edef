//! Where a benchmark runs, how long it may take, and what machine it is on.

use std::path::{Path, PathBuf};
use std::time::SystemTime;
use std::{env, fs};

use tempfile::TempDir;

/// How much to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// `cargo bench`: long enough for figures that mean something.
    Full,
    /// `cargo bench -- --test` and `cargo test --benches`: once, to see that it works.
    Quick,
}

impl Pace {
    /// As Cargo asks for it: only `cargo bench` adds `--bench`.
    pub(crate) fn from_args() -> Self {
        let given = |flag| env::args().any(|arg| arg == flag);
        if given("--bench") && !given("--test") { Pace::Full } else { Pace::Quick }
    }

    pub(crate) fn pick<T>(self, full: T, quick: T) -> T {
        match self {
            Pace::Full => full,
            Pace::Quick => quick,
        }
    }
}

/// A directory of its own on a real disk: in `RECORD_STORE_BENCH_DIR`, else among Cargo's files.
pub(crate) fn scratch() -> TempDir {
    let program = env::current_exe().expect("this program has a path");
    let among_cargos = || program.parent().expect("and a directory").join("bench-files");
    let parent = env::var_os("RECORD_STORE_BENCH_DIR").map_or_else(among_cargos, PathBuf::from);
    fs::create_dir_all(&parent).expect("the benchmark's directory can be made");
    tempfile::Builder::new().prefix("bench-").tempdir_in(parent).expect("a scratch directory can be made")
}

/// One line that says on what the figures were taken.
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
    let kind = rustix::fs::statfs(dir).expect("the scratch directory can be asked for its kind").f_type;
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
