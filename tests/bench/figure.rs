//! A measured figure beside what it should be.

use std::fmt::Write as _;

/// What a number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Of two rates taken in the same round.
    Ratio,
    /// Milliseconds.
    Milliseconds,
    /// Seconds.
    Seconds,
    /// Operations per second.
    PerSecond,
    /// Millions of bytes.
    Megabytes,
    /// How likely chance alone is to do so, or worse.
    Probability,
}

impl Unit {
    fn show(self, n: f64) -> String {
        match self {
            Unit::Ratio => format!("{n:.2}"),
            Unit::Milliseconds if n < 10.0 => format!("{n:.2} ms"),
            Unit::Milliseconds => format!("{n:.0} ms"),
            Unit::Seconds => format!("{n:.2} s"),
            Unit::PerSecond => format!("{}/s", thousands(n)),
            Unit::Megabytes => format!("{n:.1} MB"),
            Unit::Probability => format!("{n:.3}"),
        }
    }
}

/// Where good begins.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// More is better.
    AtLeast(f64),
    /// Less is better.
    AtMost(f64),
    /// Told for its own sake.
    Informative,
}

/// A figure as it was measured.
#[derive(Clone, Debug)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// What the numbers count.
    pub unit: Unit,
    /// The figure itself: the median of the rounds, unless the note says otherwise.
    pub got: f64,
    /// The lowest and the highest round, unless the note says otherwise.
    pub spread: (f64, f64),
    /// What it should be.
    pub target: Target,
    /// What helps to read it.
    pub note: String,
}

impl Figure {
    /// From one number a round.
    pub fn of_rounds(name: &str, unit: Unit, rounds: &[f64], target: Target, note: String) -> Self {
        let low = rounds.iter().copied().fold(f64::INFINITY, f64::min);
        let high = rounds.iter().copied().fold(0.0, f64::max);
        Figure { name: name.to_owned(), unit, got: median(rounds), spread: (low, high), target, note }
    }

    fn verdict(&self) -> &'static str {
        let good = match self.target {
            Target::AtLeast(n) => self.got >= n,
            Target::AtMost(n) => self.got <= n,
            Target::Informative => return "",
        };
        if good { "ok" } else { "short" }
    }

    fn row(&self) -> [String; 6] {
        let target = match self.target {
            Target::AtLeast(n) => format!(">= {}", self.unit.show(n)),
            Target::AtMost(n) => format!("<= {}", self.unit.show(n)),
            Target::Informative => String::new(),
        };
        let (low, high) = (self.unit.show(self.spread.0), self.unit.show(self.spread.1));
        let spread = format!("{low} - {high}");
        let verdict = self.verdict().to_owned();
        [self.name.clone(), self.unit.show(self.got), spread, target, verdict, self.note.clone()]
    }
}

/// The middle of the numbers.
pub fn median(numbers: &[f64]) -> f64 {
    quantile(numbers, 0.5)
}

/// The number that this part (0 to 1) of all numbers does not exceed.
#[allow(clippy::cast_precision_loss, clippy::cast_sign_loss, reason = "counts far below 2^52")]
pub fn quantile(numbers: &[f64], part: f64) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (part * sorted.len() as f64).ceil().max(1.0) as usize;
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}

/// `12,345`.
#[allow(clippy::cast_sign_loss, reason = "rates are not negative")]
pub fn thousands(n: f64) -> String {
    let digits = (n.round() as u64).to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// All figures as a Markdown table that reads well as plain text.
pub fn table(figures: &[Figure]) -> String {
    let head = ["figure", "got", "spread", "target", "", "note"].map(str::to_owned);
    let rows: Vec<[String; 6]> = std::iter::once(head).chain(figures.iter().map(Figure::row)).collect();
    let mut widths = [0; 6];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for (number, row) in rows.iter().enumerate() {
        for (cell, width) in row.iter().zip(widths) {
            // Into a String: cannot fail.
            let _ = write!(out, "| {cell:width$} ");
        }
        out.push_str("|\n");
        if number == 0 {
            for width in widths {
                let _ = write!(out, "|{}", "-".repeat(width + 2));
            }
            out.push_str("|\n");
        }
    }
    out
}
