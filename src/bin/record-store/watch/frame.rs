//! The content of one screen: a table of locks above a table of records, cut to the window's size.

use record_store::LockInfo;

use super::model::{Model, Written, held};
use crate::format::{age, count, duration, holder, owner_cell};
use crate::style::{Cell, Colour, Style, fit, heading, printable, table};

/// The number of lines that are not table rows: the title, two empty lines and two table headings.
const FIXED_LINES: usize = 5;
/// The width of all columns except key and holder.
const OTHER_COLUMNS: usize = 40;
/// The width of the number of waiters: "` (256 wait)`".
const WAITERS: usize = 11;

/// The lines to draw in a window of the given size.
pub(super) fn frame(
    title: &str,
    model: &Model,
    (rows, columns): (usize, usize),
    style: Style,
) -> Vec<String> {
    let locks = oldest_first(model);
    let lock_count = locks.len() + model.more_locks;
    let counts = count(model.locks.len() + model.more_locks, "lock");
    let counts = format!("{counts}, {}", count(model.count, "record"));
    let head = format!("{}  {counts}  (q quits)", printable(title));
    let mut lines = vec![style.paint(Colour::Heading, &fit(&head, columns)).into_owned(), String::new()];

    let room = rows.saturating_sub(FIXED_LINES);
    let latest = model.latest(room);
    // Each table gets half of the rows, and the rows that the other table does not need.
    let rows_for_locks = lock_count.min(room.saturating_sub(latest.len()).max(room / 2));
    let shown = if lock_count > rows_for_locks { rows_for_locks.saturating_sub(1) } else { rows_for_locks };
    let mut table_of_locks = vec![heading(["LOCK", "OWNER", "HELD FOR", "LEASE", "HOLDER"])];
    let are_awaited = locks.iter().take(shown).any(|lock| waiters(lock) > 0);
    let columns_of_locks = columns.saturating_sub(if are_awaited { WAITERS } else { 0 });
    table_of_locks.extend(locks.iter().take(shown).map(|lock| lock_row(lock, columns_of_locks)));
    lines.extend(table(&table_of_locks, style));
    if lock_count > shown && rows_for_locks > 0 {
        lines.push(format!("… and {} more", lock_count - shown));
    }
    lines.push(String::new());
    let mut table_of_records = vec![heading(["RECORD", "AGE", "SIZE"])];
    let room = room.saturating_sub(rows_for_locks);
    table_of_records.extend(latest.into_iter().take(room).map(|record| record_row(record, columns)));
    lines.extend(table(&table_of_records, style));
    lines.truncate(rows);
    lines
}

/// The holders of all locks.
fn oldest_first(model: &Model) -> Vec<&LockInfo> {
    let mut locks: Vec<&LockInfo> = model.locks.values().flat_map(|lock| held(Some(lock))).collect();
    locks.sort_by(|a, b| a.acquired_at().cmp(&b.acquired_at()).then_with(|| a.key().cmp(b.key())));
    locks
}

fn lock_row(lock: &LockInfo, columns: usize) -> [Cell; 5] {
    let room = columns.saturating_sub(OTHER_COLUMNS);
    let lease = match lock.remaining() {
        Some(left) => Cell::from(duration(left)),
        None => Cell::coloured("none", Colour::Dim),
    };
    let held_for = match waiters(lock) {
        0 => age(lock.acquired_at()).into(),
        waiters => Cell::coloured(format!("{} ({waiters} wait)", age(lock.acquired_at())), Colour::Warning),
    };
    [
        fit(&printable(lock.key().as_str()), room / 2).into_owned().into(),
        owner_cell(lock),
        held_for,
        lease,
        fit(&holder(lock), room.div_ceil(2)).into_owned().into(),
    ]
}

fn waiters(lock: &LockInfo) -> usize {
    lock.waiters().map_or(0, <[_]>::len)
}

fn record_row(record: &Written, columns: usize) -> [Cell; 3] {
    [
        fit(&printable(&record.key), columns.saturating_sub(OTHER_COLUMNS)).into_owned().into(),
        age(record.modified).into(),
        size(record.size).into(),
    ]
}

fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let mut last = (bytes, "B");
    for unit in UNITS {
        if last.0 < 10_000 {
            break;
        }
        last = (last.0 / 1024, unit);
    }
    format!("{} {}", last.0, last.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_has_at_most_four_digits_in_all_units_but_the_largest() {
        let shown = [0, 9_999, 10_000, 20 << 20, u64::MAX].map(size);
        assert_eq!(shown, ["0 B", "9999 B", "9 KiB", "20 MiB", "16777215 TiB"].map(String::from));
    }

    #[test]
    fn a_frame_fits_every_window() {
        for rows in 0..12 {
            for columns in [0, 1, 20, 200] {
                let lines = frame("a title", &Model::default(), (rows, columns), Style::PLAIN);
                assert!(lines.len() <= rows, "{rows}: {lines:?}");
            }
        }
    }
}
