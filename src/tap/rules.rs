//! Rules: whether a session is recorded, and what of it. A pure function of who asks for what, where.

use crate::config::recording::{Demand, Rule};

/// The name of the rule that holds where no other does.
pub const DEFAULT: &str = "default";

/// What rules look at.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The caller.
    pub user: &'a str,
    /// The caller's groups.
    pub groups: &'a [String],
    /// Namespace of the pod.
    pub namespace: &'a str,
    /// `exec`, `attach` or `portforward`.
    pub subresource: &'a str,
}

/// What is wanted of a session that several answer for, the caller first: the most that is wanted of one of them.
pub fn most<'r>(demands: impl IntoIterator<Item = (&'r str, Demand)>) -> Option<(&'r str, Demand)> {
    let more = |a: (&'r str, Demand), b: (&'r str, Demand)| {
        if (b.1.record, b.1.stdin) > (a.1.record, a.1.stdin) { b } else { a }
    };
    demands.into_iter().reduce(more)
}

/// What is wanted of this session, and the name of the rule that says so.
pub fn demand<'r>(rules: &'r [Rule], default: Demand, asked: Asked<'_>) -> (&'r str, Demand) {
    let rule = rules.iter().find(|rule| matches(rule, asked));
    rule.map_or((DEFAULT, default), |rule| {
        (&rule.name, Demand { record: rule.record, stdin: rule.stdin.unwrap_or(default.stdin) })
    })
}

fn matches(rule: &Rule, Asked { user, groups, namespace, subresource }: Asked<'_>) -> bool {
    let any = |patterns: &[String], text: &str| patterns.iter().any(|pattern| like(pattern, text));
    (rule.namespaces.is_empty() || any(&rule.namespaces, namespace))
        && (rule.users.is_empty() || any(&rule.users, user))
        && (rule.groups.is_empty() || groups.iter().any(|group| any(&rule.groups, group)))
        && (rule.subresources.is_empty() || rule.subresources.iter().any(|name| name == subresource))
}

/// Whether `*` in the pattern can stand for something so that it is the text. No backtracking: the leftmost place of
/// each part is as good as any.
fn like(pattern: &str, text: &str) -> bool {
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
    use crate::config::recording::Record;
    use crate::recording::facts::Stdin;

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

    #[test]
    fn of_several_who_answer_for_a_session_the_one_who_is_watched_most_counts() {
        let demand = |record, stdin| Demand { record, stdin };
        let (strict, tolerant) = (("s", demand(Record::Strict, Stdin::None)), ("t", Demand::default()));
        let tolerant = (tolerant.0, Demand { record: Record::Tolerant, ..tolerant.1 });
        let (off, all) = (("o", demand(Record::Off, Stdin::All)), ("a", demand(Record::Strict, Stdin::All)));
        assert_eq!(most([off]), Some(off));
        assert_eq!(most([off, strict]), Some(strict));
        assert_eq!(most([strict, off]), Some(strict));
        assert_eq!(most([tolerant, strict]), Some(strict));
        assert_eq!(most([strict, all]), Some(all));
        assert_eq!(most([strict, ("same", strict.1)]), Some(strict));
        assert_eq!(most([]), None);
    }

    #[test]
    fn the_first_rule_that_matches_every_list_it_has_wins() {
        let rule = |name: &str, record| Rule {
            name: name.into(),
            namespaces: Vec::new(),
            users: Vec::new(),
            groups: Vec::new(),
            subresources: Vec::new(),
            record,
            stdin: Some(Stdin::All),
        };
        let rules = [
            Rule { groups: vec!["ops".into()], namespaces: vec!["dev-*".into()], ..rule("ops", Record::Off) },
            Rule { subresources: vec!["attach".into()], ..rule("attach", Record::Tolerant) },
            Rule { users: vec!["ci".into()], ..rule("ci", Record::Off) },
        ];
        let groups = ["dev".to_owned(), "ops".to_owned()];
        let asked = Asked { user: "ana", groups: &groups, namespace: "dev-1", subresource: "attach" };
        let name = |asked| demand(&rules, Demand::default(), asked).0;
        assert_eq!(name(asked), "ops");
        assert_eq!(name(Asked { groups: &groups[..1], ..asked }), "attach");
        assert_eq!(name(Asked { namespace: "prod", ..asked }), "attach");
        assert_eq!(name(Asked { namespace: "prod", subresource: "exec", user: "ci", ..asked }), "ci");
        let default = Asked { namespace: "prod", subresource: "exec", ..asked };
        assert_eq!(demand(&rules, Demand::default(), default), (DEFAULT, Demand::default()));
        let silent = [Rule { stdin: None, ..rule("silent", Record::Tolerant) }];
        let none = Demand { record: Record::Off, stdin: Stdin::None };
        let found = ("silent", Demand { record: Record::Tolerant, stdin: Stdin::None });
        assert_eq!(demand(&silent, none, default), found);
    }
}
