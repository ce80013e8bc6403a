//! Tests of the remotecommand payloads. Those of the conformance checklist carry its item number.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use super::*;
use proptest::prelude::*;

fn chosen(lines: &[&str]) -> Negotiation {
    negotiate(lines.iter().copied(), &Protocol::SPDY)
}

fn status(outcome: &Outcome) -> String {
    String::from_utf8(outcome.to_bytes(Protocol::V4).to_vec()).unwrap()
}

/// Every size in one run of bytes, and how the run ended.
fn sizes(decoder: &mut ResizeDecoder, mut input: &[u8]) -> (Vec<(u16, u16)>, Resize) {
    let mut sizes = Vec::new();
    loop {
        match decoder.decode(&mut input) {
            Resize::Size(size) => sizes.push((size.width, size.height)),
            end => {
                assert!(input.is_empty());
                return (sizes, end);
            }
        }
    }
}

#[test]
fn protocol_names_are_those_of_kubernetes() {
    let names: Vec<_> = Protocol::SPDY.iter().map(|protocol| protocol.name()).collect();
    assert_eq!(names, ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"]);
    assert_eq!(Protocol::from_name("v5.channel.k8s.io"), Some(Protocol::V5));
    assert_eq!(Protocol::from_name("v1.channel.k8s.io"), None);
    assert!(Protocol::V3.supports_resize() && !Protocol::V2.supports_resize());
    assert!(Protocol::V4.writes_status() && !Protocol::V3.writes_status());
    assert!(Protocol::V5.supports_close() && !Protocol::V4.supports_close());
    assert!(Protocol::V2.waits_for_output() && !Protocol::V1.waits_for_output());
}

#[test]
fn item_067_streams_are_created_error_stdin_stdout_stderr_resize() {
    let streams = |stdin, stdout, stderr, tty, protocol| {
        let asked = Asked { stdin, stdout, stderr, tty };
        asked.streams(protocol).iter().map(StreamType::name).collect::<Vec<_>>()
    };
    assert_eq!(streams(true, true, true, false, Protocol::V4), ["error", "stdin", "stdout", "stderr"]);
    assert_eq!(streams(true, true, true, true, Protocol::V4), ["error", "stdin", "stdout", "resize"]);
    assert_eq!(streams(true, true, true, true, Protocol::V2), ["error", "stdin", "stdout"]);
    assert_eq!(streams(false, false, false, false, Protocol::V4), ["error"]);
    assert_eq!(streams(false, false, true, false, Protocol::V1), ["error", "stderr"]);
}

#[test]
fn item_068_streams_in_any_order_complete_a_set_once() {
    let mut expected = Asked { stdin: true, stdout: true, ..Asked::default() }.streams(Protocol::V4);
    assert_eq!(expected.len(), 3);
    for name in ["stdout", "error", "stdin"] {
        let stream = StreamType::from_name(name.as_bytes()).unwrap();
        assert!(expected.remove(stream));
        assert!(!expected.remove(stream));
    }
    assert!(expected.is_empty());
    assert_eq!(StreamType::from_name(b"data"), None);
    assert_eq!(format!("{:?}", StreamSet::from_iter([StreamType::Stdin])), "{Stdin}");
}

#[test]
fn item_071_five_lines_one_list_and_a_mix_choose_the_same() {
    let v = [
        "v5.channel.k8s.io",
        "v4.channel.k8s.io",
        "v3.channel.k8s.io",
        "v2.channel.k8s.io",
        "channel.k8s.io",
    ];
    let list = v.join(",");
    let (mixed, rest) = (format!(" {}\t, {} ,,", v[0], v[1]), v[2..].join(" , "));
    for lines in [&v[..], &[&list], &[&mixed, &rest]] {
        assert_eq!(chosen(lines), Negotiation::Chosen(Protocol::V4), "{lines:?}");
    }
}

#[test]
fn item_072_the_order_of_the_client_wins() {
    assert_eq!(chosen(&["channel.k8s.io, v4.channel.k8s.io"]), Negotiation::Chosen(Protocol::V1));
    assert_eq!(chosen(&["v2.channel.k8s.io", "v3.channel.k8s.io"]), Negotiation::Chosen(Protocol::V2));
    assert_eq!(
        negotiate(["v4.channel.k8s.io,v3.channel.k8s.io"], &[Protocol::V3]),
        Negotiation::Chosen(Protocol::V3)
    );
}

#[test]
fn item_073_no_common_protocol_names_both_sides() {
    let Negotiation::NoCommon { client } = chosen(&["v5.channel.k8s.io, V4.channel.k8s.io", "x"]) else {
        panic!()
    };
    assert_eq!(
        no_common_body(&client, &Protocol::SPDY),
        "unable to upgrade: unable to negotiate protocol: \
         client supports [v5.channel.k8s.io V4.channel.k8s.io x], \
         server accepts [v4.channel.k8s.io v3.channel.k8s.io v2.channel.k8s.io channel.k8s.io]\n"
    );
    assert_eq!(chosen(&[" , "]), Negotiation::NoCommon { client: vec![] });
}

#[test]
fn item_074_a_missing_header_is_told_from_an_empty_one() {
    assert_eq!(chosen(&[]), Negotiation::Missing);
    assert_eq!(
        missing_body(7),
        "unable to upgrade: header X-Stream-Protocol-Version does not exist in request with 7 headers\n"
    );
}

#[test]
fn item_086_results_have_the_status_forms_of_kubernetes() {
    assert_eq!(status(&Outcome::exit(0)), r#"{"metadata":{},"status":"Success"}"#);
    for code in [1, 255] {
        let form = concat!(
            r#"{"metadata":{},"status":"Failure","message":"command terminated with non-zero exit code: "#,
            r#"command terminated with exit code CODE","reason":"NonZeroExitCode","#,
            r#""details":{"causes":[{"reason":"ExitCode","message":"CODE"}]}}"#,
        );
        assert_eq!(status(&Outcome::exit(code)), form.replace("CODE", &code.to_string()));
    }
    assert_eq!(
        status(&Outcome::exec_failed("no such file")),
        concat!(
            r#"{"metadata":{},"status":"Failure","#,
            r#""message":"Internal error occurred: error executing command in container: no such file","#,
            r#""reason":"InternalError","#,
            r#""details":{"causes":[{"message":"error executing command in container: no such file"}]},"#,
            r#""code":500}"#,
        )
    );
    assert!(status(&Outcome::attach_failed("x")).contains(r#""message":"error attaching to container: x""#));
}

#[test]
fn item_086_results_survive_writing_and_reading() {
    let text = "error executing command [sh -c exit 3], exit code 3".to_owned();
    for outcome in [
        Outcome::Success,
        Outcome::exit(1),
        Outcome::exit(255),
        Outcome::Exit { code: 3, text },
        Outcome::exec_failed("a \"b\" <c> & \\ \u{2028}\u{1}\u{8}\n"),
        Outcome::attach_failed("x"),
        Outcome::Other { message: "pods \"x\" not found".into() },
    ] {
        assert_eq!(Outcome::parse(Protocol::V4, &outcome.to_bytes(Protocol::V4)).unwrap(), outcome);
    }
}

#[test]
fn item_086_exit_codes_outside_0_to_255_are_errors() {
    let parse = |code: &str| {
        let text = format!(
            r#"{{"status":"Failure","reason":"{NON_ZERO_EXIT_CODE}","details":{{"causes":[{other},{cause}]}}}}"#,
            other = r#"{"message":"x"}"#,
            cause = format_args!(r#"{{"reason":"ExitCode","message":"{code}"}}"#),
        );
        Outcome::parse(Protocol::V4, text.as_bytes())
    };
    for (text, code) in [("0", 0), ("1", 1), ("007", 7), ("255", 255)] {
        assert!(matches!(parse(text), Ok(Outcome::Exit { code: c, .. }) if c == code), "{text}");
    }
    for text in ["256", "-1", "+1", "", "1.0", " 1", "x"] {
        assert!(matches!(parse(text), Err(Error::ExitCode(bad)) if bad == text), "{text}");
    }
}

#[test]
fn results_of_newer_runtimes_without_metadata_are_read() {
    let outcome = Outcome::parse(
        Protocol::V4,
        br#"{"status":"Failure","message":"Internal error occurred: x","reason":"InternalError","code":500}"#,
    );
    assert_eq!(outcome.unwrap(), Outcome::Internal { text: "x".into() });
    assert_eq!(Outcome::parse(Protocol::V5, br#"{"status":"Success"}"#).unwrap(), Outcome::Success);
    assert_eq!(Outcome::parse(Protocol::V4, b"").unwrap(), Outcome::Success);
}

#[test]
fn results_that_are_no_status_are_protocol_errors() {
    let error = |bytes: &[u8]| Outcome::parse(Protocol::V4, bytes).unwrap_err().to_string();
    assert_eq!(error(b"oops"), "error stream protocol error: result is not a Status");
    assert_eq!(error(b"{}"), "error stream protocol error: unknown error");
    let no_details = br#"{"status":"Failure","reason":"NonZeroExitCode"}"#;
    assert_eq!(error(no_details), "error stream protocol error: details must be set");
    let no_cause = br#"{"status":"Failure","reason":"NonZeroExitCode","details":{"name":"x"}}"#;
    assert_eq!(error(no_cause), "error stream protocol error: no ExitCode cause given");
    assert!(matches!(Outcome::parse(Protocol::V4, &vec![b' '; MAX_RESULT + 1]), Err(Error::TooLarge)));
}

#[test]
fn item_087_before_v4_failure_is_text_and_success_is_nothing() {
    for protocol in [Protocol::V1, Protocol::V2, Protocol::V3] {
        assert_eq!(Outcome::Success.to_bytes(protocol), "");
        assert_eq!(Outcome::parse(protocol, b"").unwrap(), Outcome::Success);
        let bytes = Outcome::Exit { code: 3, text: "<3>".into() }.to_bytes(protocol);
        assert_eq!(bytes, "command terminated with non-zero exit code: <3>");
        let bytes = Outcome::exec_failed("x").to_bytes(protocol);
        assert_eq!(bytes, "Internal error occurred: error executing command in container: x");
        let message = String::from_utf8(bytes.to_vec()).unwrap();
        assert_eq!(Outcome::parse(protocol, &bytes).unwrap(), Outcome::Other { message });
    }
}

#[test]
fn clients_report_the_words_of_client_go() {
    let exit = Outcome::exit(3);
    assert_eq!(exit.client_error(Protocol::V4).unwrap(), "command terminated with exit code 3");
    let other = Outcome::Other { message: "x".into() };
    assert_eq!(other.client_error(Protocol::V5).unwrap(), "x");
    assert_eq!(other.client_error(Protocol::V3).unwrap(), "error executing remote command: x");
    assert_eq!(other.client_error(Protocol::V1).unwrap(), "Error executing remote command: x");
    assert_eq!(Outcome::Success.client_error(Protocol::V1), None);
}

#[test]
fn sizes_are_read_with_the_manners_of_go() {
    let cases: [(&str, &[(u16, u16)]); 9] = [
        ("{\"Width\":80,\"Height\":24}\n{\"Width\":81,\"Height\":25}\n", &[(80, 24), (81, 25)]),
        ("{\"Width\":80,\"Height\":24}{\"Width\":81,\"Height\":25}", &[(80, 24), (81, 25)]),
        (" \r\n\t{ \"WIDTH\" : 65535 , \"height\" : 0 } ", &[(65535, 0)]),
        ("{}", &[(0, 0)]),
        ("{\"Width\":1,\"Width\":2}", &[(2, 0)]),
        ("{\"Width\":1,\"width\":null,\"Height\":3}", &[(1, 3)]),
        ("{\"x\":{\"Width\":[1,{}]},\"Width\":5}", &[(5, 0)]),
        ("{\"a}\\\"}{\":\"}{\",\"Height\":6}", &[(0, 6)]),
        ("", &[]),
    ];
    for (text, wanted) in cases {
        for cut in 0..=text.len() {
            let mut decoder = ResizeDecoder::new();
            let (mut seen, _) = sizes(&mut decoder, &text.as_bytes()[..cut]);
            let (rest, end) = sizes(&mut decoder, &text.as_bytes()[cut..]);
            seen.extend(rest);
            assert_eq!((&seen[..], end), (wanted, Resize::More), "{text:?} cut at {cut}");
        }
    }
}

#[test]
fn item_085_bad_sizes_end_resizing_and_keep_what_came_before() {
    for bad in [
        "x",
        "[1]",
        "null",
        "}",
        "{]}",
        "{\"Width\":65536}",
        "{\"Width\":-1}",
        "{\"Width\":1.0}",
        "{\"Width\":1e2}",
        "{\"Width\":\"1\"}",
        "{\"Width\"}",
        "{'Width':1}",
        "{\"Width\":1,}",
    ] {
        let text = format!("{{\"Width\":80,\"Height\":24}}\n{bad}{{\"Width\":81,\"Height\":25}}");
        let mut decoder = ResizeDecoder::new();
        assert_eq!(sizes(&mut decoder, text.as_bytes()), (vec![(80, 24)], Resize::Ended), "{bad}");
        assert_eq!(sizes(&mut decoder, b"{\"Width\":1,\"Height\":1}"), (vec![], Resize::Ended));
    }
}

#[test]
fn a_size_without_end_is_cut_off_at_the_limit() {
    let mut decoder = ResizeDecoder::new();
    assert_eq!(sizes(&mut decoder, &[b' '; 1 << 20]), (vec![], Resize::More), "blanks are not kept");
    assert_eq!(sizes(&mut decoder, &[b'{'; MAX_RESIZE]), (vec![], Resize::More));
    assert_eq!(sizes(&mut decoder, b"{"), (vec![], Resize::Ended));
    assert!(matches!(decoder.state, ResizeState::Ended));
}

#[test]
fn a_size_is_written_as_go_writes_it() {
    assert_eq!(TerminalSize { width: 80, height: 24 }.to_bytes(), "{\"Width\":80,\"Height\":24}\n");
}

proptest! {
    #[test]
    fn sizes_survive_encoding_and_any_cuts(
        wanted in proptest::collection::vec(any::<(u16, u16)>(), 0..8),
        cut in 1..60usize,
    ) {
        let bytes: Vec<u8> =
            wanted.iter().flat_map(|&(width, height)| TerminalSize { width, height }.to_bytes()).collect();
        let mut decoder = ResizeDecoder::new();
        let seen: Vec<_> = bytes.chunks(cut).flat_map(|part| sizes(&mut decoder, part).0).collect();
        prop_assert_eq!(seen, wanted);
    }

    #[test]
    fn results_of_any_text_survive(code in 1..=255u8, text in ".*", other in any::<String>()) {
        for outcome in [Outcome::Exit { code, text: text.clone() }, Outcome::exec_failed(&other)] {
            let bytes = outcome.to_bytes(Protocol::V4);
            prop_assert!(!bytes.iter().any(|b| b"<>&\n".contains(b)));
            prop_assert_eq!(Outcome::parse(Protocol::V4, &bytes).unwrap(), outcome);
        }
    }

    #[test]
    fn garbage_never_panics(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        start in "[{\" a:0-9}]{0,20}",
    ) {
        let bytes = [start.as_bytes(), &bytes].concat();
        let (_, end) = sizes(&mut ResizeDecoder::new(), &bytes);
        prop_assert!(end != Resize::Size(TerminalSize::default()));
        let _ = Outcome::parse(Protocol::V4, &bytes);
        let _ = Outcome::parse(Protocol::V1, &bytes);
    }
}
