use std::net::Ipv4Addr;

use hickory_proto::op::Query;
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use serde_json::json;

use super::*;
use crate::plan::ServiceKey;

const WEB: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 7);

/// `web` with a ClusterIP, and headless `many` with 100 endpoints.
fn zone() -> Zone {
    let key = |name: &str| ServiceKey { namespace: "default".into(), name: name.into() };
    let service =
        |ip: &str| -> Service { serde_json::from_value(json!({"spec": {"clusterIP": ip}})).unwrap() };
    let endpoints: Vec<_> = (1..=100).map(|n| json!({"addresses": [format!("10.244.0.{n}")]})).collect();
    let slice: EndpointSlice =
        serde_json::from_value(json!({"addressType": "IPv4", "endpoints": endpoints})).unwrap();
    let (web, many) = (service("10.96.0.7"), service("None"));
    let touched = [(&key("web"), Some((&web, vec![]))), (&key("many"), Some((&many, vec![&slice])))];
    Zone::empty("cluster.local").with(touched).unwrap()
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(77, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn with_edns(mut message: Message, size: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(size);
    message.set_edns(edns);
    message
}

fn ask(message: &Message, transport: Transport) -> Message {
    match judge(&zone(), &message.to_vec().unwrap(), transport) {
        Verdict::Answer(bytes) => Message::from_vec(&bytes).unwrap(),
        other => panic!("{message}: {other:?}"),
    }
}

#[test]
fn questions_get_what_the_zone_says() {
    use RecordType as T;
    for (name, kind, code, answers, authorities) in [
        ("web.default.svc.cluster.local.", T::A, ResponseCode::NoError, 1, 0),
        ("WeB.deFAult.svc.cluster.local.", T::A, ResponseCode::NoError, 1, 0),
        ("web.default.svc.cluster.local.", T::ANY, ResponseCode::NoError, 1, 0),
        ("web.default.svc.cluster.local.", T::AAAA, ResponseCode::NoError, 0, 1),
        ("default.svc.cluster.local.", T::A, ResponseCode::NoError, 0, 1),
        ("nope.default.svc.cluster.local.", T::A, ResponseCode::NXDomain, 0, 1),
        ("nope.default.svc.cluster.local.", T::AAAA, ResponseCode::NXDomain, 0, 1),
        ("cluster.local.", T::SOA, ResponseCode::NoError, 1, 0),
        ("cluster.local.", T::A, ResponseCode::NoError, 0, 1),
    ] {
        let answer = ask(&question(name, kind), Transport::Udp);
        let got = (answer.metadata.response_code, answer.answers.len(), answer.authorities.len());
        assert_eq!(got, (code, answers, authorities), "{name} {kind}");
        assert_eq!(answer.metadata.id, 77);
        assert!(answer.metadata.authoritative && answer.metadata.recursion_desired);
        // Whoever mixes cases to tell forged answers gets them back as sent.
        assert_eq!(answer.queries[0].name().to_ascii(), name);
        assert!(answer.answers.iter().chain(&answer.authorities).all(|r| r.ttl == TTL));
        assert!(answer.authorities.iter().all(|r| r.record_type() == T::SOA));
        if kind == T::A && answers == 1 {
            assert_eq!(answer.answers[0].data, RData::A(A(WEB)));
            assert_eq!(answer.answers[0].name.to_ascii(), name);
        }
    }
}

#[test]
fn an_answer_fits_what_the_client_takes() {
    let many = || question("many.default.svc.cluster.local.", RecordType::A);
    for (message, transport, limit, cut) in [
        (many(), Transport::Udp, 512, true),
        (with_edns(many(), 100), Transport::Udp, 512, true),
        (with_edns(many(), 1000), Transport::Udp, 1000, true),
        (with_edns(many(), 4096), Transport::Udp, 1232, true),
        (many(), Transport::Tcp, 65_535, false),
    ] {
        let Verdict::Answer(bytes) = judge(&zone(), &message.to_vec().unwrap(), transport) else {
            panic!("no answer")
        };
        let answer = Message::from_vec(&bytes).unwrap();
        assert!(bytes.len() <= limit, "{} of {limit}", bytes.len());
        assert_eq!(answer.metadata.truncation, cut);
        assert_eq!(answer.edns.is_some(), message.edns.is_some());
        if cut {
            assert!(bytes.len() + A_RECORD_BYTES > limit, "{} of {limit}", bytes.len());
        } else {
            assert_eq!(answer.answers.len(), 100);
        }
    }
}

#[test]
fn clients_are_spread_over_the_endpoints() {
    let first = |id: u16| {
        let mut message = question("many.default.svc.cluster.local.", RecordType::A);
        message.metadata.id = id;
        ask(&message, Transport::Tcp).answers[0].data.clone()
    };
    assert_eq!(first(0), first(100));
    assert_ne!(first(0), first(1));
}

#[test]
fn what_is_no_question_of_ours_is_told_apart() {
    let zone = zone();
    let mut message = question("example.com.", RecordType::MX);
    assert_eq!(judge(&zone, &message.to_vec().unwrap(), Transport::Udp), Verdict::Forward);
    message.metadata.message_type = MessageType::Response;
    assert_eq!(judge(&zone, &message.to_vec().unwrap(), Transport::Udp), Verdict::Ignore);
    for noise in [&b""[..], b"abc", &[0xff; 40]] {
        assert_eq!(judge(&zone, noise, Transport::Udp), Verdict::Ignore, "{noise:?}");
    }

    let code = |bytes: &[u8]| match judge(&zone, bytes, Transport::Udp) {
        Verdict::Answer(bytes) => Message::from_vec(&bytes).unwrap().metadata.response_code,
        other => panic!("{other:?}"),
    };
    // A header that promises a question which does not come.
    assert_eq!(code(&[0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]), ResponseCode::FormErr);
    assert_eq!(code(&[0, 7, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]), ResponseCode::FormErr);
    let mut notify = question("cluster.local.", RecordType::SOA);
    notify.metadata.op_code = OpCode::Notify;
    assert_eq!(code(&notify.to_vec().unwrap()), ResponseCode::NotImp);
    let mut chaos = question("web.default.svc.cluster.local.", RecordType::A);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(code(&chaos.to_vec().unwrap()), ResponseCode::Refused);
    let mut newer = with_edns(question("cluster.local.", RecordType::SOA), 1232);
    if let Some(edns) = &mut newer.edns {
        edns.set_version(1);
    }
    // 16 is BADVERS here; hickory reads it as BADSIG, which has the same number.
    assert_eq!(u16::from(code(&newer.to_vec().unwrap())), u16::from(ResponseCode::BADVERS));
}
