//! Safe: what a program wrote to its terminal, made safe to show on another one.
//!
//! A recording holds whatever a pod wrote, and whoever looks at it sits at a terminal too: one that would take a title,
//! fill a clipboard, answer a query with keystrokes or stay in some mode, if it were asked to. [`Filter`] lets through
//! what draws (text, colours, movements of the cursor, erasing, scrolling, the alternate screen) and nothing else, in
//! the plainest form; [`plain`] makes one line of text, for lists.
//! Invariants: what comes out holds no sequence that is not on the list, wherever the input is cut; what came out
//! passes again unchanged; after [`Filter::finish`] the terminal is in its usual state.
//! Source: ECMA-48; xterm's ctlseqs; <https://vt100.net/emu/dec_ansi_parser>, which `vte` implements.

use std::fmt::Write as _;
use std::io::Write as _;

use vte::{Params, Parser, Perform};

/// Most bytes that the parser sees at once. It looks for the next escape anew after every byte that is not UTF-8, so
/// that a large piece of such bytes would cost the square of its length.
const SLICE: usize = 512;

/// Most times that a character is repeated by a sequence (`CSI b`); more than any line is long.
const MAX_REPEAT: u16 = 1024;

/// What the DEC special graphics set shows for `_` to `~`. The set itself is never chosen: a terminal that kept it
/// would show gibberish from then on.
const GRAPHICS: [char; 32] = [
    ' ', '◆', '▒', '␉', '␌', '␍', '␊', '°', '±', '␤', '␋', '┘', '┐', '┌', '└', '┼', '⎺', '⎻', '─', '⎼', '⎽',
    '├', '┤', '┴', '┬', '│', '≤', '≥', 'π', '≠', '£', '·',
];

// The parser keeps what it has of a title or the like in itself. With the feature `std` of `vte`, which any crate may
// switch on for all, it would keep gigabytes of one that never ends.
const _: () = assert!(size_of::<Parser>() > 1024, "vte is built with its feature std");

/// Lets through what draws.
#[derive(Default)]
pub struct Filter {
    parser: Parser,
    state: State,
}

#[derive(Debug, Default, Clone, Copy)]
struct State {
    /// On the alternate screen.
    alternate: bool,
    /// The program wants to know what is pasted.
    bracketed_paste: bool,
    /// Whether G0 and G1 are the graphics set, and which of both is in use.
    graphics: [bool; 2],
    shifted: bool,
}

/// The filter at work.
struct Draw<'a> {
    state: &'a mut State,
    out: &'a mut Vec<u8>,
}

// === impl Filter ===

impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Filter").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Filter {
    /// For a terminal in its usual state.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends what of `bytes` is safe. They may be cut anywhere: what is not whole yet waits.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let mut draw = Draw { state: &mut self.state, out };
        advance(&mut self.parser, &mut draw, bytes);
    }

    /// Appends what brings the terminal back to its usual state; the filter is as new.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        if self.state.alternate {
            out.extend_from_slice(b"\x1b[?1049l");
        }
        // The last but one send the cursor home, so it goes to the last line then.
        out.extend_from_slice(b"\x1b[0m\x1b[4l\x1b[?7h\x1b[?25h\x1b[?6l\x1b[0r\x1b[9999;1H");
        *self = Self::new();
    }

    /// Whether the program asked for pastes to be marked. The request itself is not let through.
    pub(super) fn bracketed_paste(&self) -> bool {
        self.state.bracketed_paste
    }
}

// === impl Draw ===

impl Draw<'_> {
    fn csi(&mut self, private: &str, params: impl IntoIterator<Item = impl AsRef<[u16]>>, action: char) {
        let mut text = format!("\x1b[{private}");
        for (i, param) in params.into_iter().enumerate() {
            for (j, number) in param.as_ref().iter().enumerate() {
                let sep = match (i, j) {
                    (0, 0) => "",
                    (_, 0) => ";",
                    _ => ":",
                };
                let _ = write!(text, "{sep}{number}");
            }
        }
        text.push(action);
        self.out.extend_from_slice(text.as_bytes());
    }

    /// One DEC mode; each is written as a sequence of its own.
    fn mode(&mut self, mode: u16, on: bool) {
        match mode {
            2004 => self.state.bracketed_paste = on,
            47 | 1047 | 1049 => {
                self.state.alternate = on;
                self.csi("?", [[1049]], if on { 'h' } else { 'l' });
            }
            6 | 7 | 25 => self.csi("?", [[mode]], if on { 'h' } else { 'l' }),
            _ => {}
        }
    }
}

