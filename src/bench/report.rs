//! Report: the medians of a run, as a table for people and as JSON for programs.

use std::fmt;

use serde::{Serialize, Serializer};

/// What a figure is measured in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "they say it")]
pub enum Unit {
    Count,
    Seconds,
    Milliseconds,
    Microseconds,
    Kibibytes,
    Percent,
}

/// What came of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Names of the targets, in the order of the columns.
    pub targets: Vec<String>,
    /// The figures.
    pub rows: Vec<Row>,
}

/// One figure, for each target.
#[derive(Debug, Serialize)]
pub struct Row {
    /// What it says.
    pub figure: &'static str,
    /// In what.
    pub unit: Unit,
    /// For each target.
    pub values: Vec<Samples>,
}

/// The figures of the rounds; none where it cannot be measured.
#[derive(Debug, Clone, Default)]
pub struct Samples(Vec<f64>);

/// Where figures of one target go.
#[derive(Debug)]
pub struct Column<'a> {
    report: &'a mut Report,
    index: usize,
}

/// Times, sorted.
#[derive(Debug)]
pub struct Times(Vec<f64>);

// === impl Report ===

impl Report {
    /// Without figures.
    pub fn new(targets: impl Iterator<Item = String>) -> Self {
        Self { targets: targets.collect(), rows: Vec::new() }
    }

    /// The column of a target.
    pub fn column(&mut self, index: usize) -> Column<'_> {
        Column { report: self, index }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.targets.iter().map(|name| name.chars().count()).max().unwrap_or_default().max(10);
        let several = self.targets.len() > 1;
        write!(f, "{:28}{:4}", "", "")?;
        self.targets.iter().try_for_each(|name| write!(f, "  {name:>width$}"))?;
        writeln!(f, "{}", if several { "  first to others" } else { "" })?;
        for Row { figure, unit, values } in &self.rows {
            write!(f, "{figure:28}{:>4}", unit.short())?;
            let medians: Vec<_> = values.iter().map(Samples::median).collect();
            for median in &medians {
                match median {
                    Some(median) => write!(f, "  {median:>width$.digits$}", digits = digits(*median))?,
                    None => write!(f, "  {:>width$}", "-")?,
                }
            }
            if let [Some(first), others @ ..] = &medians[..]
                && several
            {
                let ratio = |other: &Option<f64>| match other {
                    Some(other) if *other != 0.0 => format!("  {:.2}", first / other),
                    _ => "  -".to_owned(),
                };
                others.iter().try_for_each(|other| f.write_str(&ratio(other)))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// Three significant ones, as far as they are behind the point.
fn digits(value: f64) -> usize {
    match value.abs() {
        100.0.. => 0,
        10.0.. => 1,
        _ => 2,
    }
}

// === impl Column ===

impl Column<'_> {
    /// Adds the figure of a round.
    pub fn add(&mut self, figure: &'static str, unit: Unit, value: Option<f64>) {
        let rows = &mut self.report.rows;
        let at = rows.iter().position(|row| row.figure == figure).unwrap_or_else(|| {
            let values = vec![Samples::default(); self.report.targets.len()];
            rows.push(Row { figure, unit, values });
            rows.len() - 1
        });
        rows[at].values[self.index].0.extend(value);
    }
}

// === impl Samples ===

impl Samples {
    /// The one in the middle.
    pub fn median(&self) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied()
    }
}

impl Serialize for Samples {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Told<'a> {
            median: Option<f64>,
            rounds: &'a [f64],
        }
        Told { median: self.median(), rounds: &self.0 }.serialize(serializer)
    }
}

// === impl Unit ===

impl Unit {
    fn short(self) -> &'static str {
        match self {
            Self::Count => "",
            Self::Seconds => "s",
            Self::Milliseconds => "ms",
            Self::Microseconds => "us",
            Self::Kibibytes => "KiB",
            Self::Percent => "%",
        }
    }
}

// === impl Times ===

impl Times {
    /// Of these, in seconds.
    pub fn new(mut seconds: Vec<f64>) -> Self {
        seconds.sort_by(f64::total_cmp);
        Self(seconds)
    }

    /// What this share of them is below; 0 without any.
    pub fn at(&self, share: f64) -> f64 {
        let at = (self.0.len() as f64 * share) as usize;
        self.0.get(at.min(self.0.len().saturating_sub(1))).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut report = Report::new(["podgate", "kube-apiserver"].map(str::to_owned).into_iter());
        for (ours, theirs) in [(3.0, 8.0), (1.0, 4.0), (2.0, 16.0)] {
            report.column(0).add("CPU per set-up", Unit::Milliseconds, Some(ours));
            report.column(1).add("CPU per set-up", Unit::Milliseconds, Some(theirs));
        }
        report.column(0).add("CPU while all are idle", Unit::Percent, None);
        report
    }

    #[test]
    fn a_table_has_medians_and_how_the_first_compares() {
        let table = report().to_string();
        let lines: Vec<Vec<_>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["CPU", "per", "set-up", "ms", "2.00", "8.00", "0.25"]);
        assert_eq!(lines[2], ["CPU", "while", "all", "are", "idle", "%", "-", "-"]);
    }

    #[test]
    fn json_has_every_round() {
        let json = serde_json::to_value(report()).unwrap();
        let ours = serde_json::json!({"median": 2.0, "rounds": [3.0, 1.0, 2.0]});
        assert_eq!(json["rows"][0]["values"][0], ours);
        assert_eq!(json["rows"][1]["values"][1], serde_json::json!({"median": null, "rounds": []}));
    }

    #[test]
    fn shares_of_times_are_theirs_and_nothing_else() {
        let times = Times::new((1..=100).rev().map(f64::from).collect());
        assert_eq!((times.at(0.5), times.at(0.99), times.at(1.0)), (51.0, 100.0, 100.0));
        assert_eq!(Times::new(vec![]).at(0.5), 0.0);
    }
}
