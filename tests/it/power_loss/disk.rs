//! A model of a disk: the effects on it, and every tree that it may hold when the power fails.
//!
//! The model is stricter than any file system in use. It guarantees only what POSIX guarantees, and no
//! order, with the exceptions for exchanges and second names:
//!
//! * **A name** (an entry of a directory) that was created, replaced or removed since the last `fsync`
//!   of *that directory* has any of the values that it had since then. Each name is independent. `fsync`
//!   of a file does not cover its names, and `fsync` of a directory does not cover the directory's own
//!   name.
//! * **A rename** is two such changes. Either half may reach the disk without the other, with one
//!   exception: the file cannot lose both names. The old name is gone only if the new one has arrived.
//! * **An exchange of two names** reaches the disk as a whole or not at all. The log is used only where the
//!   kernel can exchange names, and every file system that can do it does it in one transaction of its
//!   journal. This much the store needs of a file system: without it one half could lose a file.
//! * **A second name** of a file (a hard link) arrives only if the first one has arrived, and the first one
//!   is gone only if the second one has arrived: a file system that counts the names of a file orders their
//!   changes.
//! * **The data** of a file that was written since its last `fsync` or `fdatasync` is in any state since
//!   then: before the write, after it, after its first half, or with the new length and zeros in place of
//!   the written data (delayed allocation). A sector of 512 bytes is written whole or not at all. If a file has
//!   several (but not many), each of them is in any state by itself.
//! * **The data of a segment of the log** is written to blocks that exist already, so each write that is not synced
//!   reaches the disk independently of the others: not at all, either half, or the whole.
//! * **A store through a mapped file** is a write that nobody syncs.
//! * **An allocation** for data that the file already has is no change.
//! * **Modes, owners and times** are assumed to be on the disk: the store does not rely on them.
//!
//! Of a file whose names are only those of owner files, or of staged files that say no record's name, the
//! model tries one state of its data and not all: those are swept by name, and nobody reads the files.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::{Arc, Mutex};

use super::content::{Content, SECTOR};
use super::frames;
use super::sequences::KEYS;
use crate::support::dice::Dice;
use crate::support::storm;

/// A file or a directory, as a number. The base directory is the first.
pub(crate) type Node = usize;
pub(crate) const BASE: Node = 0;

/// A change of the disk by one system call.
#[derive(Clone, Debug)]
pub(crate) enum Effect {
    Mkdir {
        dir: Node,
        name: String,
    },
    Create {
        dir: Node,
        name: String,
    },
    Write {
        file: Node,
        offset: usize,
        data: Vec<u8>,
    },
    Truncate {
        file: Node,
        length: usize,
    },
    Sync {
        node: Node,
    },
    /// The whole file system.
    SyncAll,
    Link {
        from: (Node, String),
        to: (Node, String),
    },
    Unlink {
        dir: Node,
        name: String,
    },
    Rename {
        from: (Node, String),
        to: (Node, String),
    },
    Exchange {
        one: (Node, String),
        other: (Node, String),
    },
}

/// A longer file has too many combinations of sectors. A storm tries those of records, too.
fn max_torn_sectors() -> usize {
    if storm(1) > 1 { 4 } else { 2 }
}

/// A path, as a number.
pub(crate) type Path = u32;
/// The directory or the content that a path leads to, as a number. Equal contents have equal numbers.
pub(crate) type Image = u32;
pub(crate) const DIRECTORY: Image = 0;
/// Two paths, with [`IS`] between them, that lead to one file.
pub(crate) const LINK: Image = Image::MAX;
pub(crate) const IS: &str = " is ";

/// A tree that a disk may hold: every path below the base with its image, in a fixed order, so that equal
/// trees are equal lists.
pub(crate) type Tree = [(Path, Image)];

pub(crate) fn is_file(image: Image) -> bool {
    !matches!(image, DIRECTORY | LINK)
}

/// The number of parts of a tree: the files of the first key, those of the second key, the other staged files,
/// and the files of the store itself.
pub(crate) const PARTS: usize = 4;
const STAGED_PART: usize = 2;
const STORE_PART: usize = 3;
/// A segment of the log has something for each key.
const SEGMENT: usize = 4;
const PATH_KINDS: usize = 5;

