//! Lines: where in a YAML file a key stands.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// The line, from 1, of this key's value (`api.maxHeaders`), or of the nearest key above it that is there.
pub(super) fn line_of(text: &str, key: &str) -> Option<u64> {
    let mut node: Spanned<Tree> = serde_saphyr::from_str(text).ok()?;
    let mut line = None;
    for name in key.split('.') {
        let found = node.value.0.into_iter().find(|(have, _)| have == name);
        let Some((_, child)) = found else { break };
        line = Some(child.defined.line());
        node = child;
    }
    line
}

/// The keys of mappings; all else is left out.
struct Tree(Vec<(String, Spanned<Tree>)>);

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Tree;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("YAML")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
                let mut keys = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    keys.push(entry);
                }
                Ok(Tree(keys))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Tree, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Tree(Vec::new()))
            }

            fn visit_bool<E: Error>(self, _: bool) -> Result<Tree, E> {
                Ok(Tree(Vec::new()))
            }

            fn visit_i64<E: Error>(self, _: i64) -> Result<Tree, E> {
                Ok(Tree(Vec::new()))
            }

            fn visit_u64<E: Error>(self, _: u64) -> Result<Tree, E> {
                Ok(Tree(Vec::new()))
            }

            fn visit_f64<E: Error>(self, _: f64) -> Result<Tree, E> {
                Ok(Tree(Vec::new()))
            }

            fn visit_str<E: Error>(self, _: &str) -> Result<Tree, E> {
                Ok(Tree(Vec::new()))
            }

            fn visit_unit<E: Error>(self) -> Result<Tree, E> {
                Ok(Tree(Vec::new()))
            }
        }
        deserializer.deserialize_any(Keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_where_it_stands() {
        let text =
            "api:\n  listen: x\n  list: [1, a, {b: c}]\n\n  tls: {certFile: a,\n    keyFile: b}\ndrain: ~\n";
        let lines = [
            ("api.listen", Some(2)),
            ("api.list", Some(3)),
            ("api.tls.keyFile", Some(6)),
            ("api.tls.other", Some(5)),
            ("drain", Some(7)),
            ("other.key", None),
        ];
        for (key, line) in lines {
            assert_eq!(line_of(text, key), line, "{key}");
        }
        assert_eq!(line_of("", "api"), None);
    }
}
