//! Health: the answers of `/healthz`, `/livez` and `/readyz`, as every Kubernetes component gives them.
//!
//! Source: `protocol.md` 8.7 (apiserver `pkg/server/healthz`).

use std::collections::BTreeSet;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

use crate::request::Query;
use crate::status::go_quote;

/// One named check and its outcome.
#[derive(Debug, Clone, Copy)]
pub struct Check {
    /// The name that `exclude` takes.
    pub name: &'static str,
    /// Whether it passed.
    pub ok: bool,
}

/// The answer of `endpoint` (`healthz`, `livez` or `readyz`) to these checks; `query` is the raw query.
pub fn answer(endpoint: &str, checks: &[Check], query: &str) -> Response<Bytes> {
    let query = Query::parse(query);
    // Without repetition and in order, as upstream's set of them.
    let excluded: BTreeSet<String> =
        query.all("exclude").map(|n| String::from_utf8_lossy(n).into_owned()).collect();
    let mut lines = String::new();
    let mut healthy = true;
    for check in checks {
        let name = check.name;
        if excluded.contains(name) {
            lines.push_str(&format!("[+]{name} excluded: ok\n"));
        } else if check.ok {
            lines.push_str(&format!("[+]{name} ok\n"));
        } else {
            healthy = false;
            lines.push_str(&format!("[-]{name} failed: reason withheld\n"));
        }
    }
    let unknown = excluded.iter().filter(|name| !checks.iter().any(|check| check.name == name.as_str()));
    let unknown: Vec<String> = unknown.map(|name| go_quote(name.as_bytes())).collect();
    if !unknown.is_empty() {
        let names = unknown.join(",");
        lines.push_str(&format!("warn: some health checks cannot be excluded: no matches for {names}\n"));
    }
    let text = match (healthy, query.all("verbose").next().is_some()) {
        (true, false) => "ok".to_owned(),
        (true, true) => format!("{lines}{endpoint} check passed\n"),
        (false, _) => format!("{lines}{endpoint} check failed\n"),
    };
    let mut response = Response::new(Bytes::from(text));
    if !healthy {
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    }
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Check = Check { name: "ping", ok: true };
    const BAD: Check = Check { name: "draining", ok: false };

    fn text(checks: &[Check], query: &str) -> (u16, String) {
        let response = answer("readyz", checks, query);
        (response.status().as_u16(), String::from_utf8(response.into_body().to_vec()).unwrap())
    }

    #[test]
    fn item_115_health_is_ok_without_a_newline() {
        assert_eq!(text(&[GOOD], ""), (200, "ok".into()));
        assert_eq!(text(&[GOOD], "verbose"), (200, "[+]ping ok\nreadyz check passed\n".into()));
    }

    #[test]
    fn a_failed_check_is_500_with_its_name_and_can_be_excluded() {
        let failed = "[+]ping ok\n[-]draining failed: reason withheld\nreadyz check failed\n";
        assert_eq!(text(&[GOOD, BAD], ""), (500, failed.into()));
        assert_eq!(text(&[GOOD, BAD], "exclude=draining"), (200, "ok".into()));
        let (code, warned) = text(&[GOOD], "verbose&exclude=x");
        assert_eq!(code, 200);
        assert!(warned.contains("warn: some health checks cannot be excluded: no matches for \"x\"\n"));
    }
}
