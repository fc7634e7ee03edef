//! Watchdogs: a test or a call that hangs ends the test run with its name.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::{Mutex, Once, mpsc};
use std::time::{Duration, Instant};

use crate::support::children::is_child;
use crate::support::storm;

/// A call that takes longer has hung. Large enough for a loaded machine.
const LIMIT: Duration = Duration::from_secs(20);

/// The same for a whole test. In the build without re-checks, a lost wake-up hangs, and the tests are short.
const LIMIT_OF_A_TEST: Duration = Duration::from_mins(if cfg!(record_store_no_recheck) { 2 } else { 5 });

/// Aborts the whole test run if `work` takes too long, because a hung thread cannot be stopped in any other
/// way.
pub(crate) fn abort_if_hung<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let (done, watched) = mpsc::channel::<()>();
    let what = format!("{}: {what}", test_name().unwrap_or_default());
    let watchdog = std::thread::spawn(move || {
        if watched.recv_timeout(LIMIT) == Err(mpsc::RecvTimeoutError::Timeout) {
            abort(&what);
        }
    });
    let result = work();
    drop(done);
    watchdog.join().unwrap();
    result
}

fn abort(what: &str) -> ! {
    // `eprintln` is captured and shown at the end of the test, which is never reached.
    let _ = writeln!(std::io::stderr(), "\nhung: {what}");
    std::process::abort();
}

/// Watches the test that calls this, from the first call to its end. Every test that opens a store or starts a process
/// does so through a helper that calls this.
pub(crate) fn watch_test() {
    watch_test_for(LIMIT_OF_A_TEST);
}

/// [`watch_test`] for a test that takes long. The first call in a test sets its limit.
pub(crate) fn watch_test_for(limit: Duration) {
    thread_local! {
        static WATCHED: OnceCell<Watched> = const { OnceCell::new() };
    }
    // The parent watches for its children.
    if !is_child() {
        WATCHED.with(|watched| {
            watched.get_or_init(|| Watched::begin(limit));
        });
    }
}

/// The tests that are watched, by number: their names, and the times at which they count as hung.
static TESTS: Mutex<BTreeMap<u64, (String, Instant)>> = Mutex::new(BTreeMap::new());

/// A test that is watched. It is dropped when the thread of the test ends.
struct Watched {
    /// `None`: not the thread of a test.
    number: Option<u64>,
    /// A forked child ends without its parent's test.
    process: u32,
}

impl Watched {
    fn begin(limit: Duration) -> Self {
        static START: Once = Once::new();
        START.call_once(|| drop(std::thread::spawn(watch_all)));
        let process = std::process::id();
        let Some(name) = test_name() else { return Self { number: None, process } };
        let mut tests = TESTS.lock().unwrap();
        let number = tests.last_key_value().map_or(0, |(last, _)| last + 1);
        let factor = u32::try_from(storm(1)).unwrap();
        tests.insert(number, (name, Instant::now() + limit * factor));
        Self { number: Some(number), process }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(number) = self.number.filter(|_| self.process == std::process::id()) {
            TESTS.lock().unwrap().remove(&number);
        }
    }
}

fn watch_all() {
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let now = Instant::now();
        let hung = TESTS.lock().unwrap().values().find(|(_, end)| now >= *end).cloned();
        if let Some((name, _)) = hung {
            abort(&name);
        }
    }
}

/// The name of the test that this thread runs: its runner names the thread so.
fn test_name() -> Option<String> {
    std::thread::current().name().filter(|name| name.contains("::")).map(str::to_owned)
}
