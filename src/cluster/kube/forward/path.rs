//! Which paths are not forwarded, because a session might be behind them.
//!
//! `request` has found the sessions that the API server would find. Here the paths that are left are read
//! once more, in the most lenient way: escapes undone until none is left, either slash, any case, dots, empty
//! segments and what hangs on a segment. A path that this reading does not change means what it says, so only
//! `pods/NAME/exec` in it counts; in one that it does change the order of the words is enough, because who
//! knows what is taken out of it where. The kubelet has doors of its own to the same sessions, which
//! `nodes/NAME/proxy` leads to.

use super::Error;
use crate::request::Ask;

/// Subresources of a pod that are sessions.
const SESSIONS: [&str; 3] = ["exec", "attach", "portforward"];

/// First segments of a kubelet's paths that lead into containers.
/// Source: kubelet `pkg/kubelet/server/server.go`, `InstallDebuggingHandlers`.
const KUBELET_SESSIONS: [&str; 5] = ["exec", "attach", "portforward", "run", "cri"];

/// A path, read leniently.
struct Reading {
    /// In lower case.
    segments: Vec<String>,
    /// Whether every reader sees these segments.
    plain: bool,
}

/// Refuses what could be a session.
pub(super) fn check(ask: &Ask) -> Result<(), Error> {
    let attributes = &ask.attributes;
    let resource = attributes.resource.as_ref();
    // `request` knows it: whoever asks for it here has not asked for it where sessions are made.
    if ask.exec.is_some() {
        return Err(Error::HiddenSession);
    }
    let path = &attributes.path;
    let reading = Reading::of(path);
    // The path of one object holds names, and these are free.
    let exact = resource.filter(|resource| {
        let deeper = !resource.rest.is_empty() || resource.subresource == "proxy";
        reading.plain && !deeper && !matches!(attributes.verb.as_str(), "watch" | "proxy")
    });
    let session = match exact {
        Some(resource) => {
            is("pods", &resource.resource)
                && SESSIONS.iter().any(|session| is(session, &resource.subresource))
        }
        None => reading.names_session(),
    };
    if session {
        return Err(Error::HiddenSession);
    }
    let mut node = reading.names_kubelet_session();
    if resource.is_some_and(|resource| resource.resource == "nodes") {
        // Upstream overwrites this parameter with the rest of the path. It did so in every version known.
        for more in ask.query.all("path") {
            let more = String::from_utf8_lossy(more);
            let whole = format!("{}/{}", path.trim_end_matches('/'), more.trim_start_matches('/'));
            node = node.or_else(|| Reading::of(&whole).names_kubelet_session());
        }
    }
    node.map_or(Ok(()), |node| Err(Error::KubeletSession { node }))
}

fn is(word: &str, text: &str) -> bool {
    word.eq_ignore_ascii_case(text)
}

// === impl Reading ===

impl Reading {
    /// Reads a path that was unescaped once, as the API server does.
    fn of(path: &str) -> Self {
        let bytes = unescaped(path);
        let text = String::from_utf8_lossy(&bytes);
        let mut segments = Vec::new();
        for piece in text.split(['/', '\\']) {
            let segment = piece.split([';', '?', '#']).next().unwrap_or(piece);
            let segment = segment.trim_matches(|c: char| c.is_whitespace() || c.is_control());
            if !segment.is_empty() && segment != "." {
                segments.push(segment.to_ascii_lowercase());
            }
        }
        let said = path.strip_suffix('/').unwrap_or(path);
        let same =
            said.eq_ignore_ascii_case(&segments.iter().fold(String::new(), |all, one| all + "/" + one));
        Self { plain: same && segments.iter().all(|segment| segment != ".."), segments }
    }

    fn at(&self, index: usize) -> &str {
        self.segments.get(index).map_or("", String::as_str)
    }

    /// Where this word stands.
    fn places<'a>(&'a self, word: &'a str) -> impl Iterator<Item = usize> + 'a {
        (0..self.segments.len()).filter(move |&index| self.segments[index] == word)
    }

    fn names_session(&self) -> bool {
        self.places("pods").any(|pods| match self.plain {
            true => SESSIONS.contains(&self.at(pods + 2)),
            false => self.any_after(pods, &SESSIONS),
        })
    }

    /// The node whose kubelet would open a session.
    fn names_kubelet_session(&self) -> Option<String> {
        let led_to = |nodes: &usize| {
            let nodes = *nodes;
            let proxied = self.at(nodes + 2) == "proxy" && KUBELET_SESSIONS.contains(&self.at(nodes + 3));
            // The old way, `/api/v1/proxy/nodes/NAME/...`.
            let prefixed =
                nodes > 0 && self.at(nodes - 1) == "proxy" && KUBELET_SESSIONS.contains(&self.at(nodes + 2));
            match self.plain {
                true => proxied || prefixed,
                false => self.places("proxy").next().is_some() && self.any_after(nodes, &KUBELET_SESSIONS),
            }
        };
        let nodes = self.places("nodes").find(led_to)?;
        Some(self.at(nodes + 1).to_owned())
    }

    fn any_after(&self, index: usize, words: &[&str]) -> bool {
        self.segments.iter().skip(index + 1).any(|segment| words.contains(&segment.as_str()))
    }
}

/// Undoes percent-encoding until nothing is left to undo, in one pass: an escape that an escape completes
/// counts.
fn unescaped(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for byte in text.bytes() {
        out.push(byte);
        while let [.., b'%', high, low] = out[..]
            && let (Some(high), Some(low)) = (char::from(high).to_digit(16), char::from(low).to_digit(16))
            && let Ok(byte) = u8::try_from(high * 16 + low)
        {
            out.truncate(out.len() - 3);
            out.push(byte);
        }
    }
    out
}

#[cfg(test)]
mod tests;
