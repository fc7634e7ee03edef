//! Peers that run as a server process. Each server is started for this run on its own socket, and is
//! killed at its end, also after a panic.

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

/// Far longer than a server needs to start.
const START_TIMEOUT: Duration = Duration::from_secs(30);

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

/// Retries until the attempt succeeds: a server needs some time before it listens.
fn retry_until_started<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(done) = attempt() {
            return done;
        }
        assert!(start.elapsed() < START_TIMEOUT, "the server does not answer");
        std::thread::sleep(Duration::from_millis(10));
    }
}

// ---- Redis.

/// One server for each durability.
pub(crate) struct Redis {
    always: RedisConnection,
    everysec: RedisConnection,
}

struct RedisConnection {
    requests: UnixStream,
    replies: BufReader<UnixStream>,
    _server: Server,
    /// In a temporary directory, because the path of a socket must be short.
    _socket: TempDir,
}

/// The kinds of replies that are used here.
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
        let requests = retry_until_started(|| UnixStream::connect(&path).ok());
        let replies = BufReader::new(requests.try_clone().expect("a second handle"));
        Some(Self { requests, replies, _server: server, _socket: socket })
    }

    fn request(&mut self, words: &[&[u8]]) -> Reply {
        let mut text = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            text.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            text.extend_from_slice(word);
            text.extend_from_slice(b"\r\n");
        }
        self.requests.write_all(&text).expect("the server listens");
        let mut line = String::new();
        self.replies.read_line(&mut line).expect("the server answers");
        let line = line.trim_end();
        match line.split_at(1) {
            ("$" | "*", "-1") => Reply::Nothing,
            ("$", length) => {
                let mut bytes = vec![0; length.parse::<usize>().expect("a length") + 2];
                self.replies.read_exact(&mut bytes).expect("the server answers");
                bytes.truncate(bytes.len() - 2);
                Reply::Bytes(bytes)
            }
            ("+" | ":", rest) => Reply::Line(rest.to_owned()),
            _ => panic!("unexpected reply from Redis: {line}"),
        }
    }

    fn put(&mut self, key: &str, text: &[u8]) {
        assert_eq!(self.request(&[b"SET", key.as_bytes(), text]), Reply::Line("OK".into()));
    }

    fn get(&mut self, key: &str) -> Vec<u8> {
        match self.request(&[b"GET", key.as_bytes()]) {
            Reply::Bytes(text) => text,
            other => panic!("unexpected reply from Redis: {other:?}"),
        }
    }

    /// As its manual recommends: a name that only one client can set and that expires. Only the client
    /// that has set it removes it.
    fn lock(&mut self, key: &str) {
        let name = format!("lock:{key}");
        let answer = self.request(&[b"SET", name.as_bytes(), b"token", b"NX", b"PX", b"30000"]);
        assert_eq!(answer, Reply::Line("OK".into()));
    }

    fn unlock(&mut self, key: &str) {
        const DELETE_IF_OWNED: &[u8] =
            b"if redis.call('get',KEYS[1])==ARGV[1] then return redis.call('del',KEYS[1]) else return 0 end";
        let name = format!("lock:{key}");
        let answer = self.request(&[b"EVAL", DELETE_IF_OWNED, b"1", name.as_bytes(), b"token"]);
        assert_eq!(answer, Reply::Line("1".into()));
    }
}

impl Peer for Redis {
    fn about(&self) -> About {
        About {
            name: "Redis",
            writers: "yes, through the server",
            compared: "a server on a Unix socket that keeps all data in memory and appends to a log. Durable is \
                       `appendfsync always`; relaxed is `everysec`, which may lose a second at a power loss. \
                       Lock: `SET NX PX` and a script; the death of the holder is not noticed before the lock \
                       expires",
        }
    }

