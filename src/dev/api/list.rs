//! One object, a list of them, or a watch, plain or as a table.

use std::sync::Arc;

use http::{Response, StatusCode};

use super::{fields, table};
use crate::cluster::Body;
use crate::dev::store::{Change, Kind, Object, Store};
use crate::request::Ask;
use crate::serving::history::Changes;
use crate::serving::table::Form;
use crate::serving::watch::{self, Changed, Feed, Start};
use crate::serving::{self, Accept, Select, check_segment};
use crate::status::{About, Refusal};

pub(super) fn get(
    store: &Arc<Store>,
    kind: Kind,
    namespace: Option<&str>,
    name: &str,
    ask: &Ask,
    accept: &Accept,
) -> Result<Response<Body>, Refusal> {
    check_segment(name)?;
    let objects = store.snapshot();
    let Some(object) = objects.get(kind, namespace.unwrap_or(""), name) else {
        return Err(Refusal::NotFound(About {
            name: name.to_owned(),
            group: kind.group().to_owned(),
            kind: kind.plural().to_owned(),
        }));
    };
    serving::one(ask, accept, StatusCode::OK, table::columns(kind), object)
}

pub(super) fn list(
    store: &Arc<Store>,
    kind: Kind,
    namespace: Option<&str>,
    ask: &Ask,
    accept: &Accept,
) -> Result<Response<Body>, Refusal> {
    let select = select(kind, ask)?;
    let objects = store.snapshot();
    let items: Vec<&Object> =
        objects.list(kind, namespace).filter(|object| select.matches(*object)).collect();
    let names = (kind.as_str(), kind.api_version());
    serving::list(ask, accept, names, table::columns(kind), objects.version(), &items)
}

pub(super) fn watch(
    store: &Arc<Store>,
    kind: Kind,
    namespace: Option<&str>,
    ask: &Ask,
    accept: &Accept,
) -> Result<Response<Body>, Refusal> {
    let mut select = select(kind, ask)?;
    if let Some(resource) = &ask.attributes.resource {
        // The old path `/watch/pods/NAME`; a name read from the field selector is the same again.
        select.only(&resource.name);
    }
    let (form, start) = (Form::of(ask, accept)?, Start::of(&ask.query)?);
    let objects = store.snapshot();
    let changes = store.changes(start.from(objects.version()));
    let about = watch::About {
        kind: kind.as_str(),
        api_version: kind.api_version(),
        columns: table::columns(kind),
        select,
        form,
    };
    let now = objects.list(kind, namespace).cloned();
    Ok(watch::watch(about, start, now, Within { changes, kind, namespace: namespace.map(str::to_owned) }))
}

fn select(kind: Kind, ask: &Ask) -> Result<Select, Refusal> {
    Select::of(&ask.query, |label| fields::unknown(kind, label))
}

/// The changes of one kind in a namespace.
struct Within {
    changes: Changes<Change>,
    kind: Kind,
    namespace: Option<String>,
}

impl Feed for Within {
    type Object = Object;

    async fn next(&mut self) -> Result<Changed<Object>, Refusal> {
        loop {
            let (_, change) = self.changes.next().await.map_err(|gone| gone.refusal())?;
            // Objects keep kind and namespace.
            let object = &change.after;
            let within = |namespace: &String| namespace == object.namespace();
            if object.kind() == self.kind && self.namespace.as_ref().is_none_or(within) {
                return Ok(Changed {
                    before: Some(change.before.clone()),
                    after: Some(object.clone()),
                    last: object.clone(),
                });
            }
        }
    }

    fn seen(&self) -> u64 {
        self.changes.seen()
    }
}
