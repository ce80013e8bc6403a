use std::time::Duration;

use futures_util::FutureExt;

use super::*;
use crate::testing::{FakeCluster, Pki};

fn tokens(text: &str) -> Live<Tokens> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    Live::fixed(Tokens::from_file(file.path()).unwrap())
}

fn authn(text: &str, anonymous: bool) -> Authn {
    Authn::new(Methods { tokens: tokens(text), anonymous, ..Methods::default() })
}

fn headers(authorization: Option<&[u8]>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Some(value) = authorization {
        headers.insert(header::AUTHORIZATION, HeaderValue::from_bytes(value).unwrap());
    }
    headers
}

fn ask(authn: &Authn, authorization: Option<&[u8]>) -> Result<Caller, Error> {
    let identified = authn.identify(&Conn::default(), &headers(authorization)).now_or_never();
    identified.expect("nobody is asked who takes time")
}

#[test]
fn a_token_is_its_user_with_its_groups() {
    let authn = authn("t0ken,ana,u1,\"dev,ops\"\nother, ben ,u2\n", false);
    let caller = ask(&authn, Some(b"bearer t0ken trailing words")).unwrap();
    assert_eq!(caller.user().name, "ana");
    assert_eq!(caller.user().uid, "u1");
    assert_eq!(caller.user().groups, ["dev", "ops", AUTHENTICATED]);
    assert_eq!(ask(&authn, Some(b"Bearer other")).unwrap().user().name, "ben");
}

#[test]
fn item_106_a_bad_token_is_unauthorized_even_when_anonymous_is_allowed() {
    let authn = authn("t0ken,ana,u1\n", true);
    assert_eq!(ask(&authn, None).unwrap().user().name, ANONYMOUS);
    assert_eq!(ask(&authn, None).unwrap().user().groups, [UNAUTHENTICATED]);
    assert_eq!(ask(&authn, Some(b"Basic YTpi")).unwrap().user().name, ANONYMOUS);
    assert!(matches!(ask(&authn, Some(b"Bearer t0kem")), Err(Error::UnknownToken)));
    assert!(matches!(ask(&authn, Some(b"Bearer \xff\xfe")), Err(Error::UnknownToken)));
}

#[test]
fn without_credentials_nobody_gets_in() {
    let authn = authn("t0ken,ana,u1\n", false);
    assert!(matches!(ask(&authn, None), Err(Error::NoCredentials)));
    assert!(matches!(ask(&authn, Some(b"Bearer ")), Err(Error::NoCredentials)));
    assert_eq!(Error::NoCredentials.refusal(), Refusal::Unauthorized);
}

// === the cluster's tokens ===

fn reviewing(cluster: &Arc<FakeCluster>) -> TokenReview {
    TokenReview {
        cluster: cluster.clone(),
        audiences: vec!["podgate".into()],
        allowed_for: Duration::from_secs(10),
        denied_for: Duration::from_secs(10),
        timeout: Duration::from_secs(1),
    }
}

fn user(name: &str, uid: &str) -> User {
    User { name: name.into(), uid: uid.into(), ..User::default() }
}

#[tokio::test]
async fn a_static_token_is_not_asked_about_and_another_is() {
    let cluster = FakeCluster::new();
    let (tokens, review) = (tokens("t0ken,ana,u1\n"), Some(reviewing(&cluster)));
    let authn = Authn::new(Methods { tokens, review, ..Methods::default() });
    cluster.know("t0ken", Some(user("somebody-else", "")));
    let ana = authn.identify(&Conn::default(), &headers(Some(b"Bearer t0ken"))).await.unwrap();
    assert_eq!((ana.user().name.as_str(), cluster.reviews().len()), ("ana", 0));

    let mut robot = user("system:serviceaccount:ci:robot", "u2");
    robot.groups = vec!["system:serviceaccounts".into(), AUTHENTICATED.into()];
    robot.extra.insert("authentication.kubernetes.io/pod-name".into(), vec!["p".into()]);
    cluster.know("robots", Some(robot.clone()));
    let known = authn.identify(&Conn::default(), &headers(Some(b"Bearer robots"))).await.unwrap();
    assert_eq!(*known.user(), robot);
    assert_eq!(cluster.reviews(), ["token podgate"]);
}

