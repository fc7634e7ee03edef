//! A model of a disk: the effects on it, and every tree that it may hold when the power fails.
//!
//! The model is stricter than any file system in use. It guarantees only what POSIX guarantees, and no
//! order:
//!
//! * **A name** (an entry of a directory) that was created, replaced or removed since the last `fsync`
//!   of *that directory* has any of the values that it had since then. Each name is independent. `fsync`
//!   of a file does not cover its names, and `fsync` of a directory does not cover the directory's own
//!   name.
//! * **A rename** is two such changes. Either half may reach the disk without the other, with one
//!   exception: the file cannot lose both names. The old name is gone only if the new one has arrived.
//! * **An exchange of two names** is two such changes as well. Each name is independent, without an
//!   exception: until both directories are synced, either name may refer to either file. So both may
//!   refer to the same file, and the other file may be lost.
//! * **The data** of a file that was written since its last `fsync` or `fdatasync` is in any state since
//!   then: before the write, after it, after its first half, or with the new length and zeros in place of
//!   the written data (delayed allocation).
//! * **A store through a mapped file** is a write that nobody syncs.
//! * **An allocation** for data that the file already has is no change.
//! * **Modes, owners and times** are assumed to be on the disk: the store does not rely on them.
//!
//! If a file has names only below `tmp/` or `owners/`, the model tries one state of its data and not all:
//! those directories are swept by name, and nobody reads the files in them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};

use super::sequences::KEYS;

/// A file or a directory, as a number. The base directory is the first.
pub(crate) type Node = usize;
pub(crate) const BASE: Node = 0;

/// A change of the disk by one system call.
#[derive(Clone, Debug)]
pub(crate) enum Effect {
    Mkdir { dir: Node, name: String },
    Create { dir: Node, name: String },
    Write { file: Node, offset: usize, data: Vec<u8> },
    Truncate { file: Node, length: usize },
    Sync { node: Node },
    Link { node: Node, dir: Node, name: String },
    Unlink { dir: Node, name: String },
    Rename { from: (Node, String), to: (Node, String) },
    Exchange { one: (Node, String), other: (Node, String) },
}

/// A path, as a number.
pub(crate) type Path = u32;
/// The directory or the content that a path leads to, as a number. Equal contents have equal numbers.
pub(crate) type Image = u32;
pub(crate) const DIRECTORY: Image = 0;

/// A tree that a disk may hold: every path below the base with its image, in a fixed order, so that equal
/// trees are equal lists.
pub(crate) type Tree = [(Path, Image)];

/// The number of parts of a tree: the files of the first key, those of the second key, the staged files,
/// and the files of the store itself.
pub(crate) const PARTS: usize = 4;
pub(crate) const STORE_PART: usize = 3;

/// The part of the tree that a path belongs to.
pub(crate) fn part_of(path: Path) -> usize {
    path as usize % PARTS
}

fn part(path: &str) -> usize {
    let of_key = |key: &str| {
        let latch = crc32fast::hash(key.as_bytes()).to_le_bytes()[0];
        path.ends_with(&format!("/{key}.json"))
            || path.ends_with(&format!("/{key}.lock"))
            || path.ends_with(&format!("/latches/{latch:02x}"))
    };
    let staged = if path.contains("/.store/tmp/") { 2 } else { STORE_PART };
    KEYS.iter().position(|key| of_key(key)).unwrap_or(staged)
}

/// Gives numbers to paths and contents. All disks share it, so that their trees can be compared.
#[derive(Default)]
pub(crate) struct Interner(Mutex<Interned>);

#[derive(Default)]
struct Interned {
    /// The number of a path is its index here, times [`PARTS`], plus its part of the tree.
    paths: Vec<Arc<str>>,
    path_numbers: HashMap<Arc<str>, Path>,
    images: Vec<Arc<[u8]>>,
    image_numbers: HashMap<Arc<[u8]>, Image>,
    torn: HashSet<Image>,
}

