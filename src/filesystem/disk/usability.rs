//! Whether everyone who may write a store may use each of its files. Otherwise some operations fail for some
//! users, depending on the key.
//!
//! The private directory says who may write the store: its owner and, if its mode says so, its group and all
//! others.

use rustix::fs::Stat;

/// The permissions of a file or a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rights {
    user: u32,
    group: u32,
    mode: u32,
}

/// The use that the operations of the store make of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// It is read, and replaced by a new file.
    Read,
    Write,
    Directory,
}

/// A file that somebody cannot use, and what would help.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unusable {
    pub(crate) whom: &'static str,
    pub(crate) remedy: String,
}

const SETGID: u32 = 0o2000;
const READ: u32 = 4;
const WRITE: u32 = 2;
const SEARCH: u32 = 1;

impl Rights {
    pub(crate) fn of(stat: &Stat) -> Self {
        #[allow(clippy::useless_conversion, reason = "the type of the mode differs between systems")]
        let mode = u32::from(stat.st_mode) & 0o7777;
        Self { user: stat.st_uid, group: stat.st_gid, mode }
    }

    /// Somebody who may write the store but may not use this file, which is in the private directory or in the
    /// one above.
    pub(crate) fn unusable_in(self, private: Self, usage: Use) -> Option<Unusable> {
        let needed = usage.needed();
        // A member of the directory's group, and the owner too if the file is another user's.
        let as_member = if self.group == private.group { self.mode >> 3 } else { self.mode };
        let as_owner = if self.user == private.user { self.mode >> 6 } else { as_member };
        let lacks = |bits: u32| bits & needed != needed;
        let group_writes = private.mode & (WRITE << 3) != 0;
        // In a file of the group, the owner is one of its members.
        let owner_lacks =
            private.user != 0 && lacks(as_owner) && !(group_writes && self.group == private.group);
        let is_shared = group_writes && private.mode & SETGID != 0;
        let lacks_setgid = is_shared && usage == Use::Directory && self.mode & SETGID == 0;
        let group_lacks = group_writes && (lacks(as_member) || lacks_setgid);
        let others_lack = private.mode & WRITE != 0 && lacks(self.mode);
        let whom = if owner_lacks {
            "the owner of the store"
        } else if group_lacks {
            "the group of the store"
        } else if others_lack {
            "a user who may write the store"
        } else {
            return None;
        };
        let mut mode = self.mode | needed << 6;
        if group_writes {
            mode |= needed << 3;
        }
        if private.mode & WRITE != 0 {
            mode |= needed;
        }
        if lacks_setgid {
            mode |= SETGID;
        }
        let right = Self {
            user: if owner_lacks { private.user } else { self.user },
            group: if group_lacks || owner_lacks { private.group } else { self.group },
            mode,
        };
        Some(Unusable { whom, remedy: self.remedy(right) })
    }

    /// Whether the owner of the store's directory may not use the private one.
    pub(crate) fn unusable_for_owner_of(self, root: Self) -> Option<Unusable> {
        self.unusable_in(Self { mode: 0o700, ..root }, Use::Directory)
    }

    fn remedy(self, right: Self) -> String {
        let mut parts = Vec::new();
        if right.user != self.user {
            parts.push(format!("its owner to {}", right.user));
        }
        if right.group != self.group {
            parts.push(format!("its group to {}", right.group));
        }
        if right.mode != self.mode {
            parts.push(format!("its mode to {:o}", right.mode));
        }
        format!("set {}", parts.join(" and "))
    }
}

