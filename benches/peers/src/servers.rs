//! Who is another process, and is spoken to. Started for this run on a socket of its own, and ended
//! with it, on panic too.

use std::hint::black_box;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use record_store::Durability;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::work::{About, Job, Peer, Work, changed, decode, encode};

/// Far longer than a server takes to start.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running server. Killed when dropped.
struct Server(Child);

impl Server {
    /// `None` if it is not installed.
    fn start(mut command: Command) -> Option<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        match command.spawn() {
            Ok(child) => Some(Self(child)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => panic!("{command:?}: {error}"),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Tries until it works: a server needs a moment to listen.
fn patiently<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(done) = attempt() {
            return done;
        }
        assert!(start.elapsed() < PATIENCE, "the server does not answer");
        std::thread::sleep(Duration::from_millis(10));
    }
}

// ---- Redis.

/// One server of each kind.
pub(crate) struct Redis {
    always: RedisConnection,
    everysec: RedisConnection,
}

struct RedisConnection {
    to: UnixStream,
    from: BufReader<UnixStream>,
    _server: Server,
    /// Its path must be short.
    _socket: TempDir,
}

/// What Redis answers, as far as it matters here.
#[derive(Debug, PartialEq)]
enum Reply {
    Line(String),
    Nothing,
    Bytes(Vec<u8>),
}

impl Redis {
    pub(crate) fn start(dir: &Path) -> Option<Self> {
        let connect = |fsync| RedisConnection::start(&dir.join(fsync), fsync);
        Some(Self { always: connect("always")?, everysec: connect("everysec")? })
    }
}

impl RedisConnection {
    fn start(dir: &Path, fsync: &str) -> Option<Self> {
        std::fs::create_dir_all(dir).expect("a directory");
        let socket = tempfile::tempdir().expect("a directory");
        let path = socket.path().join("redis");
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--save", "", "--appendonly", "yes", "--appendfsync", fsync]);
        command.arg("--unixsocket").arg(&path).arg("--dir").arg(dir);
        let server = Server::start(command)?;
        let to = patiently(|| UnixStream::connect(&path).ok());
        let from = BufReader::new(to.try_clone().expect("a second handle"));
        Some(Self { to, from, _server: server, _socket: socket })
    }

    fn ask(&mut self, words: &[&[u8]]) -> Reply {
        let mut text = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            text.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            text.extend_from_slice(word);
            text.extend_from_slice(b"\r\n");
        }
        self.to.write_all(&text).expect("the server listens");
        let mut line = String::new();
        self.from.read_line(&mut line).expect("the server answers");
        let line = line.trim_end();
        match line.split_at(1) {
            ("$" | "*", "-1") => Reply::Nothing,
            ("$", length) => {
                let mut bytes = vec![0; length.parse::<usize>().expect("a length") + 2];
                self.from.read_exact(&mut bytes).expect("the server answers");
                bytes.truncate(bytes.len() - 2);
                Reply::Bytes(bytes)
            }
            ("+" | ":", rest) => Reply::Line(rest.to_owned()),
            _ => panic!("Redis says {line}"),
        }
    }

    fn put(&mut self, key: &str, text: &[u8]) {
        assert_eq!(self.ask(&[b"SET", key.as_bytes(), text]), Reply::Line("OK".into()));
    }

    fn get(&mut self, key: &str) -> Vec<u8> {
        match self.ask(&[b"GET", key.as_bytes()]) {
            Reply::Bytes(text) => text,
            other => panic!("Redis says {other:?}"),
        }
    }

    /// The way that its manual gives: a name that only one can set and that expires, removed by who
    /// set it.
    fn lock(&mut self, key: &str) {
        let name = format!("lock:{key}");
        let answer = self.ask(&[b"SET", name.as_bytes(), b"token", b"NX", b"PX", b"30000"]);
        assert_eq!(answer, Reply::Line("OK".into()));
    }

    fn unlock(&mut self, key: &str) {
        const IF_MINE: &[u8] =
            b"if redis.call('get',KEYS[1])==ARGV[1] then return redis.call('del',KEYS[1]) else return 0 end";
        let name = format!("lock:{key}");
        let answer = self.ask(&[b"EVAL", IF_MINE, b"1", name.as_bytes(), b"token"]);
        assert_eq!(answer, Reply::Line("1".into()));
    }
}

impl Peer for Redis {
    fn about(&self) -> About {
        About {
            name: "Redis",
            writers: "yes, through the server",
            compared: "a server on a Unix socket that has all in memory and appends to a log. Durable is \
                       `appendfsync always`, relaxed `everysec`, which may lose a second at a power loss. Lock: `SET NX PX` and a script, the holder's death unseen \
                       until it expires",
        }
    }

