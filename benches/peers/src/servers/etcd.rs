//! etcd, as a client of its JSON gateway.

use std::hint::black_box;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use record_store::Durability;
use serde_json::{Value, json};

use super::{Served, Server, retry_until_started};
use crate::work::{About, Job, Peer, Work, changed, decode, encode};

/// A cluster with one member. Requests are JSON over HTTP.
pub(crate) struct Etcd {
    requests: TcpStream,
    replies: BufReader<TcpStream>,
}

/// The name of the file with the address of the server.
const ADDRESS: &str = "address";

fn base64(bytes: impl AsRef<[u8]>) -> String {
    BASE64_STANDARD.encode(bytes)
}

impl Etcd {
    /// `None` if the server is not installed.
    pub(crate) fn start(dir: &Path) -> Option<Served<Self>> {
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
        let servers = vec![Server::start(command, "etcd-server")?];
        let place = tempfile::tempdir().expect("a directory");
        std::fs::write(place.path().join(ADDRESS), client.to_string()).expect("the address is saved");
        Some(Served { client: Self::connect(place.path()), _servers: servers, place })
    }

    /// A client of the server whose address is in this directory.
    pub(crate) fn connect(place: &Path) -> Self {
        let address = std::fs::read_to_string(place.join(ADDRESS)).expect("the address is known");
        let requests = retry_until_started(|| TcpStream::connect(&address).ok());
        requests.set_nodelay(true).expect("a setting");
        let replies = BufReader::new(requests.try_clone().expect("a second handle"));
        let mut etcd = Self { requests, replies };
        // The server listens before it has elected itself. The first request waits for the election.
        etcd.request("range", &json!({ "key": base64("none") }));
        etcd
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
