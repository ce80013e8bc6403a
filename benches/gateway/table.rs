//! What was to be reached, and what was.

use std::fmt;
use std::ops::RangeInclusive;

use podgate::bench::report::{Report, Samples};

/// One line.
pub(crate) struct Reach {
    what: String,
    value: Option<f64>,
    within: RangeInclusive<f64>,
}

/// All of them.
pub(crate) struct Reached<'a>(pub(crate) &'a [Reach]);

impl Reach {
    pub(crate) fn within(what: &str, value: Option<f64>, within: RangeInclusive<f64>) -> Self {
        Self { what: what.to_owned(), value, within }
    }
}

impl fmt::Display for Reached<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:44}{:>14}{:>10}", "", "to be reached", "reached")?;
        for Reach { what, value, within } in self.0 {
            let bound = match *within.start() == 0.0 {
                true => format!("<= {:.2}", within.end()),
                false => format!("{} to {}", within.start(), within.end()),
            };
            match value {
                Some(value) => {
                    let mark = if within.contains(value) { "" } else { "  NOT REACHED" };
                    writeln!(f, "{what:44}{bound:>14}{value:>10.2}{mark}")?;
                }
                None => writeln!(f, "{what:44}{bound:>14}{:>10}", "-")?,
            }
        }
        Ok(())
    }
}

/// The median of a figure in that column.
pub(crate) fn median(report: &Report, figure: &str, column: usize) -> Option<f64> {
    report.rows.iter().find(|row| row.figure == figure)?.values.get(column).and_then(Samples::median)
}

/// How the medians of the first two columns compare.
pub(crate) fn find(report: &Report, figure: &str) -> Option<f64> {
    of(report, figure, [0, 1])
}

/// How those of two columns do.
pub(crate) fn of(report: &Report, figure: &str, [one, other]: [usize; 2]) -> Option<f64> {
    Some(median(report, figure, one)? / median(report, figure, other)?)
}

/// The same of what the first two add to the third.
pub(crate) fn added(report: &Report, figure: &str) -> Option<f64> {
    let [one, other, direct] = [0, 1, 2].map(|column| median(report, figure, column));
    let direct = direct?;
    Some((one? - direct) / (other? - direct))
}

/// The one in the middle.
pub(crate) fn middle(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
