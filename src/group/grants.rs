//! Grants, as objects: what the room `grant` keeps, for clients of the API.

use bytes::Bytes;
use futures_util::future::{self, BoxFuture, FutureExt};
use futures_util::stream::{self, BoxStream, StreamExt};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::resource::{Change, Item, Kind, Listed, Options, Resource};
use super::{API_VERSION, GROUP, VERSION};
use crate::authn::Caller;
use crate::authz::Authz;
use crate::grant::verbs::{Changed, List, MayApprove, Patch, Preconditions};
use crate::grant::{Grants, Who, table};
use crate::request::{Attributes, Resource as Named};
use crate::serving::table::{Column, age};
use crate::status::Refusal;

/// What the API says of it.
pub static KIND: Kind = Kind {
    kind: "Grant",
    plural: "grants",
    singular: "grant",
    short: &[],
    verbs: &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
    subresources: &[],
    columns: &COLUMNS,
    fields: &["spec.subject.user", "spec.subject.group", "status.phase", "status.requestedBy"],
    description: "Leave to go into pods for a time: asked for by one person, and in force once another approved it by \
                  the annotation podgate.dev/approve=yes.",
    schema,
};

static COLUMNS: [Column; 8] = [
    Column::NAME,
    column(1),
    column(2),
    column(3),
    column(4),
    column(5),
    column(6),
    Column::text("Age", 0, "Time since it was asked for."),
];

/// The verb of those who may approve.
const APPROVE: &str = "approve";

/// Seconds after which somebody may ask again while grants are being read.
const RETRY: u32 = 1;

/// The grants of the room.
pub struct GrantObjects {
    grants: Grants,
    authz: Authz,
}

const fn column(index: usize) -> Column {
    let (name, description) = table::COLUMNS[index];
    Column::text(name, 0, description)
}

// === impl GrantObjects ===

impl GrantObjects {
    /// Those of this room; who may approve is asked of `authz`.
    pub fn new(grants: Grants, authz: Authz) -> Self {
        Self { grants, authz }
    }

    /// The grants, once they have been read: before that nobody can say what there is.
    fn grants(&self) -> Result<&Grants, Refusal> {
        if self.grants.are_known() {
            return Ok(&self.grants);
        }
        Err(Refusal::NotYet { message: "grants have not been read yet".to_owned(), retry_after: RETRY })
    }

    fn may_approve<'a>(&'a self, caller: &'a Caller, namespace: &str, name: &str) -> MayApprove<'a> {
        let path = format!("/apis/{API_VERSION}/namespaces/{namespace}/{}/{name}", KIND.plural);
        let resource = Named {
            group: GROUP.to_owned(),
            version: VERSION.to_owned(),
            resource: KIND.plural.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            ..Named::default()
        };
        async move {
            let attributes = Attributes { verb: APPROVE.to_owned(), path, resource: Some(resource) };
            let reviewed = self.authz.review(caller.clone(), &attributes, &attributes.path).await;
            reviewed.map(drop).map_err(|error| error.refusal())
        }
        .boxed()
    }
}

