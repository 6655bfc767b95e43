//! Configuration files that a person or a machine got wrong.

use super::{Config, Overrides, bytes, check_host_id, duration, keys, parse};
use crate::fuzzing::feed;

#[test]
fn fuzz_configuration() {
    let defaults = Config::defaults().expect("the defaults are valid");
    let samples = [
        keys::example(&defaults).replace("\n# ", "\n"),
        keys::example(&defaults),
        "bus = \"kafka://a:9092,b:9092\"\nendpoints = [\"docker=unix:///run/docker.sock\"]\n[topics]\nprefix = \"q\"\n\
         [outbox]\nmax_bytes = \"1GiB\"\n"
            .to_owned(),
    ]
    .map(String::into_bytes);
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("quaymaster.toml");
    feed("configuration", &samples, |input| {
        let text = String::from_utf8_lossy(input);
        drop(parse(&text));
        drop(check_host_id(&text));
        drop(duration("resync_interval", &text));
        drop(bytes("outbox.max_bytes", &text));
        drop(text.parse::<crate::sink::BusUrl>());
        drop(text.parse::<crate::runtime::Endpoint>());
        if std::fs::write(&path, input).is_ok() {
            let overrides = Overrides {
                config: Some(path.clone()),
                ..Overrides::default()
            };
            drop(Config::load(&overrides));
        }
    });
}
