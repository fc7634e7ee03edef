//! The store on a PostgreSQL server, compared with bare round trips on the same server, and with the store on files.
//! See `benches/README.md`.

#![allow(clippy::expect_used, clippy::panic, reason = "a benchmark stops at the first error")]

#[path = "common/children.rs"]
mod children;
#[path = "common/hand_over.rs"]
mod hand_over;
#[path = "common/measure.rs"]
mod measure;
#[path = "common/postgres.rs"]
mod postgres;
#[path = "common/setup.rs"]
mod setup;

use std::future::poll_fn;
use std::hint::black_box;
use std::path::Path;

use record_store::{
    FileSystemRecordStore, Json, LockOptions, PostgresOptions, PostgresRecordStore, RecordStoreExt,
};
use tokio_postgres::{AsyncMessage, Client, NoTls};

use children::{ChildProcess, receive, send};
use hand_over::monotonic;
use measure::{Plan, Table};

const KEYS: usize = 100;
const PROCESSES: usize = 4;
/// The calls of one process in a run of several processes.
const CALLS: usize = 25;

fn main() {
    if let Some((role, url)) = children::role() {
        return child(&role, url.to_str().expect("a URL"));
    }
    let mut table = Table::from_args();
    let Some(server) = postgres::Server::start() else {
        println!("SKIPPED: no PostgreSQL server is installed");
        return;
    };
    let url = server.url();
    let (store, mut bare) = (open(&url), Bare::connect(&url));
    let text = result();
    alone(&mut table, &store, &mut bare, &text);
    let scratch = setup::scratch();
    let files = FileSystemRecordStore::open(scratch.path().join("store")).expect("the store opens");
    beside_files(&mut table, &store, &files, &text);
    hand_over(&mut table, &store, &bare, &url);
    in_turn(&mut table, &store, &mut bare, &url);
    together(&mut table, &url);
    println!("{}\n\n{table}", setup::machine(server.dir()));
}

fn open(url: &str) -> PostgresRecordStore {
    PostgresRecordStore::connect(url, PostgresOptions::new()).expect("the store opens")
}

/// About 300 bytes.
fn result() -> Json {
    Json::encode(&"x".repeat(300)).expect("a string is JSON")
}

/// A client that does only what is necessary.
struct Bare {
    runtime: tokio::runtime::Runtime,
    client: Client,
    put: tokio_postgres::Statement,
    get: tokio_postgres::Statement,
    remove: tokio_postgres::Statement,
    notify: tokio_postgres::Statement,
    notified: tokio::sync::mpsc::UnboundedReceiver<()>,
}

impl Bare {
    fn connect(url: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (client, notified) = runtime.block_on(async {
            let (client, mut connection) = tokio_postgres::connect(url, NoTls).await.expect("a connection");
            let (sender, notified) = tokio::sync::mpsc::unbounded_channel();
            tokio::spawn(async move {
                while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
                    if let AsyncMessage::Notification(_) = message {
                        let _ = sender.send(());
                    }
                }
            });
            let table = "CREATE TABLE IF NOT EXISTS bare (id bytea PRIMARY KEY, key bytea, result text)";
            client.batch_execute(table).await.expect("a table");
            (client, notified)
        });
        let prepare = |sql| runtime.block_on(client.prepare(sql)).expect("a statement");
        let put = prepare(
            "INSERT INTO bare (id, key, result) VALUES ($1, $1, $2) ON CONFLICT (id) DO UPDATE SET result = excluded.result",
        );
        let get = prepare("SELECT result FROM bare WHERE id = $1");
        let remove = prepare("DELETE FROM bare WHERE id = $1");
        let notify =
            prepare("WITH r AS (UPDATE bare SET result = $2 WHERE id = $1) SELECT pg_notify('bare', '')");
        Self { runtime, client, put, get, remove, notify, notified }
    }

    fn put(&self, key: &str, text: &str) {
        self.runtime.block_on(self.client.execute(&self.put, &[&key.as_bytes(), &text])).expect("a write");
    }

    fn get(&self, key: &str) -> String {
        let row = self.runtime.block_on(self.client.query_one(&self.get, &[&key.as_bytes()]));
        row.expect("a read").get(0)
    }

    fn remove(&self, key: &str) {
        self.runtime.block_on(self.client.execute(&self.remove, &[&key.as_bytes()])).expect("a removal");
    }

    /// A commit with a notification.
    fn notify(&self, key: &str) {
        self.runtime.block_on(self.client.query(&self.notify, &[&key.as_bytes(), &"x"])).expect("a change");
    }

    fn listen(&self) {
        self.runtime.block_on(self.client.batch_execute("LISTEN bare")).expect("a listener");
    }

    /// Waits for a notification.
    fn wait(&mut self) {
        self.runtime.block_on(self.notified.recv()).expect("a notification");
    }
}

