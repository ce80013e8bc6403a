//! Typed: the lines that somebody entered in a terminal, read off what the terminal showed.
//!
//! Keystrokes alone do not tell: history, completion and editing make a line that nobody typed like that. So this keeps
//! a screen as the client's terminal did, notes where the cursor stood when the first key after an Enter came (what
//! stands in front of it is the prompt), and reads the line off the screen when the program takes it: at the line feed
//! that follows Enter or, where the program has asked for marked pastes (as bash and zsh do for as long as they edit a
//! line), when it takes that back. The keys have a say too: a line that was typed plainly must stand there as it was
//! typed, otherwise it was not echoed (a password) and is left out.
//!
//! Best effort, and no proof of anything; that is the recording. Not found are lines whose echo came under so much other
//! output that it was skipped ([`RATE`]), lines of programs that echo something else than was typed, what an editor
//! makes of a line (`^X^E`), and all in full-screen programs, on purpose. Found although nobody ran them are lines for
//! other readers than a shell: answers to questions, a here document, text for `cat`.
//! Invariants: memory and time are bounded whatever is fed, by the constants below; nothing is ever said to have been
//! typed that the terminal did not show.

use std::collections::VecDeque;
use std::num::NonZeroU16;
use std::time::Duration;

use memchr::{memchr_iter, memmem};

use super::facts;
use super::safe::Filter;
use crate::wire::remotecommand::{Resize, ResizeDecoder};
use crate::wire::tape::Kind;

/// Size of a terminal that has not said its size; what programs take then.
const USUAL_SIZE: (u16, u16) = (24, 80);

/// Largest screen that is kept, rows and columns: that of a large monitor with small letters. Each of two screens has
/// a cell of 32 bytes for every place, so that one session costs no more than 5 MB.
const MAX_SIZE: (u16, u16) = (150, 500);

/// Rows that a line may go over, and that are kept of those that were scrolled away.
const MAX_ROWS: u64 = 100;

/// Longest line that is kept, in bytes; the rest of it is cut off.
const MAX_LINE: usize = 4096;

/// Most lines of a session, and most bytes of all of them: what fits into the ending of a recording.
const MAX_LINES: usize = 10_000;
const MAX_BYTES: usize = 1 << 20;

/// Most lines that were entered ahead and not shown yet. More of a paste at a time are forgotten.
const MAX_ENTERED: usize = 256;

/// Of those, how many are looked for at each line feed.
const MAX_AHEAD: usize = 4;

/// Most prompts that are remembered.
const MAX_PROMPTS: usize = 8;

/// Output that is looked at in a second, in units of [`Typed::cost`]: far more than anybody reads. Above that, and once
/// [`BURST`] is used up, only the last [`TAIL`] bytes and the modes of the terminal are, once it gets quieter or a key
/// comes: a program that writes gigabytes must not cost a screen's work for each.
const RATE: i64 = 1 << 20;
const BURST: i64 = 1 << 19;
const TAIL: usize = 32 * 1024;

/// What it costs to read a line off the screen.
const READ_COST: i64 = 1024;

/// After so long a line that was entered ahead is given up when the next one begins: at once when the shell stands at
/// an empty prompt, which it would not with input waiting.
const STALE_AT_PROMPT: Duration = Duration::from_secs(1);
const STALE: Duration = Duration::from_secs(10);

/// Reads lines off a terminal.
pub struct Typed {
    filter: Filter,
    clean: Vec<u8>,
    screen: vt100::Parser<Scrolled>,
    sizes: ResizeDecoder,
    /// When something last came.
    now: Duration,
    /// What may still be looked at.
    budget: i64,
    /// Output that was not.
    skipped: Option<Skipped>,
    keys: Keys,
    /// The line that is being typed.
    line: Option<Line>,
    /// Those that were entered, and not found on the screen yet.
    entered: VecDeque<Entered>,
    /// Newest first.
    prompts: VecDeque<String>,
    /// A line in this row was taken before its line feed came: that one ends nothing.
    taken: Option<u64>,
    /// Something stands at the prompt before the first key.
    prefilled: bool,
    /// The size that the client said last; the screen gets it when it is drawn on.
    size: (NonZeroU16, NonZeroU16),
    found: Vec<facts::Typed>,
    bytes: usize,
}

