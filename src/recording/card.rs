//! Card: what stands beside a recording, so that many can be listed and searched without opening them.
//!
//! `ID.json`: the facts, the ending, and of the content as much as a search needs: the command, the lines that were
//! typed, and a [`Signature`] of the text. Of an encrypted recording that part is encrypted for the same recipients.
//! A card proves nothing and is never evidence: it is not signed, and can be made anew from the recording.
//! Invariants: nothing of the content is in the clear where the recording is encrypted; a card is no larger than
//! [`MAX_CARD`].

use std::borrow::Cow;
use std::io::Read;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};

use super::container::{self, Reader};
use super::facts::{self, Details, Ending, Facts};
use super::keys::{Identity, Recipient, Wrapped};
use super::text::{Lines, Signature, Signer};
use crate::wire::tape::{self, Kind};

/// Most bytes of a card that is read; none is written that large.
pub const MAX_CARD: u64 = 4 << 20;

/// Most bytes of typed lines in a card. Beyond that it says that there are more.
const MAX_TYPED: usize = 256 << 10;

/// Most bytes of a command in a card: what fits into a URL many times.
const MAX_COMMAND: usize = 64 << 10;

/// Most recipients for whom a card's content is encrypted; for more of them the card has none, and a search opens the
/// recording.
const MAX_SEALED: usize = 8;

/// What is encrypted is bound to a use and a recording by this and its id.
const SEALED_FOR: &str = "podgate card v1 ";

/// What is known of a recording without opening it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Card {
    /// Who, what and where.
    pub facts: Facts,
    /// How it ended; without what was typed.
    pub ending: Ending,
    /// Of the content, in the clear.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content: Option<Content>,
    /// The same for each recipient.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    sealed: Vec<Sealed>,
}

/// What a search needs of the content.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Content {
    /// The command; `None` where it was too long, or is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Lines that were typed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub typed: Vec<facts::Typed>,
    /// Whether more lines were typed than stand here.
    #[serde(default)]
    pub more_typed: bool,
    /// Of the text.
    pub text: Signature,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sealed {
    /// Id of the recipient's key.
    recipient: String,
    encapsulated: String,
    sealed: String,
}

/// Makes a card while a session is recorded.
#[derive(Debug)]
pub struct Builder {
    facts: Facts,
    command: Option<Vec<String>>,
    recipients: Vec<Recipient>,
    text: Signer,
    stdin: Lines,
    stdout: Lines,
    stderr: Lines,
}

// === impl Card ===

impl Card {
    /// A card with nothing of the content; a search opens its recording.
    pub fn bare(facts: &Facts, ending: &Ending) -> Self {
        let ending = Ending { typed: Vec::new(), ..ending.clone() };
        Self { facts: facts.clone(), ending, content: None, sealed: Vec::new() }
    }

    /// Makes the card of a recording anew, with what the reader may read of it.
    ///
    /// # Errors
    /// When the recording is not as it was written.
    pub fn of<R: Read>(mut reader: Reader<R>) -> Result<Self, container::Error> {
        let details = reader.details().cloned();
        let mut builder = Builder::new(reader.facts(), &details.clone().unwrap_or_default(), &[]);
        while let Some(chunk) = reader.next()? {
            let tape = chunk.tape.unwrap_or_default();
            let mut rest = &tape[..];
            // Pieces were looked at when the chunk was read.
            while let Ok(Some(piece)) = tape::next(&mut rest) {
                builder.piece(piece.at, piece.kind, piece.bytes);
            }
        }
        let ending = reader.ending().cloned().unwrap_or_else(unknown);
        Ok(match details {
            Some(_) => builder.finish(&ending),
            None => Self::bare(reader.facts(), &ending),
        })
    }

    /// As JSON.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("text and numbers are JSON")
    }

    /// What a search needs of the content; `None` where it is not there, or is not for any of these identities.
    pub fn content(&self, identities: &[Identity]) -> Option<Cow<'_, Content>> {
        if let Some(content) = &self.content {
            return Some(Cow::Borrowed(content));
        }
        let info = info(&self.facts);
        self.sealed.iter().take(MAX_SEALED).find_map(|sealed| {
            let identity =
                identities.iter().find(|identity| identity.recipient().id() == sealed.recipient)?;
            let encapsulated = BASE64_STANDARD.decode(&sealed.encapsulated).ok()?;
            let wrapped = Wrapped { encapsulated, sealed: BASE64_STANDARD.decode(&sealed.sealed).ok()? };
            let json = identity.unwrap_secret(&info, &wrapped).ok()?;
            serde_json::from_slice(&json).ok().map(Cow::Owned)
        })
    }

    /// Whether there is content for somebody else.
    pub fn is_sealed(&self) -> bool {
        !self.sealed.is_empty()
    }
}

fn info(facts: &Facts) -> Vec<u8> {
    format!("{SEALED_FOR}{}", facts.id).into_bytes()
}

/// Every recording that is whole has an ending.
fn unknown() -> Ending {
    Ending {
        seconds: 0.0,
        reason: "unknown".to_owned(),
        exit_code: None,
        process_may_remain: false,
        moved: crate::wire::tap::Moved::default(),
        cut: true,
        gaps: Vec::new(),
        typed: Vec::new(),
    }
}

// === impl Builder ===

impl Builder {
    /// For a session that begins. With recipients, what the card says of the content is for them alone.
    pub fn new(facts: &Facts, details: &Details, recipients: &[Recipient]) -> Self {
        let len: usize = details.command.iter().map(String::len).sum();
        Self {
            facts: facts.clone(),
            command: (len <= MAX_COMMAND).then(|| details.command.clone()),
            recipients: recipients.to_vec(),
            text: Signer::default(),
            stdin: Lines::default(),
            stdout: Lines::default(),
            stderr: Lines::default(),
        }
    }