impl Interner {
    pub(crate) fn path(&self, path: &str) -> Path {
        let mut interned = self.0.lock().unwrap();
        if let Some(&number) = interned.path_numbers.get(path) {
            return number;
        }
        let number = u32::try_from(interned.paths.len() * PARTS + part(path)).unwrap();
        let path = Arc::from(path);
        interned.paths.push(Arc::clone(&path));
        interned.path_numbers.insert(path, number);
        number
    }

    fn image(&self, content: &[u8], torn: bool) -> Image {
        let mut interned = self.0.lock().unwrap();
        let number = if let Some(&number) = interned.image_numbers.get(content) {
            number
        } else {
            let content: Arc<[u8]> = Arc::from(content);
            interned.images.push(Arc::clone(&content));
            // Starts at 1: zero is for directories.
            let number = u32::try_from(interned.images.len()).unwrap();
            interned.image_numbers.insert(content, number);
            number
        };
        if torn {
            interned.torn.insert(number);
        }
        number
    }

    pub(crate) fn path_of(&self, number: Path) -> Arc<str> {
        Arc::clone(&self.0.lock().unwrap().paths[number as usize / PARTS])
    }

    pub(crate) fn content_of(&self, number: Image) -> Arc<[u8]> {
        Arc::clone(&self.0.lock().unwrap().images[number as usize - 1])
    }

    /// Whether only the first half of a write arrived.
    pub(crate) fn is_torn(&self, image: Image) -> bool {
        self.0.lock().unwrap().torn.contains(&image)
    }
}

/// A disk in use: the newest state of everything, and the states that a power loss may restore.
pub(crate) struct Disk<'a> {
    interner: &'a Interner,
    nodes: Vec<Kind>,
    renames: Vec<Rename>,
}

enum Kind {
    Dir { path: String, names: BTreeMap<String, Name> },
    File { content: Vec<u8>, images: Vec<Image> },
}

/// A name, and its values since the directory was synced, the oldest first.
struct Name {
    path: Path,
    scratch: bool,
    values: Vec<Option<Node>>,
}

/// A rename that may be half done. Each half has the index of its change among the values of its name.
struct Rename {
    from: (Node, String, usize),
    to: (Node, String, usize),
}

impl<'a> Disk<'a> {
    pub(crate) fn new(interner: &'a Interner) -> Self {
        let base = Kind::Dir { path: String::new(), names: BTreeMap::new() };
        Self { interner, nodes: vec![base], renames: Vec::new() }
    }

    /// The node that a name refers to now.
    pub(crate) fn lookup(&self, dir: Node, name: &str) -> Option<Node> {
        let Kind::Dir { names, .. } = &self.nodes[dir] else { panic!("{name}: not in a directory") };
        names.get(name).and_then(|name| *name.values.last().unwrap())
    }

    /// The content of a file now.
    pub(crate) fn content(&self, file: Node) -> &[u8] {
        let Kind::File { content, .. } = &self.nodes[file] else { panic!("not a file") };
        content
    }

    /// All changes so far have reached the disk, as they do in the course of time.
    pub(crate) fn settle(&mut self) {
        for node in 0..self.nodes.len() {
            self.sync(node);
        }
    }

