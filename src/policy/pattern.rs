//! Pattern: `*` stands for any characters. The one implementation there is.

/// Whether `*` in the pattern can stand for something so that it is the text. No backtracking: the leftmost place of
/// each part is as good as any.
pub fn like(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(first) else { return false };
    let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
    for part in middle.split('*') {
        let Some(at) = text.find(part) else { return false };
        text = &text[at + part.len()..];
    }
    text.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_any_characters() {
        let cases = [
            ("a", "a", true),
            ("a", "ab", false),
            ("", "", true),
            ("*", "", true),
            ("*", "any", true),
            ("a*", "b", false),
            ("sandbox-*", "sandbox-", true),
            ("*-ci", "a-ci-b", false),
            ("a*a", "a", false),
            ("a*b*c", "a1b2c", true),
            ("a*b*c", "acb", false),
            ("*b*b", "ab", false),
            ("*b*b", "bab", true),
        ];
        for (pattern, text, is) in cases {
            assert_eq!(like(pattern, text), is, "{pattern} {text}");
        }
    }
}