fn plan(operation: &'static str, floor: &'static str, target: Option<f64>, pairs: usize) -> Plan {
    Plan { operation: operation.into(), floor: floor.into(), target, pairs }
}

fn key(run: usize) -> String {
    format!("invoice-{}", run % KEYS)
}

fn alone(table: &mut Table, store: &PostgresRecordStore, bare: &mut Bare, text: &Json) {
    for number in 0..KEYS {
        store.write(key(number), text).expect("a write");
        bare.put(&key(number), text.as_str());
    }
    table.compare(
        plan("put", "INSERT … ON CONFLICT", Some(1.3), 1_000),
        |run| store.write(key(run), text).expect("a write"),
        |run| bare.put(&key(run), text.as_str()),
    );
    table.compare(
        plan("get", "SELECT", Some(1.3), 3_000),
        |run| drop(black_box(store.read::<Json>(key(run)).expect("a read"))),
        |run| drop(black_box(bare.get(&key(run)))),
    );
    table.compare(
        plan("acquire + release", "INSERT and DELETE", None, 1_000),
        |run| {
            let guard = store.lock(format!("lock-{}", run % KEYS), LockOptions::new()).expect("a lock");
            guard.release().expect("a release");
        },
        |run| {
            let key = format!("lock-{}", run % KEYS);
            bare.put(&key, "x");
            bare.remove(&key);
        },
    );
}

fn beside_files(table: &mut Table, store: &PostgresRecordStore, files: &FileSystemRecordStore, text: &Json) {
    for number in 0..KEYS {
        files.write(key(number), text).expect("a write");
    }
    table.compare(
        plan("put", "put, files", None, 500),
        |run| store.write(key(run), text).expect("a write"),
        |run| files.write(key(run), text).expect("a write"),
    );
    table.compare(
        plan("get", "get, files", None, 1_000),
        |run| drop(black_box(store.read::<Json>(key(run)).expect("a read"))),
        |run| drop(black_box(files.read::<Json>(key(run)).expect("a read"))),
    );
    table.compare(
        plan("acquire + release", "acquire + release, files", None, 500),
        |run| {
            let guard = store.lock(key(run), LockOptions::new()).expect("a lock");
            guard.release().expect("a release");
        },
        |run| {
            let guard = files.lock(key(run), LockOptions::new()).expect("a lock");
            guard.release().expect("a release");
        },
    );
}

/// The lock goes to another process, which waits for it.
fn hand_over(table: &mut Table, store: &PostgresRecordStore, bare: &Bare, url: &str) {
    let (mut ours, mut other) = (start("waiter", url), start("bare waiter", url));
    bare.put("baton", "x");
    let is_queued = || {
        let lock = store.lock_info("baton").expect("a look at the lock").expect("it is locked");
        lock.waiters().is_some_and(|waiters| !waiters.is_empty())
    };
    table.compare_measured(
        plan("hand-over", "commit with NOTIFY, until another process has it", Some(2.0), 500),
        |_| {
            let guard = store.lock("baton", LockOptions::new()).expect("a lock");
            let release = || guard.release().expect("a release");
            hand_over::measure(&mut ours, "lock", is_queued, release)
        },
        |_| hand_over::measure(&mut other, "notification", || true, || bare.notify("baton")),
    );
    ours.finish();
    other.finish();
}

