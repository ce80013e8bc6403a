//! Verbs: what clients of the API do to grants. Rights are reviewed before; but for the one to approve, which only a change
//! shows to be needed.
//!
//! Whatever two do at once, one of them was first and the other is told, or is done again on top of that: a store takes a
//! change of no version but the newest.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde_json::Value;

use super::document::{Grant, MAX_BYTES};
use super::rules::{self, Change};
use super::store::{Error, Kept, Key};
use super::{Grants, Who, book};
use crate::serving::history;
use crate::status::Refusal;

pub use super::patch::Patch;

/// How often a patch is done again on top of what somebody else did at the same moment: upstream's number.
const RETRIES: usize = 5;

/// How long an answer waits for what was done to be known here, so that whoever then asks finds it. A watch that is broken
/// is no reason to say that it was not done.
const SEEN: Duration = Duration::from_secs(2);

/// Grants at most. Podgate keeps all of them in memory, and looks at all of a namespace for each session.
const MAX_GRANTS: usize = 4096;

/// Grants that one person has asked for, at most, those that have run out included: they can delete these.
const MAX_OF_ONE: usize = 128;

/// Characters and length of the end of a generated name. Source: apimachinery `pkg/util/rand`, apiserver
/// `pkg/storage/names`.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const GENERATED: usize = 5;

/// Whether the caller may approve this grant, by the cluster's word. It is asked for, once, only when that is what they
/// want.
pub type MayApprove<'a> = BoxFuture<'a, Result<(), Refusal>>;

/// What must be true of a grant for it to be deleted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Preconditions {
    /// Its uid.
    pub uid: Option<String>,
    /// Its version.
    pub resource_version: Option<String>,
}

/// Grants as clients see them, at one version.
#[derive(Debug, Clone, PartialEq)]
pub struct List {
    /// The version.
    pub version: u64,
    /// By namespace and name.
    pub items: Vec<Value>,
}

/// A watcher's place among the changes.
pub struct Changes {
    grants: Grants,
    namespace: Option<String>,
    changes: history::Changes<book::Change>,
}

/// A grant that became another one. Of another namespace than the watched one nothing is told but the version.
#[derive(Debug, Clone, PartialEq)]
pub struct Changed {
    /// The version at which it did.
    pub version: u64,
    /// What it was; nothing before it was made.
    pub before: Option<Value>,
    /// What it is; nothing once it is gone.
    pub after: Option<Value>,
}

impl Grants {
    /// One grant.
    ///
    /// # Errors
    /// 404.
    pub fn get(&self, namespace: &str, name: &str) -> Result<Value, Refusal> {
        let key = key(namespace, name);
        let kept = self.book.get(&key).ok_or_else(|| Error::Missing.refusal(&key))?;
        Ok(self.shown(&kept.grant, self.now()))
    }

    /// All of a namespace, or of all namespaces.
    pub fn list(&self, namespace: Option<&str>) -> List {
        let now = self.now();
        let (grants, version) = self.book.list(namespace);
        List { version, items: grants.iter().map(|grant| self.shown(grant, now)).collect() }
    }

    /// The changes after this version, of a namespace or of all.
    pub fn changes(&self, namespace: Option<&str>, since: u64) -> Changes {
        let namespace = namespace.map(str::to_owned);
        Changes { grants: self.clone(), namespace, changes: self.book.changes(since) }
    }

    /// Asks for a grant.
    ///
    /// # Errors
    /// 400, 403, 409 and 422; 500 and 503 when it cannot be kept.
    pub async fn create(
        &self,
        who: Who<'_>,
        namespace: &str,
        body: Value,
        dry_run: bool,
    ) -> Result<Value, Refusal> {
        let mut asked = Grant::read(body)?;
        let metadata = &mut asked.metadata;
        if metadata.namespace.is_empty() {
            namespace.clone_into(&mut metadata.namespace);
        }
        if metadata.namespace != namespace {
            return Err(Refusal::BadRequest(
                "the namespace of the provided object does not match the namespace sent on the request"
                    .into(),
            ));
        }
        if metadata.name.is_empty() {
            if metadata.generate_name.is_empty() {
                let text = "Required value: name or generateName is required".to_owned();
                let cause = rules::cause("metadata.name", "FieldValueRequired", text);
                return Err(rules::invalid("", vec![cause]));
            }
            metadata.name = generated(&metadata.generate_name);
        }
        let grant = rules::create(who, asked, self.now(), self.settings.longest)?;
        let key = key(namespace, &grant.metadata.name);
        if self.book.get(&key).is_some() {
            return Err(Error::Exists.refusal(&key));
        }
        let (all, theirs) = self.book.count(who.person());
        if all >= MAX_GRANTS || theirs >= MAX_OF_ONE {
            let text = format!(
                "exceeded quota: there are {all} grants of {MAX_GRANTS}, {theirs} of {MAX_OF_ONE} asked for by {:?}",
                who.person()
            );
            return Err(rules::forbidden(&key.1, &text));
        }
        bounded(&grant)?;
        if dry_run {
            return Ok(self.shown(&grant, self.now()));
        }
        let created = self.store.create(&key, &grant).await;
        let version = created.map_err(|error| error.refusal(&key))?;
        Ok(self.done(grant, version).await)
    }