    fn job(&mut self, work: Work) -> Option<Job<'_>> {
        let Self { always, everysec } = self;
        Some(match work {
            Work::Put(Durability::Full) => Box::new(|key, value| always.put(key, &encode(value))),
            Work::Put(_) => Box::new(|key, value| everysec.put(key, &encode(value))),
            Work::Get => Box::new(|key, _| {
                black_box(decode(&everysec.get(key)).number);
            }),
            Work::Exists => Box::new(|key, _| {
                assert_eq!(everysec.request(&[b"EXISTS", key.as_bytes()]), Reply::Line("1".into()));
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

/// A cluster with one member. Requests are JSON over HTTP.
pub(crate) struct Etcd {
    requests: TcpStream,
    replies: BufReader<TcpStream>,
    _server: Server,
}

fn base64(bytes: impl AsRef<[u8]>) -> String {
    BASE64_STANDARD.encode(bytes)
}

impl Etcd {
    pub(crate) fn start(dir: &Path) -> Option<Self> {
        // The ports are free now, and probably still free when the server starts.
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
        let requests = retry_until_started(|| TcpStream::connect(client).ok());
        requests.set_nodelay(true).expect("a setting");
        let replies = BufReader::new(requests.try_clone().expect("a second handle"));
        let mut etcd = Self { requests, replies, _server: server };
        // The server listens before it has elected itself. The first request waits for the election.
        etcd.request("range", &json!({ "key": base64("none") }));
        Some(etcd)
    }

    fn request(&mut self, what: &str, body: &Value) -> Value {
        let body = body.to_string();
        let length = body.len();
        let head = format!("POST /v3/kv/{what} HTTP/1.1\r\nHost: etcd\r\nContent-Length: {length}\r\n\r\n");
        self.requests.write_all([head, body].concat().as_bytes()).expect("the server listens");
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
        self.replies.read_exact(&mut answer).expect("the server answers");
        assert_eq!(status, "HTTP/1.1 200 OK", "{}", String::from_utf8_lossy(&answer));
        serde_json::from_slice(&answer).expect("JSON")
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.replies.read_line(&mut line).expect("the server answers");
        line.truncate(line.trim_end().len());
        line
    }

    fn put(&mut self, key: &str, text: &[u8]) {
        self.request("put", &json!({ "key": base64(key), "value": base64(text) }));
    }

    /// The value, and the revision that wrote it.
    fn get(&mut self, key: &str) -> (Vec<u8>, Value) {
        let mut answer = self.request("range", &json!({ "key": base64(key) }));
        let found = answer["kvs"][0].take();
        let text = BASE64_STANDARD.decode(found["value"].as_str().expect("a value")).expect("base 64");
        (text, found["mod_revision"].clone())
    }

    /// Stores the value if the comparison is true.
    fn put_if(&mut self, compare: &Value, key: &str, text: &[u8]) {
        let put = json!({ "request_put": { "key": base64(key), "value": base64(text) } });
        let answer = self.request("txn", &json!({ "compare": [compare], "success": [put] }));
        assert_eq!(answer["succeeded"], true);
    }
}

impl Peer for Etcd {
    fn about(&self) -> About {
        About {
            name: "etcd",
            writers: "yes, through the server, also from other hosts",
            compared: "a cluster with one member on the loopback interface, through its JSON gateway. It syncs \
                       every change: there is no relaxed write, and lock and read-modify-write are durable. Lock: \
                       a key that is created in a transaction and deleted; read-modify-write: a transaction that compares the revision",
        }
    }

    fn job(&mut self, work: Work) -> Option<Job<'_>> {
        Some(match work {
            Work::Put(Durability::Full) => Box::new(|key, value| self.put(key, &encode(value))),
            Work::Put(_) => return None,
            Work::Get => Box::new(|key, _| {
                black_box(decode(&self.get(key).0).number);
            }),
            Work::Exists => Box::new(|key, _| {
                let answer = self.request("range", &json!({ "key": base64(key), "count_only": true }));
                assert_eq!(answer["count"], "1");
            }),
            Work::Lock => Box::new(|key, _| {
                let name = format!("lock/{key}");
                let absent = json!({ "key": base64(&name), "target": "CREATE", "create_revision": "0" });
                self.put_if(&absent, &name, b"token");
                self.request("deleterange", &json!({ "key": base64(&name) }));
            }),
            Work::Update => Box::new(|key, _| {
                let (text, revision) = self.get(key);
                let same = json!({ "key": base64(key), "target": "MOD", "mod_revision": revision });
                self.put_if(&same, key, &changed(&text));
            }),
        })
    }
}
