use std::time::Instant;

use super::*;
use crate::cluster::Pod;
use crate::request::{Exec, Subresource};

/// Everything at its bounds.
fn largest() -> (User, Exec, Pod) {
    let text = |n: usize, bytes: usize| format!("{n:06}{}", "x".repeat(bytes - 6));
    let user =
        User { name: text(0, 1024), groups: (0..1024).map(|n| text(n, 512)).collect(), ..User::default() };
    let exec = Exec {
        subresource: Subresource::Exec,
        namespace: "n".into(),
        pod: "p".into(),
        container: String::new(),
        command: (0..128).map(|n| text(n, 4096).into_bytes()).collect(),
        ports: Vec::new(),
        stdin: true,
        stdout: true,
        stderr: true,
        tty: true,
    };
    let pod = Pod {
        labels: (0..128).map(|n| (text(n, 253), text(n, 63))).collect(),
        annotations: (0..250).map(|n| (text(n, 253), text(n, 768))).collect(),
        ..Pod::default()
    };
    (user, exec, pod)
}

fn asked<'a>(user: &'a User, exec: &'a Exec, pod: &'a Pod) -> Asked<'a> {
    Asked {
        user,
        impersonator: None,
        exec,
        pod,
        container: "app",
        client: [127, 0, 0, 1].into(),
        reason: None,
        now: jiff::Timestamp::UNIX_EPOCH,
    }
}

#[test]
fn what_is_compiled_is_evaluated_soon_whatever_there_is_to_look_at() {
    let (user, exec, pod) = largest();
    let asked = asked(&user, &exec, &pod);
    for source in [
        "groups.all(g, g != user)",
        "groups.exists(g, g.contains('nothing') || g.endsWith('nothing'))",
        "command.exists(w, w.matches('(x+x+)+y'))",
        "groups.map(g, g + user).filter(g, g == '').size() == 0",
        "labels.all(k, labels[k] != k)",
        "'a' in annotations || annotations.size() < 300",
        "command.map(w, w + w).map(w, w + w).size() == 128",
        "groups.filter(g, g in ['a', 'b', 'c']).size() == 0",
    ] {
        let Ok(expression) = Expression::compile(source) else { panic!("{source} is refused") };
        let begun = Instant::now();
        expression.holds(&asked, &user).unwrap_or_else(|error| panic!("{source}: {error}"));
        let took = begun.elapsed();
        println!("{source}: {} steps, {took:?}", expression.cost());
        // A step is 100 ns; a debug build is given fifty times that.
        assert!(took.as_nanos() < u128::from(expression.cost()) * 100 * 50, "{source} took {took:?}");
    }
}

#[test]
fn values_beyond_their_bounds_are_an_error_of_who_looks_at_them_alone() {
    let (mut user, mut exec, mut pod) = largest();
    user.groups.push("one more".into());
    exec.command.push(b"one more".to_vec());
    pod.annotations.insert("more".into(), "x".repeat(256 * 1024));
    let asked = asked(&user, &exec, &pod);
    for name in ["groups", "command", "annotations"] {
        let error = Expression::compile(&format!("{name}.size() > 0")).unwrap().holds(&asked, &user);
        assert_eq!(error.unwrap_err(), format!("the value of {name} is larger than it may be"));
    }
    assert_eq!(Expression::compile("labels.size() == 128").unwrap().holds(&asked, &user), Ok(true));
}

#[test]
fn what_grows_is_measured_as_it_grows() {
    let cost = |source: &str| Expression::compile(source).map(|expression| expression.cost());
    let doubled = |times: usize| format!("command{}.size() > 0", ".map(w, w + w)".repeat(times));
    assert!(cost(&doubled(2)).unwrap() > 2 * cost(&doubled(1)).unwrap());
    assert!(cost(&doubled(8)).unwrap_err().contains("would run long"));
    assert!(cost("[[1, 2], [3, 4]].all(l, l.all(i, i > 0))").unwrap() < 50_000);
    assert!(cost("user == 'ana'").unwrap() < 100);
}