fn path_kind(path: &str) -> usize {
    let of_key = |key: &str| {
        let latch = crc32fast::hash(key.as_bytes()).to_le_bytes()[0];
        let ends_with = |suffix: &str| path.ends_with(&format!("{key}.{suffix}"));
        path.ends_with(&format!("/{key}.json"))
            || path.ends_with(&format!("/{key}.lock"))
            || path.ends_with(&format!("/latches/{latch:02x}"))
            || path.contains("/.store/staged/") && (ends_with("json") || ends_with("lock"))
    };
    let rest = if path.contains("/.store/staged/") {
        STAGED_PART
    } else if is_segment(path) {
        SEGMENT
    } else {
        STORE_PART
    };
    KEYS.iter().position(|key| of_key(key)).unwrap_or(rest)
}

fn is_segment(path: &str) -> bool {
    path.rsplit_once("/.store/log/")
        .is_some_and(|(_, name)| name.len() == 2 && name.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Gives numbers to paths and contents. All disks share it, so that their trees can be compared.
#[derive(Default)]
pub(crate) struct Interner(Mutex<Interned>);

#[derive(Default)]
struct Interned {
    /// The number of a path is its index here, times [`PATH_KINDS`], plus its kind.
    paths: Vec<Arc<str>>,
    path_numbers: HashMap<Arc<str>, Path>,
    images: Vec<Arc<Content>>,
    image_numbers: HashMap<Arc<Content>, Image>,
    segments: HashMap<Image, Segment>,
}

/// The content of a segment of the log.
#[derive(Clone, Copy)]
struct Segment {
    /// The frames of either key, and the header, as images.
    parts: [Image; 3],
    high: u64,
}

impl Interned {
    fn image(&mut self, content: &Content) -> Image {
        if let Some(&number) = self.image_numbers.get(content) {
            return number;
        }
        let content = Arc::new(content.clone());
        self.images.push(Arc::clone(&content));
        // Starts at 1: zero is for directories.
        let number = u32::try_from(self.images.len()).unwrap();
        self.image_numbers.insert(content, number);
        number
    }

    fn segment(&mut self, image: Image) -> Segment {
        if let Some(segment) = self.segments.get(&image) {
            return *segment;
        }
        let content = self.images[image as usize - 1].clone();
        let [of_a, of_b, header] =
            frames::parts(content.bytes(), KEYS).map(|part| self.image(&Content::new(&part)));
        let segment = Segment { parts: [of_a, of_b, header], high: frames::high(content.bytes()) };
        self.segments.insert(image, segment);
        segment
    }
}

impl Interner {
    pub(crate) fn path(&self, path: &str) -> Path {
        let mut interned = self.0.lock().unwrap();
        if let Some(&number) = interned.path_numbers.get(path) {
            return number;
        }
        let number = u32::try_from(interned.paths.len() * PATH_KINDS + path_kind(path)).unwrap();
        let path = Arc::from(path);
        interned.paths.push(Arc::clone(&path));
        interned.path_numbers.insert(path, number);
        number
    }

    fn image(&self, content: &Content) -> Image {
        self.0.lock().unwrap().image(content)
    }

    pub(crate) fn path_of(&self, number: Path) -> Arc<str> {
        Arc::clone(&self.0.lock().unwrap().paths[number as usize / PATH_KINDS])
    }

    pub(crate) fn content_of(&self, number: Image) -> Arc<Content> {
        Arc::clone(&self.0.lock().unwrap().images[number as usize - 1])
    }

    /// Splits a tree into its parts.
    pub(crate) fn parts(&self, tree: &Tree) -> [Vec<(Path, Image)>; PARTS] {
        let mut parts: [Vec<_>; PARTS] = Default::default();
        let mut interned = self.0.lock().unwrap();
        for &(path, image) in tree {
            let kind = path as usize % PATH_KINDS;
            if kind < PARTS {
                parts[kind].push((path, image));
                continue;
            }
            let [of_a, of_b, header] = interned.segment(image).parts;
            for (part, image) in [(0, of_a), (1, of_b), (STORE_PART, header)] {
                parts[part].push((path, image));
            }
        }
        parts
    }

    /// All numbers that were given are less, as the log in this tree says.
    pub(crate) fn high(&self, tree: &Tree) -> u64 {
        let mut interned = self.0.lock().unwrap();
        let segments = tree.iter().filter(|(path, _)| *path as usize % PATH_KINDS == SEGMENT);
        segments.map(|(_, image)| interned.segment(*image).high).max().unwrap_or(0)
    }
}

/// A disk in use: the newest state of everything, and the states that a power loss may restore.
pub(crate) struct Disk<'a> {
    interner: &'a Interner,
    nodes: Vec<Kind>,
    orders: Vec<Order>,
}

enum Kind {
    Dir {
        path: String,
        names: BTreeMap<String, Name>,
    },
    /// The content, the states that its data may have, and the contents since it was synced.
    File {
        content: Content,
        images: Vec<Image>,
        contents: Vec<Content>,
    },
    Segment {
        content: Content,
        synced: Content,
        pending: Vec<(usize, Vec<u8>)>,
    },
}

/// A name, and its values since the directory was synced, the oldest first.
struct Name {
    path: Path,
    scratch: bool,
    values: Vec<Option<Node>>,
}

/// A change of a name: its directory, the name, and the index among its values.
type Change = (Node, String, usize);

/// The first change reaches the disk only if the second one does.
struct Order {
    first: Change,
    needs: Change,
}

impl<'a> Disk<'a> {
    pub(crate) fn new(interner: &'a Interner) -> Self {
        let base = Kind::Dir { path: String::new(), names: BTreeMap::new() };
        Self { interner, nodes: vec![base], orders: Vec::new() }
    }

    /// A disk that holds this tree.
    pub(crate) fn holding(interner: &'a Interner, tree: &Tree) -> Self {
        let mut disk = Self::new(interner);
        let mut entries: Vec<_> = tree.iter().map(|&(path, image)| (interner.path_of(path), image)).collect();
        entries.sort();
        for (path, image) in entries {
            if image == LINK {
                continue;
            }
            let (above, name) = path.rsplit_once('/').unwrap();
            let names = above.split('/').skip(1);
            let dir = names.fold(BASE, |at, name| disk.lookup(at, name).expect("the directory above"));
            if image == DIRECTORY {
                disk.apply(&Effect::Mkdir { dir, name: name.to_owned() });
                continue;
            }
            disk.apply(&Effect::Create { dir, name: name.to_owned() });
            let file = disk.lookup(dir, name).unwrap();
            let data = interner.content_of(image).to_vec();
            disk.apply(&Effect::Write { file, offset: 0, data });
        }
        for (path, _) in tree.iter().filter(|(_, image)| *image == LINK) {
            let link = interner.path_of(*path);
            let [first, second] = link.split_once(IS).map(<[_; 2]>::from).unwrap().map(|path| {
                let (above, name) = path.rsplit_once('/').unwrap();
                let names = above.split('/').skip(1);
                (names.fold(BASE, |at, name| disk.lookup(at, name).unwrap()), name.to_owned())
            });
            let node = disk.lookup(first.0, &first.1);
            disk.set(second.0, &second.1, node);
        }
        disk.settle();
        disk
    }

    /// The node that a name refers to now.
    pub(crate) fn lookup(&self, dir: Node, name: &str) -> Option<Node> {
        let Kind::Dir { names, .. } = &self.nodes[dir] else { panic!("{name}: not in a directory") };
        names.get(name).and_then(|name| *name.values.last().unwrap())
    }

    /// The content of a file now.
    pub(crate) fn content(&self, file: Node) -> &Content {
        match &self.nodes[file] {
            Kind::File { content, .. } | Kind::Segment { content, .. } => content,
            Kind::Dir { .. } => panic!("not a file"),
        }
    }

    pub(crate) fn is_segment(&self, file: Node) -> bool {
        matches!(self.nodes[file], Kind::Segment { .. })
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
                let kind = if is_segment(&format!("{}/{name}", self.path(*dir))) {
                    let (content, synced) = Default::default();
                    Kind::Segment { content, synced, pending: Vec::new() }
                } else {
                    let content = Content::default();
                    let images = vec![self.interner.image(&content)];
                    Kind::File { images, contents: vec![content.clone()], content }
                };
                self.add(*dir, name, kind);
            }
            Effect::Write { file, offset, data } => self.write(*file, *offset, data),
            Effect::Truncate { file, length } => {
                let Kind::File { content, images, .. } = &mut self.nodes[*file] else { panic!("not a file") };
                content.resize(*length);
                images.push(self.interner.image(content));
            }
            Effect::Sync { node } => self.sync(*node),
            Effect::SyncAll => self.settle(),
            Effect::Link { from, to } => {
                let node = self.lookup(from.0, &from.1).expect("something to link");
                let first = (from.0, from.1.clone(), self.index(from));
                let second = self.set(to.0, &to.1, Some(node));
                let gone = (from.0, from.1.clone(), first.2 + 1);
                self.orders.push(Order { first: second.clone(), needs: first });
                self.orders.push(Order { first: gone, needs: second });
            }
            Effect::Unlink { dir, name } => {
                self.set(*dir, name, None);
            }
            Effect::Rename { from, to } => {
                let node = self.lookup(from.0, &from.1).expect("something to rename");
                let arrived = self.set(to.0, &to.1, Some(node));
                let gone = self.set(from.0, &from.1, None);
                self.orders.push(Order { first: gone, needs: arrived });
            }
            Effect::Exchange { one, other } => {
                let of_one = self.lookup(one.0, &one.1).expect("something to exchange");
                let of_other = self.lookup(other.0, &other.1).expect("something to exchange");
                let one = self.set(one.0, &one.1, Some(of_other));
                let other = self.set(other.0, &other.1, Some(of_one));
                self.orders.push(Order { first: one.clone(), needs: other.clone() });
                self.orders.push(Order { first: other, needs: one });
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

    /// The index of the newest value of a name.
    fn index(&self, (dir, name): &(Node, String)) -> usize {
        let Kind::Dir { names, .. } = &self.nodes[*dir] else { panic!("not a directory") };
        names[name].values.len() - 1
    }

    /// Gives a name a new value.
    fn set(&mut self, dir: Node, name: &str, value: Option<Node>) -> Change {
        let path = format!("{}/{name}", self.path(dir));
        let Kind::Dir { names, .. } = &mut self.nodes[dir] else { panic!("not a directory") };
        let entry = names.entry(name.to_owned()).or_insert_with(|| Name {
            path: self.interner.path(&path),
            scratch: is_scratch(&path),
            values: vec![None],
        });
        entry.values.push(value);
        (dir, name.to_owned(), entry.values.len() - 1)
    }

    fn write(&mut self, file: Node, offset: usize, data: &[u8]) {
        match &mut self.nodes[file] {
            Kind::Dir { .. } => panic!("not a file"),
            Kind::Segment { content, pending, .. } => {
                content.write(offset, data);
                pending.push((offset, data.to_vec()));
            }
            Kind::File { content, images, contents } => {
                let mut whole = content.clone();
                whole.write(offset, data);
                let mut zeros = content.clone();
                zeros.resize(whole.len());
                let mut half = zeros.clone();
                half.write(offset, &data[..half_of(data)]);
                contents.push(whole.clone());
                images.extend([&zeros, &half].map(|content| self.interner.image(content)));
                images.extend(combinations(contents).iter().map(|content| self.interner.image(content)));
                images.push(self.interner.image(&whole));
                *content = whole;
            }
        }
    }

    fn sync(&mut self, node: Node) {
        match &mut self.nodes[node] {
            Kind::File { images, contents, .. } => {
                images.drain(..images.len() - 1);
                contents.drain(..contents.len() - 1);
            }
            Kind::Segment { content, synced, pending } => {
                synced.clone_from(content);
                pending.clear();
            }
            Kind::Dir { names, .. } => {
                let newest: Vec<_> =
                    names.iter().map(|(name, it)| (node, name.clone(), it.values.len() - 1)).collect();
                for change in newest {
                    self.settle_change(&change);
                }
                // The changes that these need have arrived, too.
                while let Some(at) = self.orders.iter().position(|it| it.first.2 == 0) {
                    let needs = self.orders[at].needs.clone();
                    self.settle_change(&needs);
                    self.orders.retain(|it| it.needs.2 > 0);
                }
            }
        }
        for kind in &mut self.nodes {
            if let Kind::Dir { names, .. } = kind {
                names.retain(|_, name| name.values != [None]);
            }
        }
    }

    /// This change of a name, and all before it, are on the disk.
    fn settle_change(&mut self, (dir, name, index): &Change) {
        let Kind::Dir { names, .. } = &mut self.nodes[*dir] else { panic!("not a directory") };
        let Some(entry) = names.get_mut(name) else { return };
        entry.values.drain(..*index);
        for order in &mut self.orders {
            for change in [&mut order.first, &mut order.needs] {
                if (&change.0, &change.1) == (dir, name) {
                    change.2 = change.2.saturating_sub(*index);
                }
            }
        }
        self.orders.retain(|it| it.needs.2 > 0);
    }

    /// One tree that the disk may hold if the power fails now.
    pub(crate) fn tree(&self, arrived: Arrived, dice: &mut Dice) -> Vec<(Path, Image)> {
        let chosen = self.choose_names(arrived, dice);
        let mut found = Vec::new();
        let mut visit = |tree: &Tree| found = tree.to_vec();
        let mut walk = Walk::new(self, 1, &mut visit);
        walk.enter(&chosen);
        let (files, wheels) = walk.wheels();
        let choice: Vec<_> = wheels
            .iter()
            .map(|states| match arrived {
                Arrived::Nothing | Arrived::Names => 0,
                Arrived::Everything | Arrived::Data => states - 1,
                Arrived::Something => dice.index(*states),
            })
            .collect();
        walk.extend_with_links();
        walk.visit(&files, &choice);
        found
    }

    /// A value for each name, such that the changes are in a possible order.
    fn choose_names(&self, arrived: Arrived, dice: &mut Dice) -> HashMap<(Node, &str), usize> {
        let mut chosen = HashMap::new();
        for (dir, kind) in self.nodes.iter().enumerate() {
            let Kind::Dir { names, .. } = kind else { continue };
            for (name, it) in names {
                let index = match arrived {
                    Arrived::Nothing | Arrived::Data => 0,
                    Arrived::Everything | Arrived::Names => it.values.len() - 1,
                    Arrived::Something => dice.index(it.values.len()),
                };
                chosen.insert((dir, name.as_str()), index);
            }
        }
        let is_later = dice.once_in(2);
        // Each step brings the choice nearer to one of the two extremes, which are both possible.
        while let Some(order) = self.orders.iter().find(|it| {
            let has_arrived = |change: &Change| chosen[&(change.0, &*change.1)] >= change.2;
            has_arrived(&it.first) && !has_arrived(&it.needs)
        }) {
            let (change, index) =
                if is_later { (&order.needs, order.needs.2) } else { (&order.first, order.first.2 - 1) };
            chosen.insert((change.0, &change.1), index);
        }
        chosen
    }

    /// Visits every tree that the disk may hold if the power fails now. A tree is visited once for each
    /// combination that leads to it: a value for each name, and a state for the data of each file. Of very many states
    /// of the data, at most `limit` are visited for each combination of names, chosen at random.
    pub(crate) fn each_tree(&self, limit: usize, visit: &mut dyn FnMut(&Tree)) {
        Walk::new(self, limit, visit).names(&mut vec![BASE], 0, None);
    }
}

/// Which of the changes that are not synced have arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrived {
    Nothing,
    Everything,
    /// All names, but no data.
    Names,
    /// All data, but no names.
    Data,
    /// Any.
    Something,
}

/// Whether nobody reads the file of this name.
fn is_scratch(path: &str) -> bool {
    let in_dir = |dir: &str| path.rsplit_once(dir).map(|(_, name)| name);
    in_dir("/.store/owners/").is_some()
        || in_dir("/.store/staged/").is_some_and(|name| name.splitn(3, '.').nth(2).is_none())
}

/// The last of these contents of a file, with each sector from any of them, or zeros where a content is too short.
fn combinations(contents: &[Content]) -> Vec<Content> {
    let contents: Vec<_> = contents.iter().map(Content::to_vec).collect();
    let length = contents.last().map_or(0, Vec::len);
    if !(SECTOR + 1..=max_torn_sectors() * SECTOR).contains(&length) {
        return Vec::new();
    }
    let mut all = vec![Vec::new()];
    for start in (0..length).step_by(SECTOR) {
        let end = length.min(start + SECTOR);
        let of = |content: &Vec<u8>| -> Vec<u8> {
            (start..end).map(|at| content.get(at).copied().unwrap_or(0)).collect()
        };
        let sectors: HashSet<_> = contents.iter().map(of).collect();
        let extended = |before: Vec<u8>| sectors.iter().map(move |sector| [&*before, sector].concat());
        all = all.into_iter().flat_map(extended).collect();
    }
    all.retain(|torn| !contents.contains(torn));
    all.sort_unstable();
    all.iter().map(|torn| Content::new(torn)).collect()
}

/// The length of the first half of a write, in whole sectors.
fn half_of(data: &[u8]) -> usize {
    data.len() / 2 / SECTOR * SECTOR
}

/// A walk over all choices: first the names, from the base downwards, then the data.
struct Walk<'a, 'v> {
    disk: &'a Disk<'a>,
    visit: &'v mut dyn FnMut(&Tree),
    limit: usize,
    /// The index of the value chosen for each visited name.
    chosen: HashMap<(Node, &'a str), usize>,
    tree: Vec<(Path, Image)>,
    /// The files of the tree: the index in the tree, the node, and whether the name is a scratch name.
    files: Vec<(usize, Node, bool)>,
    dice: Dice,
}

impl<'a, 'v> Walk<'a, 'v> {
    fn new(disk: &'a Disk<'a>, limit: usize, visit: &'v mut dyn FnMut(&Tree)) -> Self {
        Self {
            disk,
            visit,
            limit,
            chosen: HashMap::new(),
            tree: Vec::new(),
            files: Vec::new(),
            dice: Dice::new(disk.nodes.len() as u64),
        }
    }

    /// Goes through the whole tree, with these values of the names.
    fn enter(&mut self, chosen: &HashMap<(Node, &'a str), usize>) {
        let (mut dirs, mut at) = (vec![BASE], 0);
        while let Some(&dir) = dirs.get(at) {
            let Kind::Dir { names, .. } = &self.disk.nodes[dir] else { panic!("not a directory") };
            for (text, name) in names {
                let Some(node) = name.values[chosen[&(dir, text.as_str())]] else { continue };
                self.tree.push((name.path, DIRECTORY));
                if let Kind::Dir { .. } = self.disk.nodes[node] {
                    dirs.push(node);
                } else {
                    self.files.push((self.tree.len() - 1, node, name.scratch));
                }
            }
            at += 1;
        }
    }

    /// Chooses values for the names after `last` in the directory at `at`, and in all later directories.
    fn names(&mut self, dirs: &mut Vec<Node>, at: usize, last: Option<&'a str>) {
        use std::ops::Bound::{Excluded, Unbounded};
        let Some(&dir) = dirs.get(at) else { return self.data() };
        let Kind::Dir { names, .. } = &self.disk.nodes[dir] else { panic!("not a directory") };
        let rest = (last.map_or(Unbounded, Excluded), Unbounded);
        let Some((text, name)) = names.range::<str, _>(rest).next() else {
            return self.names(dirs, at + 1, None);
        };
        for (index, &value) in name.values.iter().enumerate() {
            self.chosen.insert((dir, text), index);
            if !self.is_in_order(dir, text) {
                continue;
            }
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

    /// Whether the choice for this name agrees with all that were made before.
    fn is_in_order(&self, dir: Node, name: &str) -> bool {
        let has_arrived = |change: &Change| Some(*self.chosen.get(&(change.0, &*change.1))? >= change.2);
        let is_it = |change: &Change| (change.0, &*change.1) == (dir, name);
        let mut orders = self.disk.orders.iter().filter(|it| is_it(&it.first) || is_it(&it.needs));
        // Of a name in a directory that is lost, nothing is known.
        orders.all(|it| has_arrived(&it.first) != Some(true) || has_arrived(&it.needs) != Some(false))
    }

    /// The numbers of states of the data of each file. One choice per file, even if several names lead to it.
    fn wheels(&self) -> (Vec<(Node, Range<usize>)>, Vec<usize>) {
        let mut files: Vec<(Node, Range<usize>)> = Vec::new();
        let mut wheels = Vec::new();
        for &(_, file, _) in &self.files {
            if files.iter().any(|(known, _)| *known == file) {
                continue;
            }
            let first = wheels.len();
            match &self.disk.nodes[file] {
                Kind::Dir { .. } => panic!("not a file"),
                Kind::Segment { pending, .. } => {
                    wheels.extend(pending.iter().map(|(_, data)| if half_of(data) == 0 { 2 } else { 4 }));
                }
                Kind::File { .. } => wheels.push(self.images(file).len()),
            }
            files.push((file, first..wheels.len()));
        }
        (files, wheels)
    }

    fn extend_with_links(&mut self) {
        let links = self.links();
        self.tree.extend(links);
    }

    fn data(&mut self) {
        let (files, wheels) = self.wheels();
        let combinations = wheels.iter().try_fold(1_usize, |product, wheel| product.checked_mul(*wheel));
        let length = self.tree.len();
        self.extend_with_links();
        if combinations.is_some_and(|combinations| combinations <= self.limit) {
            self.each_choice(&files, &wheels);
        } else {
            self.some_choices(&files, &wheels);
        }
        self.tree.truncate(length);
    }

    /// The states that the data of a file may be in.
    fn images(&self, file: Node) -> Vec<Image> {
        let Kind::File { images, .. } = &self.disk.nodes[file] else { panic!("not a file") };
        if self.files.iter().all(|&(_, other, scratch)| other != file || scratch) {
            return vec![images[images.len() / 2]];
        }
        let mut seen = HashSet::new();
        images.iter().copied().filter(|image| seen.insert(*image)).collect()
    }

    fn each_choice(&mut self, files: &[(Node, Range<usize>)], wheels: &[usize]) {
        let mut choice = vec![0; wheels.len()];
        loop {
            self.visit(files, &choice);
            // Advances to the next combination like an odometer.
            let Some(at) = (0..wheels.len()).find(|&at| choice[at] + 1 < wheels[at]) else { break };
            choice[..at].fill(0);
            choice[at] += 1;
        }
    }

    /// Nothing has arrived, everything has, all but one, only one, and a random sample.
    fn some_choices(&mut self, files: &[(Node, Range<usize>)], wheels: &[usize]) {
        let none = vec![0; wheels.len()];
        let all: Vec<_> = wheels.iter().map(|states| states - 1).collect();
        self.visit(files, &none);
        self.visit(files, &all);
        let mut left = self.limit.saturating_sub(2);
        for (at, states) in wheels.iter().enumerate() {
            for (base, range) in [(&none, 1..*states), (&all, 0..states - 1)] {
                for state in range {
                    let mut choice = base.clone();
                    choice[at] = state;
                    self.visit(files, &choice);
                    left = left.saturating_sub(1);
                }
            }
        }
        for _ in 0..left {
            let choice: Vec<_> = wheels.iter().map(|states| self.dice.index(*states)).collect();
            self.visit(files, &choice);
        }
    }

    fn visit(&mut self, files: &[(Node, Range<usize>)], choice: &[usize]) {
        let images: Vec<_> = files
            .iter()
            .map(|(file, range)| match &self.disk.nodes[*file] {
                Kind::Segment { synced, pending, .. } => {
                    let mut content = synced.clone();
                    for ((offset, data), state) in pending.iter().zip(&choice[range.clone()]) {
                        let written = match (state, half_of(data)) {
                            (0, _) => continue,
                            (1, half) if half > 0 => 0..half,
                            (2, half) if half > 0 => half..data.len(),
                            _ => 0..data.len(),
                        };
                        content.write(offset + written.start, &data[written]);
                    }
                    self.disk.interner.image(&content)
                }
                _ => self.images(*file)[choice[range.start]],
            })
            .collect();
        for &(at, file, _) in &self.files {
            let which = files.iter().position(|(known, _)| *known == file).unwrap();
            self.tree[at].1 = images[which];
        }
        (self.visit)(&self.tree);
    }

    /// The pairs of paths that lead to one file.
    fn links(&self) -> Vec<(Path, Image)> {
        let mut links = Vec::new();
        let path_of = |at: usize| self.disk.interner.path_of(self.tree[at].0);
        for (index, &(at, file, _)) in self.files.iter().enumerate() {
            if let Some((first, ..)) = self.files[..index].iter().find(|(_, other, _)| *other == file) {
                let link = format!("{}{IS}{}", path_of(*first), path_of(at));
                links.push((self.disk.interner.path(&link), LINK));
            }
        }
        links
    }
}
