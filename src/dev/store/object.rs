//! Objects of every kind the embedded cluster keeps, behind one enum.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Serialize, Serializer};

/// Group of the RBAC kinds.
pub const RBAC_GROUP: &str = "rbac.authorization.k8s.io";

/// A kind of object, in the order lists of everything are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// core/v1 Namespace
    Namespace,
    /// core/v1 Node
    Node,
    /// core/v1 Pod
    Pod,
    /// rbac.authorization.k8s.io/v1 ClusterRole
    ClusterRole,
    /// rbac.authorization.k8s.io/v1 ClusterRoleBinding
    ClusterRoleBinding,
    /// rbac.authorization.k8s.io/v1 Role
    Role,
    /// rbac.authorization.k8s.io/v1 RoleBinding
    RoleBinding,
}

/// An object; clones share it.
#[derive(Debug, Clone, PartialEq)]
pub enum Object {
    /// A Namespace.
    Namespace(Arc<Namespace>),
    /// A Node.
    Node(Arc<Node>),
    /// A Pod.
    Pod(Arc<Pod>),
    /// A ClusterRole.
    ClusterRole(Arc<ClusterRole>),
    /// A ClusterRoleBinding.
    ClusterRoleBinding(Arc<ClusterRoleBinding>),
    /// A Role.
    Role(Arc<Role>),
    /// A RoleBinding.
    RoleBinding(Arc<RoleBinding>),
}

// === impl Kind ===

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::Namespace,
        Self::Node,
        Self::Pod,
        Self::ClusterRole,
        Self::ClusterRoleBinding,
        Self::Role,
        Self::RoleBinding,
    ];

    /// `kind` in manifests.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::ClusterRole => "ClusterRole",
            Self::ClusterRoleBinding => "ClusterRoleBinding",
            Self::Role => "Role",
            Self::RoleBinding => "RoleBinding",
        }
    }

    /// API group; empty for the core group.
    pub fn group(self) -> &'static str {
        match self {
            Self::Namespace | Self::Node | Self::Pod => "",
            Self::ClusterRole | Self::ClusterRoleBinding | Self::Role | Self::RoleBinding => RBAC_GROUP,
        }
    }

    /// `apiVersion` in manifests.
    pub fn api_version(self) -> &'static str {
        match self.group() {
            "" => "v1",
            _ => "rbac.authorization.k8s.io/v1",
        }
    }

    /// Plural resource in paths.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Namespace => "namespaces",
            Self::Node => "nodes",
            Self::Pod => "pods",
            Self::ClusterRole => "clusterroles",
            Self::ClusterRoleBinding => "clusterrolebindings",
            Self::Role => "roles",
            Self::RoleBinding => "rolebindings",
        }
    }

    /// Whether objects of this kind live in a namespace.
    pub fn namespaced(self) -> bool {
        matches!(self, Self::Pod | Self::Role | Self::RoleBinding)
    }

    /// The kind behind a resource path.
    pub fn of_resource(group: &str, version: &str, plural: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| version == "v1" && kind.group() == group && kind.plural() == plural)
    }
}

// === impl Object ===

/// The same expression for whichever object it is.
macro_rules! each {
    ($object:expr, $inner:ident => $value:expr) => {
        match $object {
            Object::Namespace($inner) => $value,
            Object::Node($inner) => $value,
            Object::Pod($inner) => $value,
            Object::ClusterRole($inner) => $value,
            Object::ClusterRoleBinding($inner) => $value,
            Object::Role($inner) => $value,
            Object::RoleBinding($inner) => $value,
        }
    };
}

impl Object {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Namespace(_) => Kind::Namespace,
            Self::Node(_) => Kind::Node,
            Self::Pod(_) => Kind::Pod,
            Self::ClusterRole(_) => Kind::ClusterRole,
            Self::ClusterRoleBinding(_) => Kind::ClusterRoleBinding,
            Self::Role(_) => Kind::Role,
            Self::RoleBinding(_) => Kind::RoleBinding,
        }
    }

    /// `metadata`
    pub fn meta(&self) -> &ObjectMeta {
        each!(self, object => &object.metadata)
    }

    /// Puts it into a namespace.
    pub(in crate::dev) fn set_namespace(&mut self, namespace: &str) {
        self.meta_mut().namespace = Some(namespace.to_owned());
    }

    pub(super) fn meta_mut(&mut self) -> &mut ObjectMeta {
        each!(self, object => &mut Arc::make_mut(object).metadata)
    }

    /// `metadata.namespace`; empty at the cluster scope.
    pub fn namespace(&self) -> &str {
        self.meta().namespace.as_deref().unwrap_or("")
    }

    /// `metadata.name`
    pub fn name(&self) -> &str {
        self.meta().name.as_deref().unwrap_or("")
    }
}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        each!(self, object => object.as_ref().serialize(serializer))
    }
}
