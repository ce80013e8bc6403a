//! Protobuf: the three reviews as kubectl 1.32 and later send them; it does not fall back to JSON.
//!
//! Only what a review asks is read, into the same JSON the other clients send, so that both take one way from
//! there. The reader works on a bounded body, keeps no state and calls itself only as deep as the messages
//! here.
//! Source: apimachinery `pkg/runtime/serializer/protobuf/protobuf.go` and `pkg/runtime/generated.proto`
//! (the envelope); `k8s.io/api/{authorization,authentication}/v1/generated.proto`; protobuf encoding guide.

use serde_json::{Map, Value};

/// What every Kubernetes protobuf body starts with.
const MAGIC: &[u8] = b"k8s\0";

/// Failures to read a body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    /// Another format, or none.
    #[error("provided data does not appear to be a protobuf message, expected prefix 6b 38 73 00")]
    NoMagic,
    /// The bytes end inside a field, or hold a kind of field the encoding does not have.
    #[error("malformed protobuf message")]
    Malformed,
    /// A string that is none.
    #[error("protobuf string is not UTF-8")]
    NotUtf8,
    /// A type that is no review.
    #[error("no kind {0:?} is registered")]
    UnknownKind(String),
}

/// What a field of a message is read into.
#[derive(Clone, Copy)]
enum Shape {
    Text,
    Message(&'static [(u64, &'static str, Shape)]),
}

/// The envelope: a `TypeMeta` and the object's own bytes.
const TYPE_META: &[(u64, &str, Shape)] = &[(1, "apiVersion", Shape::Text), (2, "kind", Shape::Text)];

const ACCESS_REVIEW: &[(u64, &str, Shape)] = &[(
    2,
    "spec",
    Shape::Message(&[
        (
            1,
            "resourceAttributes",
            Shape::Message(&[
                (1, "namespace", Shape::Text),
                (2, "verb", Shape::Text),
                (3, "group", Shape::Text),
                (4, "version", Shape::Text),
                (5, "resource", Shape::Text),
                (6, "subresource", Shape::Text),
                (7, "name", Shape::Text),
            ]),
        ),
        (2, "nonResourceAttributes", Shape::Message(&[(1, "path", Shape::Text), (2, "verb", Shape::Text)])),
    ]),
)];

const RULES_REVIEW: &[(u64, &str, Shape)] = &[(2, "spec", Shape::Message(&[(1, "namespace", Shape::Text)]))];