impl Perform for Draw<'_> {
    fn print(&mut self, c: char) {
        let graphics = self.state.graphics[usize::from(self.state.shifted)];
        let c = match c {
            '_'..='~' if graphics => GRAPHICS[c as usize - '_' as usize],
            c => c,
        };
        if draws(c) {
            let _ = write!(self.out, "{c}");
        }
    }

    fn execute(&mut self, byte: u8) {
        match byte {
            b'\r' | b'\n' | b'\t' | 0x08 => self.out.push(byte),
            // Vertical tab and form feed, which terminals take for line feeds.
            0x0b | 0x0c => self.out.push(b'\n'),
            0x0e => self.state.shifted = true,
            0x0f => self.state.shifted = false,
            _ => {}
        }
    }

    fn csi_dispatch(&mut self, params: &Params, intermediates: &[u8], ignore: bool, action: char) {
        if ignore {
            return;
        }
        let first = params.iter().next().and_then(|param| param.first()).copied().unwrap_or(0);
        let one = params.len() <= 1;
        match (intermediates, action) {
            (b"", 'm') => self.csi("", params, action),
            (b"", 'H' | 'f' | 'r') if params.len() <= 2 => self.csi("", params, action),
            (
                b"",
                'A'..='G' | 'I' | 'Z' | '`' | 'a' | 'd' | 'e' | '@' | 'L' | 'M' | 'P' | 'S' | 'T' | 'X',
            ) if one => {
                self.csi("", params, action);
            }
            // 3 would erase what the terminal showed before.
            (b"" | b"?", 'J' | 'K') if one && first <= 2 => {
                self.csi(if intermediates.is_empty() { "" } else { "?" }, params, action);
            }
            (b"", 'b') if one => self.csi("", [[first.min(MAX_REPEAT)]], action),
            (b"", 's') if one && first == 0 => self.out.extend_from_slice(b"\x1b7"),
            (b"", 'u') if one && first == 0 => self.out.extend_from_slice(b"\x1b8"),
            (b"", 'h' | 'l') if params.iter().any(|mode| mode == [4]) => self.csi("", [[4]], action),
            (b"?", 'h' | 'l') => {
                params
                    .iter()
                    .filter_map(|mode| mode.first())
                    .for_each(|mode| self.mode(*mode, action == 'h'));
            }
            _ => {}
        }
    }

    fn esc_dispatch(&mut self, intermediates: &[u8], ignore: bool, byte: u8) {
        if ignore {
            return;
        }
        match (intermediates, byte) {
            (b"", b'7' | b'8' | b'M') => self.out.extend_from_slice(&[0x1b, byte]),
            (b"", b'D') => self.out.push(b'\n'),
            (b"", b'E') => self.out.extend_from_slice(b"\r\n"),
            // A full reset: of what could have been changed.
            (b"", b'c') => {
                let mut filter = Filter { parser: Parser::new(), state: *self.state };
                filter.finish(self.out);
                *self.state = filter.state;
                self.out.extend_from_slice(b"\x1b[0;0H\x1b[2J");
            }
            (b"(", set) => self.state.graphics[0] = set == b'0',
            (b")", set) => self.state.graphics[1] = set == b'0',
            _ => {}
        }
    }
}

/// Parses bytes that may be cut anywhere. What ends a character that was cut is given to the parser byte by byte: of a
/// piece in which something else that it knows follows, and then no UTF-8, it would take all as that character.
pub(super) fn advance(parser: &mut Parser, perform: &mut impl Perform, bytes: &[u8]) {
    for slice in bytes.chunks(SLICE) {
        let ends = slice.iter().take(3).take_while(|byte| matches!(byte, 0x80..=0xbf)).count();
        let (ends, rest) = slice.split_at(ends);
        ends.chunks(1).for_each(|byte| parser.advance(perform, byte));
        parser.advance(perform, rest);
    }
}

/// One line of text, for lists and search hits: what a terminal would act on, what nobody would see, and what would
/// turn the order of letters around is written as an escape of Rust, such as `\u{1b}`.
pub fn plain(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        match shows(c) {
            true => line.push(c),
            false => line.extend(c.escape_debug()),
        }
    }
    line
}

/// Whether a character does nothing but to be seen. The standard library's own notion, as a character within a text.
fn shows(c: char) -> bool {
    if c.is_ascii() {
        return matches!(c, ' '..='~');
    }
    let mut text = [b'x'; 5];
    let len = c.encode_utf8(&mut text[1..]).len();
    std::str::from_utf8(&text[..=len]).is_ok_and(|text| text.escape_debug().count() == 2)
}

