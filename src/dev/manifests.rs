//! Manifests: YAML and JSON files into the objects the embedded cluster starts with.
//!
//! In the flow: before `store`, once, at start. All files are read and checked before any object is handed
//! over: nothing is half loaded, and every fault of a load is told at once, each with its file and line.
//! Keys nobody knows are faults, because a misspelled key in a Role or a pod changes what it means.
//! The bootstrap objects of a real cluster (namespace `default`, the discovery roles, `cluster-admin`) are
//! always there; an object of the same name in a folder takes the place of the built-in one.
//! Source: Kubernetes API reference, core/v1 and rbac.authorization.k8s.io/v1; names by apimachinery
//! `pkg/util/validation`; RBAC rules by `pkg/apis/rbac/validation/validation.go`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fmt, fs};

use k8s_openapi::api::core::v1::{Container, Node, Pod, PodSpec};
use k8s_openapi::api::rbac::v1::{PolicyRule, RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;

use super::store::{Kind, Object, RBAC_GROUP};
use crate::tree::{self, Tree};

/// Largest manifest file, in bytes. A pod is a few KiB, so this holds a thousand; more is the wrong file.
/// A larger one is an error.
const MAX_FILE: u64 = 8 * 1024 * 1024;

/// Annotation of a pod: `true` where its commands are no processes.
pub const SIMULATED: &str = "podgate.dev/simulated";

/// Simulated pods on a node: as many as real nodes have, unless told otherwise.
const SIMULATED_PODS: u32 = 110;

/// What every cluster has.
const BOOTSTRAP: (&str, &str) = ("built-in bootstrap.yaml", include_str!("builtin/bootstrap.yaml"));

/// What there is to play with where no folder is given.
const DEMO: (&str, &str) = ("built-in demo.yaml", include_str!("builtin/demo.yaml"));

/// The objects of a load, and what its author should know about them.
#[derive(Debug, Clone, Default)]
pub struct Loaded {
    /// Every object, namespaces set.
    pub objects: Vec<Object>,
    /// Things that are allowed and probably not meant.
    pub warnings: Vec<Note>,
}

/// Something to say about a place in a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The file, as named in the folder.
    pub file: String,
    /// Line in the file, from 1.
    pub line: u64,
    /// What there is to say, with the path of the field where there is one.
    pub what: String,
}

/// Why manifests were not loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder cannot be listed.
    #[error("list manifests in {}", path.display())]
    List {
        /// The folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The folder holds no manifest.
    #[error("no .yaml, .yml or .json file in {}", .0.display())]
    Empty(PathBuf),
    /// A file cannot be read.
    #[error("read manifest {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A file is larger than any manifest should be.
    #[error("manifest {} is larger than {MAX_FILE} bytes", .0.display())]
    TooLarge(PathBuf),
    /// What is written in the files is no cluster.
    #[error("{}", lines(.0))]
    Faults(Vec<Note>),
}

/// One file's text.
struct Source {
    file: String,
    text: String,
}

/// An object and where it was written.
struct Entry {
    object: Object,
    file: String,
    tree: Tree,
}

#[derive(Default)]
struct Load {
    entries: Vec<Entry>,
    faults: Vec<Note>,
    warnings: Vec<Note>,
}

/// The built-in cluster: bootstrap objects, and a few nodes, pods and people.
///
/// # Errors
/// None as long as the built-in manifests are right, which a test proves.
pub fn builtin() -> Result<Loaded, Error> {
    load(vec![source(DEMO)])
}

/// Every `*.yaml`, `*.yml` and `*.json` of a folder, in order of name; folders in it are not entered.
///
/// # Errors
/// When a file cannot be read, or anything in any of them is wrong.
pub fn folder(path: &Path) -> Result<Loaded, Error> {
    let list = |source| Error::List { path: path.to_owned(), source };
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(list)? {
        let file = entry.map_err(list)?.path();
        let manifest = file
            .extension()
            .is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known));
        if manifest && file.is_file() {
            files.push(file);
        }
    }
    if files.is_empty() {
        return Err(Error::Empty(path.to_owned()));
    }
    files.sort();
    load(files.iter().map(|file| read(file)).collect::<Result<_, _>>()?)
}

