//! The value that the benchmarks store.

use serde::{Deserialize, Serialize};

/// Numbers of lines of an invoice: its record has about 300 bytes, and about 100 KB.
pub(crate) const SHORT: usize = 4;
pub(crate) const LONG: usize = 1_950;

#[derive(Serialize, Deserialize)]
pub(crate) struct Invoice {
    pub(crate) number: u64,
    customer: String,
    paid: bool,
    lines: Vec<Line>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Line {
    article: String,
    quantity: u32,
    price: f64,
}

pub(crate) fn invoice(lines: usize) -> Invoice {
    let line = |n| Line { article: format!("article {n:05}"), quantity: 3, price: 19.5 };
    Invoice {
        number: 4_711,
        customer: "Ada Lovelace".into(),
        paid: false,
        lines: (0..lines).map(line).collect(),
    }
}
