use proptest::prelude::*;
use serde_json::json;

use super::*;

/// A field of bytes.
fn bytes(number: u8, content: &[u8]) -> Vec<u8> {
    assert!(content.len() < 128 * 128);
    let length = [(content.len() % 128) as u8 | 0x80, (content.len() / 128) as u8];
    [&[number << 3 | 2][..], &length, content].concat()
}

/// A field of a small number.
fn small(number: u8, value: u8) -> Vec<u8> {
    vec![number << 3, value]
}

fn body(api_version: &str, kind: &str, message: &[u8]) -> Vec<u8> {
    let meta = [bytes(1, api_version.as_bytes()), bytes(2, kind.as_bytes())].concat();
    [MAGIC.to_vec(), bytes(1, &meta), bytes(2, message), bytes(3, b""), bytes(4, b"")].concat()
}

#[test]
fn a_message_becomes_the_json_that_it_stands_for() {
    let label = bytes(11, &[bytes(1, b"app"), bytes(2, b"")].concat());
    let metadata = [bytes(1, b"web"), bytes(2, b""), bytes(8, &[]), label].concat();
    let target = bytes(4, &[small(1, 1), small(2, 0), bytes(3, b"http")].concat());
    let port = [bytes(1, b""), small(3, 80), target, small(5, 0)].concat();
    let other = [small(3, 81), bytes(4, &[small(1, 0), small(2, 90)].concat())].concat();
    let spec =
        [bytes(1, &port), bytes(1, &other), bytes(3, b""), bytes(4, b"ClusterIP"), small(13, 1)].concat();
    let service = [bytes(1, &metadata), bytes(2, &spec), bytes(3, &bytes(1, &[]))].concat();
    let expected = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "labels": {"app": ""}},
        "spec": {"type": "ClusterIP", "publishNotReadyAddresses": true, "ports": [
            {"port": 80, "targetPort": "http"}, {"port": 81, "targetPort": 90}]},
    });
    assert_eq!(Value::Object(read(&body("v1", "Service", &service)).unwrap()), expected);
    // Zero seconds are not the same as none.
    let now = read(&body("v1", "DeleteOptions", &small(1, 0))).unwrap();
    assert_eq!(now["gracePeriodSeconds"], 0);
}

#[test]
fn what_cannot_be_read_is_400() {
    for (body, why) in [
        (b"{}".to_vec(), "does not begin"),
        (MAGIC.to_vec(), "no kind \"\""),
        (body("v1", "Secret", &[]), "no kind \"Secret\" is registered for version \"v1\""),
        (body("v1", "Service", &[0x0a, 0x7f]), "cut short"),
        (body("v1", "Service", &[0x0b]), "cut short"),
        (body("v1", "Service", &small(2, 1)), "spec is of another type"),
        (body("v1", "Service", &bytes(1, &bytes(1, &[0xff]))), "not UTF-8"),
    ] {
        let error = read(&body).unwrap_err();
        assert!(error.code == 400 && error.message.contains(why), "{why}: {error}");
    }
}

proptest! {
    #[test]
    fn no_bytes_are_too_much(message in prop::collection::vec(any::<u8>(), 0..200)) {
        for kind in ["Service", "Pod", "Node", "DeleteOptions"] {
            let _ = read(&body("v1", kind, &message));
        }
    }
}
