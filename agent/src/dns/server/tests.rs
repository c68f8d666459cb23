use std::{collections::BTreeMap, net::Ipv4Addr};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::A},
};
use serde_json::json;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
};

use super::{
    super::{
        forward::{read_message, write_message},
        zone::tests::{empty, put},
    },
    *,
};

const LARGEST: usize = 65_535;

const ABROAD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 80);

fn set(zone: &SharedZone, ip: &str) {
    put(zone, ("default", "web"), json!({"clusterIP": ip}), &[]);
}

fn loopback() -> SocketAddr {
    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0)
}

/// A server on loopback; it ends when the guard is dropped.
async fn server(upstreams: Vec<SocketAddr>) -> (SocketAddr, SharedZone, tokio_util::sync::DropGuard) {
    let listeners = Listeners::bind(&[loopback()]).await.unwrap();
    let address = listeners.addresses().unwrap()[0];
    let (zone, stop) = (empty(), CancellationToken::new());
    let forwarder = Arc::new(Forwarder::to(upstreams));
    tokio::spawn(listeners.serve_with(zone.clone(), forwarder, stop.clone()));
    (address, zone, stop.drop_guard())
}

fn question(name: &str) -> Message {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    let mut edns = Edns::new();
    edns.set_max_payload(1111).set_dnssec_ok(true);
    message.set_edns(edns);
    message
}

async fn over_udp(server: SocketAddr, question: &Message) -> Message {
    let socket = UdpSocket::bind(loopback()).await.unwrap();
    socket.connect(server).await.unwrap();
    socket.send(&question.to_vec().unwrap()).await.unwrap();
    let mut buffer = vec![0; LARGEST];
    let length = socket.recv(&mut buffer).await.unwrap();
    Message::from_vec(&buffer[..length]).unwrap()
}

async fn over_tcp(stream: &mut TcpStream, question: &Message) -> Message {
    write_message(stream, &question.to_vec().unwrap()).await.unwrap();
    Message::from_vec(&read_message(stream).await.unwrap()).unwrap()
}

fn addresses(message: &Message) -> Vec<Ipv4Addr> {
    assert_eq!(message.metadata.id, 4711);
    message.answers.iter().map(|r| if let RData::A(A(ip)) = r.data { ip } else { panic!("{r}") }).collect()
}

/// What a resolver does with a question.
#[derive(Clone, Copy)]
enum Mood {
    Answers,
    Fails,
    /// Says nothing over UDP.
    Silent,
    /// Answers, but first with an answer as a forger sends it, with an id that is not the question's.
    AfterForgery,
}

/// A resolver on loopback.
async fn resolver(mood: Mood) -> SocketAddr {
    let tcp = TcpListener::bind(loopback()).await.unwrap();
    let address = tcp.local_addr().unwrap();
    let udp = UdpSocket::bind(address).await.unwrap();
    let reply = move |bytes: &[u8]| {
        let mut message = Message::from_vec(bytes).unwrap();
        // What the client wants, and what we take.
        let plain = message.queries[0].name().to_ascii() == "mail.example.com.";
        assert_ne!(message.edns.as_ref().unwrap().flags().dnssec_ok, plain, "no client asked for the alias");
        assert_eq!(message.max_payload(), 1232);
        message.metadata.message_type = MessageType::Response;
        if let Mood::Fails = mood {
            message.metadata.response_code = ResponseCode::ServFail;
        } else {
            let name = message.queries[0].name().clone();
            message.add_answer(Record::from_rdata(name, 60, RData::A(A(ABROAD))));
        }
        message.to_vec().unwrap()
    };
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = tcp.accept().await.unwrap();
            let answer = reply(&read_message(&mut stream).await.unwrap());
            write_message(&mut stream, &answer).await.unwrap();
        }
    });
    tokio::spawn(async move {
        let mut buffer = vec![0; LARGEST];
        loop {
            let (length, from) = udp.recv_from(&mut buffer).await.unwrap();
            let mut answer = reply(&buffer[..length]);
            if let Mood::AfterForgery = mood {
                answer[0] ^= 1;
                udp.send_to(&answer, from).await.unwrap();
                answer[0] ^= 1;
            }
            if !matches!(mood, Mood::Silent) {
                udp.send_to(&answer, from).await.unwrap();
            }
        }
    });
    address
}

#[tokio::test]
async fn the_newest_zone_answers_over_udp_and_tcp() {
    let (address, zone, _stop) = server(Vec::new()).await;
    let web = question("web.default.svc.cluster.local.");
    let mut stream = TcpStream::connect(address).await.unwrap();
    for ip in ["10.96.0.7", "10.96.0.8"] {
        set(&zone, ip);
        let want: [Ipv4Addr; 1] = [ip.parse().unwrap()];
        assert_eq!(addresses(&over_udp(address, &web).await), want);
        // Many questions on one connection.
        assert_eq!(addresses(&over_tcp(&mut stream, &web).await), want);
        assert_eq!(addresses(&over_tcp(&mut stream, &web).await), want);
    }
}

#[tokio::test]
async fn other_names_are_asked_of_the_resolvers() {
    // Nobody listens here.
    let closed = {
        let listener = TcpListener::bind(loopback()).await.unwrap();
        listener.local_addr().unwrap()
    };
    let abroad = question("www.example.com.");
    let good = resolver(Mood::Answers).await;
    for (upstreams, want) in [
        (vec![good], Some(ABROAD)),
        (vec![closed, good], Some(ABROAD)),
        (vec![resolver(Mood::Fails).await, good], Some(ABROAD)),
        (vec![resolver(Mood::AfterForgery).await], Some(ABROAD)),
        (vec![resolver(Mood::Silent).await, good], Some(ABROAD)),
        (vec![resolver(Mood::Fails).await], None),
        (vec![closed], None),
        (vec![], None),
    ] {
        let (address, _, _stop) = server(upstreams.clone()).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        for answer in [over_udp(address, &abroad).await, over_tcp(&mut stream, &abroad).await] {
            assert_eq!(addresses(&answer), Vec::from_iter(want), "{upstreams:?}");
            let code = if want.is_some() { ResponseCode::NoError } else { ResponseCode::ServFail };
            assert_eq!(answer.metadata.response_code, code, "{upstreams:?}");
            assert_eq!(answer.queries, abroad.queries);
        }
    }
}

