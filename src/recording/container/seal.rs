//! Seal: what proves a frame, and what hides one.

use std::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};

use super::{Error, Fault, MAGIC};
use crate::recording::facts::Facts;
use crate::recording::keys::{self, SIGNATURE, SigningKey, VerifyingKey};
use crate::wire::tap::Moved;

/// Bytes of a link of the chain. It is BLAKE3 and not SHA-256 because every byte of a session goes through it, at a
/// tenth of the CPU where the processor has no instructions for SHA.
const HASH: usize = 32;

/// Bytes of a seal that are signed.
const SIGNED: usize = 9 * 8 + HASH;

/// Bytes of a seal.
pub(super) const LEN: usize = SIGNED + SIGNATURE;

/// Bytes of a key for AES-256.
const DATA_KEY: usize = 32;

/// What is signed begins with this, so that it means nothing anywhere else.
const SEAL: &[u8] = b"podgate recording 1 seal\0";

/// What a data key is bound to, in front of the recording's id.
const WRAP: &str = "podgate recording 1 data key\0";

/// What every link of the chain is made of besides bytes.
const CHAIN: &str = "podgate recording 1 chain";

/// What a seal says of what is before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seal {
    /// Which one: 0 behind the details, then the chunks, then the ending.
    pub(super) sequence: u64,
    /// When in the session the last piece was.
    pub(super) until: Duration,
    /// Bytes of content in the chunk, before they were compressed.
    pub(super) content: u64,
    /// What was recorded up to here.
    pub(super) moved: Moved,
    /// The link.
    pub(super) chain: [u8; HASH],
}

/// The hash chain.
#[derive(Debug, Clone)]
pub(super) struct Chain([u8; HASH]);

/// Encrypts the frames of one recording, each with its own sequence number.
pub(super) struct Cipher {
    key: LessSafeKey,
    id: String,
}

/// What the head says, behind [`MAGIC`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Head {
    pub(super) version: u32,
    /// Of the key that signed it.
    pub(super) key: String,
    /// Empty when the content is in the clear.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) recipients: Vec<Envelope>,
    pub(super) facts: Facts,
}

/// The data key, for one recipient.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Envelope {
    pub(super) key: String,
    #[serde(with = "base64")]
    pub(super) encapsulated: Vec<u8>,
    #[serde(with = "base64")]
    pub(super) sealed: Vec<u8>,
}

// === impl Seal ===

impl Seal {
    /// Appends it, signed.
    pub(super) fn put(&self, key: &SigningKey, out: &mut Vec<u8>) -> Result<(), keys::Error> {
        let Self { sequence, until, content, moved, chain } = self;
        let Moved { stdin, stdout, stderr, connections, up, down } = *moved;
        let until = u64::try_from(until.as_micros()).unwrap_or(u64::MAX);
        let mut message = SEAL.to_vec();
        for number in [*sequence, until, *content, stdin, stdout, stderr, connections, up, down] {
            message.extend_from_slice(&number.to_be_bytes());
        }
        message.extend_from_slice(chain);
        let signature = key.sign(&message)?;
        out.extend_from_slice(&message[SEAL.len()..]);
        out.extend_from_slice(&signature);
        Ok(())
    }

    /// Reads it; without a key, whoever signed it.
    pub(super) fn read(bytes: &[u8], key: Option<&VerifyingKey>) -> Result<Self, Fault> {
        let wrong = || Fault::Length(bytes.len() as u64);
        let (signed, signature) = bytes.split_at_checked(SIGNED).ok_or_else(wrong)?;
        let (numbers, chain) = signed.split_at(SIGNED - HASH);
        let chain = chain.try_into().map_err(|_| wrong())?;
        if key.is_some_and(|key| !key.verifies(&[SEAL, signed].concat(), signature)) {
            return Err(Fault::Signature);
        }
        let mut numbers = numbers.as_chunks::<8>().0.iter().map(|number| u64::from_be_bytes(*number));
        let mut next = || numbers.next().unwrap_or_default();
        let (sequence, until, content) = (next(), Duration::from_micros(next()), next());
        let moved = Moved {
            stdin: next(),
            stdout: next(),
            stderr: next(),
            connections: next(),
            up: next(),
            down: next(),
        };
        Ok(Self { sequence, until, content, moved, chain })
    }
}

// === impl Chain ===