/// Rows that are gone for good.
#[derive(Default)]
struct Scrolled(u64);

/// How far a mark around a paste was read, and whether it is open.
#[derive(Debug, Default)]
struct Keys {
    matched: usize,
    opens: bool,
    paste: bool,
}

#[derive(Debug)]
struct Line {
    /// Where it begins; unknown while earlier lines have not been shown.
    from: Option<From>,
    /// What was typed, while that says what the line is: no editing, no completion.
    plain: Option<Vec<u8>>,
}

#[derive(Debug)]
struct From {
    /// Counted from the first row that there ever was.
    row: u64,
    /// What stands in front of the line.
    prompt: String,
}

#[derive(Debug)]
struct Entered {
    at: Duration,
    line: Line,
    /// What stood there at the last line feed, while the program still edited.
    shown: Option<String>,
}

#[derive(Debug, Default)]
struct Skipped {
    tail: Vec<u8>,
    alternate: Option<bool>,
    bracketed_paste: Option<bool>,
}

/// Whether a row goes on in the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrap {
    Yes,
    /// It is full; programs that know the width go on in the next row by themselves.
    Maybe,
    No,
}

// === impl Scrolled ===

impl vt100::Callbacks for Scrolled {
    fn on_scroll(&mut self, _: vt100::capture::RowContents<'_>, alternate_screen: bool) {
        self.0 += u64::from(!alternate_screen);
    }
}

// === impl Typed ===

impl std::fmt::Debug for Typed {
    /// Without anything that was typed or shown.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Typed").field("lines", &self.found.len()).finish_non_exhaustive()
    }
}

impl Default for Typed {
    fn default() -> Self {
        Self::new()
    }
}

impl Typed {
    /// For a terminal that has shown nothing yet.
    pub fn new() -> Self {
        let (rows, cols) = size(USUAL_SIZE.0, USUAL_SIZE.1);
        let kept = usize::try_from(MAX_ROWS).unwrap_or(usize::MAX);
        Self {
            filter: Filter::new(),
            clean: Vec::new(),
            screen: vt100::Parser::new_with_callbacks(rows, cols, kept, Scrolled::default()),
            sizes: ResizeDecoder::default(),
            now: Duration::ZERO,
            budget: BURST,
            skipped: None,
            keys: Keys::default(),
            line: None,
            entered: VecDeque::new(),
            prompts: VecDeque::new(),
            taken: None,
            prefilled: false,
            size: (rows, cols),
            found: Vec::new(),
            bytes: 0,
        }
    }

    /// Takes a piece of the tape: keys, output and sizes count, the rest does not. Keys must come whole, those included
    /// that the recording withholds; they are only compared with what is shown.
    pub fn piece(&mut self, at: Duration, kind: Kind, bytes: &[u8]) {
        if self.is_full() {
            return;
        }
        let passed = at.saturating_sub(self.now);
        self.now = self.now.max(at);
        let more = i64::try_from(passed.as_micros()).unwrap_or(i64::MAX).saturating_mul(RATE) / 1_000_000;
        self.budget = self.budget.saturating_add(more).min(BURST);
        if self.budget == BURST || (kind == Kind::Stdin && self.budget > -BURST) {
            self.wake();
        }
        match kind {
            Kind::Stdout => self.output(bytes),
            Kind::Stdin => bytes.iter().for_each(|key| self.key(*key)),
            Kind::Resize => {
                let mut rest = bytes;
                while let Resize::Size(new) = self.sizes.decode(&mut rest) {
                    if new.height > 0 && new.width > 0 {
                        self.size = size(new.height, new.width);
                    }
                }
            }
            _ => {}
        }
    }

    /// All lines, in the order in which they were entered. The last one says so when there were more than are kept.
    pub fn finish(mut self) -> Vec<facts::Typed> {
        self.wake();
        while let Some(Entered { at, shown, .. }) = self.entered.pop_front() {
            self.add(at, shown);
        }
        self.found
    }