    fn job(&mut self, work: Work) -> Option<Job<'_>> {
        let Self { always, everysec } = self;
        Some(match work {
            Work::Put(Durability::Full) => Box::new(|key, value| always.put(key, &encode(value))),
            Work::Put(Durability::Relaxed) => Box::new(|key, value| everysec.put(key, &encode(value))),
            Work::Get => Box::new(|key, _| {
                black_box(decode(&everysec.get(key)).number);
            }),
            Work::Exists => Box::new(|key, _| {
                assert_eq!(everysec.ask(&[b"EXISTS", key.as_bytes()]), Reply::Line("1".into()));
            }),
            Work::Lock => Box::new(|key, _| {
                everysec.lock(key);
                everysec.unlock(key);
            }),
            Work::Update => Box::new(|key, _| {
                everysec.lock(key);
                let text = everysec.get(key);
                everysec.put(key, &changed(&text));
                everysec.unlock(key);
            }),
        })
    }
}

// ---- etcd.

/// A cluster of one, spoken to in JSON over HTTP.
pub(crate) struct Etcd {
    to: TcpStream,
    from: BufReader<TcpStream>,
    _server: Server,
}

fn coded(bytes: impl AsRef<[u8]>) -> String {
    BASE64_STANDARD.encode(bytes)
}

impl Etcd {
    pub(crate) fn start(dir: &Path) -> Option<Self> {
        // Free now, and so hardly taken in the next moment.
        let [clients, peers] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
        let [client, peer] = [&clients, &peers].map(|it| it.local_addr().expect("an address"));
        drop((clients, peers));
        let [client_url, peer_url] = [client, peer].map(|it| format!("http://{it}"));
        let mut command = Command::new("etcd");
        command.arg("--data-dir").arg(dir.join("data"));
        command.args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url]);
        command.args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url]);
        command.args(["--initial-cluster", &format!("default={peer_url}")]);
        let server = Server::start(command)?;
        let to = patiently(|| TcpStream::connect(client).ok());
        to.set_nodelay(true).expect("a setting");
        let from = BufReader::new(to.try_clone().expect("a second handle"));
        let mut etcd = Self { to, from, _server: server };
        // It listens before it has elected itself: the first request waits for that.
        etcd.ask("range", &json!({ "key": coded("none") }));
        Some(etcd)
    }

    fn ask(&mut self, what: &str, body: &Value) -> Value {
        let body = body.to_string();
        let length = body.len();
        let head = format!("POST /v3/kv/{what} HTTP/1.1\r\nHost: etcd\r\nContent-Length: {length}\r\n\r\n");
        self.to.write_all([head, body].concat().as_bytes()).expect("the server listens");
        let status = self.line();
        let mut length = None;
        loop {
            let line = self.line().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = Some(value.parse::<usize>().expect("a length"));
            }
        }
        let mut answer = vec![0; length.expect("a body of known length")];
        self.from.read_exact(&mut answer).expect("the server answers");
        assert_eq!(status, "HTTP/1.1 200 OK", "{}", String::from_utf8_lossy(&answer));
        serde_json::from_slice(&answer).expect("JSON")
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.from.read_line(&mut line).expect("the server answers");
        line.truncate(line.trim_end().len());
        line
    }

    fn put(&mut self, key: &str, text: &[u8]) {
        self.ask("put", &json!({ "key": coded(key), "value": coded(text) }));
    }

    /// The value, and the revision that wrote it.
    fn get(&mut self, key: &str) -> (Vec<u8>, Value) {
        let mut answer = self.ask("range", &json!({ "key": coded(key) }));
        let found = answer["kvs"][0].take();
        let text = BASE64_STANDARD.decode(found["value"].as_str().expect("a value")).expect("base 64");
        (text, found["mod_revision"].clone())
    }

    /// Puts if the comparison holds.
    fn put_if(&mut self, compare: &Value, key: &str, text: &[u8]) {
        let put = json!({ "request_put": { "key": coded(key), "value": coded(text) } });
        let answer = self.ask("txn", &json!({ "compare": [compare], "success": [put] }));
        assert_eq!(answer["succeeded"], true);
    }
}

impl Peer for Etcd {
    fn about(&self) -> About {
        About {
            name: "etcd",
            writers: "yes, through the server, also from other hosts",
            compared: "a cluster of one on the loopback, by its JSON gateway. It syncs every change: there is \
                       no relaxed, and lock and read-modify-write are durable. Lock: created in a transaction \
                       and deleted; read-modify-write: a transaction that compares the revision",
        }
    }

    fn job(&mut self, work: Work) -> Option<Job<'_>> {
        Some(match work {
            Work::Put(Durability::Full) => Box::new(|key, value| self.put(key, &encode(value))),
            Work::Put(Durability::Relaxed) => return None,
            Work::Get => Box::new(|key, _| {
                black_box(decode(&self.get(key).0).number);
            }),
            Work::Exists => Box::new(|key, _| {
                let answer = self.ask("range", &json!({ "key": coded(key), "count_only": true }));
                assert_eq!(answer["count"], "1");
            }),
            Work::Lock => Box::new(|key, _| {
                let name = format!("lock/{key}");
                let absent = json!({ "key": coded(&name), "target": "CREATE", "create_revision": "0" });
                self.put_if(&absent, &name, b"token");
                self.ask("deleterange", &json!({ "key": coded(&name) }));
            }),
            Work::Update => Box::new(|key, _| {
                let (text, revision) = self.get(key);
                let same = json!({ "key": coded(key), "target": "MOD", "mod_revision": revision });
                self.put_if(&same, key, &changed(&text));
            }),
        })
    }
}