impl Chain {
    /// The chain that begins with this frame.
    pub(super) fn new(head: &[u8]) -> Self {
        Self(blake3::Hasher::new_derive_key(CHAIN).update(head).finalize().into())
    }

    /// The next link, over this frame.
    pub(super) fn after(&self, frame: &[u8]) -> Self {
        Self(blake3::Hasher::new_keyed(&self.0).update(frame).finalize().into())
    }

    pub(super) fn link(&self) -> [u8; HASH] {
        self.0
    }
}

// === impl Cipher ===

impl Cipher {
    /// A new data key, for these recipients only.
    pub(super) fn new(
        id: &str,
        recipients: &[keys::Recipient],
    ) -> Result<(Self, Vec<Envelope>), keys::Error> {
        let mut key = [0; DATA_KEY];
        aws_lc_rs::rand::fill(&mut key).map_err(|_| keys::Error::Crypto)?;
        let info = format!("{WRAP}{id}");
        let wrap = |recipient: &keys::Recipient| {
            let keys::Wrapped { encapsulated, sealed } = recipient.wrap(info.as_bytes(), &key)?;
            Ok(Envelope { key: recipient.id().to_owned(), encapsulated, sealed })
        };
        let envelopes = recipients.iter().map(wrap).collect::<Result<_, _>>()?;
        Ok((Self::with(id, &key)?, envelopes))
    }

    /// The data key out of the first envelope that one of these can open.
    pub(super) fn open(
        id: &str,
        envelopes: &[Envelope],
        identities: &[keys::Identity],
    ) -> Result<Option<Self>, keys::Error> {
        let info = format!("{WRAP}{id}");
        let found = envelopes.iter().find_map(|envelope| {
            let mine = |identity: &&keys::Identity| identity.recipient().id() == envelope.key;
            Some((envelope, identities.iter().find(mine)?))
        });
        let Some((Envelope { encapsulated, sealed, .. }, identity)) = found else {
            return Ok(None);
        };
        let wrapped = keys::Wrapped { encapsulated: encapsulated.clone(), sealed: sealed.clone() };
        let key = identity.unwrap_secret(info.as_bytes(), &wrapped)?;
        Self::with(id, &key).map(Some)
    }

    /// Encrypts everything behind `from`, and appends the tag.
    pub(super) fn hide(&self, sequence: u64, from: usize, out: &mut Vec<u8>) -> Result<(), keys::Error> {
        let aad = Aad::from(self.id.as_bytes());
        let sealed = self.key.seal_in_place_separate_tag(nonce(sequence), aad, &mut out[from..]);
        out.extend_from_slice(sealed.map_err(|_| keys::Error::Crypto)?.as_ref());
        Ok(())
    }

    /// Decrypts all of it in its place.
    pub(super) fn show<'a>(&self, sequence: u64, bytes: &'a mut [u8]) -> Result<&'a [u8], Fault> {
        let aad = Aad::from(self.id.as_bytes());
        let opened = self.key.open_in_place(nonce(sequence), aad, bytes);
        opened.map(|bytes| &*bytes).map_err(|_| Fault::Decrypt)
    }

    fn with(id: &str, key: &[u8]) -> Result<Self, keys::Error> {
        let key = UnboundKey::new(&AES_256_GCM, key).map_err(|_| keys::Error::Crypto)?;
        Ok(Self { key: LessSafeKey::new(key), id: id.to_owned() })
    }
}

impl std::fmt::Debug for Cipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cipher(..)")
    }
}

// === impl Head ===

impl Head {
    /// Reads what a head frame holds.
    pub(super) fn read(content: &[u8]) -> Result<Self, Error> {
        /// What all versions have.
        #[derive(Deserialize)]
        struct Any {
            version: u32,
        }
        let json = content.strip_prefix(MAGIC).ok_or(Error::NotARecording)?;
        match serde_json::from_slice(json) {
            Ok(head) => Ok(head),
            Err(source) => match serde_json::from_slice(json) {
                Ok(Any { version }) if version != super::VERSION => Err(Error::Version(version)),
                _ => {
                    let at = super::Place { frame: 0, offset: 0, good_until: None };
                    Err(Error::Altered { at, fault: Fault::Json(source) })
                }
            },
        }
    }
}

/// Never the same twice for a data key, which is that of one recording.
fn nonce(sequence: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&sequence.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// Bytes in JSON.
mod base64 {
    use ::base64::Engine;
    use ::base64::prelude::BASE64_STANDARD;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        BASE64_STANDARD.decode(String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}