    /// Makes a grant what is said, whole. Its version has to be said too.
    ///
    /// # Errors
    /// As [`Grants::create`]; 404, and 409 when it is another version by now.
    pub async fn update(
        &self,
        who: Who<'_>,
        namespace: &str,
        name: &str,
        body: Value,
        may_approve: MayApprove<'_>,
        dry_run: bool,
    ) -> Result<Value, Refusal> {
        let new = Grant::read(body)?;
        if new.metadata.name != name {
            return Err(Refusal::BadRequest(format!(
                "the name of the object ({}) does not match the name on the URL ({name})",
                new.metadata.name
            )));
        }
        if new.metadata.resource_version.is_empty() {
            let text = "Invalid value: 0x0: must be specified for an update".to_owned();
            let cause = rules::cause("metadata.resourceVersion", rules::INVALID, text);
            return Err(rules::invalid(name, vec![cause]));
        }
        let version = Some(new.metadata.resource_version.clone());
        self.change(who, key(namespace, name), version, |_| Ok(new.clone()), may_approve, dry_run).await
    }

    /// Makes something of a grant another, as `kubectl annotate`, `apply` and `edit` do.
    ///
    /// # Errors
    /// As [`Grants::update`].
    pub async fn patch(
        &self,
        who: Who<'_>,
        namespace: &str,
        name: &str,
        patch: Patch,
        may_approve: MayApprove<'_>,
        dry_run: bool,
    ) -> Result<Value, Refusal> {
        let key = key(namespace, name);
        if let Patch::Apply(applied) = &patch
            && self.read(&key).await?.is_none()
        {
            return self.create(who, namespace, applied.clone(), dry_run).await;
        }
        let version = patch.version().map(str::to_owned);
        let new = |old: &Grant| Grant::read(patch.apply(old.to_value()));
        self.change(who, key, version, new, may_approve, dry_run).await
    }

    /// Takes a grant away, from those who are in by it too; what it was.
    ///
    /// # Errors
    /// 404, and 409 when it is not the one that is meant; 500 and 503 when the store does not answer.
    pub async fn delete(
        &self,
        namespace: &str,
        name: &str,
        wanted: &Preconditions,
        dry_run: bool,
    ) -> Result<Value, Refusal> {
        let key = key(namespace, name);
        let refused = |error: Error| error.refusal(&key);
        for _ in 0..RETRIES {
            let kept = self.read(&key).await?.ok_or_else(|| refused(Error::Missing))?;
            let metadata = &kept.grant.metadata;
            let version = kept.version.to_string();
            let differs = |field: &str, wanted: &Option<String>, is: &str| match wanted {
                Some(wanted) if wanted != is => Err(Refusal::Conflict {
                    text: format!(
                        "Precondition failed: {field} in precondition: {wanted}, {field} in object meta: {is}"
                    ),
                    about: rules::about(name),
                }),
                _ => Ok(()),
            };
            differs("UID", &wanted.uid, &metadata.uid)?;
            differs("ResourceVersion", &wanted.resource_version, &version)?;
            let gone = match dry_run {
                true => Ok(()),
                false => self.store.delete(&key, kept.version).await,
            };
            match gone {
                Ok(()) => {
                    if !dry_run {
                        // However late it is known here: it is gone.
                        let _ = tokio::time::timeout(SEEN, self.gone(&key)).await;
                    }
                    return Ok(self.shown(&kept.grant, self.now()));
                }
                Err(Error::Conflict) => {}
                Err(error) => return Err(refused(error)),
            }
        }
        Err(refused(Error::Conflict))
    }