/// Nodes and pods whose commands are simulated.
pub fn simulated(pods: u32) -> impl Iterator<Item = Object> {
    let node = |number: u32| format!("sim-node-{number}");
    let nodes = (0..pods.div_ceil(SIMULATED_PODS)).map(move |number| {
        let metadata = ObjectMeta { name: Some(node(number)), ..ObjectMeta::default() };
        Object::Node(Arc::new(Node { metadata, ..Node::default() }))
    });
    let pods = (0..pods).map(move |number| {
        let metadata = ObjectMeta {
            name: Some(format!("sim-{number}")),
            namespace: Some("default".to_owned()),
            labels: Some([("app".to_owned(), "sim".to_owned())].into()),
            annotations: Some([(SIMULATED.to_owned(), "true".to_owned())].into()),
            ..ObjectMeta::default()
        };
        let container = Container {
            name: "sim".to_owned(),
            image: Some("podgate.dev/simulated:1".to_owned()),
            ..Container::default()
        };
        let node_name = Some(node(number / SIMULATED_PODS));
        let spec = PodSpec { node_name, containers: vec![container], ..PodSpec::default() };
        Object::Pod(Arc::new(Pod { metadata, spec: Some(spec), ..Pod::default() }))
    });
    nodes.chain(pods)
}

fn source((file, text): (&str, &str)) -> Source {
    Source { file: file.to_owned(), text: text.to_owned() }
}

fn read(path: &Path) -> Result<Source, Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let mut text = String::new();
    let file = fs::File::open(path).map_err(failed)?;
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_FILE {
        return Err(Error::TooLarge(path.to_owned()));
    }
    let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Source { file, text })
}

fn load(sources: Vec<Source>) -> Result<Loaded, Error> {
    let mut load = Load::default();
    for source in &sources {
        load.file(source);
    }
    let mut places = load.duplicates();
    let mut bootstrap = Load::default();
    bootstrap.file(&source(BOOTSTRAP));
    load.faults.append(&mut bootstrap.faults);
    for entry in bootstrap.entries {
        if places.insert(key(&entry.object)) {
            load.entries.push(entry);
        }
    }
    // A reference to an object that is itself at fault is no second fault.
    if load.faults.is_empty() {
        load.references(&places);
    }
    if !load.faults.is_empty() {
        return Err(Error::Faults(load.faults));
    }
    Ok(Loaded {
        objects: load.entries.into_iter().map(|entry| entry.object).collect(),
        warnings: load.warnings,
    })
}

fn key(object: &Object) -> (Kind, String, String) {
    (object.kind(), object.namespace().to_owned(), object.name().to_owned())
}

fn lines(notes: &[Note]) -> String {
    let notes: Vec<String> = notes.iter().map(Note::to_string).collect();
    notes.join("\n")
}

// === impl Note ===

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.what)
    }
}

// === impl Load ===

impl Load {
    fn fault(&mut self, file: &str, line: u64, what: impl Into<String>) {
        self.faults.push(Note { file: file.to_owned(), line, what: what.into() });
    }

    fn file(&mut self, source: &Source) {
        match Tree::documents(&source.text) {
            Ok(documents) => {
                for document in documents {
                    self.document(&source.file, document);
                }
            }
            Err((line, what)) => self.fault(&source.file, line, what),
        }
    }

