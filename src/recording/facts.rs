//! Facts: what stands in front of a recording, what stands behind it, and what was typed.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::wire::tap::Moved;

/// Who, what and where; readable by whoever has the file, even where the rest is encrypted. The command is not here:
/// it may hold secrets, see [`Details`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Facts {
    /// The recording's id, a UUID: unique, and part of the chain, so that no chunk can come from another recording.
    pub id: String,
    /// The audit id of the request.
    pub audit_id: String,
    /// When the session began.
    pub started: Timestamp,
    /// `exec`, `attach` or `portforward`.
    pub subresource: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// The pod.
    pub pod: String,
    /// The container; empty for a port-forward.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub container: String,
    /// The node.
    pub node: String,
    /// The caller.
    pub user: String,
    /// Groups of the caller.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Who acts as the caller; empty without impersonation.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub impersonator: String,
    /// The client's address.
    pub client: String,
    /// Whether there is a terminal: then the content is an asciicast, else a [tape](crate::wire::tape).
    pub tty: bool,
    /// Whether the client may write to the program.
    pub stdin: bool,
    /// What is kept of stdin.
    pub records_stdin: Stdin,
    /// The rule that demanded the recording.
    pub rule: String,
}

impl Facts {
    /// Whether a program was started for it, which may outlive it.
    pub fn has_process(&self) -> bool {
        self.subresource == "exec"
    }
}

/// What only those may read who may read the content.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Details {
    /// The command; bytes that are not UTF-8 are U+FFFD.
    #[serde(default)]
    pub command: Vec<String>,
    /// Ports of a port-forward that the request named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<u16>,
}

/// What is kept of what goes to the program; the least first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stdin {
    /// Nothing.
    None,
    /// Everything, but in a terminal only what that showed: no typed passwords.
    #[default]
    Echoed,
    /// Everything.
    All,
}

/// What stands behind a recording that was closed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Ending {
    /// How long the session had lasted, in seconds.
    pub seconds: f64,
    /// Why it ended; [`EndReason`](crate::telemetry::EndReason)'s word. `crashed` where podgate itself went away and
    /// found the recording later.
    pub reason: String,
    /// The exit code of the command, where it gave one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
    /// Whether the program of the session may still run: the far side has not said that it ended.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub process_may_remain: bool,
    /// Bytes that passed.
    pub moved: Moved,
    /// Whether the end is missing: podgate was killed, and the recording goes up to its last whole chunk.
    #[serde(default)]
    pub cut: bool,
    /// What else is missing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gaps: Vec<Gap>,
    /// Lines that were typed in a terminal, as far as they could be read off it. Left out of the clear part where the
    /// content is encrypted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub typed: Vec<Typed>,
}

/// Something that was not recorded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Gap {
    /// Since the session began, in seconds: from.
    pub from: f64,
    /// And to.
    pub to: f64,
    /// Bytes of [tape](crate::wire::tape) that are missing.
    pub bytes: u64,
    /// Why.
    pub cause: String,
}

/// A line typed in a terminal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Typed {
    /// When it was entered, in seconds since the session began.
    pub at: f64,
    /// The line, as the terminal showed it; control characters are left out.
    pub line: String,
}

impl Typed {
    /// A line that was entered at this time.
    pub fn new(at: Duration, line: String) -> Self {
        Self { at: at.as_secs_f64(), line }
    }
}
