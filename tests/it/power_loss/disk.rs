//! The model of a disk: what was done to it, and everything that it may hold when the power fails.
//!
//! The model is stricter than any file system in use. It grants what POSIX grants, and no order:
//!
//! * **A name** (an entry of a directory) that was made, replaced or removed since the last `fsync`
//!   of *that directory* holds any of the values it had since then, each name on its own. `fsync` of
//!   a file says nothing of its names, and of a directory nothing of the directory's own name.
//! * **A rename** is two such changes, and each half may be there without the other, except that
//!   the file cannot lose both names by it: the old one is gone only if the new one has arrived.
//! * **An exchange of two names** is two such changes as well, and each name falls back on its own,
//!   with no exception: until both directories are synced either name may stand for either file, so
//!   both may stand for one of them, and the other may be lost.
//! * **The data** of a file that was written since its last `fsync` or `fdatasync` is any state that
//!   it was in since then: as before the write, after it, after the first half of it, or with the new
//!   length and zeros where the write was to come (delayed allocation).
//! * **A store through a mapped file** is a write that nobody syncs.
//! * **Room allocated** for what is in a file already is no change.
//! * **Modes, owners and times** are taken to be there: the store does not rely on them.
//!
//! A file that only names below `tmp/` or `owners/` lead to is taken in one state of its data and not
//! in all: those directories are swept by name, and nobody reads what is in there.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};

use super::play::KEYS;

/// A file or a directory. The base directory is the first.
pub(crate) type Node = usize;
pub(crate) const BASE: Node = 0;

/// One change of the disk, as a system call made it.
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
/// What a path leads to, as a number: the same content has the same number.
pub(crate) type Image = u32;
pub(crate) const DIRECTORY: Image = 0;

/// A tree that a disk may hold: every path below the base with what it leads to, in a fixed order, so
/// that equal trees are equal lists.
pub(crate) type Tree = [(Path, Image)];

/// A tree has so many parts: what belongs to the first key, to the second, what is staged, and what
/// the store is made of.
pub(crate) const PARTS: usize = 4;
pub(crate) const THE_STORE: usize = 3;

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
    let staged = if path.contains("/.store/tmp/") { 2 } else { THE_STORE };
    KEYS.iter().position(|key| of_key(key)).unwrap_or(staged)
}

/// Paths and contents, and their numbers. Shared by all disks, so that their trees compare.
#[derive(Default)]
pub(crate) struct Numbers(Mutex<Numbered>);

#[derive(Default)]
struct Numbered {
    /// A path's number is its place here, times [`PARTS`], plus its part of the tree.
    paths: Vec<Arc<str>>,
    path_numbers: HashMap<Arc<str>, Path>,
    images: Vec<Arc<[u8]>>,
    image_numbers: HashMap<Arc<[u8]>, Image>,
    torn: HashSet<Image>,
}

impl Numbers {
    pub(crate) fn path(&self, path: &str) -> Path {
        let mut numbered = self.0.lock().unwrap();
        if let Some(&number) = numbered.path_numbers.get(path) {
            return number;
        }
        let number = u32::try_from(numbered.paths.len() * PARTS + part(path)).unwrap();
        let path = Arc::from(path);
        numbered.paths.push(Arc::clone(&path));
        numbered.path_numbers.insert(path, number);
        number
    }

    fn image(&self, content: &[u8], torn: bool) -> Image {
        let mut numbered = self.0.lock().unwrap();
        let number = if let Some(&number) = numbered.image_numbers.get(content) {
            number
        } else {
            let content: Arc<[u8]> = Arc::from(content);
            numbered.images.push(Arc::clone(&content));
            // Zero is for directories.
            let number = u32::try_from(numbered.images.len()).unwrap();
            numbered.image_numbers.insert(content, number);
            number
        };
        if torn {
            numbered.torn.insert(number);
        }
        number
    }

    pub(crate) fn path_of(&self, number: Path) -> Arc<str> {
        Arc::clone(&self.0.lock().unwrap().paths[number as usize / PARTS])
    }

    pub(crate) fn content_of(&self, number: Image) -> Arc<[u8]> {
        Arc::clone(&self.0.lock().unwrap().images[number as usize - 1])
    }

    /// Whether this is a write of which only the first half arrived.
    pub(crate) fn is_torn(&self, image: Image) -> bool {
        self.0.lock().unwrap().torn.contains(&image)
    }
}

/// A disk in use: the newest state of everything, and which states it may fall back to.
pub(crate) struct Disk<'a> {
    numbers: &'a Numbers,
    nodes: Vec<Kind>,
    renames: Vec<Rename>,
}

enum Kind {
    Dir { path: String, names: BTreeMap<String, Name> },
    File { content: Vec<u8>, images: Vec<Image> },
}

/// The values of a name since the directory was synced, the oldest first.
struct Name {
    path: Path,
    scratch: bool,
    values: Vec<Option<Node>>,
}

/// A rename that may be half done: the position of each half among its name's values.
struct Rename {
    from: (Node, String, usize),
    to: (Node, String, usize),
}

