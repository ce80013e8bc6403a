//! What came of the cells: a line for each as it ends, and the table of `tests/conformance.md`.

use std::fmt;
use std::process::ExitCode;

use crate::checks::Check;
use crate::clients::Client;
use crate::podgate::{Node, Translate};

/// One check of one client at one node.
pub(crate) struct Cell {
    client: String,
    node: String,
    check: Check,
}

pub(crate) enum Outcome {
    Works,
    /// By design, for this reason.
    Cannot(&'static str),
    /// It should work and does not, or the other way round.
    Fails(String),
}

#[derive(Default)]
pub(crate) struct Report {
    cells: Vec<(Cell, Outcome)>,
}

// === impl Cell ===

impl Cell {
    pub(crate) fn new(client: &Client, node: &Node, translate: Translate, check: Check) -> Self {
        let node = match translate {
            Translate::Always => node.name.to_owned(),
            Translate::WhenNeeded => format!("{}, whenNeeded", node.name),
        };
        Self { client: client.name.clone(), node, check }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:30} {:16} {:13}", self.client, self.node, self.check.name())
    }
}

// === impl Report ===

impl Report {
    /// Prints a cell's line and keeps it for the table.
    pub(crate) fn take(&mut self, cell: Cell, outcome: Outcome) {
        match &outcome {
            Outcome::Works => println!("{cell} works"),
            Outcome::Cannot(reason) => println!("{cell} cannot: {reason}"),
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
            "{} cells: {} work, {} cannot by design, {} fail",
            self.cells.len(),
            count(|is| matches!(is, Outcome::Works)),
            count(|is| matches!(is, Outcome::Cannot(_))),
            count(|is| matches!(is, Outcome::Fails(_))),
        );
        match self.failed() || self.cells.is_empty() {
            true => ExitCode::FAILURE,
            false => ExitCode::SUCCESS,
        }
    }

    /// A row for each client at each node, in Markdown; the reasons below it.
    fn table(&self) -> String {
        let mut reasons: Vec<&str> = Vec::new();
        let mut text = String::from("| client | node |");
        for check in Check::ALL {
            text += &format!(" {} |", check.name());
        }
        text += &format!("\n| --- | --- |{}", " --- |".repeat(Check::ALL.len()));
        let mut row = ("", "");
        for (cell, outcome) in &self.cells {
            if row != (&cell.client, &cell.node) {
                row = (&cell.client, &cell.node);
                text += &format!("\n| {} | {} |", row.0, row.1);
            }
            text += &match outcome {
                Outcome::Works => " yes |".to_owned(),
                Outcome::Fails(_) => " FAILS |".to_owned(),
                Outcome::Cannot(reason) => {
                    let known = reasons.iter().position(|known| known == reason);
                    let number = known.unwrap_or_else(|| {
                        reasons.push(reason);
                        reasons.len() - 1
                    });
                    format!(" no ({}) |", number + 1)
                }
            };
        }
        text.push('\n');
        for (number, reason) in reasons.iter().enumerate() {
            text += &format!("\n{}. {reason}", number + 1);
        }
        text
    }
}
