//! Several builders, each a process, need the same artifacts. Each artifact is built once, whoever asks
//! first; the others wait for it, and later ones read it. A build that fails stores nothing, and the next
//! builder tries again.
//!
//! ```sh
//! cargo run --example build_cache
//! ```
//!
//! An artifact's key is a hash of what it is built from. So a changed source has another key, and an artifact
//! never has to be invalidated.

use std::collections::BTreeMap;
use std::error::Error;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use std::{env, fs, io, thread};

use record_store::{ErrorKind, FileSystemRecordStore, LockOptions, RecordStoreExt};
use serde::{Deserialize, Serialize};

const BUILDERS: usize = 4;
const SOURCES: [(&str, &str); 5] = [
    ("main", "fn main() { run(parse(args())) }"),
    ("parser", "fn parse(text: &str) -> Tree { … }"),
    ("planner", "fn plan(tree: &Tree) -> Plan { … }"),
    ("runner", "fn run(tree: Tree) { … }"),
    ("report", "fn report(plan: &Plan) { … }"),
];
/// The first build of this source fails.
const FLAKY: &str = "parser";

#[derive(Serialize, Deserialize)]
struct Artifact {
    source: String,
    code: Vec<u8>,
}

/// The outcomes of all requests for one artifact.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
struct Requests {
    built: u32,
    failed: u32,
    hits: u32,
}

fn main() -> Result<(), Box<dyn Error>> {
    // This program starts itself again as its builders: `build_cache NUMBER DIRECTORY`.
    if let [_, number, dir] = &env::args().collect::<Vec<_>>()[..] {
        return builder(number.parse()?, Path::new(dir));
    }
    let dir = tempfile::tempdir()?;
    let dir = dir.path();
    fs::create_dir(dir.join("sources"))?;
    for (name, text) in SOURCES {
        fs::write(dir.join("sources").join(name), text)?;
    }

    println!("First build:");
    run_builders(dir)?;
    let first = report(dir)?;
    assert_eq!(first.len(), SOURCES.len());

    println!("One source has changed:");
    fs::write(dir.join("sources/main"), "fn main() { report(plan(parse(args()))) }")?;
    run_builders(dir)?;
    let second = report(dir)?;
    assert_eq!(second.len(), SOURCES.len() + 1, "only the changed source is built again");

    for (key, requests) in &second {
        assert_eq!(requests.built, 1, "{key} is built once");
        assert_eq!(requests.failed, u32::from(key.contains(FLAKY)), "{key}");
    }
    let hits: u32 = second.values().map(|requests| requests.hits).sum();
    let requested = 2 * BUILDERS * SOURCES.len();
    assert_eq!(hits as usize, requested - second.len(), "all other requests are hits");
    Ok(())
}

/// Starts all builders at once and waits until they have ended.
fn run_builders(dir: &Path) -> Result<(), Box<dyn Error>> {
    let start = |n: usize| Command::new(env::current_exe()?).arg(n.to_string()).arg(dir).spawn();
    let builders = (0..BUILDERS).map(start).collect::<io::Result<Vec<_>>>()?;
    for mut builder in builders {
        if !builder.wait()?.success() {
            return Err("a builder failed".into());
        }
    }
    Ok(())
}

/// Prints all artifacts, and returns how often each was requested.
fn report(dir: &Path) -> record_store::Result<BTreeMap<String, Requests>> {
    let store = FileSystemRecordStore::open(dir.join("cache"))?;
    let mut all = BTreeMap::new();
    for key in store.keys()? {
        let key = key?;
        let Some(artifact) = key.as_str().strip_prefix("artifact/") else { continue };
        let requests = store.read(format!("requests/{artifact}"))?.map(|record| record.result);
        all.insert(artifact.to_owned(), requests.unwrap_or_default());
    }
    for (artifact, Requests { built, failed, hits }) in &all {
        println!("  {artifact:<26} built {built}, failed {failed}, hits {hits}");
    }
    Ok(all)
}

// ---- A builder.

/// Requests all artifacts. Each builder begins with another one.
fn builder(number: usize, dir: &Path) -> Result<(), Box<dyn Error>> {
    let store = FileSystemRecordStore::open(dir.join("cache"))?;
    for (name, _) in SOURCES.iter().cycle().skip(number).take(SOURCES.len()) {
        let text = fs::read_to_string(dir.join("sources").join(name))?;
        let artifact = request(&store, dir, name, &text)?;
        assert_eq!(artifact.code, compile(&text), "the artifact is that of the source");
    }
    Ok(())
}

/// Returns the artifact of a source from the cache, and builds it if it is not there.
fn request(
    store: &FileSystemRecordStore,
    dir: &Path,
    name: &str,
    text: &str,
) -> record_store::Result<Artifact> {
    // For a cache that outlives this program, use a cryptographic hash instead, such as SHA-256.
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    let artifact = format!("{name}-{:016x}", hasher.finish());
    // The lease frees the key if a builder hangs. It is longer than any build takes.
    let options = LockOptions::new().hold_timeout(Duration::from_mins(1));
    loop {
        let mut built = false;
        let outcome = store.get_or_compute(format!("artifact/{artifact}"), options.clone(), || {
            built = true;
            build(dir, name, text)
        });
        let failed = outcome.as_ref().is_err_and(|error| error.kind() == ErrorKind::Other);
        store.update(format!("requests/{artifact}"), LockOptions::new(), |requests: Option<Requests>| {
            let mut requests = requests.unwrap_or_default();
            match (failed, built) {
                (true, _) => requests.failed += 1,
                (false, true) => requests.built += 1,
                (false, false) => requests.hits += 1,
            }
            Ok(requests)
        })?;
        match outcome {
            // Nothing was stored. Perhaps another builder has tried again meanwhile; otherwise this one does.
            Err(error) if failed => println!("  a builder got \"{error}\" and asks again"),
            outcome => return outcome,
        }
    }
}

/// The expensive part. Runs under the lock of the artifact, so in one process at a time.
fn build(dir: &Path, name: &str, text: &str) -> record_store::Result<Artifact> {
    thread::sleep(Duration::from_millis(50));
    // The first build of one source fails: it creates this file, and later ones find it.
    if name == FLAKY && fs::File::create_new(dir.join("failed-once")).is_ok() {
        let error = record_store::Error::new(ErrorKind::Other, "build");
        return Err(error.with_detail(format!("{name}: the compiler ran out of memory")));
    }
    Ok(Artifact { source: name.to_owned(), code: compile(text) })
}

fn compile(text: &str) -> Vec<u8> {
    text.bytes().rev().collect()
}
