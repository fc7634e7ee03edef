//! The results and their tables.

use std::fmt;
use std::time::Duration;

use crate::work::{About, Peer, Workload};

pub(crate) struct Results {
    pub(crate) machine: String,
    pub(crate) peers: Vec<About>,
    pub(crate) rows: Vec<Row>,
}

/// The result of one workload: a cell for each peer, `None` if the peer does not support it.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) cells: Vec<Option<Cell>>,
    rounds: usize,
}

#[derive(Clone, Copy)]
pub(crate) struct Cell {
    pub(crate) median: Duration,
    /// The median of the ratios to the bare system calls in the same round.
    pub(crate) ratio: f64,
}

impl Results {
    pub(crate) fn new(machine: String, peers: &[Box<dyn Peer>]) -> Self {
        let peers = peers.iter().map(|peer| peer.about()).collect();
        Self { machine, peers, rows: Vec::new() }
    }

    /// Adds the times of all peers in one workload. The first peer is the bare system calls.
    pub(crate) fn add(&mut self, workload: &Workload, times: &[Vec<Duration>]) {
        let cell = |own: &Vec<Duration>| {
            let ratios =
                own.iter().zip(&times[0]).map(|(own, floor)| own.as_secs_f64() / floor.as_secs_f64());
            let median_ratio = median(ratios.collect(), f64::total_cmp);
            Some(Cell { median: median(own.clone(), Duration::cmp)?, ratio: median_ratio? })
        };
        let cells = times.iter().map(cell).collect();
        self.rows.push(Row { name: workload.name, cells, rounds: times[0].len() });
    }
}

fn median<T: Copy>(mut values: Vec<T>, order: impl FnMut(&T, &T) -> std::cmp::Ordering) -> Option<T> {
    values.sort_by(order);
    values.get(values.len() / 2).copied()
}

/// A time in microseconds, with about three digits.
pub(crate) fn micros(time: Duration) -> String {
    let micros = time.as_secs_f64() * 1e6;
    if micros < 100.0 { format!("{micros:.1} µs") } else { format!("{micros:.0} µs") }
}

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.rows.iter().map(|row| row.name).collect();
        writeln!(f, "| | {} |", names.join(" | "))?;
        writeln!(f, "| --- |{}", " --: |".repeat(names.len()))?;
        for (at, peer) in self.peers.iter().enumerate() {
            let cells = self.rows.iter().map(|row| match row.cells[at] {
                Some(cell) if at > 0 => format!("{} ({:.2}×)", micros(cell.median), cell.ratio),
                Some(cell) => micros(cell.median),
                None => "-".into(),
            });
            writeln!(f, "| {} | {} |", peer.name, cells.collect::<Vec<_>>().join(" | "))?;
        }
        let rounds: Vec<_> = self.rows.iter().map(|row| row.rounds.to_string()).collect();
        writeln!(f, "| rounds | {} |", rounds.join(" | "))?;
        writeln!(f, "\n| | concurrent writers? | what is measured |\n| --- | --- | --- |")?;
        for peer in &self.peers {
            writeln!(f, "| {} | {} | {} |", peer.name, peer.writers, peer.compared)?;
        }
        Ok(())
    }
}
