//! A network that fails: a relay in front of the server.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use record_store::{
    Error, Expected, Holder, Json, Key, LockOptions, PostgresOptions, PostgresRecordStore, RecordStore,
    RecordStoreExt, RemoveOptions, Result, WriteOptions,
};

use super::server::{Server, url_at};
use super::{new_url, open};
use crate::support::{PATIENCE, as_named, millis};
use crate::watchdog::abort_if_hung;

/// Forwards connections to the server, until it is told to fail.
struct Relay {
    port: u16,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a failure of its own")]
struct State {
    connections: Vec<[TcpStream; 2]>,
    /// So many parts of the stream in this direction pass. Then all connections are cut.
    cut: Option<(Direction, u32)>,
    /// The number of cuts.
    cuts: u32,
    /// Whether new connections are refused after the cut.
    stays_down: bool,
    is_down: bool,
    /// Whether the server does not learn of the cut, as if the host of the client had vanished.
    stays_open: bool,
    /// Whether everything is lost on the way, in both directions.
    swallows: bool,
    /// Whether the answers of the server wait in the relay.
    holds_answers: bool,
    delay: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    ToServer,
    ToClient,
}

impl Relay {
    fn start(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::<Mutex<State>>::default();
        let of_thread = Arc::clone(&state);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(std::io::Result::ok) {
                if of_thread.lock().unwrap().is_down {
                    continue;
                }
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else { continue };
                let pair = [&client, &server].map(|stream| stream.try_clone().unwrap());
                of_thread.lock().unwrap().connections.push(pair);
                for (direction, from, to) in [
                    (Direction::ToServer, client.try_clone().unwrap(), server.try_clone().unwrap()),
                    (Direction::ToClient, server, client),
                ] {
                    let state = Arc::clone(&of_thread);
                    std::thread::spawn(move || pump(direction, from, to, &state));
                }
            }
        });
        Self { port, state }
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }

    /// Cuts all connections after so many more parts in this direction.
    fn cut_after(&self, direction: Direction, parts: u32, stays_down: bool) {
        self.set(|state| {
            state.cut = Some((direction, parts));
            state.stays_down = stays_down;
        });
    }

    /// Works again. Returns whether there was a cut.
    fn restore(&self) -> bool {
        let mut state = self.state.lock().unwrap();
        let had_cut = state.cuts > 0;
        (state.cut, state.cuts, state.is_down, state.swallows) = (None, 0, false, false);
        had_cut
    }
}

impl State {
    fn cut_all(&mut self) {
        for [client, server] in self.connections.drain(..) {
            let _ = client.shutdown(Shutdown::Both);
            if !self.stays_open {
                let _ = server.shutdown(Shutdown::Both);
            }
        }
        self.cuts += 1;
        self.is_down = self.stays_down;
        self.cut = None;
    }
}

fn pump(direction: Direction, mut from: TcpStream, mut to: TcpStream, state: &Mutex<State>) {
    let mut part = vec![0; 1 << 16];
    while let Ok(length @ 1..) = from.read(&mut part) {
        let delay = {
            let mut state = state.lock().unwrap();
            if state.swallows {
                continue;
            }
            match &mut state.cut {
                Some((of, 0)) if *of == direction => {
                    state.cut_all();
                    return;
                }
                Some((of, left)) if *of == direction => *left -= 1,
                _ => {}
            }
            state.delay
        };
        std::thread::sleep(delay);
        while direction == Direction::ToClient && state.lock().unwrap().holds_answers {
            std::thread::sleep(millis(5));
        }
        if to.write_all(&part[..length]).is_err() {
            break;
        }
    }
    if !state.lock().unwrap().stays_open {
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    }
}

/// A store behind a relay, and the same one without it. The session that stands for the process is behind the relay,
/// because that handle is opened first.
fn behind_a_relay(patience: Duration) -> Option<(Relay, PostgresRecordStore, PostgresRecordStore)> {
    let server = Server::shared()?;
    let url = new_url()?;
    let relay = Relay::start(server.port());
    let behind = url.replace(&url_at(server.port()), &url_at(relay.port));
    let store = PostgresRecordStore::connect(&behind, PostgresOptions::new().patience(patience)).unwrap();
    Some((relay, store, open(&url)))
}

