//! A PostgreSQL server on a temporary directory and a free port of the loopback interface.

use std::ffi::OsStr;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use crate::support::PATIENCE;

/// A running server. It ends with this value, and with the process, however that ends.
pub(crate) struct Server {
    programs: PathBuf,
    dir: PathBuf,
    port: u16,
    /// The supervisor reads from here until the end: it outlives this process, stops the server, and removes the
    /// directory.
    _supervisor: ChildStdin,
    /// The extra settings of the last start.
    settings: Mutex<Vec<String>>,
    /// A library that the server loads first, and its variable.
    preload: Option<[(&'static str, PathBuf); 2]>,
}

impl Server {
    /// The server of this process, started by the first test. `None`: no server program is installed.
    pub(crate) fn shared() -> Option<&'static Self> {
        static SHARED: LazyLock<Option<Server>> = LazyLock::new(|| Server::new(&[]));
        SHARED.as_ref()
    }

    /// A server of one test.
    pub(crate) fn new(settings: &[&str]) -> Option<Self> {
        Self::with_initdb(&[], settings)
    }

    /// A server of one test, with options of `initdb`.
    pub(crate) fn with_initdb(options: &[&str], settings: &[&str]) -> Option<Self> {
        Some(Self::stopped()?.initialized(options, settings))
    }

    /// A server of one test whose clock can be set.
    pub(crate) fn with_clock() -> Option<(Self, Clock)> {
        if !has_program("cc") {
            return None;
        }
        let mut server = Self::stopped()?;
        let [source, library, offset] = ["clock.c", "clock.so", "offset"].map(|name| server.dir.join(name));
        std::fs::write(&source, CLOCK).unwrap();
        run(Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source));
        let file = std::fs::File::options().create_new(true).read(true).write(true).open(&offset).unwrap();
        server.preload = Some([("LD_PRELOAD", library), ("CLOCK_OFFSET", offset)]);
        let clock = Clock(file);
        clock.set(0);
        Some((server.initialized(&[], &[]), clock))
    }

    /// A standby of this server, which follows it.
    pub(crate) fn standby(&self) -> Self {
        let standby = Self::prepared(self.programs.clone());
        let mut backup = standby.command("pg_basebackup");
        backup.args(["--no-sync", "--checkpoint=fast", "--wal-method=stream", "--write-recovery-conf"]);
        backup.args(["--host=127.0.0.1", "--username=postgres", "--port"]).arg(self.port.to_string());
        run(backup.arg("-D").arg(standby.data()));
        standby.start(&[]);
        standby
    }

    fn stopped() -> Option<Self> {
        let Some(programs) = programs() else {
            skip("a PostgreSQL server");
            return None;
        };
        Some(Self::prepared(programs))
    }

    fn initialized(self, options: &[&str], settings: &[&str]) -> Self {
        let server = self;
        let mut initdb = server.command("initdb");
        initdb.args(["--no-sync", "--auth=trust", "--username=postgres", "--locale=C", "-D"]);
        initdb.arg(server.data());
        initdb.args(if options.is_empty() { &["--encoding=UTF8"] } else { options });
        run(&mut initdb);
        server.start(settings);
        server
    }

    /// A server whose directory is still empty.
    fn prepared(programs: PathBuf) -> Self {
        let dir = crate::support::in_memory().keep();
        let mut supervisor = as_user(OsStr::new("sh"));
        // Not in the group of the terminal, so that an interrupt does not end it.
        supervisor.process_group(0).args(["-c", SUPERVISOR, "sh"]).arg(&dir).arg(programs.join("pg_ctl"));
        if rustix::process::geteuid().is_root() {
            run(Command::new("chown").arg("postgres:postgres").arg(&dir));
        }
        let mut supervisor =
            supervisor.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let pipe = supervisor.stdin.take().unwrap();
        std::thread::spawn(move || supervisor.wait());
        Self {
            programs,
            dir,
            port: free_port(),
            _supervisor: pipe,
            settings: Mutex::default(),
            preload: None,
        }
    }

