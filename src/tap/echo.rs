//! Echo: which of the bytes that were typed in a terminal may be written down: those that it showed.
//!
//! A program that asks for a password turns the echo off, and no protocol says so; what says so is its output. So what
//! is typed is held, by lines, and a line is released once the output has shown it: every run of characters, whole and
//! in order, where keys that draw anything (backspace, tab, arrows, history) may stand between runs. A line that was
//! not shown is withheld, and only its length is written. It is all of a line or nothing of it, so that a character
//! which happens to be drawn for another reason gives nothing away.
//! Where there is doubt it is withheld: it is the output that shows what was done. Lines stand in the recording at the
//! time at which they were released.
//! Invariants: nothing is released whose characters the output did not hold, one behind the other; as many bytes are
//! released and counted as were typed; at most [`HELD_BYTES`] are held, each for at most [`HELD_FOR`] of the time in
//! which anything passes.

use std::collections::VecDeque;
use std::time::Duration;

use crate::wire::tape::{Kind, Piece, Tape};

/// Most bytes that wait to be shown; beyond it the oldest line is decided. A paste of some pages.
const HELD_BYTES: usize = 64 * 1024;

/// Most lines that do, for the time that it takes to look for each.
const HELD_LINES: usize = 64;

/// How long a line waits after its last key: it may have been typed while a command ran.
const HELD_FOR: Duration = Duration::from_secs(10);

/// What was typed so long after a line, and shown, tells that the terminal is past that line.
const LATER: Duration = Duration::from_millis(500);

/// Longest escape sequence of a key, behind `ESC [`; what is longer is no key.
const KEY: u8 = 16;

/// How much of an output is looked at for the beginning of an escape sequence while nothing is held.
const TAIL: usize = 64;

/// Stands between runs of characters, in place of keys that are none.
const BREAK: u8 = 0;

/// What was typed and not decided.
#[derive(Debug, Default)]
pub struct Echo {
    /// All but the last are ended by their key.
    lines: VecDeque<Line>,
    typed: Sequence,
    shown: Sequence,
    held: usize,
    /// Whether the line that is typed next is the rest of one that was withheld.
    dark: bool,
}

#[derive(Debug, Default)]
struct Line {
    /// As typed, the key that ended it included.
    bytes: Vec<u8>,
    /// The characters that are to be shown.
    wanted: Vec<u8>,
    /// For each of them, how much of its run's beginning stands right before and with it again (Knuth, Morris, Pratt).
    again: Vec<usize>,
    /// Where the run begins that is typed.
    typing: usize,
    /// Where the run begins that is looked for.
    run: usize,
    /// What of `wanted` was shown.
    seen: usize,
    /// Whether a blank came that may be a terminal's line break.
    wrap: bool,
    /// Whether an earlier part of it was withheld: then so is the rest.
    dark: bool,
    ended: bool,
    /// When the last of it was typed.
    at: Duration,
}

/// Where in an escape sequence a stream of bytes is (ECMA-48, as far as needed to step over them).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Sequence {
    #[default]
    None,
    /// Behind ESC.
    Escape,
    /// Behind `ESC [`, so many bytes.
    Control(u8),
    /// Behind ESC and what takes one more byte.
    One,
    /// Behind the beginning of a string, such as a title.
    Text,
    /// Behind an ESC in it.
    TextEscape,
}

/// What an output does to the line it is on.
#[derive(Debug, Clone, Copy)]
enum Drawn {
    Character(u8),
    Back,
    Return,
    Feed,
}

// === impl Echo ===

impl Echo {
    /// Takes a piece, and puts onto the tape what is to be written now.
    pub fn piece(&mut self, piece: Piece<'_>, out: &mut Tape) {
        let Piece { at, kind, bytes } = piece;
        out.at(at);
        self.settle(at, out);
        match kind {
            Kind::Stdin => self.typed(at, bytes),
            Kind::Stdout => {
                out.put(kind, bytes);
                self.shown(bytes);
            }
            Kind::StdinEnd => {
                self.end(out);
                return out.put(kind, bytes);
            }
            _ => return out.put(kind, bytes),
        }
        self.settle(at, out);
    }

    /// Nothing more will be shown: what is still held is decided.
    pub fn end(&mut self, out: &mut Tape) {
        while !self.lines.is_empty() {
            self.decide(out);
        }
    }

    fn typed(&mut self, at: Duration, bytes: &[u8]) {
        for &byte in bytes {
            if self.lines.back().is_none_or(|line| line.ended) {
                self.lines.push_back(Line { dark: std::mem::take(&mut self.dark), ..Line::default() });
            }
            let Some(line) = self.lines.back_mut() else { return };
            let character = self.typed.key(byte);
            line.at = at;
            line.bytes.push(byte);
            line.want(if character { byte } else { BREAK });
            // Return, and what ends a line without one: ^C, ^D, ^Z, ^\.
            line.ended = matches!(byte, b'\r' | b'\n' | 0x03 | 0x04 | 0x1a | 0x1c);
            self.held += 1;
        }
    }

    fn shown(&mut self, mut bytes: &[u8]) {
        if self.lines.iter().all(Line::is_shown) {
            // Of what nobody looks for only that counts which the next output goes on with.
            bytes = &bytes[bytes.len().saturating_sub(TAIL)..];
        }
        for &byte in bytes {
            if let Some(drawn) = self.shown.output(byte) {
                self.lines.iter_mut().for_each(|line| line.see(drawn));
            }
        }
    }