    fn is_full(&self) -> bool {
        self.found.len() > MAX_LINES || self.bytes > MAX_BYTES
    }

    // Output.

    fn output(&mut self, bytes: &[u8]) {
        if self.skipped.is_none() && self.budget > 0 {
            self.show(bytes);
        } else {
            self.skipped.get_or_insert_default().push(bytes);
        }
    }

    /// Looks at what was skipped, as far as it is there.
    fn wake(&mut self) {
        let Some(Skipped { tail, alternate, bracketed_paste }) = self.skipped.take() else {
            return;
        };
        // Ends whatever sequence the rest of was skipped.
        self.show(b"\x18");
        for (mode, on) in [("1049", alternate), ("2004", bracketed_paste)] {
            if let Some(on) = on {
                self.show(format!("\x1b[?{mode}{}", if on { 'h' } else { 'l' }).as_bytes());
            }
        }
        self.show(&tail);
    }

    /// How much of [`RATE`] output is worth: a byte each, and what rows cost to scroll and screens to erase.
    fn cost(&self, bytes: &[u8]) -> i64 {
        let count = |byte| i64::try_from(memchr_iter(byte, bytes).count()).unwrap_or(i64::MAX);
        let len = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
        let row = i64::from(self.screen.screen().size().1.get()) / 8;
        len.saturating_add(count(b'\n').saturating_mul(row))
            .saturating_add(count(0x1b).saturating_mul(self.escape_cost()))
    }

    /// A sequence may touch every cell of the screen.
    fn escape_cost(&self) -> i64 {
        let (rows, cols) = self.screen.screen().size();
        i64::from(rows.get()) * i64::from(cols.get()) / 64
    }

    fn show(&mut self, mut bytes: &[u8]) {
        if self.screen.screen().size() != self.size {
            self.screen.set_size(self.size.0, self.size.1);
            // Both screens are made anew.
            self.budget = self.budget.saturating_sub(self.escape_cost() * 4);
        }
        self.budget = self.budget.saturating_sub(self.cost(bytes));
        // Where lines wait to be taken, the screen is looked at before each line feed and after each end of a
        // sequence that might take a mode back.
        while !self.entered.is_empty() && !bytes.is_empty() {
            let at = memchr::memchr2(b'\n', b'l', bytes);
            let Some(at) = at else {
                break;
            };
            let (before, rest) = bytes.split_at(at);
            self.draw(before);
            let edits = self.filter.bracketed_paste();
            if rest.starts_with(b"\n") {
                self.line_feed();
            }
            self.draw(&rest[..1]);
            if edits && !self.filter.bracketed_paste() {
                self.keys.paste = false;
                self.line_taken();
            }
            bytes = &rest[1..];
        }
        self.draw(bytes);
    }

    fn draw(&mut self, bytes: &[u8]) {
        self.filter.push(bytes, &mut self.clean);
        self.screen.process(&self.clean);
        self.clean.clear();
        if self.screen.screen().alternate_screen() {
            // What was typed until now went to the program that draws there.
            self.line = None;
            self.entered.clear();
        }
    }

    /// A line feed comes: the line above it is whole, unless the program edits, and may just draw.
    fn line_feed(&mut self) {
        let end = self.cursor().0;
        if self.taken.take() == Some(end) {
            return;
        }
        if self.filter.bracketed_paste() {
            let Some(mut first) = self.entered.pop_front() else {
                return;
            };
            if first.line.from.is_some() {
                first.shown = self.find(&first.line, end);
            }
            self.entered.push_front(first);
        } else {
            self.take(end);
        }
    }

    /// The program does not edit any more: it has taken the line.
    fn line_taken(&mut self) {
        let (row, col) = self.cursor();
        // Readline goes to the next row first, zsh afterwards.
        self.taken = (col > 0).then_some(row);
        self.take(if col > 0 { row } else { row.saturating_sub(1) });
    }