impl<'a> Disk<'a> {
    pub(crate) fn new(numbers: &'a Numbers) -> Self {
        let base = Kind::Dir { path: String::new(), names: BTreeMap::new() };
        Self { numbers, nodes: vec![base], renames: Vec::new() }
    }

    /// What a name stands for now.
    pub(crate) fn lookup(&self, dir: Node, name: &str) -> Option<Node> {
        let Kind::Dir { names, .. } = &self.nodes[dir] else { panic!("{name}: not in a directory") };
        names.get(name).and_then(|name| *name.values.last().unwrap())
    }

    /// What a file holds now.
    pub(crate) fn content(&self, file: Node) -> &[u8] {
        let Kind::File { content, .. } = &self.nodes[file] else { panic!("not a file") };
        content
    }

    /// All that was done so far has reached the disk, as it does in the course of time.
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
                let empty = self.numbers.image(&[], false);
                self.add(*dir, name, Kind::File { content: Vec::new(), images: vec![empty] });
            }
            Effect::Write { file, offset, data } => self.write(*file, *offset, data),
            Effect::Truncate { file, length } => {
                let Kind::File { content, images } = &mut self.nodes[*file] else { panic!("not a file") };
                content.resize(*length, 0);
                images.push(self.numbers.image(content, false));
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

    /// Gives a name a new value, and returns its position.
    fn set(&mut self, dir: Node, name: &str, value: Option<Node>) -> usize {
        let path = format!("{}/{name}", self.path(dir));
        let Kind::Dir { names, .. } = &mut self.nodes[dir] else { panic!("not a directory") };
        let name = names.entry(name.to_owned()).or_insert_with(|| {
            let scratch = path.contains("/.store/tmp/") || path.contains("/.store/owners/");
            Name { path: self.numbers.path(&path), scratch, values: vec![None] }
        });
        name.values.push(value);
        name.values.len() - 1
    }

    fn write(&mut self, file: Node, offset: usize, data: &[u8]) {
        let Kind::File { content, images } = &mut self.nodes[file] else { panic!("not a file") };
        let put = |content: &[u8], data: &[u8]| {
            let mut after = content.to_vec();
            after.resize(after.len().max(offset + data.len()), 0);
            after[offset..offset + data.len()].copy_from_slice(data);
            after
        };
        let whole = put(content, data);
        let mut zeros = content.clone();
        zeros.resize(whole.len(), 0);
        let half = put(content, &data[..data.len() / 2]);
        images.push(self.numbers.image(&zeros, false));
        images.push(self.numbers.image(&half, half.iter().any(|&byte| byte != 0)));
        images.push(self.numbers.image(&whole, false));
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
                        // Certainly gone.
                        rename.from.2 = 0;
                    }
                }
            }
        }
    }

    /// Shows every tree that the disk may hold if the power fails now, each once for every way to
    /// come about: which value each name has, and which state the data of each file.
    pub(crate) fn each_tree(&self, visit: &mut dyn FnMut(&Tree)) {
        let mut walk =
            Walk { disk: self, visit, chosen: HashMap::new(), tree: Vec::new(), files: Vec::new() };
        walk.names(&mut vec![BASE], 0, None);
    }
}

/// A walk over all choices: first of the names, from the base downwards, then of the data.
struct Walk<'a, 'v> {
    disk: &'a Disk<'a>,
    visit: &'v mut dyn FnMut(&Tree),
    /// The value chosen for a name that was come upon.
    chosen: HashMap<(Node, &'a str), Option<Node>>,
    tree: Vec<(Path, Image)>,
    /// Where in the tree there is a file, and which.
    files: Vec<(usize, Node, bool)>,
}

impl<'a> Walk<'a, '_> {
    /// Chooses for the names that come after `last` in the directory at `at`, and in those behind it.
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

    /// Whether the file has not lost both names by this rename. A value that a name had more than
    /// once stands for all the times.
    fn allows(&self, rename: &Rename) -> bool {
        let values = |(dir, name, _): &(Node, String, usize)| {
            let value = *self.chosen.get(&(*dir, name.as_str()))?;
            let Kind::Dir { names, .. } = &self.disk.nodes[*dir] else { return None };
            Some((value, &names.get(name)?.values))
        };
        let gone = match values(&rename.from) {
            Some((value, values)) => values[..rename.from.2].iter().all(|before| *before != value),
            // Nothing ever had this name, as far as the disk knows, or its directory is lost.
            None => rename.from.2 == 0 && self.chosen.keys().any(|(dir, _)| *dir == rename.from.0),
        };
        let arrived = values(&rename.to).is_none_or(|(value, values)| values[rename.to.2..].contains(&value));
        !gone || arrived
    }

    fn data(&mut self) {
        // One choice for each file, however many names lead to it.
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
        let mut turn = vec![0; open.len()];
        loop {
            for &(at, file, _) in &self.files {
                let which = open.iter().position(|(known, _)| *known == file).unwrap();
                self.tree[at].1 = open[which].1[turn[which]];
            }
            (self.visit)(&self.tree);
            // The next combination, as an odometer counts.
            let Some(wheel) = (0..open.len()).find(|&wheel| turn[wheel] + 1 < open[wheel].1.len()) else {
                break;
            };
            turn[..wheel].fill(0);
            turn[wheel] += 1;
        }
    }
}