    pub(crate) fn apply(&mut self, effect: &Effect) {
        match effect {
            Effect::Mkdir { dir, name } => {
                let path = format!("{}/{name}", self.path(*dir));
                self.add(*dir, name, Kind::Dir { path, names: BTreeMap::new() });
            }
            Effect::Create { dir, name } => {
                let empty = self.interner.image(&[], false);
                self.add(*dir, name, Kind::File { content: Vec::new(), images: vec![empty] });
            }
            Effect::Write { file, offset, data } => self.write(*file, *offset, data),
            Effect::Truncate { file, length } => {
                let Kind::File { content, images } = &mut self.nodes[*file] else { panic!("not a file") };
                content.resize(*length, 0);
                images.push(self.interner.image(content, false));
            }
            Effect::Sync { node } => self.sync(*node),
            Effect::Link { node, dir, name } => {
                self.set(*dir, name, Some(*node));
            }
            Effect::Unlink { dir, name } => {
                self.set(*dir, name, None);
            }
            Effect::Rename { from, to } => {
                let node = self.lookup(from.0, &from.1).expect("something to rename");
                let arrived = self.set(to.0, &to.1, Some(node));
                let gone = self.set(from.0, &from.1, None);
                let (from, to) = ((from.0, from.1.clone(), gone), (to.0, to.1.clone(), arrived));
                self.renames.push(Rename { from, to });
            }
            Effect::Exchange { one, other } => {
                let of_one = self.lookup(one.0, &one.1).expect("something to exchange");
                let of_other = self.lookup(other.0, &other.1).expect("something to exchange");
                self.set(one.0, &one.1, Some(of_other));
                self.set(other.0, &other.1, Some(of_one));
            }
        }
    }

    fn path(&self, dir: Node) -> &str {
        let Kind::Dir { path, .. } = &self.nodes[dir] else { panic!("not a directory") };
        path
    }

    fn add(&mut self, dir: Node, name: &str, kind: Kind) {
        self.nodes.push(kind);
        let node = self.nodes.len() - 1;
        self.set(dir, name, Some(node));
    }

    /// Gives a name a new value, and returns the index of the value.
    fn set(&mut self, dir: Node, name: &str, value: Option<Node>) -> usize {
        let path = format!("{}/{name}", self.path(dir));
        let Kind::Dir { names, .. } = &mut self.nodes[dir] else { panic!("not a directory") };
        let name = names.entry(name.to_owned()).or_insert_with(|| {
            let scratch = path.contains("/.store/tmp/") || path.contains("/.store/owners/");
            Name { path: self.interner.path(&path), scratch, values: vec![None] }
        });
        name.values.push(value);
        name.values.len() - 1
    }

    fn write(&mut self, file: Node, offset: usize, data: &[u8]) {
        let Kind::File { content, images } = &mut self.nodes[file] else { panic!("not a file") };
        let patched = |content: &[u8], data: &[u8]| {
            let mut after = content.to_vec();
            after.resize(after.len().max(offset + data.len()), 0);
            after[offset..offset + data.len()].copy_from_slice(data);
            after
        };
        let whole = patched(content, data);
        let mut zeros = content.clone();
        zeros.resize(whole.len(), 0);
        let half = patched(content, &data[..data.len() / 2]);
        images.push(self.interner.image(&zeros, false));
        images.push(self.interner.image(&half, half.iter().any(|&byte| byte != 0)));
        images.push(self.interner.image(&whole, false));
        *content = whole;
    }

    fn sync(&mut self, node: Node) {
        match &mut self.nodes[node] {
            Kind::File { images, .. } => {
                images.drain(..images.len() - 1);
            }
            Kind::Dir { names, .. } => {
                names.retain(|_, name| {
                    name.values.drain(..name.values.len() - 1);
                    name.values != [None]
                });
                self.renames.retain(|rename| rename.to.0 != node);
                for rename in &mut self.renames {
                    if rename.from.0 == node {
                        // The old name is certainly gone.
                        rename.from.2 = 0;
                    }
                }
            }
        }
    }

    /// Visits every tree that the disk may hold if the power fails now. A tree is visited once for each
    /// combination that leads to it: a value for each name, and a state for the data of each file.
    pub(crate) fn each_tree(&self, visit: &mut dyn FnMut(&Tree)) {
        let mut walk =
            Walk { disk: self, visit, chosen: HashMap::new(), tree: Vec::new(), files: Vec::new() };
        walk.names(&mut vec![BASE], 0, None);
    }
}