    fn document(&mut self, file: &str, tree: Tree) {
        let (Some(api_version), Some(kind)) = (tree.text("apiVersion"), tree.text("kind")) else {
            self.fault(file, tree.line, "apiVersion and kind are required");
            return;
        };
        if (api_version, kind) == ("v1", "List") {
            match tree.get("items").and_then(Tree::items) {
                Some(items) => {
                    for item in items {
                        self.document(file, item.clone());
                    }
                }
                None => self.fault(file, tree.line, "items: a list is required"),
            }
            return;
        }
        let Some(kind) =
            Kind::ALL.into_iter().find(|known| (known.api_version(), known.as_str()) == (api_version, kind))
        else {
            let what = format!("kind: {api_version} {kind} is none that podgate keeps");
            self.fault(file, tree.line_of("kind"), what);
            return;
        };
        match object(kind, &tree) {
            Ok(mut object) => {
                let mut check =
                    Check { kind, tree: &tree, file, faults: &mut self.faults, warnings: &mut self.warnings };
                if check.object(&mut object) {
                    self.entries.push(Entry { object, file: file.to_owned(), tree });
                }
            }
            Err(mismatch) => self.fault(file, mismatch.line, mismatch.to_string()),
        }
    }

    /// Tells duplicates, and returns what is there.
    fn duplicates(&mut self) -> BTreeSet<(Kind, String, String)> {
        let mut first: BTreeMap<_, (&str, u64)> = BTreeMap::new();
        let mut faults = Vec::new();
        for entry in &self.entries {
            let line = entry.tree.line_of("metadata.name");
            if let Some((file, there)) = first.get(&key(&entry.object)) {
                let what = format!("{} is already in {file}:{there}", title(&entry.object));
                faults.push(Note { file: entry.file.clone(), line, what });
            } else {
                first.insert(key(&entry.object), (&entry.file, line));
            }
        }
        let places = first.into_keys().collect();
        self.faults.append(&mut faults);
        places
    }

    /// What can be told only once everything is read.
    fn references(&mut self, places: &BTreeSet<(Kind, String, String)>) {
        for entry in &self.entries {
            let object = &entry.object;
            let note = |path: &str, what: String| Note {
                file: entry.file.clone(),
                line: entry.tree.line_of(path),
                what,
            };
            if object.kind().namespaced()
                && !places.contains(&(Kind::Namespace, String::new(), object.namespace().to_owned()))
            {
                let what = format!("metadata.namespace: there is no Namespace {:?}", object.namespace());
                self.faults.push(note("metadata.namespace", what));
            }
            let role_ref = match object {
                Object::RoleBinding(binding) => &binding.role_ref,
                Object::ClusterRoleBinding(binding) => &binding.role_ref,
                _ => continue,
            };
            let (kind, namespace) = match role_ref.kind.as_str() {
                "Role" => (Kind::Role, object.namespace()),
                _ => (Kind::ClusterRole, ""),
            };
            if !places.contains(&(kind, namespace.to_owned(), role_ref.name.clone())) {
                let what = format!(
                    "roleRef.name: there is no {} {:?}, so this binding grants nothing",
                    role_ref.kind, role_ref.name
                );
                self.warnings.push(note("roleRef.name", what));
            }
        }
    }
}

fn title(object: &Object) -> String {
    match object.namespace() {
        "" => format!("{} {}", object.kind().as_str(), object.name()),
        namespace => format!("{} {namespace}/{}", object.kind().as_str(), object.name()),
    }
}

fn object(kind: Kind, tree: &Tree) -> Result<Object, tree::Mismatch> {
    fn typed<T: DeserializeOwned>(tree: &Tree) -> Result<Arc<T>, tree::Mismatch> {
        tree.read().map(Arc::new)
    }
    Ok(match kind {
        Kind::Namespace => Object::Namespace(typed(tree)?),
        Kind::Node => Object::Node(typed(tree)?),
        Kind::Pod => Object::Pod(typed(tree)?),
        Kind::ClusterRole => Object::ClusterRole(typed(tree)?),
        Kind::ClusterRoleBinding => Object::ClusterRoleBinding(typed(tree)?),
        Kind::Role => Object::Role(typed(tree)?),
        Kind::RoleBinding => Object::RoleBinding(typed(tree)?),
    })
}

