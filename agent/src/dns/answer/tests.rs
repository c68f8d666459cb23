//! Answers are read by hickory: another program's eyes.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    sync::LazyLock,
};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, Record, RecordType},
};
use proptest::prelude::*;
use serde_json::json;

use super::{
    super::zone::{
        SharedZone,
        tests::{full, put},
    },
    *,
};

/// [`full`], and a headless service `many` with 100 endpoints, and aliases that lead in a circle.
fn zone() -> SharedZone {
    let zone = full();
    let endpoints: Vec<_> = (1..=100).map(|n| json!({"addresses": [format!("10.244.7.{n}")]})).collect();
    let ports = json!([{"name": "http", "port": 80}]);
    put(&zone, ("default", "many"), json!({"clusterIP": "None"}), &[(ports, endpoints.into())]);
    let alias = |to: &str| json!({"type": "ExternalName", "externalName": to});
    put(&zone, ("loop", "a"), alias("b.loop.svc.cluster.local"), &[]);
    put(&zone, ("loop", "b"), alias("a.loop.svc.cluster.local"), &[]);
    put(&zone, ("prod", "host"), alias("host.minisvc.internal"), &[]);
    put(&zone, ("prod", "gone"), alias("gone.default.svc.cluster.local"), &[]);
    put(&zone, ("prod", "far"), alias("mail.prod.svc.cluster.local"), &[]);
    zone
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

fn judged(message: &Message, transport: Transport, spin: u32) -> Verdict {
    judge(&zone().read(), &message.to_vec().unwrap(), transport, spin)
}

fn ask(message: &Message, transport: Transport) -> Message {
    match judged(message, transport, 0) {
        Verdict::Answer(bytes) => Message::from_vec(&bytes).unwrap(),
        other => panic!("{message}: {other:?}"),
    }
}

fn lines(records: &[Record]) -> Vec<String> {
    records.iter().map(|r| format!("{} {} {}", r.name.to_ascii(), r.record_type(), r.data)).collect()
}

#[test]
fn questions_get_what_the_zone_says() {
    use RecordType as T;
    const NO: ResponseCode = ResponseCode::NXDomain;
    const OK: ResponseCode = ResponseCode::NoError;
    const SOA: &str = "cluster.local. SOA";
    for (name, kind, code, answers, rest) in [
        (
            "WeB.deFAult.svc.cluster.local.",
            T::A,
            OK,
            vec!["WeB.deFAult.svc.cluster.local. A 10.96.0.7"],
            vec![],
        ),
        (
            "web.default.svc.cluster.local.",
            T::AAAA,
            OK,
            vec!["web.default.svc.cluster.local. AAAA fd69::7"],
            vec![],
        ),
        (
            "web.default.svc.cluster.local.",
            T::ANY,
            OK,
            vec!["web.default.svc.cluster.local. A 10.96.0.7"],
            vec![],
        ),
        ("web.default.svc.cluster.local.", T::MX, OK, vec![], vec![SOA]),
        ("db.default.svc.cluster.local.", T::AAAA, OK, vec![], vec![SOA]),
        ("default.svc.cluster.local.", T::A, OK, vec![], vec![SOA]),
        ("nope.default.svc.cluster.local.", T::A, NO, vec![], vec![SOA]),
        ("nope.default.svc.cluster.local.", T::AAAA, NO, vec![], vec![SOA]),
        (
            "_http._tcp.web.default.svc.cluster.local.",
            T::SRV,
            OK,
            vec!["_http._tcp.web.default.svc.cluster.local. SRV 0 100 80 web.default.svc.cluster.local."],
            vec!["web.default.svc.cluster.local. A 10.96.0.7", "web.default.svc.cluster.local. AAAA fd69::7"],
        ),
        (
            "_sql._tcp.db.default.svc.cluster.local.",
            T::SRV,
            OK,
            vec![
                "_sql._tcp.db.default.svc.cluster.local. SRV 0 100 5432 db-0.db.default.svc.cluster.local.",
                "_sql._tcp.db.default.svc.cluster.local. SRV 0 100 6432 db-0.db.default.svc.cluster.local.",
                "_sql._tcp.db.default.svc.cluster.local. SRV 0 100 6432 10-244-1-2.db.default.svc.cluster.local.",
            ],
            vec![
                "db-0.db.default.svc.cluster.local. A 10.244.0.2",
                "10-244-1-2.db.default.svc.cluster.local. A 10.244.1.2",
            ],
        ),
        ("_tcp.web.default.svc.cluster.local.", T::SRV, OK, vec![], vec![SOA]),
        (
            "7.0.96.10.in-addr.arpa.",
            T::PTR,
            OK,
            vec!["7.0.96.10.in-addr.arpa. PTR web.default.svc.cluster.local."],
            vec![],
        ),
        ("8.0.96.10.in-addr.arpa.", T::PTR, NO, vec![], vec!["96.10.in-addr.arpa. SOA"]),
        ("dns-version.cluster.local.", T::TXT, OK, vec!["dns-version.cluster.local. TXT 1.1.0"], vec![]),
        ("cluster.local.", T::SOA, OK, vec![SOA], vec![]),
        (
            "cluster.local.",
            T::NS,
            OK,
            vec!["cluster.local. NS ns.dns.cluster.local."],
            vec!["ns.dns.cluster.local. A 10.96.0.10", "ns.dns.cluster.local. AAAA fd69::a"],
        ),
        ("cluster.local.", T::A, OK, vec![], vec![SOA]),
        (
            "mail.prod.svc.cluster.local.",
            T::CNAME,
            OK,
            vec!["mail.prod.svc.cluster.local. CNAME a.example."],
            vec![],
        ),
        (
            "Here.prod.svc.cluster.local.",
            T::A,
            OK,
            vec![
                "Here.prod.svc.cluster.local. CNAME web.default.svc.cluster.local.",
                "web.default.svc.cluster.local. A 10.96.0.7",
            ],
            vec![],
        ),
        (
            "here.prod.svc.cluster.local.",
            T::MX,
            OK,
            vec!["here.prod.svc.cluster.local. CNAME web.default.svc.cluster.local."],
            vec![SOA],
        ),
        (
            "host.prod.svc.cluster.local.",
            T::A,
            OK,
            vec![
                "host.prod.svc.cluster.local. CNAME host.minisvc.internal.",
                "host.minisvc.internal. A 192.0.2.1",
            ],
            vec![],
        ),
        ("host.minisvc.internal.", T::AAAA, OK, vec![], vec!["host.minisvc.internal. SOA"]),
        (
            "gone.prod.svc.cluster.local.",
            T::A,
            NO,
            vec!["gone.prod.svc.cluster.local. CNAME gone.default.svc.cluster.local."],
            vec![SOA],
        ),
    ] {
        for message in [question(name, kind), with_edns(question(name, kind), 1232)] {
            let answer = ask(&message, Transport::Udp);
            assert_eq!(answer.metadata.response_code, code, "{name} {kind}");
            assert_eq!(answer.metadata.id, 77);
            assert!(
                answer.metadata.authoritative
                    && answer.metadata.recursion_desired
                    && !answer.metadata.truncation
            );
            // Whoever mixes cases to tell forged answers gets them back as sent.
            assert_eq!(answer.queries[0].name().to_ascii(), name);
            // What the SOA record says is looked at elsewhere.
            let brief = |records: &[Record]| -> Vec<String> {
                let cut =
                    |line: String| line.split_once(" SOA").map_or(line.clone(), |(n, _)| format!("{n} SOA"));
                lines(records).into_iter().map(cut).collect()
            };
            assert_eq!(brief(&answer.answers), answers, "{name} {kind}");
            let others = [brief(&answer.authorities), brief(&answer.additionals)].concat();
            assert_eq!(others, rest, "{name} {kind}");
            let all = answer.answers.iter().chain(&answer.authorities).chain(&answer.additionals);
            assert!(all.clone().all(|r| r.ttl == TTL && r.dns_class == DNSClass::IN));
            assert_eq!(answer.edns.is_some(), message.edns.is_some());
        }
    }
    let soa = ask(&question("cluster.local.", T::SOA), Transport::Udp);
    assert_eq!(
        lines(&soa.answers),
        ["cluster.local. SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5"]
    );
}

#[test]
fn names_that_lead_elsewhere_are_told_apart() {
    let verdict = |name: &str| judged(&question(name, RecordType::A), Transport::Udp, 0);
    let wire = |name: &str| super::super::name::encode(name).unwrap();
    assert_eq!(verdict("example.com."), Verdict::Forward);
    assert_eq!(verdict("1.2.0.192.in-addr.arpa."), Verdict::Forward);
    assert_eq!(verdict("mail.prod.svc.cluster.local."), Verdict::Follow(vec![wire("a.example")]));
    let both = vec![wire("mail.prod.svc.cluster.local"), wire("a.example")];
    assert_eq!(verdict("far.prod.svc.cluster.local."), Verdict::Follow(both));
    let circle = ask(&question("a.loop.svc.cluster.local.", RecordType::A), Transport::Udp);
    assert_eq!(circle.metadata.response_code, ResponseCode::ServFail);
}

#[test]
fn an_answer_fits_what_the_client_takes() {
    for (kind, record, short) in [(RecordType::A, 16, 1), (RecordType::SRV, 61, 1)] {
        let name = match kind {
            RecordType::SRV => "_http._tcp.many.default.svc.cluster.local.",
            _ => "many.default.svc.cluster.local.",
        };
        let many = || question(name, kind);
        for (message, transport, limit, cut) in [
            (many(), Transport::Udp, 512, true),
            (with_edns(many(), 100), Transport::Udp, 512, true),
            (with_edns(many(), 1000), Transport::Udp, 1000, true),
            (with_edns(many(), 4096), Transport::Udp, 1232, true),
            (many(), Transport::Tcp, 65_535, false),
        ] {
            let Verdict::Answer(bytes) = judged(&message, transport, 0) else { panic!("no answer") };
            let answer = Message::from_vec(&bytes).unwrap();
            assert!(bytes.len() <= limit, "{} of {limit}", bytes.len());
            assert_eq!(answer.metadata.truncation, cut);
            assert_eq!(answer.edns.is_some(), message.edns.is_some());
            if cut {
                assert!(
                    answer.answers.len() >= short && bytes.len() + record > limit,
                    "{} of {limit}",
                    bytes.len()
                );
            } else {
                assert_eq!(answer.answers.len(), 100);
            }
        }
    }
}

#[test]
fn clients_are_spread_over_the_endpoints() {
    let first = |spin: u32| {
        let message = question("many.default.svc.cluster.local.", RecordType::A);
        let Verdict::Answer(bytes) = judged(&message, Transport::Udp, spin) else { panic!("no answer") };
        Message::from_vec(&bytes).unwrap().answers[0].data.clone()
    };
    assert_eq!(first(3), first(103));
    let firsts: std::collections::BTreeSet<_> = (0..100).map(|n| first(n).to_string()).collect();
    assert_eq!(firsts.len(), 100);
    first(u32::MAX);
}

#[test]
fn what_is_no_question_of_ours_is_told_apart() {
    let zone = zone();
    let zone = zone.read();
    let mut message = question("example.com.", RecordType::MX);
    message.metadata.message_type = MessageType::Response;
    assert_eq!(judge(&zone, &message.to_vec().unwrap(), Transport::Udp, 0), Verdict::Ignore);
    for noise in [&b""[..], b"abc", &[0xff; 40]] {
        assert_eq!(judge(&zone, noise, Transport::Udp, 0), Verdict::Ignore, "{noise:?}");
    }

    let answer = |bytes: &[u8]| match judge(&zone, bytes, Transport::Udp, 0) {
        Verdict::Answer(bytes) => Message::from_vec(&bytes).unwrap(),
        other => panic!("{other:?}"),
    };
    let code = |bytes: &[u8]| answer(bytes).metadata.response_code;
    // A header that promises a question which does not come, one without a question, one with two.
    assert_eq!(code(&[0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]), ResponseCode::FormErr);
    assert_eq!(code(&[0, 7, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]), ResponseCode::FormErr);
    let mut two = question("cluster.local.", RecordType::SOA);
    two.add_query(two.queries[0].clone());
    assert_eq!(code(&two.to_vec().unwrap()), ResponseCode::FormErr);
    // The question's name points at itself.
    assert_eq!(code(&[0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1]), ResponseCode::FormErr);
    let mut notify = question("cluster.local.", RecordType::SOA);
    notify.metadata.op_code = OpCode::Notify;
    let said = answer(&notify.to_vec().unwrap());
    assert_eq!((said.metadata.response_code, said.metadata.op_code), (ResponseCode::NotImp, OpCode::Notify));
    let mut chaos = question("web.default.svc.cluster.local.", RecordType::A);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(code(&chaos.to_vec().unwrap()), ResponseCode::Refused);
    for kind in [RecordType::AXFR, RecordType::IXFR] {
        assert_eq!(code(&question("cluster.local.", kind).to_vec().unwrap()), ResponseCode::Refused);
        assert_eq!(code(&question("example.com.", kind).to_vec().unwrap()), ResponseCode::Refused);
    }
}

#[test]
fn edns_is_spoken() {
    let zone = zone();
    let zone = zone.read();
    let web = || with_edns(question("web.default.svc.cluster.local.", RecordType::A), 4096);
    let answer = |bytes: &[u8]| match judge(&zone, bytes, Transport::Udp, 0) {
        Verdict::Answer(bytes) => Message::from_vec(&bytes).unwrap(),
        other => panic!("{other:?}"),
    };
    // An option that nobody knows, and one that comes in full: both are ignored.
    let mut bytes = web().to_vec().unwrap();
    let end = bytes.len();
    bytes[end - 2..].copy_from_slice(&[0, 8]);
    bytes.extend([0xfe, 0x55, 0, 4, 1, 2, 3, 4]);
    let said = answer(&bytes);
    assert_eq!((said.answers.len(), said.max_payload()), (1, 1232));
    let edns = said.edns.unwrap();
    assert!(edns.options().as_ref().is_empty() && edns.version() == 0 && !edns.flags().dnssec_ok);
    let mut signed = web();
    if let Some(edns) = &mut signed.edns {
        edns.set_dnssec_ok(true);
    }
    assert!(answer(&signed.to_vec().unwrap()).edns.unwrap().flags().dnssec_ok);
    let mut newer = web();
    if let Some(edns) = &mut newer.edns {
        edns.set_version(1);
    }
    // 16 is BADVERS here; hickory reads it as BADSIG, which has the same number.
    let said = answer(&newer.to_vec().unwrap());
    assert_eq!(u16::from(said.metadata.response_code), 16);
    assert!(said.answers.is_empty() && said.edns.unwrap().version() == 0);
    // Two OPT records, and one that is not the root's.
    let plain = question("cluster.local.", RecordType::SOA).to_vec().unwrap();
    let opt = [0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0];
    let with = |count: u8, records: &[u8]| {
        let mut bytes = [&plain[..], records].concat();
        bytes[11] = count;
        answer(&bytes).metadata.response_code
    };
    assert_eq!(with(1, &opt), ResponseCode::NoError);
    assert_eq!(with(2, &[opt, opt].concat()), ResponseCode::FormErr);
    assert_eq!(with(1, &[&b"\x01a"[..], &opt].concat()), ResponseCode::FormErr);
    assert_eq!(with(1, &opt[..8]), ResponseCode::FormErr);
}

#[test]
fn aliases_and_what_others_say_become_one_answer() {
    let message = with_edns(question("Far.prod.svc.cluster.local.", RecordType::A), 1232).to_vec().unwrap();
    let question = Question::parse(&message).unwrap();
    let Verdict::Follow(aliases) = judge(&zone().read(), &message, Transport::Udp, 0) else {
        panic!("an answer")
    };
    let record = [&b"\x01a\x07example\x00"[..], &[0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 80]].concat();
    let said = followed(&question, Transport::Udp, &aliases, (Code::NoError, &[record]));
    let answer = Message::from_vec(&said).unwrap();
    assert_eq!(
        lines(&answer.answers),
        [
            "Far.prod.svc.cluster.local. CNAME mail.prod.svc.cluster.local.",
            "mail.prod.svc.cluster.local. CNAME a.example.",
            "a.example. A 192.0.2.80"
        ]
    );
    assert!(!answer.metadata.authoritative && answer.edns.is_some());
}

/// A message of random bytes, or a good one with some bytes changed.
fn messages() -> impl Strategy<Value = Vec<u8>> {
    let good = prop::sample::select(vec![
        "web.default.svc.cluster.local.",
        "_sql._tcp.db.default.svc.cluster.local.",
        "7.0.96.10.in-addr.arpa.",
        "here.prod.svc.cluster.local.",
        "a.loop.svc.cluster.local.",
        "example.com.",
    ]);
    let kinds = prop::sample::select(vec![RecordType::A, RecordType::SRV, RecordType::ANY, RecordType::PTR]);
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    let changed = (good, kinds, changes, any::<prop::sample::Index>(), any::<bool>()).prop_map(
        |(name, kind, changes, cut, whole)| {
            let mut bytes = with_edns(question(name, kind), 1232).to_vec().unwrap();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if !whole {
                bytes.truncate(cut.index(bytes.len()));
            }
            bytes
        },
    );
    let header = prop::collection::vec(any::<u8>(), 0..80)
        .prop_map(|body| [&[0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1][..], &body].concat());
    prop_oneof![prop::collection::vec(any::<u8>(), 0..600), header, changed]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn no_message_breaks_anything(bytes in messages(), spin: u32) {
        static ZONE: LazyLock<SharedZone> = LazyLock::new(zone);
        for transport in [Transport::Udp, Transport::Tcp] {
            if let Verdict::Answer(answer) = judge(&ZONE.read(), &bytes, transport, spin) {
                // It is an answer to this message, not longer than it may be, and others can read it.
                prop_assert_eq!(&answer[..2], &bytes[..2]);
                prop_assert!(answer[2] & 0x80 != 0 && bytes[2] & 0x80 == 0);
                prop_assert!(transport == Transport::Tcp || answer.len() <= usize::from(UDP_LIMIT));
                let read = Message::from_vec(&answer);
                prop_assert!(read.is_ok(), "{:?} for {:?}", read, bytes);
            }
        }
    }

    #[test]
    fn good_questions_are_read_as_hickory_reads_them(
        labels in prop::collection::vec("[a-zA-Z0-9_][a-zA-Z0-9_-]{0,19}", 1..8), kind: u16, size: u16, dnssec: bool
    ) {
        let name = labels.join(".") + ".";
        let mut message = with_edns(question(&name, RecordType::from(kind)), size);
        if let Some(edns) = &mut message.edns {
            edns.set_dnssec_ok(dnssec);
        }
        let bytes = message.to_vec().unwrap();
        let read = Question::parse(&bytes).unwrap();
        prop_assert_eq!(read.name.from(0), super::super::name::encode(&name).unwrap());
        prop_assert_eq!(read.kind, kind);
        let edns = read.edns.unwrap();
        prop_assert_eq!((edns.payload, edns.dnssec), (size.max(PLAIN_LIMIT), dnssec));
    }
}

#[test]
fn addresses_are_in_network_order() {
    let Verdict::Answer(bytes) =
        judged(&question("web.default.svc.cluster.local.", RecordType::A), Transport::Udp, 0)
    else {
        panic!("no answer")
    };
    assert!(bytes.ends_with(&Ipv4Addr::new(10, 96, 0, 7).octets()));
    let Verdict::Answer(bytes) =
        judged(&question("web.default.svc.cluster.local.", RecordType::AAAA), Transport::Udp, 0)
    else {
        panic!("no answer")
    };
    assert!(bytes.ends_with(&"fd69::7".parse::<Ipv6Addr>().unwrap().octets()));
}
