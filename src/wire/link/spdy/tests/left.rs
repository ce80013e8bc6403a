//! Tests of programs that their clients leave behind.

use super::*;

const EXEC: Runs = Runs::Exec { tty: true };

/// A session of a recorded terminal whose streams are open.
fn opened(protocol: Protocol, runs: Runs) -> Rig {
    let mut rig = Rig::new(SpdyLink::command(protocol, runs));
    rig.out.tap.record();
    rig.client_says(&opening());
    rig.far_says(&replies());
    rig
}

impl Rig {
    fn hangs_up(&mut self, step: HangUp) -> bool {
        self.told_to(step) == Spoken::Yes
    }

    fn told_to(&mut self, step: HangUp) -> Spoken {
        let told = self.link.hang_up(step, &mut self.out);
        self.drain(0);
        told
    }

    fn hears_last(&mut self, frames: &[Frame]) -> bool {
        self.far_input.extend_from_slice(&encode_with(&mut self.far_encoder, frames));
        self.link.hear_last(&mut self.far_input).unwrap();
        self.link.is_done()
    }

    /// What the far side got behind the opening.
    fn told(&self) -> Vec<Frame> {
        frames(&self.to_far).into_iter().filter(|frame| !matches!(frame, Frame::SynStream { .. })).collect()
    }
}

#[test]
fn a_terminal_is_hung_up_on_stdin_at_a_frames_edge_and_its_end_is_heard() {
    for protocol in new_protocols() {
        let mut rig = opened(protocol, EXEC);
        // A frame of the client of which half has come.
        let half = encode(&[data(STDIN, "half")]);
        rig.client(&half[..10]).unwrap();
        assert!(!rig.link.is_done());
        assert!(rig.hangs_up(HangUp::Interrupt) && rig.hangs_up(HangUp::EndOfFile));
        assert!(rig.hangs_up(HangUp::EndOfStdin) && !rig.hangs_up(HangUp::EndOfFile));
        let expected = [data(STDIN, "ha"), data(STDIN, "\x03"), data(STDIN, "\x04"), fin(STDIN)];
        assert_eq!(rig.told(), expected);

        let before = rig.to_client.len();
        assert!(!rig.hears_last(&[data(STDOUT, "^C\r\n$ exit\r\n")]));
        assert!(rig.hears_last(&results(protocol, &Outcome::exit(130))[1]));
        assert_eq!(rig.to_client.len(), before, "nobody is told");
        let mut taped = crate::wire::tape::Taped::default();
        taped.read(rig.out.tap.tape().unwrap().take().pieces());
        assert!(taped.stdin == b"ha" && taped.stdout.is_empty() && taped.stdin_ends == 0, "{taped:?}");
    }
}

#[test]
fn a_client_that_leaves_its_program_does_not_take_stdin_along() {
    let orders = [
        vec![reset(STDIN), reset(STDOUT), reset(STDERR), reset(ERROR), goaway()],
        vec![reset(ERROR), reset(STDIN), goaway()],
        vec![goaway()],
    ];
    for (leaving, resets) in orders.into_iter().zip([vec![STDOUT, STDERR], vec![], vec![]]) {
        let mut rig = opened(Protocol::V4, EXEC);
        rig.client_says(&leaving);
        assert!(rig.link.is_over());
        let for_client = rig.to_client.len();
        rig.end();
        assert_eq!(rig.to_client.len(), for_client, "it has left");
        assert!(rig.hangs_up(HangUp::Interrupt));
        let expected: Vec<_> = resets.into_iter().map(reset).chain([data(STDIN, "\x03")]).collect();
        assert_eq!(rig.told(), expected);
    }
    // What runs anyway, and what has ended, is left as always.
    for (runs, ends) in [(Runs::Attach { tty: true }, false), (EXEC, true)] {
        let mut rig = opened(Protocol::V4, runs);
        if ends {
            rig.far_says(&[data(ERROR, Outcome::Success.to_bytes(Protocol::V4))]);
        }
        rig.client_says(&[reset(STDIN), reset(ERROR), goaway()]);
        assert!(!rig.link.is_over());
        assert_eq!(rig.told(), [reset(STDIN), reset(ERROR), goaway()]);
    }
    // Without a terminal, the reset of stdin is its end.
    let mut rig = opened(Protocol::V4, Runs::Exec { tty: false });
    rig.client_says(&[reset(STDIN), reset(ERROR)]);
    assert!(rig.link.is_over() && !rig.hangs_up(HangUp::EndOfStdin));
    assert_eq!(rig.told(), [reset(STDIN)]);
}

