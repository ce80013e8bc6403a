//! Tree: a YAML document that remembers its lines, and the way from it to typed objects.
//!
//! For manifests of the embedded cluster and for policies.
//! Invariant: every key of the document is either taken by the typed object or refused. A generated type asks
//! its deserializer to ignore what it does not know; this one answers with an error instead, so a misspelled
//! key in a Role cannot silently grant less, or more, than it says.

use std::fmt;

use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, IntoDeserializer, Visitor};
use serde_saphyr::Spanned;

/// A node of a document.
#[derive(Debug, Clone)]
pub(crate) struct Tree {
    /// Line in the file, from 1.
    pub(crate) line: u64,
    value: Value,
}

#[derive(Debug, Clone)]
enum Value {
    Null,
    Bool(bool),
    Signed(i64),
    Unsigned(u64),
    Float(f64),
    Text(String),
    List(Vec<Tree>),
    Map(Vec<(Key, Tree)>),
}

#[derive(Debug, Clone)]
struct Key {
    line: u64,
    name: String,
}

/// Why a tree is not the object it should be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Mismatch {
    /// Line in the file; 0 as long as nobody knows.
    pub(crate) line: u64,
    /// What it is about, such as `.spec.containers[1].name`.
    pub(crate) path: String,
    /// What is wrong with it.
    pub(crate) what: String,
}

/// Hands a tree to serde.
struct Reader<'a>(&'a Tree);

struct Items<'a> {
    rest: std::slice::Iter<'a, Tree>,
    index: usize,
}

struct Entries<'a> {
    rest: std::slice::Iter<'a, (Key, Tree)>,
    value: Option<&'a (Key, Tree)>,
}

// === impl Tree ===

impl Tree {
    /// The documents of a YAML or JSON text.
    ///
    /// # Errors
    /// When it is none; with the line.
    pub(crate) fn documents(text: &str) -> Result<Vec<Self>, (u64, String)> {
        let options = serde_saphyr::options! {
            strict_booleans: true,
            with_snippet: false,
        };
        serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
            let line = error.location().map_or(1, |location| location.line());
            // The user's words: the others speak of options in code.
            (line, error.render_with_formatter(&serde_saphyr::UserMessageFormatter))
        })
    }

    /// The value of this key of a map.
    pub(crate) fn get(&self, name: &str) -> Option<&Tree> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|(key, _)| key.name == name).map(|(_, tree)| tree),
            _ => None,
        }
    }

    /// The text of this key of a map.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        match &self.get(name)?.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The keys of a map, with their lines.
    pub(crate) fn keys(&self) -> impl Iterator<Item = (&str, u64)> {
        let entries = match &self.value {
            Value::Map(entries) => entries.as_slice(),
            _ => &[],
        };
        entries.iter().map(|(key, _)| (key.name.as_str(), key.line))
    }

    /// The items of a list.
    pub(crate) fn items(&self) -> Option<&[Tree]> {
        match &self.value {
            Value::List(items) => Some(items),
            _ => None,
        }
    }

    /// The line of what stands at a path such as `spec.containers[1].name`, or of the nearest thing around
    /// it.
    pub(crate) fn line_of(&self, path: &str) -> u64 {
        let mut here = self;
        let mut line = self.line;
        for part in path.split(['.', '[']) {
            let next = match part.strip_suffix(']') {
                Some(index) => {
                    index.parse::<usize>().ok().and_then(|index| Some((here.items()?.get(index)?, None)))
                }
                None => match &here.value {
                    Value::Map(entries) => entries
                        .iter()
                        .find(|(key, _)| key.name == part)
                        .map(|(key, tree)| (tree, Some(key.line))),
                    _ => None,
                },
            };
            let Some((tree, key)) = next else { break };
            here = tree;
            line = key.unwrap_or(tree.line);
        }
        line
    }

    /// Reads the typed object; every key must be known to it.
    pub(crate) fn read<'a, T: Deserialize<'a>>(&'a self) -> Result<T, Mismatch> {
        T::deserialize(Reader(self))
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self { line: spanned.referenced.line(), value: spanned.value })
    }
}

