//! The file `.store/events` as bytes: whether it is a table of waiters, or a file of another program.

use std::io;

use super::layout::{self, Opened};

/// 256 counters and 256 slots of 64 bytes each, and one bit per slot.
pub(crate) const SIZE: usize = (256 + 256 + 1) * LINE;

/// A counter, a slot or the bits of all slots.
const LINE: usize = 64;

/// The part of a line that has a meaning in the counters and the bits. The rest of it is never written, so it is
/// zero in every table. Slots have no such rest.
const USED: usize = 32;

/// Whether this file is a table, or the beginning of one. A process that is killed while it creates the table, a
/// full disk and a power loss leave a shorter one. No process leaves a longer one.
pub(crate) fn is_ours(opened: &Opened) -> io::Result<bool> {
    Ok(layout::size(&opened.stat) <= SIZE as u64 && has_zeros(&layout::read_head(opened, SIZE)?))
}

/// Whether the parts that are never written are zero. So short a beginning that it has no such part must be zero
/// everywhere.
fn has_zeros(table: &[u8]) -> bool {
    let used = if table.len() < LINE { 0 } else { USED };
    let is_slot = |line: usize| (256..512).contains(&line);
    table
        .chunks(LINE)
        .enumerate()
        .filter(|(line, _)| !is_slot(*line))
        .all(|(_, bytes)| bytes.iter().skip(used).all(|&byte| byte == 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_table_never_contains_is_foreign() {
        let mut table = vec![0xff; SIZE];
        for line in (0..256).chain([512]) {
            table[line * LINE + USED..(line + 1) * LINE].fill(0);
        }
        assert!(has_zeros(&table));
        for length in [0, 64, 100, 4096, 20_000, SIZE - 1] {
            assert!(has_zeros(&table[..length]), "{length}");
        }
        for length in [1, 32, 63] {
            assert!(!has_zeros(&table[..length]), "{length}");
            assert!(has_zeros(&vec![0; length]), "{length}");
        }
        for at in [USED, LINE - 1, 255 * LINE + USED, 512 * LINE + USED, SIZE - 1] {
            table[at] = b'x';
            assert!(!has_zeros(&table), "{at}");
            table[at] = 0;
        }
    }
}