impl Resource for GrantObjects {
    fn kind(&self) -> &'static Kind {
        &KIND
    }

    fn list<'a>(&'a self, namespace: Option<&'a str>) -> BoxFuture<'a, Result<Listed, Refusal>> {
        let listed = self.grants().and_then(|grants| {
            let List { items, version } = grants.list(namespace);
            Ok(Listed { items: items.into_iter().map(item).collect::<Result<_, _>>()?, version })
        });
        future::ready(listed).boxed()
    }

    fn changes(&self, namespace: Option<&str>, since: u64) -> BoxStream<'static, Result<Change, Refusal>> {
        let changes = self.grants.changes(namespace, since);
        stream::unfold(changes, |mut changes| async move {
            let next = changes.next().await.and_then(|Changed { version, before, after }| {
                let (before, after) = (before.map(item).transpose()?, after.map(item).transpose()?);
                Ok(Change { version, before, after, last: None })
            });
            Some((next, changes))
        })
        .boxed()
    }

    fn get<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<Item, Refusal>> {
        future::ready(self.grants().and_then(|grants| grants.get(namespace, name)).and_then(item)).boxed()
    }

    fn create<'a>(
        &'a self,
        caller: &'a Caller,
        namespace: &'a str,
        object: Value,
        options: &'a Options,
    ) -> BoxFuture<'a, Result<Item, Refusal>> {
        async move {
            let created = self.grants()?.create(Who::from(caller), namespace, object, options.dry_run);
            created.await.and_then(item)
        }
        .boxed()
    }

    fn update<'a>(
        &'a self,
        caller: &'a Caller,
        namespace: &'a str,
        name: &'a str,
        object: Value,
        options: &'a Options,
    ) -> BoxFuture<'a, Result<Item, Refusal>> {
        async move {
            let (who, may) = (Who::from(caller), self.may_approve(caller, namespace, name));
            self.grants()?.update(who, namespace, name, object, may, options.dry_run).await.and_then(item)
        }
        .boxed()
    }

    fn patch<'a>(
        &'a self,
        caller: &'a Caller,
        namespace: &'a str,
        name: &'a str,
        (media, body): (&'a str, Bytes),
        options: &'a Options,
    ) -> BoxFuture<'a, Result<Item, Refusal>> {
        async move {
            let patch = Patch::read(media, &body)?;
            let (who, may) = (Who::from(caller), self.may_approve(caller, namespace, name));
            self.grants()?.patch(who, namespace, name, patch, may, options.dry_run).await.and_then(item)
        }
        .boxed()
    }

    fn delete<'a>(
        &'a self,
        _caller: &'a Caller,
        namespace: &'a str,
        name: &'a str,
        options: &'a Options,
    ) -> BoxFuture<'a, Result<Item, Refusal>> {
        async move {
            let Options { uid, resource_version, dry_run } = options.clone();
            let wanted = Preconditions { uid, resource_version };
            self.grants()?.delete(namespace, name, &wanted, dry_run).await.and_then(item)
        }
        .boxed()
    }
}

fn item(object: Value) -> Result<Item, Refusal> {
    let mut cells: Vec<Value> = table::cells(&object).into_iter().map(Value::from).collect();
    let mut item = Item::of_value(&KIND, object, Vec::new())?;
    cells.push(age(item.metadata.creation_timestamp.as_ref(), Timestamp::now()).into());
    item.cells = cells;
    Ok(item)
}

fn schema() -> Value {
    let text = |what: &str| json!({"type": "string", "description": what});
    let texts = |what: &str| json!({"type": "array", "items": {"type": "string"}, "description": what});
    let fields = |what: &str, properties: Value| json!({"type": "object", "description": what, "properties": properties});
    let command = json!({
        "argv": texts("All of its words."),
        "prefix": texts("The first of its words."),
        "glob": text("The words with blanks between; a * stands for any characters."),
    });
    let labels = json!({
        "matchLabels": {"type": "object", "additionalProperties": {"type": "string"}, "description": "Labels and their values."},
        "matchExpressions": {
            "type": "array",
            "description": "What else holds of labels.",
            "items": fields("One label.", json!({
                "key": text("The label."),
                "operator": text("In, NotIn, Exists or DoesNotExist."),
                "values": texts("The values that this is about."),
            })),
        },
    });
    let selector = json!({
        "podLabels": fields("Labels of the pods.", labels),
        "containers": texts("Containers; a * stands for any characters."),
        "subresources": texts("Of exec, attach and portforward."),
        "command": fields("The command of an exec.", command),
        "everything": {"type": "boolean", "description": "That every pod is meant, which has to be said."},
    });
    let verdict = json!({"by": text("Who."), "at": text("When.")});
    json!({
        "spec": fields("What is asked for.", json!({
            "subject": fields("For whom.", json!({"user": text("A user."), "group": text("Or a group.")})),
            "selector": fields("Into what, in the grant's own namespace.", selector),
            "reason": text("Why."),
            "until": text("When it ends."),
            "duration": text("Or how long it holds once it is approved, such as 2h."),
        })),
        "status": fields("What became of it.", json!({
            "phase": text("Pending, Active, Expired or Denied."),
            "requestedBy": text("Who asked for it."),
            "requestedAs": text("Whom they acted as."),
            "requestedAt": text("When."),
            "approvals": {"type": "array", "items": fields("Somebody who said yes.", verdict.clone()), "description": "Who said yes."},
            "denied": fields("Who said no.", verdict),
            "until": text("When it ends."),
        })),
    })
}