impl Use {
    fn needed(self) -> u32 {
        match self {
            Use::Read => READ,
            Use::Write => READ | WRITE,
            Use::Directory => READ | WRITE | SEARCH,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: u32 = 0;
    const ANN: u32 = 1000;
    const BOB: u32 = 1001;
    const TEAM: u32 = 50;

    fn rights(user: u32, group: u32, mode: u32) -> Rights {
        Rights { user, group, mode }
    }

    #[test]
    fn files_that_everyone_may_use_are_no_finding() {
        for (private, file, usage) in [
            (rights(ANN, ANN, 0o755), rights(ANN, ANN, 0o600), Use::Write),
            (rights(ANN, ANN, 0o700), rights(ROOT, ROOT, 0o644), Use::Read),
            (rights(ANN, TEAM, 0o2770), rights(BOB, TEAM, 0o660), Use::Write),
            (rights(ANN, TEAM, 0o2770), rights(BOB, TEAM, 0o640), Use::Read),
            (rights(ANN, TEAM, 0o2770), rights(BOB, TEAM, 0o2770), Use::Directory),
            (rights(ANN, TEAM, 0o775), rights(ANN, TEAM, 0o775), Use::Directory),
            (rights(ANN, TEAM, 0o777), rights(BOB, BOB, 0o666), Use::Write),
            // Root may do everything.
            (rights(ROOT, ROOT, 0o755), rights(ANN, ANN, 0o000), Use::Write),
            // A reader may lack the right to read, which is not an error of the store.
            (rights(ANN, TEAM, 0o755), rights(ANN, TEAM, 0o600), Use::Read),
        ] {
            assert_eq!(file.unusable_in(private, usage), None, "{private:?} {file:?}");
        }
    }

    #[test]
    fn whoever_cannot_use_a_file_is_named_with_the_remedy() {
        let owner = "the owner of the store";
        let group = "the group of the store";
        let other = "a user who may write the store";
        for (private, file, usage, whom, remedy) in [
            (
                rights(ANN, ANN, 0o755),
                rights(ROOT, ROOT, 0o644),
                Use::Write,
                owner,
                "set its owner to 1000 and its group to 1000",
            ),
            (
                rights(ANN, ANN, 0o755),
                rights(ROOT, ROOT, 0o600),
                Use::Read,
                owner,
                "set its owner to 1000 and its group to 1000",
            ),
            (rights(ANN, ANN, 0o755), rights(ANN, ANN, 0o000), Use::Read, owner, "set its mode to 400"),
            (rights(ANN, TEAM, 0o2770), rights(BOB, TEAM, 0o600), Use::Read, group, "set its mode to 640"),
            (rights(ANN, TEAM, 0o2775), rights(ANN, TEAM, 0o644), Use::Write, group, "set its mode to 664"),
            (rights(ANN, TEAM, 0o2770), rights(ANN, ANN, 0o660), Use::Read, group, "set its group to 50"),
            (
                rights(ANN, TEAM, 0o2770),
                rights(ANN, TEAM, 0o770),
                Use::Directory,
                group,
                "set its mode to 2770",
            ),
            (rights(ANN, TEAM, 0o777), rights(ANN, TEAM, 0o664), Use::Write, other, "set its mode to 666"),
        ] {
            let expected = Unusable { whom, remedy: remedy.to_owned() };
            assert_eq!(file.unusable_in(private, usage), Some(expected), "{private:?} {file:?}");
        }
    }

    #[test]
    fn the_remedy_helps() {
        // Every combination of a few owners, groups and modes, and of what the remedy changes in them.
        let users = [ROOT, ANN, BOB];
        let modes = [0o000, 0o600, 0o644, 0o664, 0o755, 0o775, 0o777];
        for (user, group, mode) in users.into_iter().flat_map(|user| {
            users.into_iter().flat_map(move |group| modes.into_iter().map(move |mode| (user, group, mode)))
        }) {
            for private_mode in [0o700, 0o755, 0o2770, 0o775, 0o777] {
                let private = rights(ANN, TEAM, private_mode);
                for usage in [Use::Read, Use::Write, Use::Directory] {
                    let file = rights(user, group, mode);
                    let Some(found) = file.unusable_in(private, usage) else { continue };
                    let value = |name: &str, radix| {
                        let (_, rest) = found.remedy.split_once(name)?;
                        u32::from_str_radix(rest.split(' ').next()?, radix).ok()
                    };
                    let right = Rights {
                        user: value("owner to ", 10).unwrap_or(user),
                        group: value("group to ", 10).unwrap_or(group),
                        mode: value("mode to ", 8).unwrap_or(mode),
                    };
                    assert_eq!(right.unusable_in(private, usage), None, "{file:?} in {private:?}: {found:?}");
                }
            }
        }
    }
}
