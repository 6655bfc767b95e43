//! `fixtures/` holds answers of Docker 28.5 and Podman 4.3, cut down to what is small.

use serde_json::{Value, json};

use super::*;

const ID: &str = "a4bd1c6f0e2d3b5a79880123456789abcdef0123456789abcdef0123456789ab";

fn read(text: &str) -> Container {
    let details: Details = serde_json::from_str(text).expect("the fixture is JSON");
    container(details, &"docker".into(), &"28.5.2".into()).expect("the fixture has an id")
}

fn of(state: &Value) -> Container {
    read(&json!({"Id": ID, "Name": "/web", "State": state}).to_string())
}

#[test]
fn a_running_container_of_docker_is_read_whole() {
    let running = read(include_str!("fixtures/docker-28-running.json"));
    assert_eq!(
        running.id.as_str(),
        "c995d4d2d9ca10c4f65e1e2b06850c9d1e1a4bdc213a2372b1f12781977a00b6"
    );
    assert_eq!(running.name, "run");
    assert_eq!(running.kind, ContainerKind::Container);
    assert_eq!(running.runtime, RuntimeType::Docker);
    assert_eq!(running.state, State::Running);
    assert_eq!(
        running.image_id,
        "21f66f01bb01504f7520bdbd2310e41f2575bd50376494d40c0d392b7e39719c"
    );
    assert_eq!(running.image_name, "docker.io/library/busybox:lab");
    assert_eq!(running.image_digest, "");
    assert_eq!(running.pid, Some(5852));
    assert_eq!(running.created_at_ns, 1_795_489_088_202_538_733);
    assert_eq!(running.started_at_ns, Some(1_795_489_088_256_100_812));
    assert_eq!(running.finished_at_ns, None);
    assert_eq!(running.exit_code, None);
    assert_eq!(running.oom_killed, Some(false));
    assert_eq!(running.restart_count, Some(0));
    assert_eq!(running.pod, None);
    assert_eq!(running.pid_mode, "host");
    assert_eq!(running.privileged, Some(true));
    assert_eq!(running.reason, "");
    assert_eq!(running.labels.get("a").map(String::as_str), Some("b"));
}

#[test]
fn each_state_of_docker_is_told_apart() {
    let paused = read(include_str!("fixtures/docker-28-paused.json"));
    assert_eq!((paused.state, paused.pid), (State::Paused, Some(5907)));

    let created = read(include_str!("fixtures/docker-28-created.json"));
    assert_eq!((created.state, created.pid), (State::Created, None));
    assert_eq!((created.started_at_ns, created.exit_code), (None, None));
    assert!(created.pid_mode.starts_with("container:c995d4d2d9ca"));

    let exited = read(include_str!("fixtures/docker-28-exited.json"));
    assert_eq!((exited.state, exited.pid), (State::Exited, None));
    assert_eq!(exited.exit_code, Some(3));
    assert_eq!(exited.finished_at_ns, Some(1_795_489_087_709_958_895));

    let killed = read(include_str!("fixtures/docker-28-oom-killed.json"));
    assert_eq!(
        (killed.oom_killed, killed.exit_code),
        (Some(true), Some(137))
    );
    assert_eq!(killed.reason, "OOMKilled");

    let failed = read(include_str!("fixtures/docker-28-start-failed.json"));
    assert_eq!((failed.state, failed.exit_code), (State::Created, None));
    assert!(failed.reason.contains("/nope"));
}

#[test]
fn podman_is_read_like_docker() {
    let running = read(include_str!("fixtures/podman-4-running.json"));
    assert_eq!((running.state, running.pid), (State::Running, Some(30_559)));
    assert_eq!(running.pid_mode, "");
    // It ran before: that end stays, and says nothing of this run.
    assert!(running.finished_at_ns < running.started_at_ns);
    assert_eq!(running.exit_code, None);

    let exited = read(include_str!("fixtures/podman-4-exited.json"));
    assert_eq!((exited.state, exited.exit_code), (State::Exited, Some(3)));
}

#[test]
fn the_states_words_of_both_engines_are_known() {
    for (word, expected) in [
        ("created", State::Created),
        ("configured", State::Created),
        ("initialized", State::Created),
        ("running", State::Running),
        ("stopping", State::Running),
        ("paused", State::Paused),
        ("restarting", State::Restarting),
        ("removing", State::Removing),
        ("exited", State::Exited),
        ("stopped", State::Exited),
        ("dead", State::Dead),
        ("", State::Unknown),
        ("Running", State::Unknown),
    ] {
        assert_eq!(of(&json!({"Status": word})).state, expected, "{word}");
    }
}

