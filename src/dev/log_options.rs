//! Log options: what a reader of a container's log asks for, as API server and kubelet both read it.
//!
//! In the flow: `api` decodes and checks them, and writes them into the query that `node` decodes again.
//! Source: `protocol.md` 1.4, 1.5, 1.8; kubernetes `pkg/apis/core/validation` (`ValidatePodLogOptions`), Go
//! `strconv` and `time` for the texts.

use jiff::Timestamp;

use crate::request::Query;
use crate::status::{Cause, go_quote};

/// Go's `time.RFC3339`, as its errors show it.
const RFC3339: &str = "2006-01-02T15:04:05Z07:00";

/// The options of one request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::dev) struct LogOptions {
    pub(in crate::dev) follow: bool,
    pub(in crate::dev) previous: bool,
    pub(in crate::dev) timestamps: bool,
    pub(in crate::dev) since_seconds: Option<i64>,
    pub(in crate::dev) since_time: Option<Timestamp>,
    pub(in crate::dev) tail_lines: Option<i64>,
    pub(in crate::dev) limit_bytes: Option<i64>,
}

// === impl LogOptions ===

impl LogOptions {
    /// Reads a query; the error is the decoder's text.
    pub(in crate::dev) fn decode(query: &Query) -> Result<Self, String> {
        let number = |name: &str| query.all(name).next().map(parse_int).transpose();
        Ok(Self {
            follow: query.flag("follow"),
            previous: query.flag("previous"),
            since_seconds: number("sinceSeconds")?,
            since_time: query.all("sinceTime").next().map(parse_time).transpose()?,
            timestamps: query.flag("timestamps"),
            tail_lines: number("tailLines")?,
            limit_bytes: number("limitBytes")?,
        })
    }

    /// What is wrong with them, in upstream's order.
    pub(in crate::dev) fn problems(&self) -> Vec<Cause> {
        let least = |field: &str, value: Option<i64>, least: i64, rule: &str| {
            let value = value.filter(|value| *value < least)?;
            let message = format!("Invalid value: {value}: must be {rule}");
            Some(Cause { reason: "FieldValueInvalid", message, field: field.into() })
        };
        let since = match (self.since_seconds, self.since_time) {
            (Some(_), Some(_)) => Some(Cause {
                reason: "FieldValueForbidden",
                message: "Forbidden: at most one of `sinceTime` or `sinceSeconds` may be specified".into(),
                field: "[]".into(),
            }),
            (seconds, _) => least("sinceSeconds", seconds, 1, "greater than 0"),
        };
        let tail = least("tailLines", self.tail_lines, 0, "greater than or equal to 0");
        let limit = least("limitBytes", self.limit_bytes, 1, "greater than 0");
        [tail, limit, since].into_iter().flatten().collect()
    }

    /// The query a kubelet is sent: only what is set, sorted by name.
    pub(in crate::dev) fn query(&self) -> String {
        let number = |name: &str, value: Option<i64>| value.map(|value| format!("{name}={value}"));
        let flag = |name: &str, set: bool| set.then(|| format!("{name}=true"));
        let time = self.since_time.map(|at| format!("sinceTime={}", at.strftime("%Y-%m-%dT%H%%3A%M%%3A%SZ")));
        let pairs = [
            flag("follow", self.follow),
            number("limitBytes", self.limit_bytes),
            flag("previous", self.previous),
            number("sinceSeconds", self.since_seconds),
            time,
            number("tailLines", self.tail_lines),
            flag("timestamps", self.timestamps),
        ];
        pairs.into_iter().flatten().collect::<Vec<_>>().join("&")
    }

    /// Lines before this are not wanted.
    pub(in crate::dev) fn since(&self, now: Timestamp) -> Option<Timestamp> {
        let ago =
            |seconds| now.checked_sub(jiff::SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MIN);
        self.since_seconds.map(ago).or(self.since_time)
    }
}

/// Go's `strconv.ParseInt(text, 10, 64)`.
fn parse_int(text: &[u8]) -> Result<i64, String> {
    let digits = text.strip_prefix(b"-").or(text.strip_prefix(b"+")).unwrap_or(text);
    let valid = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    let parsed = if valid { str::from_utf8(text).ok().and_then(|text| text.parse().ok()) } else { None };
    parsed.ok_or_else(|| {
        let what = if valid { "value out of range" } else { "invalid syntax" };
        format!("strconv.ParseInt: parsing {}: {what}", go_quote(text))
    })
}