    /// Decides what can be decided.
    fn settle(&mut self, now: Duration, out: &mut Tape) {
        while let Some(line) = self.lines.front() {
            let over = now.saturating_sub(line.at) >= HELD_FOR;
            let passed = || {
                let mut later = self.lines.iter().skip(1);
                later.any(|other| {
                    other.ended && !other.wanted.is_empty() && other.is_shown() && other.at >= line.at + LATER
                })
            };
            let decided = line.ended && (line.is_shown() || line.dark || passed());
            if !(decided || over || self.held > HELD_BYTES || self.lines.len() > HELD_LINES) {
                return;
            }
            self.decide(out);
        }
    }

    /// Releases or withholds the first line, or what there is of it.
    fn decide(&mut self, out: &mut Tape) {
        let Some(mut line) = self.lines.pop_front() else { return };
        self.held -= line.bytes.len();
        if !line.is_shown() || line.dark {
            let end = line.bytes.len() - usize::from(line.ended);
            if end > 0 {
                out.put(Kind::Withheld, end.to_string().as_bytes());
            }
            line.bytes.drain(..end);
            line.dark = true;
        }
        out.put(Kind::Stdin, &line.bytes);
        self.dark = line.dark && !line.ended;
    }
}

// === impl Line ===

impl Line {
    fn is_shown(&self) -> bool {
        self.seen == self.wanted.len()
    }

    fn want(&mut self, byte: u8) {
        if byte != BREAK {
            let len = self.wanted.len() - self.typing;
            let again =
                if len == 0 { 0 } else { self.longest(self.typing, self.again[self.typing + len - 1], byte) };
            self.again.push(again);
            self.wanted.push(byte);
        } else if self.wanted.last().is_some_and(|&last| last != BREAK) {
            self.again.push(0);
            self.wanted.push(BREAK);
            self.typing = self.wanted.len();
        }
        self.step();
    }

    /// How much of the run's beginning is seen with this byte, when so much was before.
    fn longest(&self, run: usize, mut seen: usize, byte: u8) -> usize {
        loop {
            match self.wanted.get(run + seen) {
                Some(&wanted) if wanted == byte => return seen + 1,
                _ if seen == 0 => return 0,
                _ => seen = self.again[run + seen - 1],
            }
        }
    }

    /// Keys that are no characters need not be shown.
    fn step(&mut self) {
        if self.wanted.get(self.seen) == Some(&BREAK) {
            self.seen += 1;
            self.run = self.seen;
        }
    }

    fn see(&mut self, drawn: Drawn) {
        let Some(&next) = self.wanted.get(self.seen) else { return };
        let wrapped = std::mem::take(&mut self.wrap);
        match drawn {
            // readline ends a line of the terminal with a blank and a return.
            Drawn::Character(b' ') if next != b' ' && self.seen > self.run && !wrapped => self.wrap = true,
            Drawn::Character(byte) => {
                if wrapped {
                    self.seen = self.run + self.longest(self.run, self.seen - self.run, b' ');
                }
                self.seen = self.run + self.longest(self.run, self.seen - self.run, byte);
                self.step();
            }
            // Some shells go back over what they have drawn, to draw it anew.
            Drawn::Back if self.seen > self.run => self.seen -= 1,
            Drawn::Feed => self.seen = self.run,
            Drawn::Back | Drawn::Return => {}
        }
    }
}

// === impl Sequence ===

impl Sequence {
    /// Takes a byte that was typed; whether it is a character, and no part of a key or its name.
    fn key(&mut self, byte: u8) -> bool {
        let plain = byte >= b' ' && byte != 0x7f;
        let (next, character) = match (*self, byte) {
            (_, 0x1b) => (Self::Escape, false),
            (_, _) if !plain => (Self::None, false),
            (Self::Escape, b'[') => (Self::Control(0), false),
            (Self::Escape, b'O') => (Self::One, false),
            (Self::Escape | Self::One, _) => (Self::None, false),
            (Self::Control(so_far @ ..KEY), b' '..=b'?') => (Self::Control(so_far + 1), false),
            (Self::Control(..KEY), b'@'..=b'~') => (Self::None, false),
            _ => (Self::None, true),
        };
        *self = next;
        character
    }

    /// Takes a byte of the output; what it draws, if it is no part of a sequence.
    fn output(&mut self, byte: u8) -> Option<Drawn> {
        let (next, drawn) = match (*self, byte) {
            (Self::Text, 0x07) => (Self::None, None),
            (Self::Text | Self::TextEscape, 0x1b) => (Self::TextEscape, None),
            (Self::TextEscape, b'\\') => (Self::None, None),
            (Self::Text | Self::TextEscape, _) => (Self::Text, None),
            (_, 0x1b) => (Self::Escape, None),
            (state, 0x08) => (state, Some(Drawn::Back)),
            (state, b'\r') => (state, Some(Drawn::Return)),
            (state, b'\n') => (state, Some(Drawn::Feed)),
            (state, ..=0x1f | 0x7f) => (state, None),
            (Self::Escape, b'[') => (Self::Control(0), None),
            (Self::Escape, b']' | b'P' | b'X' | b'^' | b'_') => (Self::Text, None),
            (Self::Escape, b' '..=b'/') => (Self::One, None),
            (Self::Control(_), b' '..=b'?') => (*self, None),
            (Self::Escape | Self::Control(_) | Self::One, _) => (Self::None, None),
            (Self::None, _) => (Self::None, Some(Drawn::Character(byte))),
        };
        *self = next;
        drawn
    }
}

#[cfg(test)]
mod tests;