    /// The first line that waits is the one that ends in this row. One that was typed ahead may also be shown later, and
    /// if a later one is shown, never.
    fn take(&mut self, end: u64) {
        let mut waiting = 0;
        while waiting < MAX_AHEAD {
            let Some(entered) = self.entered.remove(waiting) else {
                return;
            };
            let found = self.find(&entered.line, end).or_else(|| entered.shown.clone());
            if found.is_some() {
                self.entered.drain(..waiting);
                self.add(entered.at, found);
                return;
            }
            // One whose place is known was not echoed, and took no line feed either where a later one is shown here.
            if entered.line.from.is_none() {
                self.entered.insert(waiting, entered);
                waiting += 1;
            }
        }
    }

    // Keys.

    fn key(&mut self, key: u8) {
        if self.screen.screen().alternate_screen() {
            self.line = None;
            self.entered.clear();
            self.keys = Keys::default();
            return;
        }
        let begun = self.keys.matched > 0;
        if self.keys.is_mark(key, self.filter.bracketed_paste()) {
            // Whatever it turns out to be, the line begins here.
            self.line();
            return;
        }
        if begun {
            // Some other key, such as an arrow.
            self.line().plain = None;
        }
        let paste = self.keys.paste;
        match key {
            b'\r' | b'\n' if !paste => self.enter(),
            // Readline takes the line and puts the next one of the history there.
            0x0f if !paste && self.filter.bracketed_paste() => {
                self.line().plain = None;
                self.enter();
                self.prefilled = true;
            }
            // Interrupt, quit, suspend: the terminal throws away what it has.
            0x03 | 0x1a | 0x1c if !paste => {
                self.line = None;
                self.entered.clear();
            }
            key => {
                let line = self.line();
                let Some(plain) = &mut line.plain else {
                    return;
                };
                match key {
                    0x08 | 0x7f if !paste => pop_char(plain),
                    // Kills up to the cursor, which is at the end.
                    0x15 if !paste => plain.clear(),
                    ..=0x1f | 0x7f => line.plain = None,
                    key if plain.len() < MAX_LINE => plain.push(key),
                    _ => line.plain = None,
                }
            }
        }
    }

    /// The line that is being typed; it begins where the cursor is.
    fn line(&mut self) -> &mut Line {
        if self.line.is_none() {
            self.budget = self.budget.saturating_sub(READ_COST);
            if let Some(shown) = self.entered.front_mut().and_then(|first| first.shown.take()) {
                // The program still edits, but the next line begins: so it was taken.
                let at = self.entered.pop_front().map_or(self.now, |first| first.at);
                self.add(at, Some(shown));
            }
            let (row, col) = self.cursor();
            let before = self.text(row, row, Some(col));
            let prompt = self.prompts.iter().find(|prompt| before.starts_with(*prompt)).cloned();
            let waits = self.entered.front().map(|first| self.now.saturating_sub(first.at));
            let at_prompt = prompt.as_ref().is_some_and(|prompt| *prompt == before);
            if waits.is_some_and(|time| time > STALE || (at_prompt && time > STALE_AT_PROMPT)) {
                self.entered.clear();
            }
            self.taken = None;
            let prefilled = std::mem::take(&mut self.prefilled);
            let prompt = prompt.filter(|_| prefilled).unwrap_or(before);
            let from = self.entered.is_empty().then_some(From { row, prompt });
            self.line = Some(Line { from, plain: (!prefilled).then(Vec::new) });
        }
        self.line.get_or_insert(Line { from: None, plain: None })
    }

    fn enter(&mut self) {
        self.line();
        let Some(line) = self.line.take() else {
            return;
        };
        // Nothing typed is nothing to find.
        if line.plain.as_ref().is_none_or(|plain| !plain.trim_ascii().is_empty()) {
            self.entered.push_back(Entered { at: self.now, line, shown: None });
            if self.entered.len() > MAX_ENTERED {
                self.entered.pop_front();
            }
        }
    }

    // The screen.

