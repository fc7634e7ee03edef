//! Redis, as a client that speaks its protocol.

use std::hint::black_box;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use record_store::Durability;

use super::{Served, Server, retry_until_started};
use crate::work::{About, Job, Peer, Work, changed, decode, encode};

/// One server for each durability.
pub(crate) struct Redis {
    always: RedisConnection,
    everysec: RedisConnection,
}

struct RedisConnection {
    requests: UnixStream,
    replies: BufReader<UnixStream>,
}

/// The kinds of replies that are used here.
#[derive(Debug, PartialEq)]
enum Reply {
    Line(String),
    Nothing,
    Bytes(Vec<u8>),
}

impl Redis {
    /// `None` if the server is not installed.
    pub(crate) fn start(dir: &Path) -> Option<Served<Self>> {
        // In a temporary directory, because the path of a socket must be short.
        let place = tempfile::tempdir().expect("a directory");
        let start = |fsync| start(&dir.join(fsync), &place.path().join(fsync), fsync);
        let servers = vec![start("always")?, start("everysec")?];
        Some(Served { client: Self::connect(place.path()), _servers: servers, place })
    }

    /// A client of the servers whose sockets are in this directory.
    pub(crate) fn connect(place: &Path) -> Self {
        let connect = |fsync| RedisConnection::open(&place.join(fsync));
        Self { always: connect("always"), everysec: connect("everysec") }
    }
}

fn start(dir: &Path, socket: &Path, fsync: &str) -> Option<Server> {
    std::fs::create_dir_all(dir).expect("a directory");
    let mut command = Command::new("redis-server");
    command.args(["--port", "0", "--save", "", "--appendonly", "yes", "--appendfsync", fsync]);
    command.arg("--unixsocket").arg(socket).arg("--dir").arg(dir);
    Server::start(command, "redis-server")
}

impl RedisConnection {
    fn open(socket: &Path) -> Self {
        let requests = retry_until_started(|| UnixStream::connect(socket).ok());
        let replies = BufReader::new(requests.try_clone().expect("a second handle"));
        Self { requests, replies }
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
