use std::collections::BTreeMap;

use http::{HeaderName, HeaderValue};

use super::impersonation::Wanted;
use super::*;
use crate::request::Resource;
use crate::testing::cluster::{FakeCluster, allow, deny, undecided};

fn user(name: &str) -> User {
    User { name: name.into(), ..User::default() }
}

fn attributes(verb: &str, group: &str, resource: &str, namespace: &str, name: &str) -> Attributes {
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    Attributes {
        verb: verb.into(),
        path: String::new(),
        resource: Some(Resource {
            group: group.into(),
            version: "v1".into(),
            resource: resource.into(),
            subresource: subresource.into(),
            namespace: namespace.into(),
            name: name.into(),
            rest: Vec::new(),
        }),
    }
}

fn headers(lines: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    headers
}

fn wanted(lines: &[(&str, &str)]) -> Wanted {
    Wanted::of(&headers(lines)).unwrap().unwrap()
}

/// Items as `group resource/subresource namespace/name`.
fn items(wanted: &Wanted) -> Vec<String> {
    let line = |item: Attributes| {
        let r = item.resource.unwrap();
        assert_eq!(item.verb, "impersonate");
        format!("{} {}/{} {}/{}", r.group, r.resource, r.subresource, r.namespace, r.name)
    };
    wanted.items().into_iter().map(line).collect()
}

/// Somebody whom `authn` lets in.
fn nobody() -> Caller {
    let methods = crate::authn::Methods { anonymous: true, ..Default::default() };
    let authn = crate::authn::Authn::new(methods);
    let (conn, headers) = (crate::listen::Conn::default(), HeaderMap::new());
    futures_util::FutureExt::now_or_never(authn.identify(&conn, &headers)).unwrap().unwrap()
}

async fn caller(cluster: &Arc<FakeCluster>, lines: &[(&str, &str)]) -> Result<Caller, Error> {
    let authz = Authz::new(cluster.clone(), Duration::from_secs(1));
    authz.assume(nobody(), &headers(lines), "/x").await
}

#[test]
fn item_109_a_denial_names_who_what_and_where() {
    let text = |attributes: &Attributes, reason: &str| match denied(&user("jane"), attributes, reason, None) {
        Error::Denied { message, about, .. } => (message, about),
        other => panic!("{other}"),
    };
    let about = |name: &str, group: &str, kind: &str| About {
        name: name.into(),
        group: group.into(),
        kind: kind.into(),
    };
    let cases = [
        (
            attributes("create", "", "pods/exec", "default", "nginx"),
            "pods \"nginx\" is forbidden: User \"jane\" cannot create resource \"pods/exec\" in API group \
             \"\" in the namespace \"default\"",
            about("nginx", "", "pods"),
        ),
        (
            attributes("list", "", "nodes", "", ""),
            "nodes is forbidden: User \"jane\" cannot list resource \"nodes\" in API group \"\" at the \
             cluster scope",
            about("", "", "nodes"),
        ),
        (
            attributes("update", "apps", "deployments/scale", "shop", "cart"),
            "deployments.apps \"cart\" is forbidden: User \"jane\" cannot update resource \
             \"deployments/scale\" in API group \"apps\" in the namespace \"shop\"",
            about("cart", "apps", "deployments"),
        ),
        (
            Attributes { verb: "get".into(), path: "/healthz".into(), resource: None },
            "forbidden: User \"jane\" cannot get path \"/healthz\"",
            about("", "", ""),
        ),
    ];
    for (asked, message, subject) in cases {
        assert_eq!(text(&asked, ""), (message.to_owned(), subject.clone()));
        assert_eq!(text(&asked, "RBAC: <x>").0, format!("{message}: RBAC: <x>"), "the reason stays as it is");
    }
}

#[test]
fn item_109_names_in_a_denial_are_html_escaped_and_quoted_as_go_does() {
    let asked = attributes("get", "", "pods", "<ns>", "a&b");
    let error = denied(&user("<script>\"&\n"), &asked, "a<b", None);
    assert_eq!(
        error.to_string(),
        "pods \"a&b\" is forbidden: User \"&lt;script&gt;\\\"&amp;\\n\" cannot get resource \"pods\" in API \
         group \"\" in the namespace \"&lt;ns&gt;\": a<b"
    );
}

#[test]
fn item_107_items_come_as_user_groups_extras_uid() {
    let wanted = wanted(&[
        ("Impersonate-Uid", "7"),
        ("Impersonate-Extra-Scopes", "view"),
        ("Impersonate-Group", "ops"),
        ("Impersonate-Extra-Acme.com%2fProject", "x"),
        ("Impersonate-Extra-Scopes", "edit"),
        ("Impersonate-Group", "dev"),
        ("Impersonate-User", "jane"),
    ]);
    assert_eq!(
        items(&wanted),
        [
            " users/ /jane",
            " groups/ /ops",
            " groups/ /dev",
            "authentication.k8s.io userextras/acme.com/project /x",
            "authentication.k8s.io userextras/scopes /view",
            "authentication.k8s.io userextras/scopes /edit",
            "authentication.k8s.io uids/ /7",
        ]
    );
    let user = wanted.into_user();
    let extra = [("acme.com/project", vec!["x"]), ("scopes", vec!["view", "edit"])];
    let extra = extra.map(|(key, values)| (key.to_owned(), values.into_iter().map(str::to_owned).collect()));
    assert_eq!(user.extra, BTreeMap::from(extra));
    assert_eq!((user.name.as_str(), user.uid.as_str()), ("jane", "7"));
}