// === impl Value ===

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_none<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
                Value::deserialize(deserializer)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(Value::Bool(value))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
                Ok(Value::Signed(value))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
                Ok(Value::Unsigned(value))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
                Ok(Value::Float(value))
            }

            fn visit_str<E>(self, value: &str) -> Result<Value, E> {
                Ok(Value::Text(value.to_owned()))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element()? {
                    list.push(item);
                }
                Ok(Value::List(list))
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
                let mut map = Vec::new();
                while let Some(key) = entries.next_key::<Spanned<String>>()? {
                    let key = Key { line: key.referenced.line(), name: key.value };
                    map.push((key, entries.next_value()?));
                }
                Ok(Value::Map(map))
            }
        }

        deserializer.deserialize_any(Any)
    }
}

// === impl Mismatch ===

impl Mismatch {
    fn at(mut self, line: u64) -> Self {
        if self.line == 0 {
            self.line = line;
        }
        self
    }

    fn under(mut self, step: &str) -> Self {
        self.path.insert_str(0, step);
        self
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.trim_start_matches('.') {
            "" => f.write_str(&self.what),
            path => write!(f, "{path}: {}", self.what),
        }
    }
}

impl std::error::Error for Mismatch {}

impl de::Error for Mismatch {
    fn custom<T: fmt::Display>(what: T) -> Self {
        Self { what: what.to_string(), ..Self::default() }
    }
}

// === impl Reader ===

impl<'de> Deserializer<'de> for Reader<'de> {
    type Error = Mismatch;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match &self.0.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Signed(value) => visitor.visit_i64(*value),
            Value::Unsigned(value) => visitor.visit_u64(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Text(value) => visitor.visit_str(value),
            Value::List(items) => visitor.visit_seq(Items { rest: items.iter(), index: 0 }),
            Value::Map(entries) => visitor.visit_map(Entries { rest: entries.iter(), value: None }),
        }
        .map_err(|error| error.at(self.0.line))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match &self.0.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        // `cpu: 1` is a quantity although it is a number; the API server takes both.
        let number = match &self.0.value {
            Value::Signed(value) => value.to_string(),
            Value::Unsigned(value) => value.to_string(),
            Value::Float(value) => value.to_string(),
            _ => return visitor.visit_newtype_struct(self),
        };
        if name == "Quantity" {
            visitor.visit_newtype_struct(number.into_deserializer())
        } else {
            visitor.visit_newtype_struct(self)
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        match &self.0.value {
            Value::Text(text) => visitor.visit_enum(text.as_str().into_deserializer()),
            Value::Map(entries) if entries.len() == 1 => {
                let entries = Entries { rest: entries.iter(), value: None };
                visitor.visit_enum(de::value::MapAccessDeserializer::new(entries))
            }
            Value::Map(_) => Err(de::Error::custom("has exactly one key")),
            _ => Err(de::Error::custom("is a word")),
        }
        .map_err(|error: Mismatch| error.at(self.0.line))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Mismatch> {
        Err(de::Error::custom("unknown field"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        seq tuple tuple_struct map struct identifier
    }
}

// === impl Items ===

impl<'de> de::SeqAccess<'de> for Items<'de> {
    type Error = Mismatch;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Mismatch> {
        let Some(item) = self.rest.next() else {
            return Ok(None);
        };
        let index = self.index;
        self.index += 1;
        seed.deserialize(Reader(item))
            .map(Some)
            .map_err(|error| error.at(item.line).under(&format!("[{index}]")))
    }
}

// === impl Entries ===

impl<'de> de::MapAccess<'de> for Entries<'de> {
    type Error = Mismatch;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Mismatch> {
        self.value = self.rest.next();
        match self.value {
            Some((key, _)) => seed.deserialize(key.name.as_str().into_deserializer()).map(Some),
            None => Ok(None),
        }
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Mismatch> {
        let (key, tree) = self.value.take().expect("serde asks for a value after its key");
        seed.deserialize(Reader(tree)).map_err(|error| error.at(key.line).under(&format!(".{}", key.name)))
    }
}