    async fn change(
        &self,
        who: Who<'_>,
        key: Key,
        wanted: Option<String>,
        new: impl Fn(&Grant) -> Result<Grant, Refusal>,
        may_approve: MayApprove<'_>,
        dry_run: bool,
    ) -> Result<Value, Refusal> {
        let refused = |error: Error| error.refusal(&key);
        let (mut may_approve, mut judged) = (Some(may_approve), None);
        for _ in 0..RETRIES {
            let Kept { grant: old, version } =
                self.read(&key).await?.ok_or_else(|| refused(Error::Missing))?;
            if wanted.as_ref().is_some_and(|wanted| *wanted != version.to_string()) {
                return Err(refused(Error::Conflict));
            }
            let now = self.now();
            let new = match rules::update(who, &old, new(&old)?, now, self.settings.longest)? {
                Change::To(new) => *new,
                Change::Verdict { approve } => {
                    // What was asked for meanwhile is not what they have said yes to.
                    let asked = (old.metadata.uid.clone(), old.metadata.generation);
                    if *judged.get_or_insert_with(|| asked.clone()) != asked {
                        return Err(refused(Error::Conflict));
                    }
                    if let Some(may_approve) = may_approve.take() {
                        may_approve.await?;
                    }
                    rules::decide(who, &old, self.book.phase(&key, &old, now), approve, now)?
                }
            };
            if new == old || dry_run {
                return Ok(self.shown(&new, now));
            }
            bounded(&new)?;
            match self.store.replace(&key, &new, version).await {
                Ok(version) => return Ok(self.done(new, version).await),
                Err(Error::Conflict) => {}
                Err(error) => return Err(refused(error)),
            }
        }
        Err(refused(Error::Conflict))
    }

    /// What the store has just now.
    async fn read(&self, key: &Key) -> Result<Option<Kept>, Refusal> {
        let mut kept = self.store.read(key).await.map_err(|error| error.refusal(key))?;
        if let Some(Kept { grant, version }) = &mut kept {
            grant.metadata.resource_version = version.to_string();
        }
        Ok(kept)
    }

    /// The answer about what was done.
    async fn done(&self, mut grant: Grant, version: u64) -> Value {
        grant.metadata.resource_version = version.to_string();
        // However late it is known here: it is done.
        let _ = tokio::time::timeout(SEEN, self.book.seen(version)).await;
        self.shown(&grant, self.now())
    }

    async fn gone(&self, key: &Key) {
        let mut changed = self.book.changed();
        while self.book.get(key).is_some() {
            // The sender lives as long as the book.
            let _ = changed.changed().await;
        }
    }

    fn shown(&self, grant: &Grant, now: Timestamp) -> Value {
        let key = key(&grant.metadata.namespace, &grant.metadata.name);
        let mut shown = grant.clone();
        shown.status.phase = self.book.phase(&key, grant, now);
        shown.to_value()
    }
}

impl Changes {
    /// The next change, as soon as there is one. May be dropped at any point: nothing is lost.
    ///
    /// # Errors
    /// 410 when not all of them are known any more: then a list is due.
    pub async fn next(&mut self) -> Result<Changed, Refusal> {
        let (version, change) = self.changes.next().await.map_err(|gone| gone.refusal())?;
        let now = self.grants.now();
        let within = |grant: &&Arc<Grant>| {
            self.namespace.as_ref().is_none_or(|namespace| *namespace == grant.metadata.namespace)
        };
        let shown = |grant: &Option<Arc<Grant>>| {
            grant.as_ref().filter(within).map(|grant| self.grants.shown(grant, now))
        };
        Ok(Changed { version, before: shown(&change.before), after: shown(&change.after) })
    }
}

fn key(namespace: &str, name: &str) -> Key {
    (namespace.to_owned(), name.to_owned())
}

fn bounded(grant: &Grant) -> Result<(), Refusal> {
    if grant.to_value().to_string().len() <= MAX_BYTES {
        return Ok(());
    }
    let text = format!("Too long: a grant may not be more than {MAX_BYTES} bytes of JSON");
    let cause = rules::cause("spec", "FieldValueTooLong", text);
    Err(rules::invalid(&grant.metadata.name, vec![cause]))
}

fn generated(start: &str) -> String {
    let random = uuid::Uuid::new_v4();
    let end = random.as_bytes().iter().take(GENERATED);
    let end = end.map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]));
    start.chars().chain(end).collect()
}