#[test]
fn item_107_an_escaped_letter_of_an_extras_key_keeps_its_case() {
    let wanted = wanted(&[("Impersonate-User", "jane"), ("Impersonate-Extra-%41cme", "x")]);
    assert_eq!(items(&wanted)[1], "authentication.k8s.io userextras/Acme /x");
}

#[test]
fn item_107_a_service_account_is_one_and_gets_its_groups() {
    let name = "system:serviceaccount:shop:cart";
    let account = wanted(&[("Impersonate-User", name)]);
    assert_eq!(items(&account), [" serviceaccounts/ shop/cart"]);
    assert_eq!(
        account.into_user().groups,
        ["system:serviceaccounts", "system:serviceaccounts:shop", "system:authenticated"]
    );
    let account = wanted(&[("Impersonate-User", name), ("Impersonate-Group", "dev")]);
    assert_eq!(account.into_user().groups, ["dev", "system:authenticated"]);
    for odd in ["system:serviceaccount:shop", "system:serviceaccount:shop:", "system:serviceaccount:a:b:c"] {
        assert_eq!(items(&wanted(&[("Impersonate-User", odd)])), [format!(" users/ /{odd}")]);
    }
}

#[test]
fn item_108_groups_replace_and_authenticated_is_added_by_rule() {
    let groups = |lines: &[(&str, &str)]| wanted(lines).into_user().groups;
    let jane = ("Impersonate-User", "jane");
    let anonymous = ("Impersonate-User", "system:anonymous");
    let group = |name| ("Impersonate-Group", name);
    assert_eq!(groups(&[jane]), ["system:authenticated"]);
    assert_eq!(groups(&[jane, group("dev")]), ["dev", "system:authenticated"]);
    assert_eq!(groups(&[jane, group("system:authenticated"), group("dev")]), ["system:authenticated", "dev"]);
    assert_eq!(groups(&[jane, group("system:unauthenticated")]), ["system:unauthenticated"]);
    assert_eq!(groups(&[anonymous]), ["system:unauthenticated"]);
    assert_eq!(groups(&[anonymous, group("dev")]), ["dev", "system:unauthenticated"]);
    assert_eq!(
        groups(&[anonymous, group("system:authenticated")]),
        ["system:authenticated", "system:unauthenticated"],
        "who is anonymous is never only authenticated"
    );
}

#[test]
fn item_107_anything_without_a_user_is_a_bad_request() {
    let refused = |lines: &[(&str, &str)]| Wanted::of(&headers(lines)).unwrap_err().refusal();
    let bad = |what: &str| Refusal::BadRequest(format!("requested [{what}] without impersonating a user"));
    assert_eq!(refused(&[("Impersonate-Group", "dev")]), bad("groups"));
    assert_eq!(refused(&[("Impersonate-Uid", "7"), ("Impersonate-User", "")]), bad("uids"));
    assert_eq!(refused(&[("Impersonate-Extra-A", "b"), ("Impersonate-Group", "")]), bad("groups userextras"));
    assert_eq!(Wanted::of(&headers(&[("Impersonate-User", "")])).unwrap(), None);
}

#[tokio::test]
async fn item_107_the_first_denial_ends_the_reviews() {
    let cluster = FakeCluster::new();
    cluster.judge(|_, attributes| {
        let resource = attributes.resource.as_ref().unwrap();
        Ok(if resource.name == "ops" { deny("not ops") } else { allow() })
    });
    let lines = [
        ("Impersonate-User", "jane"),
        ("Impersonate-Group", "ops"),
        ("Impersonate-Group", "dev"),
        ("Impersonate-Uid", "7"),
    ];
    let error = caller(&cluster, &lines).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "groups \"ops\" is forbidden: User \"system:anonymous\" cannot impersonate resource \"groups\" in API \
         group \"\" at the cluster scope: not ops"
    );
    assert_eq!(
        cluster.reviews(),
        ["system:anonymous impersonate users /jane", "system:anonymous impersonate groups /ops"]
    );
}

#[tokio::test]
async fn item_107_no_decision_on_an_impersonation_is_a_denial() {
    let cluster = FakeCluster::new();
    cluster.judge(|_, _| Err(undecided("no quorum")));
    let refusal = caller(&cluster, &[("Impersonate-User", "jane")]).await.unwrap_err().refusal();
    let message = "users \"jane\" is forbidden: User \"system:anonymous\" cannot impersonate resource \"users\" \
                   in API group \"\" at the cluster scope";
    let about = About { name: "jane".into(), group: String::new(), kind: "users".into() };
    assert_eq!(refusal, Refusal::Forbidden { message: message.into(), about });
}

#[tokio::test]
async fn an_impersonated_caller_remembers_who_is_behind_it() {
    let caller = caller(&FakeCluster::new(), &[("Impersonate-User", "jane")]).await.unwrap();
    assert_eq!(caller.user().name, "jane");
    assert_eq!(caller.impersonator().unwrap().name, "system:anonymous");
}
