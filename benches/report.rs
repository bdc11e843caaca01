//! Tables of two sides, their ratio and its target.

/// What a ratio of ours to the floor should be.
#[derive(Clone, Copy)]
pub(crate) enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

/// Whether a target is met, in a word.
pub(crate) fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "missed" }
}

impl Bound {
    fn judge(self, ratio: f64) -> String {
        let (sign, limit, met) = match self {
            Self::AtMost(limit) => ('≤', limit, ratio <= limit),
            Self::AtLeast(limit) => ('≥', limit, ratio >= limit),
        };
        format!("{sign} {limit}x, {}", verdict(met))
    }
}

/// Rows under one title.
pub(crate) struct Table {
    title: &'static str,
    rows: Vec<String>,
}

fn number(value: f64) -> String {
    match value {
        v if v >= 1000.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.3}"),
    }
}

impl Table {
    pub(crate) fn new(title: &'static str) -> Self {
        Self { title, rows: Vec::new() }
    }

    /// A measured value of both sides, ours first.
    pub(crate) fn row(&mut self, what: &str, (ours, floor): (f64, f64), bound: Option<Bound>) {
        let ratio = ours / floor;
        let verdict = bound.map_or_else(String::new, |bound| bound.judge(ratio));
        let (ours, floor) = (number(ours), number(floor));
        self.rows.push(format!("  {what:<28}{ours:>12}{floor:>12}{ratio:>9.2}x  {verdict}"));
    }

    pub(crate) fn print(&self) {
        println!("{}", self.title);
        println!("  {:<28}{:>12}{:>12}{:>10}  target", "", "ours", "floor", "ratio");
        for row in &self.rows {
            println!("{}", row.trim_end());
        }
        println!();
    }
}
