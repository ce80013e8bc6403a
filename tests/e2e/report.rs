//! What came of the cells: a line for each as it ends, and the table of `tests/conformance.md`.

use std::fmt;
use std::process::ExitCode;

use crate::checks::Check;

/// One check of one client at one node.
pub(crate) struct Cell {
    client: String,
    place: String,
    check: String,
    /// Whether the table has it.
    column: bool,
}

pub(crate) enum Outcome {
    Works,
    /// By design, for this reason.
    Cannot(&'static str),
    /// Podgate's answer is Kubernetes' own, which has this code.
    Same(u16),
    /// Not as without podgate, in these words of `docs/differences.md`.
    Differs(&'static str),
    /// It should work and does not, or the other way round.
    Fails(String),
}

#[derive(Default)]
pub(crate) struct Report {
    cells: Vec<(Cell, Outcome)>,
}

// === impl Cell ===

impl Cell {
    pub(crate) fn new(client: &str, place: &str, check: Check) -> Self {
        Self { column: true, ..Self::line(client, place, check.name()) }
    }

    /// One that has its line alone.
    pub(crate) fn line(client: &str, place: &str, check: &str) -> Self {
        Self { client: client.to_owned(), place: place.to_owned(), check: check.to_owned(), column: false }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:24} {:16} {:18}", self.client, self.place, self.check)
    }
}

// === impl Report ===

impl Report {
    /// Prints a cell's line and keeps it for the table.
    pub(crate) fn take(&mut self, cell: Cell, outcome: Outcome) {
        match &outcome {
            Outcome::Works => println!("{cell} works"),
            Outcome::Cannot(reason) => println!("{cell} cannot: {reason}"),
            Outcome::Same(code) => println!("{cell} same: {code}"),
            Outcome::Differs(words) => println!("{cell} differs: {words}"),
            Outcome::Fails(why) => println!("{cell} FAILS: {why}"),
        }
        self.cells.push((cell, outcome));
    }

    pub(crate) fn failed(&self) -> bool {
        self.cells.iter().any(|(_, outcome)| matches!(outcome, Outcome::Fails(_)))
    }

    /// Prints the table; whether all is well.
    pub(crate) fn finish(self) -> ExitCode {
        println!("\n{}", self.table());
        let count = |wanted: fn(&Outcome) -> bool| self.cells.iter().filter(|(_, is)| wanted(is)).count();
        println!(
            "{} cells: {} work, {} cannot by design, {} answers are the same, {} differ as documented, {} fail",
            self.cells.len(),
            count(|is| matches!(is, Outcome::Works)),
            count(|is| matches!(is, Outcome::Cannot(_))),
            count(|is| matches!(is, Outcome::Same(_))),
            count(|is| matches!(is, Outcome::Differs(_))),
            count(|is| matches!(is, Outcome::Fails(_))),
        );
        match self.failed() || self.cells.is_empty() {
            true => ExitCode::FAILURE,
            false => ExitCode::SUCCESS,
        }
    }

    /// A row for each client at each place, in Markdown; the reasons below it.
    fn table(&self) -> String {
        let mut reasons: Vec<&str> = Vec::new();
        let mut rows: Vec<(&str, &str)> = Vec::new();
        for (cell, _) in self.cells.iter().filter(|(cell, _)| cell.column) {
            if !rows.contains(&(&cell.client, &cell.place)) {
                rows.push((&cell.client, &cell.place));
            }
        }
        let columns = Check::ALL.map(Check::name);
        let mut text = format!(
            "| client | node | {} |\n| --- | --- |{}",
            columns.join(" | "),
            " --- |".repeat(columns.len())
        );
        for row in rows {
            text += &format!("\n| {} | {} |", row.0, row.1);
            for column in columns {
                let is_it =
                    |cell: &Cell| (cell.client.as_str(), cell.place.as_str()) == row && cell.check == column;
                text += &match self.cells.iter().find(|(cell, _)| is_it(cell)) {
                    None => " - |".to_owned(),
                    Some((_, Outcome::Works | Outcome::Same(_))) => " yes |".to_owned(),
                    Some((_, Outcome::Fails(_))) => " FAILS |".to_owned(),
                    Some((_, Outcome::Cannot(reason) | Outcome::Differs(reason))) => {
                        let known = reasons.iter().position(|known| known == reason);
                        let number = known.unwrap_or_else(|| {
                            reasons.push(reason);
                            reasons.len() - 1
                        });
                        format!(" no ({}) |", number + 1)
                    }
                };
            }
        }
        text.push('\n');
        for (number, reason) in reasons.iter().enumerate() {
            text += &format!("\n{}. {reason}", number + 1);
        }
        text
    }
}