/// The checks of one object.
struct Check<'a> {
    kind: Kind,
    tree: &'a Tree,
    file: &'a str,
    faults: &'a mut Vec<Note>,
    warnings: &'a mut Vec<Note>,
}

// === impl Check ===

impl Check<'_> {
    fn note(&self, path: &str, what: &str) -> Note {
        Note { file: self.file.to_owned(), line: self.tree.line_of(path), what: format!("{path}: {what}") }
    }

    fn fault(&mut self, path: &str, what: &str) {
        let note = self.note(path, what);
        self.faults.push(note);
    }

    /// Completes the namespace and checks everything; false when the object is of no use.
    fn object(&mut self, object: &mut Object) -> bool {
        let before = self.faults.len();
        self.meta(object);
        match object {
            Object::Namespace(_) | Object::Node(_) => {}
            Object::Pod(pod) => self.pod(pod),
            Object::ClusterRole(role) => self.rules(role.rules.as_deref().unwrap_or_default()),
            Object::Role(role) => self.rules(role.rules.as_deref().unwrap_or_default()),
            Object::ClusterRoleBinding(binding) => {
                self.binding(&binding.role_ref, binding.subjects.as_deref().unwrap_or_default());
            }
            Object::RoleBinding(binding) => {
                self.binding(&binding.role_ref, binding.subjects.as_deref().unwrap_or_default());
            }
        }
        self.faults.len() == before
    }

    fn meta(&mut self, object: &mut Object) {
        let name = object.name().to_owned();
        let bad = match self.kind {
            _ if name.is_empty() => Some("a name is required"),
            Kind::Namespace if !is_label(&name) => Some(NOT_A_LABEL),
            Kind::Node | Kind::Pod if !is_subdomain(&name) => Some(NOT_A_SUBDOMAIN),
            _ if name == "." || name == ".." || name.contains(['/', '%']) => {
                Some("a name may not be '.' or '..' and may not contain '/' or '%'")
            }
            _ => None,
        };
        if let Some(what) = bad {
            self.fault("metadata.name", what);
        }
        if self.kind.namespaced() {
            if object.namespace().is_empty() {
                object.set_namespace("default");
            }
        } else if !object.namespace().is_empty() {
            let what = format!("a {} has no namespace", self.kind.as_str());
            self.fault("metadata.namespace", &what);
        }
    }

    fn pod(&mut self, pod: &Pod) {
        let Some(spec) = &pod.spec else {
            self.fault("spec", "a pod needs one");
            return;
        };
        if spec.containers.is_empty() {
            self.fault("spec.containers", "a pod needs at least one container");
        }
        let init = spec.init_containers.iter().flatten().map(|container| &container.name);
        let regular = spec.containers.iter().map(|container| &container.name);
        let ephemeral = spec.ephemeral_containers.iter().flatten().map(|container| &container.name);
        let all = (init.enumerate().map(|(index, name)| ("initContainers", index, name)))
            .chain(regular.enumerate().map(|(index, name)| ("containers", index, name)))
            .chain(ephemeral.enumerate().map(|(index, name)| ("ephemeralContainers", index, name)));
        let mut seen = BTreeSet::new();
        for (list, index, name) in all {
            let path = format!("spec.{list}[{index}].name");
            if !is_label(name) {
                self.fault(&path, NOT_A_LABEL);
            } else if !seen.insert(name) {
                self.fault(&path, &format!("there is already a container {name:?} in this pod"));
            }
        }
    }

    fn rules(&mut self, rules: &[PolicyRule]) {
        for (index, rule) in rules.iter().enumerate() {
            let given = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|list| !list.is_empty());
            let path = |field: &str| format!("rules[{index}].{field}");
            if rule.verbs.is_empty() {
                self.fault(&path("verbs"), "at least one verb is required");
            }
            if given(&rule.non_resource_urls) {
                if self.kind.namespaced() {
                    let what = "a Role is about a namespace and cannot name paths; use a ClusterRole";
                    self.fault(&path("nonResourceURLs"), what);
                }
                if given(&rule.api_groups) || given(&rule.resources) || given(&rule.resource_names) {
                    let what = "one rule is about resources or about paths, not both";
                    self.fault(&path("nonResourceURLs"), what);
                }
                continue;
            }
            if !given(&rule.api_groups) {
                let what = "at least one group is required; \"\" is the core group";
                self.fault(&path("apiGroups"), what);
            }
            if !given(&rule.resources) {
                self.fault(&path("resources"), "at least one resource is required");
            }
            for (at, resource) in rule.resources.iter().flatten().enumerate() {
                // Upstream's matcher knows `*`, `r`, `r/s` and `*/s`; the last has no mirror image.
                if let Some(parent) = resource.strip_suffix("/*") {
                    let what = format!(
                        "{resource:?} matches nothing: name the subresources, such as \"{parent}/exec\", or write \
                         \"*/exec\" for one subresource of everything, or \"*\" for everything"
                    );
                    let note = self.note(&path(&format!("resources[{at}]")), &what);
                    self.warnings.push(note);
                }
            }
        }
    }

    fn binding(&mut self, role_ref: &RoleRef, subjects: &[Subject]) {
        let cluster = !self.kind.namespaced();
        match role_ref.kind.as_str() {
            "ClusterRole" => {}
            "Role" if !cluster => {}
            _ if cluster => self.fault("roleRef.kind", "must be ClusterRole"),
            _ => self.fault("roleRef.kind", "must be Role or ClusterRole"),
        }
        if role_ref.api_group.as_deref().unwrap_or(RBAC_GROUP) != RBAC_GROUP {
            self.fault("roleRef.apiGroup", &format!("must be {RBAC_GROUP}"));
        }
        if role_ref.name.is_empty() {
            self.fault("roleRef.name", "a name is required");
        }
        for (index, subject) in subjects.iter().enumerate() {
            let path = |field: &str| format!("subjects[{index}].{field}");
            let group = subject.api_group.as_deref();
            let namespace = subject.namespace.as_deref().unwrap_or("");
            if subject.name.is_empty() {
                self.fault(&path("name"), "a name is required");
            }
            match subject.kind.as_str() {
                "User" | "Group" => {
                    if group.unwrap_or(RBAC_GROUP) != RBAC_GROUP {
                        self.fault(&path("apiGroup"), &format!("must be {RBAC_GROUP}"));
                    }
                    if !namespace.is_empty() {
                        let what = format!("a {} has no namespace", subject.kind);
                        self.fault(&path("namespace"), &what);
                    }
                }
                "ServiceAccount" => {
                    if !group.unwrap_or("").is_empty() {
                        self.fault(&path("apiGroup"), "must be \"\"");
                    }
                    if cluster && namespace.is_empty() {
                        self.fault(&path("namespace"), "a service account needs one here");
                    }
                }
                _ => self.fault(&path("kind"), "must be User, Group or ServiceAccount"),
            }
        }
    }
}

const NOT_A_LABEL: &str = "must be 1 to 63 of a-z, 0-9 and '-', starting and ending with a letter or digit";

const NOT_A_SUBDOMAIN: &str =
    "must be 1 to 253 of a-z, 0-9, '-' and '.', each part starting and ending with a letter or digit";

/// RFC 1123 label.
fn is_label(name: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    bytes.len() <= 63
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-')
}

/// RFC 1123 subdomain. Unlike a label its parts have no length of their own.
fn is_subdomain(name: &str) -> bool {
    let part = |part: &str| {
        let bytes = part.as_bytes();
        !bytes.is_empty()
            && !bytes.starts_with(b"-")
            && !bytes.ends_with(b"-")
            && bytes.iter().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-')
    };
    name.len() <= 253 && name.split('.').all(part)
}

#[cfg(test)]
mod tests;