#[tokio::test]
async fn what_no_cluster_could_know_is_not_asked_about() {
    let cluster = FakeCluster::new();
    let authn = Authn::new(Methods { review: Some(reviewing(&cluster)), ..Methods::default() });
    for token in [b"\xff\xfe".as_slice(), b"a\tb", b"\xc3\xa9"] {
        let value = [b"Bearer ", token].concat();
        let refused = authn.identify(&Conn::default(), &headers(Some(&value))).await;
        assert!(matches!(refused, Err(Error::UnknownToken)));
    }
    assert_eq!(cluster.reviews(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_nobody_can_be_asked_about_is_not_called_wrong() {
    let cluster = FakeCluster::new();
    let review = Some(reviewing(&cluster));
    let authn = Authn::new(Methods { review, anonymous: true, ..Methods::default() });
    cluster.hang_reviews();
    let error = authn.identify(&Conn::default(), &headers(Some(b"Bearer robots"))).await.unwrap_err();
    assert!(error.is_transient() && matches!(error.refusal(), Refusal::Unavailable(_)), "{error}");
}

// === asking again ===

#[tokio::test]
async fn a_token_that_became_unknown_or_somebody_elses_is_noticed_at_once() {
    let cluster = FakeCluster::new();
    let authn = Authn::new(Methods { review: Some(reviewing(&cluster)), ..Methods::default() });
    cluster.know("t", Some(user("ana", "u1")));
    let caller = authn.identify(&Conn::default(), &headers(Some(b"Bearer t"))).await.unwrap();
    let caller = caller.impersonate(user("ben", ""), Arc::new([]));
    authn.still(&caller).await.unwrap();
    cluster.know("t", Some(user("ana", "u2")));
    assert!(matches!(authn.still(&caller).await, Err(Error::SomebodyElse(name)) if name == "ana"));
    cluster.know("t", None);
    assert!(matches!(authn.still(&caller).await, Err(Error::UnknownToken)));
    assert!(!format!("{caller:?}").contains("Bearer") && format!("{caller:?}").contains("proof: Token"));
}

#[tokio::test(start_paused = true)]
async fn to_be_unable_to_ask_again_is_no_answer() {
    let cluster = FakeCluster::new();
    let authn = Authn::new(Methods { review: Some(reviewing(&cluster)), ..Methods::default() });
    cluster.know("t", Some(user("ana", "u1")));
    let caller = authn.identify(&Conn::default(), &headers(Some(b"Bearer t"))).await.unwrap();
    cluster.hang_reviews();
    assert!(authn.still(&caller).await.unwrap_err().is_transient());
}

#[tokio::test]
async fn certificates_are_verified_again_by_the_present_authority() {
    let (pki, other) = (Pki::new(), Pki::new());
    let by = |pki: &Pki| Some(Live::fixed(ClientVerifier::new(pki.roots()).unwrap()));
    let with = |certificates| Authn::new(Methods { certificates, anonymous: true, ..Methods::default() });
    let certificates = pki.client("ana", &["dev"]).chain().into();
    let conn = Conn { certificates, ..Conn::default() };
    let caller = with(by(&pki)).identify(&conn, &HeaderMap::new()).await.unwrap();
    with(by(&pki)).still(&caller).await.unwrap();
    let refused = with(by(&other)).still(&caller).await.unwrap_err();
    assert!(matches!(refused, Error::Certificate(_)) && !refused.is_transient());
    assert!(matches!(with(None).still(&caller).await, Err(Error::MethodGone(_))));
}

#[tokio::test]
async fn the_anonymous_are_still_so_while_they_may() {
    let caller = ask(&authn("", true), None).unwrap();
    authn("", true).still(&caller).await.unwrap();
    assert!(matches!(authn("", false).still(&caller).await, Err(Error::NoCredentials)));
}

#[test]
fn groups_that_say_who_proved_themselves_are_not_told_twice() {
    let groups = |name: &str, groups: &[&str]| {
        let groups = groups.iter().map(|&group| group.to_owned()).collect();
        Caller::new(User { groups, ..user(name, "") }, Proof::Nothing).user.groups
    };
    assert_eq!(groups("ana", &["dev"]), ["dev", AUTHENTICATED]);
    assert_eq!(groups("ana", &[AUTHENTICATED, "dev"]), [AUTHENTICATED, "dev"]);
    assert_eq!(groups("ana", &[UNAUTHENTICATED]), [UNAUTHENTICATED]);
    assert_eq!(groups(ANONYMOUS, &[]), [""; 0]);
}