/// Two processes take the lock in turn, and wait for it again as soon as they have released it.
fn in_turn(table: &mut Table, store: &PostgresRecordStore, bare: &mut Bare, url: &str) {
    let mut other = start("swap", url);
    let mut guard = Some(store.lock("handed", LockOptions::new()).expect("a lock"));
    bare.put("handed", "x");
    bare.listen();
    std::thread::sleep(std::time::Duration::from_millis(100));
    table.compare(
        plan("the lock goes and comes back", "two commits with NOTIFY", None, 500),
        |_| {
            guard.take().expect("the lock").release().expect("a release");
            guard = Some(store.lock("handed", LockOptions::new()).expect("a lock"));
        },
        |_| {
            for _ in 0..2 {
                bare.notify("handed");
                bare.wait();
            }
        },
    );
    let _ = other.process.kill();
    let _ = other.process.wait();
}

/// A child process that is ready.
fn start(role: &str, url: &str) -> ChildProcess {
    let mut child = ChildProcess::start(role, Path::new(url));
    assert_eq!(child.receive(), "ready");
    child
}

/// Several processes at once, each with keys of its own.
fn together(table: &mut Table, url: &str) {
    let calls = table.mode().choose(CALLS, 2);
    for (role, floor, operation, of_floor, target) in [
        ("put", "bare put", "put, 4 processes", "INSERT … ON CONFLICT, 4 processes", Some(1.3)),
        ("get", "bare get", "get, 4 processes", "SELECT, 4 processes", Some(1.3)),
        ("lock", "bare lock", "acquire + release, 4 processes", "INSERT and DELETE, 4 processes", None),
    ] {
        let start = |role| -> Vec<_> { (0..PROCESSES).map(|_| start(role, url)).collect() };
        let (mut ours, mut bare) = (start(role), start(floor));
        table.compare(
            Plan { operation: operation.into(), floor: of_floor.into(), target, pairs: 40 },
            |_| round(&mut ours, calls),
            |_| round(&mut bare, calls),
        );
        ours.into_iter().chain(bare).for_each(ChildProcess::finish);
    }
}

fn round(children: &mut [ChildProcess], calls: usize) {
    for child in children.iter_mut() {
        child.send(&calls.to_string());
    }
    for child in children {
        child.receive();
    }
}

fn child(role: &str, url: &str) {
    match role {
        "waiter" => {
            let store = open(url);
            // The first lock opens the session that stands for the process.
            store.lock("warm", LockOptions::new()).expect("a lock").release().expect("a release");
            send("ready");
            hand_over::wait(|_| {
                let guard = store.lock("baton", LockOptions::new()).expect("a lock");
                let owned = monotonic();
                guard.release().expect("a release");
                owned
            });
        }
        "bare waiter" => {
            let mut bare = Bare::connect(url);
            bare.listen();
            send("ready");
            hand_over::wait(|_| {
                bare.wait();
                monotonic()
            });
        }
        "swap" => swap(url),
        _ => client(role, url),
    }
}

fn swap(url: &str) {
    let store = open(url);
    send("ready");
    loop {
        let Ok(guard) = store.lock("handed", LockOptions::new()) else { return };
        if guard.release().is_err() {
            return;
        }
    }
}

fn client(role: &str, url: &str) {
    let (store, bare, text) = (open(url), Bare::connect(url), result());
    let own = |number: usize| format!("{}-{number}", std::process::id());
    for number in 0..CALLS {
        store.write(own(number), &text).expect("a write");
        bare.put(&own(number), text.as_str());
    }
    send("ready");
    while let Some(calls) = receive() {
        for number in 0..calls.parse().expect("a number") {
            let key = own(number);
            match role {
                "put" => store.write(key, &text).expect("a write"),
                "get" => drop(black_box(store.read::<Json>(key).expect("a read"))),
                "lock" => {
                    let guard = store.lock(key, LockOptions::new()).expect("a lock");
                    guard.release().expect("a release");
                }
                "bare put" => bare.put(&key, text.as_str()),
                "bare get" => drop(black_box(bare.get(&key))),
                _ => {
                    bare.put(&key, "x");
                    bare.remove(&key);
                }
            }
        }
        send("done");
    }
}
