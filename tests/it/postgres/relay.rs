//! A network that fails: a relay in front of the server.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use record_store::{
    Error, Expected, Json, Key, LockOptions, PostgresOptions, PostgresRecordStore, RecordStore,
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
struct State {
    connections: Vec<[TcpStream; 2]>,
    /// So many parts of the stream in this direction pass. Then all connections are cut.
    cut: Option<(Direction, u32)>,
    /// The number of cuts.
    cuts: u32,
    /// Whether new connections are refused after the cut.
    stays_down: bool,
    is_down: bool,
    /// Whether everything is lost on the way, in both directions.
    swallows: bool,
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
        for stream in self.connections.drain(..).flatten() {
            let _ = stream.shutdown(Shutdown::Both);
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
        if to.write_all(&part[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

/// A store behind a relay, and the same one without it.
fn behind_a_relay(patience: Duration) -> Option<(Relay, PostgresRecordStore, PostgresRecordStore)> {
    let server = Server::shared()?;
    let direct = open(&new_url()?);
    let relay = Relay::start(server.port());
    let url = format!("{}?schema={}", url_at(relay.port), direct.schema());
    let store = PostgresRecordStore::connect(&url, PostgresOptions::new().patience(patience)).unwrap();
    Some((relay, store, direct))
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
            let cut = relay.restore();
            let guard = match acquired {
                Ok(guard) => guard,
                Err(error) => {
                    unknown += u32::from(error.is_outcome_unknown());
                    if !error.is_outcome_unknown() {
                        assert!(!direct.is_locked("k").unwrap(), "{place}: {error}");
                    }
                    relay.restore();
                    store.lock("k", as_named("job")).unwrap()
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

#[test]
fn a_slow_network_is_no_error() {
    let Some((relay, store, _)) = behind_a_relay(PATIENCE) else { return };
    relay.set(|state| state.delay = millis(60));
    let guard = store.try_lock("k", LockOptions::new()).unwrap().expect("the lock is free");
    guard.write(&1).unwrap();
    assert!(store.try_lock("k", as_named("other")).unwrap().is_none());
    guard.release().unwrap();
}