#[test]
fn a_pid_counts_only_while_a_process_may_live() {
    for (word, expected) in [
        ("running", Some(7)),
        ("paused", Some(7)),
        ("created", Some(7)),
        ("exited", None),
        ("dead", None),
        ("restarting", None),
        ("removing", None),
    ] {
        let container = of(&json!({"Status": word, "Pid": 7}));
        assert_eq!(container.pid, expected, "{word}");
    }
    assert_eq!(of(&json!({"Status": "running", "Pid": 0})).pid, None);
    assert_eq!(of(&json!({"Status": "running", "Pid": -1})).pid, None);
    assert_eq!(
        of(&json!({"Status": "running", "Pid": 1_i64 << 40})).pid,
        None
    );
}

#[test]
fn an_exit_code_counts_only_of_a_run_that_has_ended() {
    let (zero, one, two) = (
        "0001-01-01T00:00:00Z",
        "2024-01-01T00:00:01Z",
        "2024-01-01T00:00:02Z",
    );
    for (word, started, finished, expected) in [
        ("exited", one, two, Some(9)),
        ("dead", one, two, Some(9)),
        ("restarting", one, two, Some(9)),
        // Its end was noted before its start.
        ("exited", two, one, Some(9)),
        ("exited", one, zero, None),
        ("created", zero, zero, None),
        ("running", two, one, None),
        ("paused", two, one, None),
    ] {
        let container = of(&json!({
            "Status": word, "ExitCode": 9, "StartedAt": started, "FinishedAt": finished,
        }));
        assert_eq!(container.exit_code, expected, "{word} {started} {finished}");
        if expected.is_some() {
            assert!(container.finished_at_ns >= container.started_at_ns);
        }
    }
}

#[test]
fn a_pod_is_read_of_the_labels_of_kubernetes() {
    let details = json!({"Id": ID, "Config": {"Image": "sha256:ab", "Labels": {
        "io.kubernetes.docker.type": "podsandbox",
        "io.kubernetes.pod.name": "web-0",
        "io.kubernetes.pod.namespace": "shop",
        "io.kubernetes.pod.uid": "u-1",
        "io.kubernetes.sandbox.id": "5b",
    }}});
    let sandbox = read(&details.to_string());
    assert_eq!(sandbox.kind, ContainerKind::Sandbox);
    assert_eq!(sandbox.image_name, "ab");
    let expected = Pod {
        name: "web-0".to_owned(),
        namespace: "shop".to_owned(),
        uid: "u-1".to_owned(),
        sandbox_id: "5b".to_owned(),
    };
    assert_eq!(sandbox.pod, Some(expected));
}

#[test]
fn an_image_by_digest_keeps_its_digest() {
    let image = "registry.example/web@sha256:0123";
    let details = json!({"Id": ID, "Config": {"Image": image}});
    assert_eq!(read(&details.to_string()).image_digest, image);
}

#[test]
fn a_list_row_changes_its_fingerprint_only_when_it_says_something_new() {
    let row = |status: &str, name: &str| {
        let text = json!([{
            "Id": ID, "Names": [name], "Image": "nginx", "ImageID": "sha256:1", "Created": 1,
            "State": "running", "Status": status, "Labels": {"b": "2", "a": "1"},
        }]);
        let rows: Vec<Lenient<Row>> = serde_json::from_value(text).expect("it is a list");
        listing(rows).rows.remove(0).fingerprint
    };
    assert_eq!(row("Up 5 minutes", "/a"), row("Up 6 hours (healthy)", "/a"));
    assert_ne!(row("Up 5 minutes", "/a"), row("Up 5 minutes", "/b"));
    assert_eq!(
        row("Exited (1) 2 days ago", "/a"),
        row("Exited (1) 3 days ago", "/a")
    );
    assert_ne!(
        row("Exited (1) 2 days ago", "/a"),
        row("Exited (2) 2 days ago", "/a")
    );
}

#[test]
fn the_list_of_docker_is_read_whole() {
    let text = include_str!("fixtures/docker-28-list.json");
    let rows: Vec<Lenient<Row>> = serde_json::from_str(text).expect("the fixture is a list");
    let listing = listing(rows);
    let states: Vec<State> = listing.rows.iter().map(|row| row.state).collect();
    assert_eq!(listing.skipped, 0);
    assert_eq!(
        states,
        [
            State::Created,
            State::Exited,
            State::Restarting,
            State::Created,
            State::Paused,
            State::Running,
            State::Exited,
        ]
    );
}

#[test]
fn the_version_to_speak_is_one_that_both_know() {
    let version = |newest: &str, oldest: &str| {
        let text = json!({"ApiVersion": newest, "MinAPIVersion": oldest}).to_string();
        engine(&serde_json::from_str(&text).expect("it is JSON")).map(|engine| engine.api)
    };
    assert_eq!(version("1.41", "1.12"), Some((1, 41)));
    assert_eq!(version("1.53", "1.44"), Some((1, 53)));
    assert_eq!(version("1.99", "1.44"), Some(API_VERSION_MAX));
    assert_eq!(version("1.99", "1.70"), Some((1, 70)));
    assert_eq!(version("1.41", ""), Some((1, 41)));
    assert_eq!(version("", ""), None);
    assert_eq!(version("one", ""), None);
}

