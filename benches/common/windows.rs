//! Several processes that run one operation as often as they can, in windows of equal length.
//!
//! The groups that are compared take turns, in a different order in each round, so that other load on the
//! machine affects all of them. A round yields a ratio of two groups, and the median of these ratios counts.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::children::{ChildProcess, receive, send};
use crate::setup::RunMode;

/// The length of a window, and how many of them each group runs.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) window: Duration,
    pub(crate) rounds: usize,
    /// Whether the file system is synced before each window.
    synced: bool,
}

impl Plan {
    pub(crate) fn new(mode: RunMode, window: Duration, rounds: usize) -> Self {
        let quick = Self { window: Duration::from_millis(20), rounds: 1, synced: false };
        mode.choose(Self { window, rounds, synced: true }, quick)
    }
}

/// The processes that do the same work at the same time, and what they did in each window.
pub(crate) struct Group {
    processes: Vec<ChildProcess>,
    /// The operations of all windows, also of those that are not counted.
    pub(crate) total: u64,
    /// The operations per second of all processes together, by window.
    rates: Vec<f64>,
    /// The most operations of a process divided by the fewest, by window.
    spreads: Vec<f64>,
}

impl Group {
    /// Starts the processes one after the other: the first one creates what the others open.
    pub(crate) fn start(role: &str, place: &Path, count: usize) -> Self {
        let start = || {
            let mut process = ChildProcess::start(role, place);
            assert_eq!(process.receive(), "ready");
            process
        };
        let processes = (0..count).map(|_| start()).collect();
        Self { processes, total: 0, rates: Vec::new(), spreads: Vec::new() }
    }

    /// Runs a window in all processes. Returns their rate and their spread.
    fn run(&mut self, window: Duration) -> (f64, f64) {
        for process in &mut self.processes {
            process.send(&window.as_nanos().to_string());
        }
        let (mut rate, mut most, mut fewest) = (0.0, 0, u32::MAX);
        for process in &mut self.processes {
            let answer = process.receive();
            let (done, seconds) = answer.split_once(' ').expect("a count and a time");
            let done: u32 = done.parse().expect("a count");
            rate += f64::from(done) / seconds.parse::<f64>().expect("a time");
            (most, fewest) = (most.max(done), fewest.min(done));
            self.total += u64::from(done);
        }
        (rate, f64::from(most) / f64::from(fewest))
    }

    pub(crate) fn rate(&self) -> f64 {
        median(self.rates.iter().copied())
    }

    pub(crate) fn spread(&self) -> f64 {
        median(self.spreads.iter().copied())
    }

    /// The median of the ratios of the two rates in the same round.
    pub(crate) fn ratio_to(&self, other: &Self) -> f64 {
        median(self.rates.iter().zip(&other.rates).map(|(own, other)| own / other))
    }

    /// Ends the processes.
    pub(crate) fn finish(&mut self) {
        self.processes.drain(..).for_each(ChildProcess::finish);
    }
}

/// Runs the windows of all groups, which use files in this directory. The first round is not counted,
/// because it creates the files.
pub(crate) fn alternate(groups: &mut [Group], plan: Plan, dir: &Path) {
    let dir = File::open(dir).expect("the directory opens");
    let mut order: Vec<usize> = (0..groups.len()).collect();
    for round in 0..=plan.rounds {
        shuffle(&mut order, round as u64);
        for &at in &order {
            if plan.synced {
                // Otherwise this group would pay for the writes that its predecessor has left to the kernel.
                rustix::fs::syncfs(&dir).expect("all is on the disk");
            }
            let (rate, spread) = groups[at].run(plan.window);
            if round > 0 {
                groups[at].rates.push(rate);
                groups[at].spreads.push(spread);
            }
        }
    }
    groups.iter_mut().for_each(Group::finish);
}

/// In a child process: runs the operation in each window that the parent asks for. It receives the number of
/// its run.
pub(crate) fn serve(mut operation: impl FnMut(usize)) {
    send("ready");
    let mut run = 0;
    while let Some(window) = receive() {
        let window = Duration::from_nanos(window.parse().expect("a time"));
        let (start, first) = (Instant::now(), run);
        // At least once, so that the spread is a number.
        while run == first || start.elapsed() < window {
            operation(run);
            run += 1;
        }
        send(&format!("{} {}", run - first, start.elapsed().as_secs_f64()));
    }
}

/// A different order in each round. In a fixed order, each would always find the caches and the disk as the
/// same predecessor leaves them.
pub(crate) fn shuffle(order: &mut [usize], seed: u64) {
    let mut state = seed;
    for last in (1..order.len()).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let other = usize::try_from(state >> 33).expect("31 bits") % (last + 1);
        order.swap(last, other);
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
