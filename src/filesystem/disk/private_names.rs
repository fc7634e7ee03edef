//! The forms of the names that this crate gives to files in the private directories. A file whose name has another
//! form is not ours: it is neither used nor deleted (I12).

use super::layout::{LOG, LOG_CHECKPOINT, LOG_LATCH, LOG_RECOVERED, LOG_STATE, STAGED};
use super::publish::{KEPT_SEPARATOR, SEPARATOR};

/// One of `00` to `ff`.
pub(crate) fn is_latch(name: &str) -> bool {
    name.len() == 2 && is_hexadecimal(name)
}

/// The paths of the files of the log: its segments, and what is beside them.
pub(crate) fn of_log() -> impl Iterator<Item = String> {
    let segments = (0..SEGMENTS).flat_map(|it| [format!("{LOG}/{it:02}"), format!("{LOG}/claim-{it:02}")]);
    [LOG_STATE, LOG_LATCH, LOG_CHECKPOINT, LOG_RECOVERED].map(str::to_owned).into_iter().chain(segments)
}

/// The name of one of these files.
pub(crate) fn is_of_log(name: &str) -> bool {
    of_log().any(|path| path.strip_prefix(LOG).and_then(|rest| rest.strip_prefix('/')) == Some(name))
}

/// The number of segment files that a log may have.
pub(crate) const SEGMENTS: usize = 16;

/// The id of a process, and random characters: `4242-JpP3qFQZuVfRGPA3`. An owner's name in a lock file or in the
/// event table may be any other, too, because only the names of files that may be deleted have to be proven.
pub(crate) fn is_owner(name: &str) -> bool {
    name.split_once('-').is_some_and(|(process, random)| {
        is_number(process)
            && random.len() == RANDOM_CHARACTERS
            && random.bytes().all(|byte| byte.is_ascii_alphanumeric())
    })
}

/// The random characters in the name of an owner file.
pub(crate) const RANDOM_CHARACTERS: usize = 16;

/// The owner's name in the name of a staged file. `None`: this is no such name.
pub(crate) fn owner_of_staged(name: &str) -> Option<&str> {
    let (owner, rest) = name.split_once(SEPARATOR)?;
    let (number, original) = match rest.split_once(SEPARATOR) {
        Some((number, original)) => (number, Some(original)),
        None => (rest, None),
    };
    // A process without an owner file displaces nothing.
    let is_nameless = || original.is_none() && owner.strip_prefix("new-").is_some_and(is_number);
    (is_hexadecimal(number) && (is_owner(owner) || is_nameless())).then_some(owner)
}

/// Whether this is the name of a staged file, as a path in the private directory.
pub(crate) fn is_staged(path: &str) -> bool {
    let name = path.strip_prefix(STAGED).and_then(|rest| rest.strip_prefix('/'));
    name.is_some_and(|name| !name.contains('/') && owner_of_staged(name).is_some())
}

/// The original name of a file and the time at which it was moved aside: `k.json~20240517T093000.000000000Z`.
pub(crate) fn is_kept(name: &str) -> bool {
    name.rsplit_once(KEPT_SEPARATOR).is_some_and(|(_, stamp)| {
        stamp.ends_with('Z') && stamp.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'T' | b'.' | b'Z'))
    })
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_hexadecimal(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_our_own_form_are_ours() {
        for name in ["00", "7f", "ff"] {
            assert!(is_latch(name), "{name}");
        }
        for name in ["", "0", "000", "FF", "0g", "+1"] {
            assert!(!is_latch(name), "{name}");
        }
        assert!(is_owner("4242-JpP3qFQZuVfRGPA3"));
        for name in ["", "report", "alice", "1-report", "-JpP3qFQZuVfRGPA3", "x-JpP3qFQZuVfRGPA3"] {
            assert!(!is_owner(name), "{name}");
        }
        assert!(!is_owner("4242-JpP3qFQZuVfRGPA3.txt") && !is_owner("4242-JpP3qFQZuVfRGPA34"));

        let own = "4242-JpP3qFQZuVfRGPA3";
        for rest in ["0", "1f", "0.k.json", "a.%2Ek.json"] {
            assert_eq!(owner_of_staged(&format!("{own}.{rest}")), Some(own), "{rest}");
        }
        assert_eq!(owner_of_staged("new-42.0"), Some("new-42"));
        for name in
            ["", "report", "report.txt", "report.0", "1-report.0", "new-42.0.k.json", "new-x.0", "new-42.txt"]
        {
            assert_eq!(owner_of_staged(name), None, "{name}");
        }
        for rest in ["", "txt", ".k.json", "1F"] {
            assert_eq!(owner_of_staged(&format!("{own}.{rest}")), None, "{rest}");
        }
        assert!(is_kept("k.json~20240517T093000.000000000Z") && is_kept("a~b~20240517T093000.000000000Z"));
        assert!(!is_kept("notes.txt") && !is_kept("notes.txt~") && !is_kept("k.json~backup"));
        assert!(!is_kept("k.json~backupZ") && !is_kept("k.json~2024-05-17Z"));
    }
}