fn event_of(text: &str) -> Option<RuntimeEvent> {
    event(&serde_json::from_str(text).expect("it is JSON")).expect("it lacks nothing")
}

#[test]
fn events_of_both_engines_are_understood() {
    let line = |action: &str, attributes: &str| {
        format!(
            r#"{{"Type":"container","Action":"{action}","Actor":{{"ID":"{ID}","Attributes":{attributes}}},"time":5,"timeNano":5000000007}}"#
        )
    };
    for (action, expected) in [
        ("create", EventKind::Created),
        ("init", EventKind::Initialized),
        ("start", EventKind::Started),
        ("pause", EventKind::Paused),
        ("unpause", EventKind::Unpaused),
        ("rename", EventKind::Renamed),
        ("die", EventKind::Died),
        ("destroy", EventKind::Deleted),
        ("remove", EventKind::Deleted),
    ] {
        let event = event_of(&line(action, "{}")).expect("it is known");
        assert_eq!(
            (event.what, event.at_ns),
            (expected, 5_000_000_007),
            "{action}"
        );
    }
    assert_eq!(event_of(&line("exec_create: sh", "{}")), None);

    let docker = event_of(&line("die", r#"{"exitCode":"137"}"#)).expect("it is known");
    assert_eq!(docker.exit_code, Some(137));
    let podman = event_of(&line("die", r#"{"containerExitCode":"3"}"#)).expect("it is known");
    assert_eq!(podman.exit_code, Some(3));
    let odd = event_of(&line("die", r#"{"exitCode":"many"}"#)).expect("it is known");
    assert_eq!(odd.exit_code, None);
}

#[test]
fn an_event_without_nanoseconds_has_its_seconds() {
    let text =
        format!(r#"{{"Type":"container","Action":"start","Actor":{{"ID":"{ID}"}},"time":5}}"#);
    assert_eq!(
        event_of(&text).map(|event| event.at_ns),
        Some(5_000_000_000)
    );
    let text = format!(r#"{{"Type":"container","Action":"start","Actor":{{"ID":"{ID}"}}}}"#);
    assert_eq!(event_of(&text).map(|event| event.at_ns), Some(0));
}

#[test]
fn a_sketch_says_of_a_container_that_runs_what_its_inspect_would() {
    let rows: Vec<Lenient<Row>> =
        serde_json::from_str(include_str!("fixtures/docker-28-list.json")).expect("it is JSON");
    let whole = read(include_str!("fixtures/docker-28-running.json"));
    let sketches: Vec<_> = rows
        .iter()
        .filter_map(|row| sketch(row.0.as_ref()?, &"docker".into(), &"28.5.2".into()))
        .collect();
    assert!(sketches.iter().all(|sketch| sketch.state.is_live()));
    let sketch = sketches.iter().find(|sketch| sketch.id == whole.id);
    let sketch = sketch.expect("it is in the list and runs");
    let filled = Container {
        pid: whole.pid,
        created_at_ns: whole.created_at_ns,
        started_at_ns: whole.started_at_ns,
        oom_killed: whole.oom_killed,
        restart_count: whole.restart_count,
        pid_mode: whole.pid_mode.clone(),
        privileged: whole.privileged,
        ..sketch.clone()
    };
    assert_eq!(filled, whole, "the rest is what only an inspect tells");
    assert_eq!(
        sketch.created_at_ns / 1_000_000_000,
        whole.created_at_ns / 1_000_000_000
    );
}

#[test]
fn a_row_that_would_tell_something_else_than_the_inspect_is_no_sketch() {
    let digest = "21f66f01bb01504f7520bdbd2310e41f2575bd50376494d40c0d392b7e39719c";
    let sketch_of = |state: &str, names: &Value, image: &str| {
        let row = json!({"Id": ID, "Names": names, "Image": image, "State": state,
            "ImageID": format!("sha256:{digest}"), "Created": 10});
        let row: Row = serde_json::from_value(row).expect("it is a row");
        sketch(&row, &"docker".into(), &"28.5.2".into())
    };
    let linked = sketch_of("running", &json!(["/app/db", "/db"]), "nginx").expect("it runs");
    assert_eq!(linked.name, "db");
    let paused = sketch_of("paused", &json!(["/db"]), "nginx").expect("its process lives");
    assert_eq!(paused.state, State::Paused);
    for (state, names, image) in [
        ("exited", json!(["/db"]), "nginx"),
        ("restarting", json!(["/db"]), "nginx"),
        ("running", json!([]), "nginx"),
        ("running", json!(["/app/db"]), "nginx"),
        ("running", json!(["/db"]), &*format!("sha256:{digest}")),
        ("running", json!(["/db"]), &digest[..12]),
        ("running", json!(["/db"]), ""),
    ] {
        let sketch = sketch_of(state, &names, image);
        assert_eq!(sketch, None, "{state} {names} {image}");
    }
}