    /// Row, counted from the first there ever was, and column.
    fn cursor(&mut self) -> (u64, u16) {
        let (row, col) = self.screen.screen().cursor_position();
        (self.top() + u64::from(row), col)
    }

    fn top(&self) -> u64 {
        let kept = u64::try_from(self.screen.screen().scrollback_len()).unwrap_or(u64::MAX);
        self.screen.callbacks().0.saturating_add(kept)
    }

    /// One row, up to a column, and how it goes on in the next.
    fn row(&mut self, row: u64, to: Option<u16>) -> (String, Wrap) {
        let top = self.top();
        let back = usize::try_from(top.saturating_sub(row)).unwrap_or(usize::MAX);
        let at = u16::try_from(row.saturating_sub(top)).unwrap_or(u16::MAX);
        let screen = self.screen.screen_mut();
        if back > screen.scrollback_len() || at >= screen.size().0.get() {
            return (String::new(), Wrap::No);
        }
        screen.set_scrollback(back);
        let cols = screen.size().1.get();
        let text = match to {
            Some(to) => screen.contents_between(at, 0, at, to),
            None => screen.contents_between(at, 0, at.saturating_add(1), 0),
        };
        let last = screen.cell(at, cols - 1);
        let full = last.is_some_and(|cell| cell.has_contents() || cell.is_wide_continuation());
        screen.set_scrollback(0);
        match text.strip_suffix('\n') {
            Some(text) => (text.to_owned(), if full { Wrap::Maybe } else { Wrap::No }),
            None => (text, if to.is_none() { Wrap::Yes } else { Wrap::No }),
        }
    }

    /// Rows from `start` on, up to the one where what begins by `end` goes on.
    fn text(&mut self, start: u64, end: u64, to: Option<u16>) -> String {
        let mut text = String::new();
        for row in start..start.saturating_add(MAX_ROWS) {
            let (part, wrap) = self.row(row, to);
            text.push_str(&part);
            if (row >= end && wrap != Wrap::Yes) || text.len() > MAX_LINE {
                break;
            }
            if wrap == Wrap::No {
                text.push('\n');
            }
        }
        text
    }

    /// The line that was entered and ends in this row.
    fn find(&mut self, line: &Line, end: u64) -> Option<String> {
        self.budget = self.budget.saturating_sub(READ_COST);
        if self.budget < -BURST {
            return None;
        }
        let plain =
            line.plain.as_deref().and_then(|plain| std::str::from_utf8(plain).ok()).map(str::trim_end);
        let own =
            line.from.as_ref().map(|from| &from.prompt).filter(|prompt| !prompt.trim().is_empty()).cloned();
        let prompts: Vec<String> = own.into_iter().chain(self.prompts.iter().cloned()).collect();
        // Completion and redrawing move a line down; a line that was typed ahead is only looked for where it ends.
        let mut first = end;
        match &line.from {
            Some(from) => first = from.row.min(end).max(end.saturating_sub(MAX_ROWS)),
            None => {
                while first > end.saturating_sub(MAX_ROWS)
                    && first > 0
                    && self.row(first - 1, None).1 != Wrap::No
                {
                    first -= 1;
                }
            }
        }
        for row in (first..=end).rev() {
            let start = self.row(row, None).0;
            let Some(prompt) = prompts.iter().find(|prompt| start.starts_with(prompt.as_str())) else {
                continue;
            };
            let text = self.text(row, end, None);
            let ahead = line.from.is_none();
            if let Some(found) = text.strip_prefix(&**prompt).and_then(|text| agreed(text, plain, ahead)) {
                self.learn(prompt.clone());
                return Some(found);
            }
        }
        self.find_without_prompt(line, plain, first, end)
    }

    /// Where no prompt is known: of no length, or shown only after the first key.
    fn find_without_prompt(
        &mut self,
        line: &Line,
        plain: Option<&str>,
        first: u64,
        end: u64,
    ) -> Option<String> {
        let text = self.text(first, end, None);
        let text = text.trim_end();
        match (plain, &line.from) {
            (Some(plain), Some(_)) => {
                let prompt = text.strip_suffix(plain)?;
                if !prompt.contains('\n') {
                    self.learn(prompt.to_owned());
                }
                Some(plain.to_owned())
            }
            (Some(plain), None) => (text == plain).then(|| plain.to_owned()),
            (None, Some(from)) if from.row <= end && from.prompt.trim().is_empty() => {
                agreed(text, None, false)
            }
            (None, _) => None,
        }
    }

