//! Measures two operations alternately, so that other load on the machine affects both.
//!
//! A benchmark harness that measures one operation after the other compares two different minutes.
//! Here each pair of runs yields a ratio, and the median of these ratios is the result.

use std::borrow::Cow;
use std::env;
use std::fmt;
use std::time::{Duration, Instant};

use crate::setup::RunMode;

/// Which operation is compared with which floor, and how often.
pub(crate) struct Plan {
    pub(crate) operation: Cow<'static, str>,
    pub(crate) floor: Cow<'static, str>,
    /// The ratio to reach, if there is one.
    pub(crate) target: Option<f64>,
    /// The number of pairs in a full run.
    pub(crate) pairs: usize,
}

/// The result of one comparison.
struct Row {
    plan: Plan,
    operation: Spread,
    floor: Spread,
    /// The quartiles of the paired ratios. The median is the result.
    ratios: [f64; 3],
    pairs: usize,
}

/// The median and the 99th percentile.
struct Spread {
    p50: Duration,
    p99: Duration,
}

/// All comparisons of one run. `Display` formats them as a Markdown table.
pub(crate) struct Table {
    mode: RunMode,
    filter: Option<String>,
    rows: Vec<Row>,
}

/// The number of pairs in a quick run: each order runs once.
const QUICK_PAIRS: usize = 2;

impl Table {
    /// An empty table. The first argument that is not a flag selects the comparisons whose name contains
    /// it.
    pub(crate) fn from_args() -> Self {
        let filter = env::args().skip(1).find(|arg| !arg.starts_with('-'));
        Self { mode: RunMode::from_args(), filter, rows: Vec::new() }
    }

    pub(crate) fn mode(&self) -> RunMode {
        self.mode
    }

    /// How many pairs the plan runs, including those that warm the caches.
    pub(crate) fn runs(&self, plan: &Plan) -> usize {
        let pairs = self.mode.choose(plan.pairs, QUICK_PAIRS);
        pairs + pairs / 10
    }

    /// Runs both sides of a plan alternately. Each receives the number of the run.
    pub(crate) fn compare(
        &mut self,
        plan: Plan,
        mut operation: impl FnMut(usize),
        mut floor: impl FnMut(usize),
    ) {
        self.compare_measured(plan, |run| time(|| operation(run)), |run| time(|| floor(run)));
    }

    /// [`compare`](Self::compare) for two sides that return their time.
    pub(crate) fn compare_measured(
        &mut self,
        plan: Plan,
        mut operation: impl FnMut(usize) -> Duration,
        mut floor: impl FnMut(usize) -> Duration,
    ) {
        if self.filter.as_ref().is_some_and(|filter| !plan.operation.contains(filter.as_str())) {
            return;
        }
        let runs = self.runs(&plan);
        let mut times = Vec::with_capacity(runs);
        for run in 0..runs {
            // The order alternates too: the second may benefit or suffer from the first.
            let (of_operation, of_floor) = if run % 2 == 0 {
                let first = operation(run);
                (first, floor(run))
            } else {
                let first = floor(run);
                (operation(run), first)
            };
            times.push((of_operation, of_floor));
        }
        let warm = times.split_off(runs - self.mode.choose(plan.pairs, QUICK_PAIRS));
        let ratio = |(operation, floor): &(Duration, Duration)| operation.as_secs_f64() / floor.as_secs_f64();
        self.rows.push(Row {
            operation: Spread::of(warm.iter().map(|pair| pair.0)),
            floor: Spread::of(warm.iter().map(|pair| pair.1)),
            ratios: [0.25, 0.5, 0.75].map(|part| quantile(warm.iter().map(ratio), part)),
            pairs: warm.len(),
            plan,
        });
    }
}

impl Spread {
    fn of(times: impl Iterator<Item = Duration> + Clone) -> Self {
        Self { p50: quantile(times.clone(), 0.5), p99: quantile(times, 0.99) }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| operation | median | p99 | compared with | median | p99 | ratio | quartiles | target | pairs |"
        )?;
        writeln!(f, "| --- | --: | --: | --- | --: | --: | --: | --: | --: | --: |")?;
        for Row { plan, operation, floor, ratios: [low, middle, high], pairs } in &self.rows {
            let target = plan.target.map_or_else(|| "-".to_owned(), |target| format!("{target:.2}"));
            writeln!(
                f,
                "| {} | {operation} | {} | {floor} | **{middle:.2}** | {low:.2}–{high:.2} | {target} | {pairs} |",
                plan.operation, plan.floor,
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} | {}", micros(self.p50), micros(self.p99))
    }
}

fn time(run: impl FnOnce()) -> Duration {
    let start = Instant::now();
    run();
    start.elapsed()
}

fn quantile<T: PartialOrd + Copy>(values: impl Iterator<Item = T>, part: f64) -> T {
    let mut sorted: Vec<T> = values.collect();
    sorted.sort_by(|a, b| a.partial_cmp(b).expect("measured values can be ordered"));
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index into a short list"
    )]
    let at = ((sorted.len() - 1) as f64 * part).round() as usize;
    sorted[at]
}

fn micros(time: Duration) -> String {
    format!("{:.1} µs", time.as_secs_f64() * 1e6)
}
