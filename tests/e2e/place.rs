//! Where clients are sent: through a podgate to a kind of node, and what waits for them there.

use crate::clients::Client;

/// The far side, as far as it decides what a client can do.
pub(crate) struct Place {
    /// As in the table.
    pub(crate) name: String,
    pub(crate) speaks: Speaks,
    pub(crate) api: Api,
}

/// What a kubelet speaks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speaks {
    /// As the oldest ones: no WebSocket.
    SpdyOnly,
    /// SPDY, and WebSocket up to v4: every kubelet before 1.36.
    V4,
    /// WebSocket v5 and the tunnel too, and says so.
    V5,
}

/// Who answers what is no session.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Api {
    /// The embedded cluster of `podgate dev`.
    Embedded,
    /// A kube-apiserver of this minor version.
    Real(u32),
}

/// The main process that a client's own pod has: answers each line on both of its streams, and ends when told so.
/// Takes its time where it has a `PAUSE`: containerd hands on what an attached client sends before it listens for
/// the answer.
const TALKER: &str = "while read -r line && [ \"$line\" != end ]; do ${PAUSE:+sleep $PAUSE}; \
                      echo \"out $line\"; echo \"err $line\" >&2; done";

/// The other one: says something, and something else once it has been told to go.
const GOER: &str = "echo first; while [ ! -e go ]; do sleep 0.2; done; echo second";

/// The pod of a client at a place, and the one that it watches; both with the script that is their main process.
pub(crate) fn pods(client: &Client, place: &str) -> [(String, &'static str); 2] {
    let pod = client.pod(place);
    [(goer(&pod), GOER), (pod, TALKER)]
}

/// The pod that is watched, beside a client's own.
pub(crate) fn goer(pod: &str) -> String {
    format!("{pod}-goes")
}