#[test]
fn nothing_was_started_before_there_is_a_stream() {
    let mut rig = Rig::new(SpdyLink::command(Protocol::V4, EXEC));
    assert!(rig.link.is_done() && rig.told_to(HangUp::Interrupt) == Spoken::No);
}

#[test]
fn what_may_have_begun_before_its_replies_were_read_is_hung_up_when_they_are() {
    let mut rig = Rig::new(SpdyLink::command(Protocol::V4, EXEC));
    rig.client_says(&opening());
    assert!(!rig.link.is_done(), "the far side may have begun");
    assert_eq!(rig.told_to(HangUp::Interrupt), Spoken::NotYet);
    assert!(!rig.hears_last(&replies()));
    assert!(rig.hangs_up(HangUp::Interrupt) && rig.hangs_up(HangUp::EndOfFile));
    assert_eq!(rig.told(), [data(STDIN, "\x03"), data(STDIN, "\x04")]);
    assert!(rig.hears_last(&results(Protocol::V4, &Outcome::exit(130))[1]));
    // One that refuses the streams has not begun.
    let mut rig = Rig::new(SpdyLink::command(Protocol::V4, EXEC));
    rig.client_says(&opening());
    assert!(rig.hears_last(&[reset(ERROR), reset(STDIN), reset(STDOUT), reset(STDERR)]));
    assert_eq!(rig.told_to(HangUp::Interrupt), Spoken::No);
}

#[test]
fn a_notice_in_the_middle_stands_between_frames_and_the_session_goes_on() {
    let mut rig = opened(Protocol::V4, EXEC);
    let whole = encode_with(&mut rig.far_encoder, &[data(STDOUT, "one two")]);
    // Half of a frame has come.
    rig.far(&whole[..11]).unwrap();
    rig.link.announce("\r\nslow\r\n", &mut rig.out);
    rig.far(&whole[11..]).unwrap();
    rig.far_says(&results(Protocol::V4, &Outcome::exit(3))[1]);
    let seen = rig.seen();
    assert_eq!(seen.text(STDOUT), "one\r\nslow\r\n two");
    assert_eq!(seen.outcome(Protocol::V4), Outcome::exit(3));
    let mut taped = crate::wire::tape::Taped::default();
    taped.read(rig.out.tap.tape().unwrap().take().pieces());
    assert_eq!((&taped.stdout[..], &taped.told[..]), (&b"one two"[..], &b"\r\nslow\r\n"[..]));
    assert_eq!(rig.out.tap.moved().stdout, 7, "podgate's own words are no output");
}

#[test]
fn why_podgate_ends_a_session_stands_in_its_terminal_in_front_of_the_error() {
    for runs in [EXEC, Runs::Attach { tty: true }] {
        let mut rig = opened(Protocol::V4, runs);
        rig.far_says(&[data(STDOUT, "$ ")]);
        rig.link.announce("\r\nidle\r\n", &mut rig.out);
        assert_eq!(rig.end(), Fate::Cut);
        let seen = rig.seen();
        assert_eq!(seen.text(STDOUT), "$ \r\nidle\r\n");
        assert_eq!(seen.outcome(Protocol::V4), internal(WHY));
        let mut taped = crate::wire::tape::Taped::default();
        taped.read(rig.out.tap.tape().unwrap().take().pieces());
        assert_eq!((&taped.stdout[..], &taped.told[..]), (&b"$ "[..], &b"\r\nidle\r\n"[..]));
    }
    let mut rig = opened(Protocol::V4, Runs::Exec { tty: false });
    rig.link.announce("idle", &mut rig.out);
    rig.end();
    assert_eq!(rig.seen().text(STDOUT), "", "an output that is no terminal is the program's alone");
}

#[test]
fn terminal_sizes_empty_frames_and_pings_are_no_activity() {
    let mut rig = Rig::new(SpdyLink::command(Protocol::V4, EXEC));
    let resize = syn(9, Headers::new().with(StreamType::HEADER, "resize"));
    rig.client_says(&[opening(), vec![resize]].concat());
    rig.far_says(&[replies(), vec![reply(9)]].concat());
    for (frames, active) in [
        (vec![data(9, "{\"Width\":80,\"Height\":24}"), Frame::Ping { id: 1 }, data(STDIN, "")], false),
        (vec![data(STDIN, "x")], true),
    ] {
        rig.out.active = false;
        rig.client_says(&frames);
        assert_eq!(rig.out.active, active, "{frames:?}");
    }
}