#[tokio::test]
async fn a_connection_carries_many_questions_at_a_time() {
    let (address, zone, _stop) = server(vec![resolver(Mood::Answers).await]).await;
    set(&zone, "10.96.0.7");
    let frame = |message: &Message| {
        let bytes = message.to_vec().unwrap();
        [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], &bytes].concat()
    };
    let (web, abroad) =
        (frame(&question("web.default.svc.cluster.local.")), frame(&question("www.example.com.")));
    let mut stream = TcpStream::connect(address).await.unwrap();
    // One that takes a while, then many that do not, then the end of what the client says; in pieces.
    let all = [abroad, web.repeat(500)].concat();
    for piece in all.chunks(1000) {
        stream.write_all(piece).await.unwrap();
    }
    stream.shutdown().await.unwrap();
    let mut seen = BTreeMap::new();
    while let Ok(message) = read_message(&mut stream).await {
        *seen.entry(addresses(&Message::from_vec(&message).unwrap())).or_insert(0) += 1;
    }
    assert_eq!(seen, BTreeMap::from([(vec!["10.96.0.7".parse().unwrap()], 500), (vec![ABROAD], 1)]));
}

#[tokio::test]
async fn one_client_leaves_connections_for_others() {
    let (address, zone, _stop) = server(Vec::new()).await;
    set(&zone, "10.96.0.7");
    let web = question("web.default.svc.cluster.local.");
    let from = |last: u8| async move {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(Ipv4Addr::new(127, 0, 0, last).into(), 0)).unwrap();
        socket.connect(address).await.unwrap()
    };
    let mut taken = Vec::new();
    for _ in 0..CONNECTIONS.1 {
        let mut stream = from(2).await;
        assert_eq!(addresses(&over_tcp(&mut stream, &web).await).len(), 1);
        taken.push(stream);
    }
    // Closed without a word.
    assert_eq!(from(2).await.read(&mut [0; 1]).await.unwrap_or(0), 0);
    assert_eq!(addresses(&over_tcp(&mut from(3).await, &web).await).len(), 1);
}

#[tokio::test]
async fn names_outside_are_said_behind_the_alias() {
    let (address, zone, _stop) = server(vec![resolver(Mood::Answers).await]).await;
    put(&zone, ("prod", "mail"), json!({"type": "ExternalName", "externalName": "mail.example.com"}), &[]);
    put(
        &zone,
        ("prod", "far"),
        json!({"type": "ExternalName", "externalName": "mail.prod.svc.cluster.local"}),
        &[],
    );
    let answer = over_udp(address, &question("far.prod.svc.cluster.local.")).await;
    let lines: Vec<_> = answer.answers.iter().map(|r| format!("{} {}", r.name, r.data)).collect();
    let want = [
        "far.prod.svc.cluster.local. mail.prod.svc.cluster.local.",
        "mail.prod.svc.cluster.local. mail.example.com.",
        "mail.example.com. 192.0.2.80",
    ];
    assert_eq!(lines, want);
    let (address, zone, _stop) = server(vec![resolver(Mood::Fails).await]).await;
    put(&zone, ("prod", "mail"), json!({"type": "ExternalName", "externalName": "mail.example.com"}), &[]);
    let answer = over_udp(address, &question("mail.prod.svc.cluster.local.")).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn the_habits_of_c_libraries_and_go_are_met() {
    let (address, zone, _stop) = server(Vec::new()).await;
    put(
        &zone,
        ("default", "web"),
        json!({"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd69::7"]}),
        &[],
    );
    let ask = |id: u16, kind: RecordType, edns: Option<u16>| {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        // Whether the answer was verified is of interest: glibc with trust-ad, Go.
        message.metadata.authentic_data = edns.is_some();
        message.add_query(Query::query(Name::from_ascii("web.default.svc.cluster.local.").unwrap(), kind));
        if let Some(size) = edns {
            let mut edns = Edns::new();
            edns.set_max_payload(size);
            message.set_edns(edns);
        }
        message.to_vec().unwrap()
    };
    let read = |bytes: &[u8]| {
        let message = Message::from_vec(bytes).unwrap();
        assert_eq!(message.answers.len(), 1, "{message}");
        (message.metadata.id, message.queries[0].query_type())
    };
    // glibc and musl: both families from one socket, one after the other without waiting; both answers are needed.
    // Go: a socket for each.
    for edns in [None, Some(1200), Some(1232)] {
        for sockets in [1, 2] {
            let mut all = Vec::new();
            for _ in 0..sockets {
                let socket = UdpSocket::bind(loopback()).await.unwrap();
                socket.connect(address).await.unwrap();
                all.push(socket);
            }
            let (first, last) = (&all[0], &all[sockets - 1]);
            first.send(&ask(1, RecordType::A, edns)).await.unwrap();
            last.send(&ask(2, RecordType::AAAA, edns)).await.unwrap();
            let mut buffer = [0; 1500];
            let mut seen = Vec::new();
            for socket in [first, last] {
                let length = socket.recv(&mut buffer).await.unwrap();
                seen.push(read(&buffer[..length]));
            }
            assert_eq!(seen, [(1, RecordType::A), (2, RecordType::AAAA)]);
        }
    }
}