/// Go's `time.Parse(time.RFC3339, text)`; nothing and `null` are the zero time.
fn parse_time(text: &[u8]) -> Result<Timestamp, String> {
    if text.is_empty() || text == b"null" {
        // The year 1, from which Go counts.
        return Ok(Timestamp::from_second(-62_135_596_800).unwrap_or(Timestamp::MIN));
    }
    let wrong = |at: usize, element: &str| {
        let rest = go_quote(text.get(at..).unwrap_or_default());
        let text = go_quote(text);
        format!("parsing time {text} as {RFC3339:?}: cannot parse {rest} as {element:?}")
    };
    let elements = [("2006", 0), ("-", 4), ("01", 5), ("-", 7), ("02", 8), ("T", 10), ("15", 11)];
    let more = [(":", 13), ("04", 14), (":", 16), ("05", 17)];
    for (element, at) in elements.into_iter().chain(more) {
        let have = text.get(at..at + element.len()).unwrap_or_default();
        let digits = element.as_bytes()[0].is_ascii_digit();
        let fits = if digits {
            have.len() == element.len() && have.iter().all(u8::is_ascii_digit)
        } else {
            have == element.as_bytes()
        };
        if !fits {
            return Err(wrong(at, element));
        }
    }
    let fraction = match text.get(19) {
        Some(b'.') => 1 + text[20..].iter().take_while(|byte| byte.is_ascii_digit()).count(),
        _ => 0,
    };
    let (at, fraction) = if fraction > 1 { (19 + fraction, fraction) } else { (19, 0) };
    let zone = &text[at..];
    let is_offset = zone.len() == 6
        && matches!(zone[0], b'+' | b'-')
        && zone[3] == b':'
        && [1, 2, 4, 5].iter().all(|&index| zone[index].is_ascii_digit());
    if zone != b"Z" && !is_offset {
        return Err(wrong(at, "Z07:00"));
    }
    // The parser below takes nine digits of a fraction; the rest is less than a nanosecond.
    let kept = 19 + fraction.min(10);
    let text_of = [&text[..kept], zone].concat();
    let parsed = str::from_utf8(&text_of).ok().and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| format!("parsing time {}: {} out of range", go_quote(text), out_of_range(text)))
}

/// The first part of a well-formed time that is too large or too small.
fn out_of_range(text: &[u8]) -> &'static str {
    let two = |at: usize| (text[at] - b'0') * 10 + (text[at + 1] - b'0');
    match () {
        () if !(1..=12).contains(&two(5)) => "month",
        () if two(11) > 23 => "hour",
        () if two(14) > 59 => "minute",
        () if two(17) > 59 => "second",
        () => "day",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(query: &str) -> Result<LogOptions, String> {
        LogOptions::decode(&Query::parse(query))
    }

    #[test]
    fn what_cannot_be_decoded_is_told_in_gos_words() {
        let time = |text: &str, rest: &str, element: &str| {
            format!("parsing time {text:?} as {RFC3339:?}: cannot parse {rest:?} as {element:?}")
        };
        for (query, text) in [
            ("tailLines=x", "strconv.ParseInt: parsing \"x\": invalid syntax".to_owned()),
            ("limitBytes=", "strconv.ParseInt: parsing \"\": invalid syntax".to_owned()),
            (
                "sinceSeconds=9223372036854775808",
                "strconv.ParseInt: parsing \"9223372036854775808\": value out of range".to_owned(),
            ),
            ("sinceTime=x", time("x", "x", "2006")),
            ("sinceTime=2020", time("2020", "", "-")),
            ("sinceTime=2020-01-02T03:04:05", time("2020-01-02T03:04:05", "", "Z07:00")),
            ("sinceTime=2020-01-02T03:04:05.Z", time("2020-01-02T03:04:05.Z", ".Z", "Z07:00")),
            (
                "sinceTime=2020-13-02T03:04:05Z",
                "parsing time \"2020-13-02T03:04:05Z\": month out of range".to_owned(),
            ),
        ] {
            assert_eq!(decode(query).unwrap_err(), text, "{query}");
        }
    }

    #[test]
    fn only_what_is_set_reaches_the_kubelet_sorted_by_name() {
        let all = "timestamps=1&tailLines=%2B5&previous&follow=yes&limitBytes=10\
                   &sinceTime=2020-01-02T03:04:05.123456789012%2B01:00&unknown=1";
        assert_eq!(
            decode(all).unwrap().query(),
            "follow=true&limitBytes=10&previous=true&sinceTime=2020-01-02T02%3A04%3A05Z&tailLines=5&timestamps=true"
        );
        assert_eq!(decode("follow=0&previous=False").unwrap().query(), "");
        assert_eq!(decode("sinceTime=null").unwrap().query(), "sinceTime=0001-01-01T00%3A00%3A00Z");
    }

    proptest::proptest! {
        #[test]
        fn no_query_makes_it_panic(bytes: Vec<u8>, cut in 0usize..40) {
            let _ = parse_int(&bytes);
            let _ = parse_time(&bytes);
            let good = b"2020-01-02T03:04:05.678+01:00";
            let at = cut.min(good.len());
            let _ = parse_time(&[&good[..at], &bytes[..]].concat());
            assert_eq!(parse_time(&good[..at]).is_ok(), at == 0 || at == good.len());
        }
    }
}