/// A walk over all choices: first the names, from the base downwards, then the data.
struct Walk<'a, 'v> {
    disk: &'a Disk<'a>,
    visit: &'v mut dyn FnMut(&Tree),
    /// The value chosen for each visited name.
    chosen: HashMap<(Node, &'a str), Option<Node>>,
    tree: Vec<(Path, Image)>,
    /// The files of the tree: the index in the tree, the node, and whether the name is a scratch name.
    files: Vec<(usize, Node, bool)>,
}

impl<'a> Walk<'a, '_> {
    /// Chooses values for the names after `last` in the directory at `at`, and in all later directories.
    fn names(&mut self, dirs: &mut Vec<Node>, at: usize, last: Option<&'a str>) {
        use std::ops::Bound::{Excluded, Unbounded};
        let Some(&dir) = dirs.get(at) else {
            if self.disk.renames.iter().all(|rename| self.allows(rename)) {
                self.data();
            }
            return;
        };
        let Kind::Dir { names, .. } = &self.disk.nodes[dir] else { panic!("not a directory") };
        let rest = (last.map_or(Unbounded, Excluded), Unbounded);
        let Some((text, name)) = names.range::<str, _>(rest).next() else {
            return self.names(dirs, at + 1, None);
        };
        for (position, &value) in name.values.iter().enumerate() {
            if name.values[..position].contains(&value) {
                continue;
            }
            self.chosen.insert((dir, text), value);
            let Some(node) = value else {
                self.names(dirs, at, Some(text));
                continue;
            };
            self.tree.push((name.path, DIRECTORY));
            if let Kind::Dir { .. } = self.disk.nodes[node] {
                dirs.push(node);
                self.names(dirs, at, Some(text));
                dirs.pop();
            } else {
                self.files.push((self.tree.len() - 1, node, name.scratch));
                self.names(dirs, at, Some(text));
                self.files.pop();
            }
            self.tree.pop();
        }
        self.chosen.remove(&(dir, text));
    }

    /// Whether the file still has at least one of the two names of this rename. A chosen value stands for
    /// all the times when the name had that value.
    fn allows(&self, rename: &Rename) -> bool {
        let values = |(dir, name, _): &(Node, String, usize)| {
            let value = *self.chosen.get(&(*dir, name.as_str()))?;
            let Kind::Dir { names, .. } = &self.disk.nodes[*dir] else { return None };
            Some((value, &names.get(name)?.values))
        };
        let gone = match values(&rename.from) {
            Some((value, values)) => values[..rename.from.2].iter().all(|before| *before != value),
            // The disk never saw this name, or its directory is lost.
            None => rename.from.2 == 0 && self.chosen.keys().any(|(dir, _)| *dir == rename.from.0),
        };
        let arrived = values(&rename.to).is_none_or(|(value, values)| values[rename.to.2..].contains(&value));
        !gone || arrived
    }

    fn data(&mut self) {
        // One choice per file, even if several names lead to it.
        let mut open: Vec<(Node, Vec<Image>)> = Vec::new();
        for &(_, file, _) in &self.files {
            let Kind::File { images, .. } = &self.disk.nodes[file] else { panic!("not a file") };
            if open.iter().any(|(known, _)| *known == file) {
                continue;
            }
            let mut choices = images.clone();
            if self.files.iter().all(|&(_, other, scratch)| other != file || scratch) {
                choices = vec![images[images.len() / 2]];
            }
            let mut seen = HashSet::new();
            choices.retain(|image| seen.insert(*image));
            open.push((file, choices));
        }
        let mut choice = vec![0; open.len()];
        loop {
            for &(at, file, _) in &self.files {
                let which = open.iter().position(|(known, _)| *known == file).unwrap();
                self.tree[at].1 = open[which].1[choice[which]];
            }
            (self.visit)(&self.tree);
            // Advances to the next combination like an odometer.
            let Some(wheel) = (0..open.len()).find(|&wheel| choice[wheel] + 1 < open[wheel].1.len()) else {
                break;
            };
            choice[..wheel].fill(0);
            choice[wheel] += 1;
        }
    }
}