    fn command(&self, program: &str) -> Command {
        as_user(self.programs.join(program).as_os_str())
    }

    /// A program from the path, as the user of the server.
    #[expect(clippy::unused_self, reason = "only where there is a server")]
    pub(crate) fn as_its_user(&self, program: &str) -> Command {
        as_user(OsStr::new(program))
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        url_at(self.port)
    }

    /// Starts the server, and waits until it answers.
    pub(crate) fn start(&self, settings: &[&str]) {
        *self.settings.lock().unwrap() = settings.iter().map(|&setting| setting.to_owned()).collect();
        self.start_again();
    }

    /// Starts the server with the settings of the last start.
    pub(crate) fn start_again(&self) {
        let mut postgres = self.command("postgres");
        postgres.arg("-D").arg(self.data()).arg("-p").arg(self.port.to_string());
        let usual = [
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "max_connections=400",
            "shared_buffers=32MB",
            // No test cuts the power.
            "fsync=off",
            "log_min_messages=panic",
        ];
        for setting in usual {
            postgres.args(["-c", setting]);
        }
        for setting in &*self.settings.lock().unwrap() {
            postgres.args(["-c", setting]);
        }
        postgres.envs(self.preload.iter().flatten().map(|(name, path)| (name, path)));
        postgres.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut process = postgres.spawn().unwrap();
        let start = Instant::now();
        while !self.answers() {
            assert!(start.elapsed() < PATIENCE, "the server does not start");
            if process.try_wait().unwrap().is_some() {
                // After a kill, the last children may still be ending.
                process = postgres.spawn().unwrap();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::spawn(move || process.wait());
    }

    fn answers(&self) -> bool {
        if TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            return false;
        }
        let mut ready = self.command("psql");
        ready.args(["-X", "-q", "-c", "SELECT 1", &self.url()]).stdout(Stdio::null()).stderr(Stdio::null());
        ready.status().is_ok_and(|status| status.success())
    }

    /// Runs SQL, and returns its result without decoration.
    pub(crate) fn sql(&self, sql: &str) -> String {
        self.sql_in("postgres", sql)
    }

    pub(crate) fn sql_in(&self, database: &str, sql: &str) -> String {
        let url = format!("postgres://postgres@127.0.0.1:{}/{database}", self.port);
        let output = self.command("psql").args(["-X", "-q", "-A", "-t", "-c", sql, &url]).output().unwrap();
        assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// Kills the postmaster and all its children, as a crash of the host does.
    pub(crate) fn kill(&self) {
        for process in self.processes() {
            let _ = rustix::process::kill_process(process, rustix::process::Signal::KILL);
        }
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
            assert!(start.elapsed() < PATIENCE, "the server does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The postmaster and all its children.
    fn processes(&self) -> Vec<rustix::process::Pid> {
        let pid = std::fs::read_to_string(self.data().join("postmaster.pid")).unwrap();
        let pid: i32 = pid.lines().next().unwrap().parse().unwrap();
        let children =
            std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let all = std::iter::once(pid).chain(children.split_whitespace().map(|child| child.parse().unwrap()));
        all.filter_map(rustix::process::Pid::from_raw).collect()
    }

    /// Stops all its processes in the middle, or lets them go on.
    pub(crate) fn pause(&self, pauses: bool) {
        let signal = if pauses { rustix::process::Signal::STOP } else { rustix::process::Signal::CONT };
        for process in self.processes() {
            let _ = rustix::process::kill_process(process, signal);
        }
    }

    /// Runs SQL in a session that stays, and waits for this line of its output.
    pub(crate) fn psql(&self, sql: &str, line: &str) -> std::process::Child {
        use std::io::BufRead as _;
        let mut command = self.command("psql");
        command.args(["-X", "-q", "-A", "-t"]).arg(self.url());
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut input = process.stdin.take().unwrap();
        for statement in sql.split(';') {
            writeln!(input, "{statement};").unwrap();
        }
        let output = std::io::BufReader::new(process.stdout.take().unwrap());
        assert!(output.lines().map_while(Result::ok).any(|of_output| of_output == line), "{sql}");
        // The session ends with its input.
        process.stdin = Some(input);
        process
    }

    /// Stops the server in the usual way.
    pub(crate) fn stop(&self) {
        let mut ctl = self.command("pg_ctl");
        run(ctl.args(["stop", "-m", "fast", "-w", "-D"]).arg(self.data()));
    }
}

/// The clock of a server.
pub(crate) struct Clock(std::fs::File);

impl Clock {
    /// Sets it so many milliseconds forward, or back, from the time of this host.
    pub(crate) fn set(&self, milliseconds: i64) {
        use std::os::unix::fs::FileExt as _;
        self.0.write_all_at(&(milliseconds * 1_000_000).to_ne_bytes(), 0).unwrap();
    }
}

/// The wall clock of the C library in a server, with an offset in nanoseconds from a file. The other clocks stay:
/// as on a host whose clock is set.
const CLOCK: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *offset;

__attribute__((constructor)) static void map_offset(void) {
    const char *path = getenv("CLOCK_OFFSET");
    int file = path ? open(path, O_RDONLY) : -1;
    if (file < 0) return;
    void *mapping = mmap(NULL, sizeof *offset, PROT_READ, MAP_SHARED, file, 0);
    if (mapping != MAP_FAILED) offset = mapping;
    close(file);
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = syscall(SYS_clock_gettime, clock, time);
    if (result == 0 && clock == CLOCK_REALTIME && offset) {
        int64_t all = time->tv_sec * INT64_C(1000000000) + time->tv_nsec + *offset;
        time->tv_sec = all / 1000000000;
        time->tv_nsec = all % 1000000000;
    }
    return result;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    struct timespec exact;
    (void) zone;
    clock_gettime(CLOCK_REALTIME, &exact);
    time->tv_sec = exact.tv_sec;
    time->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *result) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (result) *result = exact.tv_sec;
    return exact.tv_sec;
}
"#;

/// Reads until its input ends, then stops the server and removes its directory.
const SUPERVISOR: &str = r#"
    cd /
    while read -r _; do :; done
    "$2" stop -m immediate -w -D "$1/data"
    rm -rf "$1"
"#;

/// The directory of the server's programs.
fn programs() -> Option<PathBuf> {
    let has_server = |dir: &Path| dir.join("postgres").exists() && dir.join("initdb").exists();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let config = Command::new("pg_config").arg("--bindir").output().ok();
    let config = config.map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    let debian = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut all =
        std::env::split_paths(&path).chain(config).chain(debian.map(|version| version.path().join("bin")));
    let found = all.find(|dir| has_server(dir))?;
    // Beside the programs themselves are those that a link leads to only one of.
    Some(found.join("postgres").canonicalize().unwrap().parent().unwrap().to_owned())
}

/// Whether a program that only one test needs is in the path. Otherwise the test is skipped.
pub(crate) fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let has = std::env::split_paths(&path).any(|dir| dir.join(name).exists());
    if !has {
        skip(name);
    }
    has
}

fn skip(missing: &str) {
    assert!(std::env::var_os("CI").is_none(), "{missing} is not installed");
    // `eprintln` would be captured.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {missing} is not installed");
}

/// A program, as a user that may run a server.
fn as_user(program: &OsStr) -> Command {
    let mut command;
    if rustix::process::geteuid().is_root() {
        command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
    } else {
        command = Command::new(program);
    }
    command.current_dir("/").env("HOME", "/").env_remove("PGPASSWORD");
    command
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The URL of a server at a port.
pub(crate) fn url_at(port: u16) -> String {
    format!("postgres://postgres@127.0.0.1:{port}/postgres")
}

/// A port that nobody uses. Somebody may take it before the server does, but hardly ever does.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
