//! Facts: who, what and where of a session, as far as lists and end records tell it.

use std::net::SocketAddr;

/// Bytes of a command that are kept, at most. The audit trail has as many.
const COMMAND: usize = 4096;

/// Longest program name in a record, in bytes. Arguments are only counted: people type secrets there.
const PROGRAM: usize = 256;

/// What is known of a session before its far side is asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The caller.
    pub user: String,
    /// Who acts as the caller; empty without impersonation.
    pub impersonator: String,
    /// The client's address.
    pub client: SocketAddr,
    /// Audit id of the request.
    pub audit_id: String,
    /// `exec`, `attach` or `portforward`.
    pub subresource: &'static str,
    /// Namespace.
    pub namespace: String,
    /// Pod.
    pub pod: String,
    /// Container.
    pub container: String,
    /// Node.
    pub node: String,
    /// The argument vector.
    pub command: Command,
    /// Whether there is a terminal.
    pub tty: bool,
    /// Whether the client sends standard input.
    pub stdin: bool,
}

/// An argument vector; what is very long is cut.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Command {
    /// Its words; the last one may be cut.
    pub words: Vec<String>,
    /// How many follow the first one, those included that are not kept.
    pub arguments: usize,
}

// === impl Facts ===

impl Facts {
    /// Who has opened it, whoever they act as.
    pub fn person(&self) -> &str {
        if self.impersonator.is_empty() { &self.user } else { &self.impersonator }
    }
}

// === impl Command ===

impl Command {
    /// As many words as there is room for.
    pub fn of(command: &[Vec<u8>]) -> Self {
        let mut room = COMMAND;
        let mut words = Vec::new();
        for word in command {
            let word = String::from_utf8_lossy(word);
            if word.len() >= room {
                words.push(cut(&word, room));
                break;
            }
            room -= word.len() + 1;
            words.push(word.into_owned());
        }
        Self { words, arguments: command.len().saturating_sub(1) }
    }

    /// The first word, shortened to what a log line can bear; empty without a command.
    pub fn program(&self) -> String {
        match self.words.first() {
            Some(word) if word.len() > PROGRAM => cut(word, PROGRAM),
            word => word.cloned().unwrap_or_default(),
        }
    }
}

fn cut(word: &str, most: usize) -> String {
    format!("{}...", &word[..word.floor_char_boundary(most)])
}

#[cfg(test)]
impl Facts {
    /// Of some session into this pod.
    pub(crate) fn example(namespace: &str, pod: &str) -> Self {
        Self {
            user: "ana".into(),
            impersonator: String::new(),
            client: ([127, 0, 0, 1], 1).into(),
            audit_id: String::new(),
            subresource: "exec",
            namespace: namespace.into(),
            pod: pod.into(),
            container: "app".into(),
            node: "n".into(),
            command: Command::of(&[b"sh".to_vec()]),
            tty: true,
            stdin: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_bounded_and_its_arguments_are_counted() {
        let of = |words: &[&str]| {
            Command::of(&words.iter().map(|word| word.as_bytes().to_vec()).collect::<Vec<_>>())
        };
        let long = of(&["\u{e9}".repeat(3000).as_str(), "next"]);
        let [word] = &long.words[..] else { panic!("{} words", long.words.len()) };
        assert!(word.len() <= COMMAND + 3 && word.ends_with("..."));
        assert_eq!(long.arguments, 1);
        assert_eq!(of(&["a", ""]).words, ["a", ""]);
    }

    #[test]
    fn a_record_has_the_program_and_none_of_its_arguments() {
        let program = |words: &[&[u8]]| {
            Command::of(&words.iter().map(|word| word.to_vec()).collect::<Vec<_>>()).program()
        };
        assert_eq!(program(&[b"sh", b"-c", b"secret"]), "sh");
        let long = program(&["\u{e9}".repeat(1000).as_bytes()]);
        assert!(long.len() <= PROGRAM + 3 && long.ends_with("..."));
        assert_eq!(program(&[]), "");
    }
}