    /// Takes a piece as it is recorded: without what is withheld of stdin.
    pub fn piece(&mut self, at: Duration, kind: Kind, bytes: &[u8]) {
        let lines = match kind {
            Kind::Stdin => &mut self.stdin,
            Kind::Stdout => &mut self.stdout,
            Kind::Stderr => &mut self.stderr,
            _ => return,
        };
        self.text.spend(bytes.len());
        if !self.text.is_full() {
            lines.push(at, bytes, &mut |_, line| self.text.line(line));
        }
    }

    /// The card of a recording that was closed.
    pub fn finish(self, ending: &Ending) -> Card {
        let Self { facts, command, recipients, mut text, stdin, stdout, stderr } = self;
        for lines in [stdin, stdout, stderr] {
            lines.finish(&mut |_, line| text.line(line));
        }
        let mut card = Card::bare(&facts, ending);
        let mut room = MAX_TYPED;
        let fits = |typed: &&facts::Typed| {
            room = room.saturating_sub(typed.line.len() + 40);
            room > 0
        };
        let typed: Vec<_> = ending.typed.iter().take_while(fits).cloned().collect();
        let more_typed = typed.len() < ending.typed.len();
        let content = Content { command, typed, more_typed, text: text.finish() };
        if recipients.is_empty() {
            card.content = Some(content);
        } else if recipients.len() <= MAX_SEALED {
            let json = serde_json::to_vec(&content).expect("text and numbers are JSON");
            let info = info(&facts);
            // A key that cannot be used leaves that recipient with the recording itself.
            let sealed = recipients.iter().filter_map(|recipient| {
                let Wrapped { encapsulated, sealed } = recipient.wrap(&info, &json).ok()?;
                Some(Sealed {
                    recipient: recipient.id().to_owned(),
                    encapsulated: BASE64_STANDARD.encode(encapsulated),
                    sealed: BASE64_STANDARD.encode(sealed),
                })
            });
            card.sealed = sealed.collect();
        }
        if card.to_json().len() as u64 > MAX_CARD { Card::bare(&facts, ending) } else { card }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        let json = r#"{"id":"6f1c","auditId":"a","started":"2026-01-02T03:04:05Z","subresource":"exec",
            "namespace":"shop","pod":"cart-0","container":"app","node":"n","user":"ana","client":"192.0.2.1:1",
            "tty":true,"stdin":true,"recordsStdin":"echoed","rule":"all"}"#;
        serde_json::from_str(json).unwrap()
    }

    fn card(recipients: &[Recipient]) -> Card {
        let details = Details { command: vec!["sh".to_owned(), "-c".to_owned()], ports: vec![] };
        let mut builder = Builder::new(&facts(), &details, recipients);
        builder.piece(Duration::ZERO, Kind::Stdout, b"$ cat secret-na");
        builder.piece(Duration::ZERO, Kind::Stdout, b"me\r\n");
        builder.piece(Duration::ZERO, Kind::Resize, b"{\"Width\":1,\"Height\":1}");
        let typed = facts::Typed::new(Duration::from_secs(1), "cat secret-name".to_owned());
        builder.finish(&Ending { typed: vec![typed], cut: false, ..unknown() })
    }

    #[test]
    fn a_card_comes_back_from_json_with_what_a_search_needs() {
        let read: Card = serde_json::from_slice(&card(&[]).to_json()).unwrap();
        let content = read.content(&[]).unwrap();
        assert_eq!(content.typed[0].line, "cat secret-name");
        assert_eq!(content.command.as_deref().unwrap(), ["sh", "-c"]);
        assert!(content.text.may_have("SECRET-name") && !content.text.may_have("something else"));
        assert!(read.ending.typed.is_empty());
    }

    #[test]
    fn of_an_encrypted_recording_only_recipients_see_what_is_in_it() {
        let (reader, other) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        let card = card(&[reader.recipient().clone()]);
        let json = String::from_utf8(card.to_json()).unwrap();
        assert!(
            !json.contains("secret") && !json.contains("\"sh\"") && !json.contains("\"content\""),
            "{json}"
        );
        assert!(json.contains("cart-0"), "facts are in the clear");
        let read: Card = serde_json::from_str(&json).unwrap();
        assert!(read.content(&[]).is_none() && read.content(std::slice::from_ref(&other)).is_none());
        assert_eq!(read.content(&[other, reader]).unwrap().typed[0].line, "cat secret-name");
    }

    #[test]
    fn of_a_bulk_copy_without_any_text_only_the_beginning_is_read() {
        let mut builder = Builder::new(&facts(), &Details::default(), &[]);
        (0..64).for_each(|_| builder.piece(Duration::ZERO, Kind::Stdout, &[0; 64 * 1024]));
        let card = builder.finish(&unknown());
        // It cannot say no to what it has not read.
        assert!(card.content(&[]).unwrap().text.may_have("needle"));
    }

    #[test]
    fn however_much_was_typed_a_card_stays_small() {
        let mut builder = Builder::new(&facts(), &Details::default(), &[]);
        builder.piece(Duration::ZERO, Kind::Stdout, &[0x1b; 10_000]);
        let line = "\u{1}".repeat(4096);
        let typed = vec![facts::Typed::new(Duration::ZERO, line); 10_000];
        let card = builder.finish(&Ending { typed, ..unknown() });
        assert!(card.content(&[]).unwrap().more_typed);
        assert!((card.to_json().len() as u64) < MAX_CARD);
    }
}
