//! Names: which texts are keys and values of labels or names of objects, and what the API server says of others.
//!
//! Source: apimachinery `pkg/util/validation/validation.go` (`IsQualifiedName`, `IsValidLabelValue`,
//! `IsDNS1123Subdomain`).

/// Most bytes of a key's name and of a value.
const MAX_NAME: usize = 63;

/// Most bytes of a key's prefix, a DNS name.
const MAX_PREFIX: usize = 253;

const NAME: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
                    alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for \
                    validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";

const VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or \
                     '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or \
                     'my_value',  or '12345', regex used for validation is \
                     '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

const PREFIX: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or \
                      '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex \
                      used for validation is \
                      '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";

/// What is wrong with a label's key, such as `app` or `example.com/app`.
///
/// # Errors
/// In the API server's words.
pub fn key(key: &str) -> Result<(), String> {
    let mut wrong = Vec::new();
    let (prefix, name) = match key.split_once('/') {
        Some((_, name)) if name.contains('/') => {
            let with = "with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')";
            return Err(format!("a qualified name {NAME} {with}"));
        }
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if let Some(prefix) = prefix {
        if prefix.is_empty() {
            wrong.push("prefix part must be non-empty".to_owned());
        } else {
            if prefix.len() > MAX_PREFIX {
                wrong.push(format!("prefix part {}", too_long(MAX_PREFIX)));
            }
            if !is_subdomain(prefix) {
                wrong.push(format!("prefix part {PREFIX}"));
            }
        }
    }
    if name.is_empty() {
        wrong.push("name part must be non-empty".to_owned());
    } else if name.len() > MAX_NAME {
        wrong.push(format!("name part {}", too_long(MAX_NAME)));
    }
    if !is_name(name) {
        wrong.push(format!("name part {NAME}"));
    }
    joined(&wrong)
}

/// What is wrong with a label's value.
///
/// # Errors
/// In the API server's words.
pub fn value(value: &str) -> Result<(), String> {
    let mut wrong = Vec::new();
    if value.len() > MAX_NAME {
        wrong.push(too_long(MAX_NAME));
    }
    if !value.is_empty() && !is_name(value) {
        wrong.push(VALUE.to_owned());
    }
    joined(&wrong)
}

fn joined(wrong: &[String]) -> Result<(), String> {
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
}

fn too_long(most: usize) -> String {
    format!("must be no more than {most} bytes")
}

fn is_name(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    name.bytes().all(inner)
        && name.starts_with(|ch: char| ch.is_ascii_alphanumeric())
        && name.ends_with(|ch: char| ch.is_ascii_alphanumeric())
}

/// Whether this is a DNS name, as of most objects; whoever asks bounds its length.
pub fn is_subdomain(name: &str) -> bool {
    name.split('.').all(|label| {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !label.is_empty() && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_are_names_of_bounded_length() {
        let long = "a".repeat(64);
        for good in ["a", "A.b_c-9", "example.com/a", &long[1..]] {
            assert_eq!(key(good), Ok(()), "{good}");
        }
        for bad in ["", "a/", "/a", "a/b/c", "Ex/a", "a..b/c", "-a", "a.", "\u{e9}", &long] {
            assert!(key(bad).is_err(), "{bad}");
        }
        assert!(value("").is_ok() && value(&long[1..]).is_ok());
        assert_eq!(value(&long).unwrap_err(), "must be no more than 63 bytes");
    }
}