/// Whether a terminal may have it: also spaces of all kinds, what joins emojis and letters, and what fonts add.
fn draws(c: char) -> bool {
    let separates = matches!(c, '\u{2028}' | '\u{2029}');
    let private =
        matches!(c, '\u{e000}'..='\u{f8ff}' | '\u{f0000}'..='\u{ffffd}' | '\u{100000}'..='\u{10fffd}');
    let joins = matches!(c, '\u{200c}' | '\u{200d}');
    shows(c) || private || joins || (c.is_whitespace() && !c.is_control() && !separates)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustix::time::{ClockId, clock_gettime};

    use super::*;

    fn filtered(bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        Filter::new().push(bytes, &mut out);
        out
    }

    fn shown(bytes: &[u8]) -> String {
        String::from_utf8(filtered(bytes)).unwrap()
    }

    #[test]
    fn what_draws_is_shown_and_what_asks_or_sets_is_not() {
        let same = [
            "plain\r\n\ttext\u{8} é 日本 👩\u{200d}👧 \u{e0b0}",
            "\x1b[1;38;5;208mred\x1b[4:3mcurly\x1b[0m",
            "\x1b[10;20H\x1b[3A\x1b[2K\x1b[0J\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[1;20r\x1b[5@\x1b[2P\x1b7\x1b8\x1bM",
        ];
        for text in same {
            assert_eq!(shown(text.as_bytes()), text);
        }
        let none: &[&[u8]] = &[
            b"\x1b]0;title\x07",
            b"\x1b]2;title\x1b\\",
            b"\x1b]52;c;cm0gLXJmIC8=\x07",
            b"\x1b]8;;http://evil.example/\x07",
            b"\x1b[c\x1b[>c\x1b[=c\x1b[5n\x1b[6n\x1b[?6n\x1b[x\x05\x1bZ",
            b"\x1bP$qm\x1b\\\x1bP+q544e\x1b\\\x1b[>q\x1b[?1$p\x1b[14t\x1b[21t\x1b[8;1;1t\x1b[3;1000;1000t",
            b"\x1b[?1000h\x1b[?1002h\x1b[?1006h\x1b[?1004h\x1b[?2004h\x1b[?2026h\x1b[?3h\x1b[?1h\x1b=\x1b[5i\x1b[?4i",
            b"\x1b_apc\x1b\\\x1b^pm\x1b\\\x1bXsos\x1b\\\x07\x00\x7f\x1b[3J\x1b#8\x1b%G\x1bn\x1bo\x1b|",
            b"\x9b6n\x9d0;t\x9c\x90q\x9c\xc2\x9b\xc2\x9d",
            "\u{202e}\u{2066}\u{200b}\u{feff}\u{e0041}".as_bytes(),
            b"\x1b[1;2;3;4;5T\x1b[?5S\x1b[ q\x1b[!p\x1b[1\"q\x1b[20h\x1b[2h",
        ];
        for bytes in none {
            // 8-bit controls leave their text behind; it is harmless.
            let left = shown(bytes).replace("6n", "").replace("0;t", "").replace('q', "");
            assert_eq!(left, "", "of {:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn line_drawing_is_drawn_without_leaving_the_character_set() {
        assert_eq!(shown(b"\x1b(0lqk\x1b(Blqk \x1b)0\x0ex\x0fx"), "┌─┐lqk │x");
    }

    #[test]
    fn the_end_resets_what_was_set() {
        let (mut filter, mut out) = (Filter::new(), Vec::new());
        filter.push(b"\x1b[?1049h\x1b[31m\x1b[?25l\x1b[2;5r\x1b(0\x1b]0;cut", &mut out);
        out.clear();
        filter.finish(&mut out);
        let end = String::from_utf8(out.clone()).unwrap();
        for reset in ["\x1b[?1049l", "\x1b[0m", "\x1b[?25h", "\x1b[?7h", "\x1b[4l", "\x1b[0r"] {
            assert!(end.contains(reset), "{reset:?} in {end:?}");
        }
        out.clear();
        filter.push(b"q", &mut out);
        assert_eq!(out, b"q", "neither the open string nor the graphics set go on");
    }

    #[test]
    fn lists_show_escapes_and_turned_text_as_what_they_are() {
        let hostile = "ls \x1b]0;x\x07\u{202e}gpj.exe\u{200b}\r\n";
        assert_eq!(plain(hostile), r"ls \u{1b}]0;x\u{7}\u{202e}gpj.exe\u{200b}\r\n");
        assert_eq!(plain(r#"echo "é" 'नि' \ 日本"#), r#"echo "é" 'नि' \ 日本"#);
    }

    #[test]
    fn nothing_behind_a_character_that_was_cut_is_lost() {
        let (mut filter, mut out) = (Filter::new(), Vec::new());
        filter.push(b"\xc3", &mut out);
        filter.push(b"\xa9\x08\x80", &mut out);
        assert_eq!(out, filtered(b"\xc3\xa9\x08\x80"));
    }

    #[test]
    fn bytes_that_are_no_text_cost_no_square() {
        let (mut filter, mut out) = (Filter::new(), Vec::new());
        let (bytes, before) = (vec![0xff; 4 << 20], clock_gettime(ClockId::ThreadCPUTime));
        filter.push(&bytes, &mut out);
        assert_eq!(out.len(), 3 * bytes.len());
        let spent = clock_gettime(ClockId::ThreadCPUTime) - before;
        assert!(spent.tv_sec < 60, "minutes of CPU without slices");
    }

    /// Everything that a terminal would do with bytes, as far as it is not on the list.
    #[derive(Default)]
    struct Wary(Vec<String>);

    impl Perform for Wary {
        fn print(&mut self, c: char) {
            if !draws(c) {
                self.0.push(format!("print {c:?}"));
            }
        }
        fn execute(&mut self, byte: u8) {
            if !matches!(byte, b'\r' | b'\n' | b'\t' | 8) {
                self.0.push(format!("execute {byte:#x}"));
            }
        }
        fn hook(&mut self, _: &Params, _: &[u8], _: bool, action: char) {
            self.0.push(format!("hook {action}"));
        }
        fn osc_dispatch(&mut self, _: &[&[u8]], _: bool) {
            self.0.push("osc".to_owned());
        }
        fn csi_dispatch(&mut self, params: &Params, intermediates: &[u8], ignore: bool, action: char) {
            let modes: Vec<u16> = params.iter().flatten().copied().collect();
            let allowed = match (intermediates, action) {
                (b"?", 'h' | 'l') => modes.iter().all(|mode| [6, 7, 25, 1049].contains(mode)),
                (b"", 'h' | 'l') => modes == [4],
                (b"" | b"?", 'J' | 'K') => modes.iter().all(|mode| *mode < 3),
                (b"", 'b') => modes.iter().all(|count| *count <= MAX_REPEAT),
                (b"", action) => "ABCDEFGHIZ`adef@LMPSTXmr".contains(action),
                _ => false,
            };
            if ignore || !allowed {
                self.0.push(format!("csi {intermediates:?} {modes:?} {action}"));
            }
        }
        fn esc_dispatch(&mut self, intermediates: &[u8], _: bool, byte: u8) {
            if !intermediates.is_empty() || !matches!(byte, b'7' | b'8' | b'M') {
                self.0.push(format!("esc {intermediates:?} {byte:#x}"));
            }
        }
    }

    /// Bytes, with as many escapes as it takes to get somewhere.
    fn hostile() -> impl Strategy<Value = Vec<u8>> {
        let known = prop::sample::select(vec![
            "\x1b", "\x1b[", "\x1b[?", "\x1b]", "\x1bP", "\x1b\\", "\x07", "\x18", "\x1b(0", "\x0e", "\x1bc",
            ";", ":", "1049", "2004", "25", "0", "99999", "h", "l", "m", "H", "J", "b", "r", "n", "c", "t",
            "é", "\u{202e}", "\u{9b}",
        ]);
        let part = prop_oneof![
            3 => known.prop_map(|text| text.as_bytes().to_vec()),
            1 => prop::collection::vec(any::<u8>(), 1..4),
        ];
        prop::collection::vec(part, 0..60).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn nothing_comes_out_that_is_not_on_the_list(bytes in hostile()) {
            let (mut filter, mut out) = (Filter::new(), Vec::new());
            filter.push(&bytes, &mut out);
            filter.finish(&mut out);
            let mut wary = Wary::default();
            Parser::<1024>::new().advance(&mut wary, &out);
            prop_assert_eq!(wary.0, Vec::<String>::new());
            // 8-bit controls in the output would be characters of their own.
            prop_assert!(std::str::from_utf8(&out).is_ok());
        }

        #[test]
        fn what_came_out_passes_unchanged_and_cuts_do_not_matter(bytes in hostile(), at in any::<prop::sample::Index>()) {
            let out = filtered(&bytes);
            prop_assert_eq!(&filtered(&out), &out);
            let (mut filter, mut cut) = (Filter::new(), Vec::new());
            let (a, b) = bytes.split_at(at.index(bytes.len() + 1));
            filter.push(a, &mut cut);
            filter.push(b, &mut cut);
            prop_assert_eq!(cut, out);
        }
    }
}
