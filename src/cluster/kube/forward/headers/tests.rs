use std::collections::BTreeMap;

use http::Request;

use super::*;

fn ana() -> User {
    User { name: "ana".into(), groups: vec!["dev".into(), "ops".into()], ..User::default() }
}

/// What goes on of these lines, as `name: value` lines sorted by name.
fn sent(user: &User, lines: &[(&str, &str)], upgrade: bool) -> Result<Vec<String>, Error> {
    let mut request = Request::builder().uri("/version");
    for (name, value) in lines {
        request = request.header(*name, *value);
    }
    let (parts, ()) = request.body(()).unwrap().into_parts();
    let out = outgoing(&parts, user, Some("192.0.2.7:4321".parse().unwrap()), upgrade)?;
    let mut lines: Vec<String> = out
        .iter()
        .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
        .collect();
    lines.sort();
    Ok(lines)
}

const ANA: [&str; 4] = [
    "impersonate-group: dev",
    "impersonate-group: ops",
    "impersonate-user: ana",
    "x-forwarded-for: 192.0.2.7",
];

#[test]
fn nothing_the_client_sends_becomes_part_of_the_identity() {
    for lines in [
        &[
            ("Impersonate-User", "root"),
            ("impersonate-user", "root"),
            ("IMPERSONATE-GROUP", "system:masters"),
        ][..],
        &[("Impersonate-Group", "a"), ("Impersonate-Group", "system:masters"), ("Impersonate-Uid", "0")],
        &[
            ("Impersonate-Extra-Scopes", "all"),
            ("Impersonate-Extra-%73copes", "all"),
            ("Impersonate-Extra-", "x"),
        ],
        &[("Impersonate-Anything-New", "x")],
        &[
            ("Impersonate_User", "root"),
            ("Impersonate-User_", "root"),
            ("impersonate_group", "system:masters"),
        ],
        &[("X-Remote-User", "root"), ("X-Remote-Group", "system:masters"), ("X-Remote-Extra-A", "b")],
        &[("X_Remote_User", "root"), ("X-Remote-Uid", "0"), ("x-remote_group", "system:masters")],
        &[
            ("Authorization", "Bearer mine"),
            ("authorization", "Basic again"),
            ("Proxy-Authorization", "Basic a"),
        ],
        &[("Connection", "Impersonate-User"), ("Connection", "Impersonate-Group, X-Forwarded-For")],
        &[("Connection", "close, impersonate-user,impersonate-group"), ("Impersonate-User", "root")],
        &[
            ("Connection", "Authorization, Host"),
            ("Keep-Alive", "5"),
            ("Proxy-Connection", "x"),
            ("Upgrade", "x"),
        ],
        &[
            ("Connection", " x-secret ,,"),
            ("X-Secret", "s"),
            ("TE", "gzip"),
            ("Transfer-Encoding", "chunked"),
        ],
        &[("Expect", "100-continue"), ("Proxy-Authenticate", "x")],
    ] {
        assert_eq!(sent(&ana(), lines, false).unwrap(), ANA, "{lines:?}");
    }
}

#[test]
fn the_rest_goes_on() {
    let mut wanted = ANA[..3].to_vec();
    wanted.extend([
        "accept: a",
        "accept: b",
        "audit-id: id",
        "cookie: a=b; c=d",
        "te: trailers",
        "trailer: x-sum",
        "x-forwarded-for: 10.0.0.1, 10.0.0.2, 192.0.2.7",
    ]);
    wanted.sort_unstable();
    let lines = [
        ("Accept", "a"),
        ("Accept", "b"),
        ("Audit-ID", "id"),
        ("Connection", "Audit-ID, Host, X-Forwarded-For"),
        ("Cookie", "a=b"),
        ("Cookie", "c=d"),
        ("Host", "podgate.test"),
        ("TE", "gzip, Trailers"),
        ("Trailer", "x-sum"),
        ("X-Forwarded-For", "10.0.0.1"),
        ("X-Forwarded-For", "10.0.0.2"),
    ];
    assert_eq!(sent(&ana(), &lines, false).unwrap(), wanted);
}

#[test]
fn an_upgrade_goes_on_in_words_of_our_own() {
    let lines = [
        ("Connection", "keep-alive, Upgrade, Impersonate-User"),
        ("Upgrade", "websocket"),
        ("Keep-Alive", "1"),
    ];
    let mut wanted = ANA.to_vec();
    wanted.extend(["connection: Upgrade", "upgrade: websocket"]);
    wanted.sort_unstable();
    assert_eq!(sent(&ana(), &lines, true).unwrap(), wanted);
}

#[test]
fn an_identity_is_told_whole() {
    let extra = BTreeMap::from([
        ("Scopes/A b%é".to_owned(), vec!["x".to_owned(), String::new()]),
        ("example.com/id_2".to_owned(), vec!["y z".to_owned()]),
    ]);
    let user = User { name: "ána, b".into(), uid: "u-1".into(), groups: vec!["system:a b".into()], extra };
    assert_eq!(
        sent(&user, &[], false).unwrap(),
        [
            "impersonate-extra-%53copes%2f%41%20b%25%c3%a9: ",
            "impersonate-extra-%53copes%2f%41%20b%25%c3%a9: x",
            "impersonate-extra-example.com%2fid_2: y z",
            "impersonate-group: system:a b",
            "impersonate-uid: u-1",
            "impersonate-user: ána, b",
            "x-forwarded-for: 192.0.2.7",
        ]
    );
}

#[test]
fn an_identity_that_would_arrive_altered_is_refused() {
    let named = |name: &str| User { name: name.into(), ..User::default() };
    let mut users = ["", "a\nb", "a\r\nImpersonate-Group: system:masters", "a\0", "a\x7f", " a", "a\t"]
        .map(named)
        .to_vec();
    users.push(User { uid: "a\nb".into(), ..ana() });
    users.push(User { groups: vec!["ok".into(), "a\nb".into()], ..ana() });
    users.push(User { groups: vec!["dev ".into()], ..ana() });
    for (key, value) in [("", "v"), ("k", "a\rb"), ("k", "v ")] {
        users.push(User { extra: BTreeMap::from([(key.into(), vec![value.into()])]), ..ana() });
    }
    users.push(User { extra: BTreeMap::from([("k".repeat(70_000), vec!["v".into()])]), ..ana() });
    for user in users {
        let refused = sent(&user, &[], false).unwrap_err();
        assert!(matches!(refused, Error::Identity(_)), "{user:?}: {refused:?}");
        let text = refused.refusal().message();
        assert!(text.starts_with("forbidden: ") && !text.contains('\n'), "{text}");
    }
    let extra = (0..40_000).map(|key| (key.to_string(), vec!["v".into()])).collect();
    let crowd = User { extra, ..ana() };
    assert!(matches!(sent(&crowd, &[], false), Err(Error::TooManyHeaders)));
}

#[test]
fn what_is_between_us_and_the_api_server_stays_there() {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("connection", "x-hop, close"),
        ("x-hop", "1"),
        ("keep-alive", "timeout=5"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "websocket"),
        ("audit-id", "id"),
        ("trailer", "x-sum"),
    ] {
        headers.append(name, value.parse().unwrap());
    }
    let mut switched_headers = headers.clone();
    answered(&mut headers);
    let names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
    assert_eq!(names, ["audit-id", "trailer"]);
    switched(&mut switched_headers);
    assert_eq!(switched_headers["connection"], "Upgrade");
    assert_eq!(switched_headers["upgrade"], "websocket");
}
