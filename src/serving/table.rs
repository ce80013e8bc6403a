//! Tables: the columns and cells kubectl prints.
//!
//! Source: apiserver `pkg/endpoints/handlers/response.go` for what goes into a row's `object`; apimachinery
//! `pkg/util/duration`.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::Serialize;
use serde_json::Value;

use super::{Accept, ListMeta, Object};
use crate::request::Ask;
use crate::status::{Refusal, go_quote};

/// How a table is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Form {
    version: &'static str,
    include: Include,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Include {
    None,
    Metadata,
    Object,
}

/// A table as it is sent.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Table<'a, O: Object> {
    kind: &'static str,
    api_version: String,
    metadata: ListMeta,
    column_definitions: Option<&'static [Column]>,
    rows: Vec<Row<'a, O>>,
}

/// A column of a table.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Column {
    /// What stands above it.
    pub name: &'static str,
    /// `string`, `integer` or `date`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// `name` for the name, else empty.
    pub format: &'static str,
    /// One sentence.
    pub description: &'static str,
    /// 0: always shown; 1: with `-o wide`.
    pub priority: i32,
}

#[derive(Debug, Serialize)]
struct Row<'a, O: Object> {
    cells: Vec<Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    conditions: Vec<Condition>,
    object: Option<Inside<'a, O>>,
}

/// Something that is to be known of a row.
#[derive(Debug, Serialize)]
pub(crate) struct Condition {
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    pub(crate) status: &'static str,
    pub(crate) reason: &'static str,
    pub(crate) message: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Inside<'a, O: Object> {
    Object(&'a O),
    #[serde(rename_all = "camelCase")]
    Metadata {
        kind: &'static str,
        api_version: String,
        metadata: &'a ObjectMeta,
    },
}

// === impl Column ===

impl Column {
    /// The name, which is the first column of every kind.
    pub const NAME: Self = Self {
        format: "name",
        ..Self::text(
            "Name",
            0,
            "Name must be unique within a namespace and is what the object is asked for by.",
        )
    };

    /// A column of text, without a format.
    pub const fn text(name: &'static str, priority: i32, description: &'static str) -> Self {
        Self { name, kind: "string", format: "", description, priority }
    }
}

// === impl Form ===

impl Form {
    /// `None` when the plain objects are wanted.
    pub(crate) fn of(ask: &Ask, accept: &Accept) -> Result<Option<Self>, Refusal> {
        let Some(version) = accept.version("Table", "meta.k8s.io", &["v1", "v1beta1"]) else {
            return Ok(None);
        };
        let include = match ask.query.first("includeObject").as_deref() {
            None | Some("" | "Metadata") => Include::Metadata,
            Some("None") => Include::None,
            Some("Object") => Include::Object,
            Some(other) => {
                return Err(Refusal::BadRequest(format!(
                    "unrecognized includeObject value: {}",
                    go_quote(other.as_bytes())
                )));
            }
        };
        Ok(Some(Self { version, include }))
    }
}

/// A table of these objects; only the first table of a watch carries its columns.
pub(crate) fn of<'a, O: Object + 'a>(
    form: Form,
    columns: Option<&'static [Column]>,
    version: String,
    objects: impl IntoIterator<Item = &'a O>,
) -> Table<'a, O> {
    let now = Timestamp::now();
    Table {
        kind: "Table",
        api_version: format!("meta.k8s.io/{}", form.version),
        metadata: ListMeta { resource_version: version },
        column_definitions: columns,
        rows: objects.into_iter().map(|object| row(form, object, now)).collect(),
    }
}

fn row<O: Object>(form: Form, object: &O, now: Timestamp) -> Row<'_, O> {
    let (cells, conditions) = object.row(now);
    let object = match form.include {
        Include::None => None,
        Include::Object => Some(Inside::Object(object)),
        Include::Metadata => Some(Inside::Metadata {
            kind: "PartialObjectMetadata",
            api_version: format!("meta.k8s.io/{}", form.version),
            metadata: object.meta(),
        }),
    };
    Row { cells, conditions, object }
}

/// How long ago that was.
pub(crate) fn age(created: Option<&Time>, now: Timestamp) -> String {
    created.map_or("<unknown>".to_owned(), |created| since(created.0, now))
}

/// Upstream's `HumanDuration`: the more time has passed, the fewer of its digits matter.
pub(crate) fn since(then: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(then).as_secs();
    if seconds < -1 {
        return "<invalid>".to_owned();
    }
    span(seconds.max(0))
}

/// The same of a number of seconds.
pub(crate) fn span(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let two = |big: i64, big_unit: char, small: i64, small_unit: char| match small {
        0 => format!("{big}{big_unit}"),
        _ => format!("{big}{big_unit}{small}{small_unit}"),
    };
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => two(minutes, 'm', seconds % 60, 's'),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => two(hours, 'h', minutes % 60, 'm'),
        () if hours < 48 => format!("{hours}h"),
        () if hours < 24 * 8 => two(hours / 24, 'd', hours % 24, 'h'),
        () if hours < 24 * 365 * 2 => format!("{}d", hours / 24),
        () if hours < 24 * 365 * 8 => two(hours / 24 / 365, 'y', hours / 24 % 365, 'd'),
        () => format!("{}y", hours / 24 / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_read_as_kubectl_shows_them() {
        for (seconds, text) in [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (600, "10m"),
            (3 * 3600 - 1, "179m"),
            (3 * 3600 + 60, "3h1m"),
            (8 * 3600 + 60, "8h"),
            (48 * 3600, "2d"),
            (49 * 3600, "2d1h"),
            (8 * 86400 + 3600, "8d"),
            (2 * 365 * 86400 + 86400, "2y1d"),
            (8 * 365 * 86400 + 86400, "8y"),
        ] {
            let now = Timestamp::from_second(2_000_000_000).unwrap();
            let then = Timestamp::from_second(2_000_000_000 - seconds).unwrap();
            assert_eq!(since(then, now), text, "{seconds}");
        }
    }
}