    fn learn(&mut self, prompt: String) {
        if prompt.trim().is_empty() {
            return;
        }
        self.prompts.retain(|known| *known != prompt);
        self.prompts.push_front(prompt);
        self.prompts.truncate(MAX_PROMPTS);
    }

    fn add(&mut self, at: Duration, line: Option<String>) {
        let Some(mut line) = line.filter(|_| !self.is_full()) else {
            return;
        };
        line.truncate(line.floor_char_boundary(MAX_LINE));
        self.bytes += line.len();
        self.found.push(facts::Typed::new(at, line));
        if self.is_full() {
            self.found.push(facts::Typed::new(at, "(more was typed than is listed)".to_owned()));
        }
    }
}

/// A size that is allowed.
fn size(rows: u16, cols: u16) -> (NonZeroU16, NonZeroU16) {
    let clamp = |n: u16, max: u16| NonZeroU16::new(n.min(max)).unwrap_or(NonZeroU16::MIN);
    (clamp(rows, MAX_SIZE.0), clamp(cols, MAX_SIZE.1))
}

/// The line, if what stands behind the prompt goes with what was typed.
fn agreed(shown: &str, plain: Option<&str>, ahead: bool) -> Option<String> {
    let shown = shown.trim_end();
    let Some(plain) = plain else {
        return (!shown.is_empty()).then(|| shown.to_owned());
    };
    // With a prompt of its own on the right side of the row.
    if shown.strip_prefix(plain).is_some_and(|rest| rest.is_empty() || rest.starts_with("  ")) {
        return Some(plain.to_owned());
    }
    if ahead {
        return None;
    }
    // Some shells put an abbreviation's meaning there; and a line may have been begun before.
    let begins = plain.trim_start().chars().next().is_some_and(|c| shown.trim_start().starts_with(c));
    (begins || shown.ends_with(plain)).then(|| shown.to_owned())
}

/// Takes the last character off.
fn pop_char(text: &mut Vec<u8>) {
    while text.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {}
}

// === impl Keys ===

impl Keys {
    /// Reads `ESC [ 2 0 0 ~` and `ESC [ 2 0 1 ~`: whether this key belongs to one. They count only where the program
    /// asked for them: otherwise whoever sends the first could hide all that follows.
    fn is_mark(&mut self, key: u8, asked: bool) -> bool {
        let wanted = match self.matched {
            0 => 0x1b,
            1 => b'[',
            2 => b'2',
            4 => {
                self.opens = key == b'0';
                if self.opens { b'0' } else { b'1' }
            }
            5 => b'~',
            _ => b'0',
        };
        if !asked || key != wanted {
            self.matched = usize::from(asked && key == 0x1b);
            return false;
        }
        self.matched = (self.matched + 1) % 6;
        if self.matched == 0 {
            self.paste = self.opens;
        }
        true
    }
}

// === impl Skipped ===

impl Skipped {
    fn push(&mut self, bytes: &[u8]) {
        for at in memmem::find_iter(bytes, b"\x1b[?") {
            let Some((mode, on)) = bytes.get(at + 3..).and_then(|rest| rest.split_at_checked(4)) else {
                continue;
            };
            let on = match on.first() {
                Some(b'h') => true,
                Some(b'l') => false,
                _ => continue,
            };
            match mode {
                b"1049" | b"1047" => self.alternate = Some(on),
                b"2004" => self.bracketed_paste = Some(on),
                _ => {}
            }
        }
        let bytes = &bytes[bytes.len().saturating_sub(TAIL)..];
        let over = (self.tail.len() + bytes.len()).saturating_sub(TAIL);
        self.tail.drain(..over.min(self.tail.len()));
        self.tail.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests;