/// Reads a review into JSON.
pub(super) fn to_json(body: &[u8]) -> Result<Value, Error> {
    let mut rest = body.strip_prefix(MAGIC).ok_or(Error::NoMagic)?;
    let mut type_meta = Map::new();
    let mut raw: &[u8] = &[];
    while !rest.is_empty() {
        match field(&mut rest)? {
            (1, Some(bytes)) => type_meta = message(bytes, TYPE_META)?,
            (2, Some(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let kind = type_meta.get("kind").and_then(Value::as_str).unwrap_or_default();
    let shape = match kind {
        "SelfSubjectAccessReview" => ACCESS_REVIEW,
        "SelfSubjectRulesReview" => RULES_REVIEW,
        "SelfSubjectReview" => &[],
        other => return Err(Error::UnknownKind(other.to_owned())),
    };
    let mut object = message(raw, shape)?;
    object.append(&mut type_meta);
    Ok(Value::Object(object))
}

fn message(mut rest: &[u8], shape: &[(u64, &str, Shape)]) -> Result<Map<String, Value>, Error> {
    let mut object = Map::new();
    while !rest.is_empty() {
        let (number, bytes) = field(&mut rest)?;
        let Some((_, name, shape)) = shape.iter().find(|(known, ..)| *known == number) else {
            continue;
        };
        let bytes = bytes.ok_or(Error::Malformed)?;
        let value = match shape {
            Shape::Text => {
                let text = str::from_utf8(bytes).map_err(|_| Error::NotUtf8)?;
                Value::String(text.to_owned())
            }
            Shape::Message(shape) => Value::Object(message(bytes, shape)?),
        };
        object.insert((*name).to_owned(), value);
    }
    Ok(object)
}

/// Takes one field: its number and, if it has a length, its bytes; numbers are read over.
fn field<'a>(rest: &mut &'a [u8]) -> Result<(u64, Option<&'a [u8]>), Error> {
    let tag = varint(rest)?;
    let bytes = match tag & 7 {
        0 => {
            varint(rest)?;
            None
        }
        1 => {
            take(rest, 8)?;
            None
        }
        2 => {
            let length = varint(rest)?;
            Some(take(rest, length)?)
        }
        5 => {
            take(rest, 4)?;
            None
        }
        _ => return Err(Error::Malformed),
    };
    Ok((tag >> 3, bytes))
}

fn take<'a>(rest: &mut &'a [u8], length: u64) -> Result<&'a [u8], Error> {
    let length = usize::try_from(length).map_err(|_| Error::Malformed)?;
    let (taken, after) = rest.split_at_checked(length).ok_or(Error::Malformed)?;
    *rest = after;
    Ok(taken)
}

fn varint(rest: &mut &[u8]) -> Result<u64, Error> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, after) = rest.split_first().ok_or(Error::Malformed)?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Error::Malformed)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn bytes(number: u8, content: &[u8]) -> Vec<u8> {
        let length = u8::try_from(content.len()).unwrap();
        assert!(length < 0x80, "one byte is enough here");
        [&[number << 3 | 2, length], content].concat()
    }

    /// `kubectl auth can-i create pods --subresource=exec -n default`
    pub(in crate::dev::api) fn access_review() -> Vec<u8> {
        let attributes = [
            bytes(1, b"default"),
            bytes(2, b"create"),
            bytes(3, b""),
            bytes(4, b"*"),
            bytes(5, b"pods"),
            bytes(6, b"exec"),
            bytes(7, b""),
        ]
        .concat();
        let spec = bytes(1, &attributes);
        let status = [vec![1 << 3, 0], bytes(2, b"")].concat();
        let raw = [bytes(1, &bytes(1, b"")), bytes(2, &spec), bytes(3, &status)].concat();
        let type_meta = [bytes(1, b"authorization.k8s.io/v1"), bytes(2, b"SelfSubjectAccessReview")].concat();
        [MAGIC, &bytes(1, &type_meta), &bytes(2, &raw), &bytes(3, b""), &bytes(4, b"")].concat()
    }

    #[test]
    fn a_review_of_kubectl_is_the_json_of_its_elders() {
        assert_eq!(
            to_json(&access_review()).unwrap(),
            serde_json::json!({
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": {"namespace": "default", "verb": "create", "group": "",
                    "version": "*", "resource": "pods", "subresource": "exec", "name": ""}}
            })
        );
    }

    #[test]
    fn cut_at_any_byte_it_is_refused_or_says_less_and_never_panics() {
        let whole = access_review();
        // The last two fields of the envelope are empty and say nothing.
        let said = whole.len() - 4;
        for end in 0..said {
            let cut = to_json(&whole[..end]);
            let less = cut.as_ref().is_ok_and(|cut| cut.get("spec").is_none());
            assert!(cut.is_err() || less, "{end}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for (body, error) in [
            (&b""[..], Error::NoMagic),
            (b"{}", Error::NoMagic),
            (b"k8s\0", Error::UnknownKind(String::new())),
            (b"k8s\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", Error::Malformed),
            (b"k8s\0\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", Error::Malformed),
            (b"k8s\0\x0b", Error::Malformed),
            (b"k8s\0\x0a\x03\x12\x01\xff", Error::NotUtf8),
            (b"k8s\0\x0a\x02\x10\x01", Error::Malformed),
            (b"k8s\0\x0a\x05\x12\x03Pod", Error::UnknownKind("Pod".into())),
        ] {
            assert_eq!(to_json(body), Err(error), "{body:?}");
        }
    }
}