/// The changes of a record, each with a check whether it was made.
type Change = (&'static str, fn(&dyn RecordStore, &Key) -> Result<()>, fn(Option<i32>) -> bool);

const CHANGES: [Change; 4] = [
    (
        "write",
        |store, key| store.write_raw(key, &Json::parse("2")?, WriteOptions::new()),
        |result| result == Some(2),
    ),
    (
        "swap",
        |store, key| {
            let swapped = store.compare_and_swap_raw(
                key,
                Expected::Value(&Json::parse("1")?),
                &Json::parse("2")?,
                WriteOptions::new(),
            )?;
            assert!(swapped);
            Ok(())
        },
        |result| result == Some(2),
    ),
    ("remove", |store, key| store.remove_raw(key, RemoveOptions::new()).map(drop), |result| result.is_none()),
    (
        "update",
        |store, key| {
            store.update(key, LockOptions::new(), |old: Option<i32>| Ok(old.unwrap_or(0) + 1)).map(drop)
        },
        |result| result == Some(2),
    ),
];

/// Runs `check` for a cut at every part of the stream, in both directions, until there is none in time.
fn at_every_cut(relay: &Relay, stays_down: bool, mut check: impl FnMut(&str)) {
    for direction in [Direction::ToServer, Direction::ToClient] {
        for parts in 0.. {
            assert!(parts < 50, "there is always a cut");
            relay.cut_after(direction, parts, stays_down);
            let place = format!("cut after {parts} parts {direction:?}, stays down: {stays_down}");
            abort_if_hung(&place, || check(&place));
            if !relay.restore() {
                break;
            }
        }
    }
}

#[test]
fn a_cut_at_any_moment_changes_nothing_or_says_that_the_outcome_is_unknown() {
    let Some((relay, store, direct)) = behind_a_relay(millis(400)) else { return };
    let key = Key::new("k").unwrap();
    let (mut unknown, mut made) = (0, 0);
    for (name, change, is_made) in CHANGES {
        for stays_down in [true, false] {
            at_every_cut(&relay, stays_down, |place| {
                relay.set(|state| state.stays_down = stays_down);
                direct.write("k", &1).unwrap();
                let outcome = change(&store, &key);
                let cut = relay.restore();
                let result = direct.read_with::<i32>("k", record_store::ReadOptions::new().ignore_lock());
                let was_made = is_made(result.unwrap().map(|record| record.result));
                match outcome {
                    Ok(()) => assert!(was_made, "{name}: {place}: it says that it was made"),
                    Err(error) if error.is_outcome_unknown() => {
                        unknown += 1;
                        made += u32::from(was_made);
                    }
                    Err(error) => assert!(!was_made, "{name}: {place}: {error}"),
                }
                // The lock of an update may have been left behind. It is this thread's.
                until_free(&store, &direct);
                relay.set(|state| state.cuts = u32::from(cut));
            });
        }
    }
    assert!(
        made > 0 && made < unknown,
        "{made} of {unknown} lost answers were those of changes that were made"
    );
}

/// Acquires and releases the lock, so that nothing is left.
fn until_free(store: &PostgresRecordStore, direct: &PostgresRecordStore) {
    let start = Instant::now();
    loop {
        match store
            .lock("k", LockOptions::new().acquire_timeout(PATIENCE))
            .and_then(record_store::LockGuard::release)
        {
            Ok(()) => break,
            // A session that the cut has ended is noticed at the first use.
            Err(error) => assert!(start.elapsed() < PATIENCE, "{error}"),
        }
    }
    assert!(!direct.is_locked("k").unwrap(), "a lock that nobody stands for was left");
}

#[test]
fn an_acquisition_whose_answer_was_lost_is_found_again_and_released() {
    let Some((relay, store, direct)) = behind_a_relay(millis(400)) else { return };
    let mut unknown = 0;
    for stays_down in [true, false] {
        at_every_cut(&relay, stays_down, |place| {
            // A named holder: its lock outlives the session.
            let acquired = store.lock("k", as_named("job"));
            if acquired.is_err() && stays_down {
                // The server cannot be reached. That says nothing about the first attempt.
                let again = store.lock("k", as_named("job").acquire_timeout(Duration::ZERO)).unwrap_err();
                assert!(!again.is_outcome_unknown(), "{place}: {again}");
            }
            let cut = relay.restore();
            let guard = match acquired {
                Ok(guard) => guard,
                Err(error) => {
                    unknown += u32::from(error.is_outcome_unknown());
                    if !error.is_outcome_unknown() {
                        assert!(!direct.is_locked("k").unwrap(), "{place}: {error}");
                    }
                    relay.restore();
                    // Also by another handle of the store.
                    if stays_down { &direct } else { &store }.lock("k", as_named("job")).unwrap()
                }
            };
            assert!(direct.is_locked("k").unwrap());
            guard.release().unwrap_or_else(|error: Error| panic!("{place}: {error}"));
            assert!(!direct.is_locked("k").unwrap(), "{place}: the guard has not released");
            relay.set(|state| state.cuts = u32::from(cut));
        });
    }
    assert!(unknown > 0, "no answer was lost");
}

#[test]
fn a_network_that_swallows_everything_hangs_nothing() {
    let Some((relay, store, direct)) = behind_a_relay(millis(500)) else { return };
    store.write("k", &1).unwrap();
    let guard = store.lock("held", LockOptions::new()).unwrap();
    relay.set(|state| state.swallows = true);
    let start = Instant::now();
    abort_if_hung("calls on a dead network", || {
        assert!(store.write("k", &2).unwrap_err().is_outcome_unknown());
        assert!(store.read::<u8>("k").is_err());
        assert!(store.lock("k", LockOptions::new().acquire_timeout(Duration::ZERO)).is_err());
        drop(guard);
    });
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    relay.set(State::cut_all);
    relay.restore();
    store.write("k", &3).unwrap();
    assert_eq!(direct.read::<u8>("k").unwrap().unwrap().result, 3);
    until_free(&store, &direct);
}

/// The server still takes the old session for a living one, so the process ends it itself.
#[test]
fn a_process_that_was_cut_off_gets_its_own_lock_again() {
    let Some((relay, store, _)) = behind_a_relay(Duration::from_secs(5)) else { return };
    let guard = store.lock("k", LockOptions::new()).unwrap();
    relay.set(|state| {
        (state.stays_open, state.stays_down) = (true, true);
        state.cut_all();
    });
    let once = || LockOptions::new().acquire_timeout(Duration::ZERO);
    let error = store.lock("k", once()).unwrap_err();
    assert_eq!(error.kind(), record_store::ErrorKind::Io, "{error}");
    relay.restore();
    store.lock("k", LockOptions::new().acquire_timeout(Duration::from_secs(3))).unwrap().release().unwrap();
    assert!(guard.release().unwrap_err().is_lock_lost());
}

/// The last handle asks the server whether a lock depends on the session. The answer is old when it arrives.
#[test]
fn a_session_does_not_end_under_a_lock_that_was_acquired_meanwhile() {
    let Some((relay, store, direct)) = behind_a_relay(PATIENCE) else { return };
    let behind = format!("{}?schema={}", url_at(relay.port), store.schema());
    let url = format!("{}?schema={}", Server::shared().unwrap().url(), store.schema());
    // The question is prepared, and the session stays.
    store.acquire_lock("first", LockOptions::new()).unwrap();
    drop((store, direct));
    std::thread::sleep(millis(300));
    let store = open(&behind);
    store.release_lock("first", Holder::current()).unwrap();
    relay.set(|state| state.holds_answers = true);
    drop(store);
    std::thread::sleep(millis(300));
    // Without a guard: the lock outlives the handle.
    open(&url).acquire_lock("k", LockOptions::new()).unwrap();
    relay.set(|state| state.holds_answers = false);
    std::thread::sleep(millis(300));
    open(&url).release_lock("k", Holder::current()).unwrap();
}

type Call<'a> = &'a (dyn Fn(&record_store::Cancellation) -> Result<()> + Sync);

#[test]
fn a_cancelled_call_does_not_wait_for_a_server_that_does_not_answer() {
    let Some((relay, store, _)) = behind_a_relay(Duration::from_secs(8)) else { return };
    store.write("k", &1).unwrap();
    let guard = store.lock("held", as_named("job")).unwrap();
    relay.set(|state| state.swallows = true);
    let calls: [Call<'_>; 3] = [
        &|cancellation| store.write_with("k", &2, WriteOptions::new().cancellation(cancellation)),
        &|cancellation| store.lock("k", as_named("job").cancellation(cancellation)).map(drop),
        &|cancellation| {
            let options = record_store::ReadOptions::new().cancellation(cancellation);
            store.read_with::<u8>("k", options).map(drop)
        },
    ];
    for (number, call) in calls.into_iter().enumerate() {
        let cancellation = record_store::Cancellation::new();
        let start = Instant::now();
        let error = std::thread::scope(|scope| {
            let called = scope.spawn(|| abort_if_hung("a cancelled call", || call(&cancellation)));
            std::thread::sleep(millis(100));
            cancellation.cancel();
            called.join().unwrap().unwrap_err()
        });
        assert!(error.is_cancelled(), "call {number}: {error}");
        assert_eq!(error.is_outcome_unknown(), number < 2, "call {number}: {error}");
        assert!(start.elapsed() < Duration::from_secs(4), "call {number}: {:?}", start.elapsed());
    }
    relay.set(State::cut_all);
    relay.restore();
    guard.release().unwrap();
}

#[test]
fn a_slow_network_is_no_error() {
    let Some((relay, store, _)) = behind_a_relay(PATIENCE) else { return };
    relay.set(|state| state.delay = millis(60));
    let guard = store.try_lock("k", LockOptions::new()).unwrap().expect("the lock is free");
    guard.write(&1).unwrap();
    assert!(store.try_lock("k", as_named("other")).unwrap().is_none());
    guard.release().unwrap();
}
