use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicUsize, Ordering},
};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::A},
};
use tokio::{
    net::{TcpListener, UdpSocket},
    sync::Notify,
};

use super::*;

/// A resolver on loopback that counts its questions and answers each with `records` addresses, when it is let.
struct Resolver {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    let_go: Arc<Notify>,
}

async fn resolver(records: u8, waits: bool) -> Resolver {
    let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = tcp.local_addr().unwrap();
    let udp = UdpSocket::bind(address).await.unwrap();
    let (asked, let_go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let reply = {
        let asked = asked.clone();
        move |bytes: &[u8], most: usize| {
            asked.fetch_add(1, Ordering::SeqCst);
            let mut message = Message::from_vec(bytes).unwrap();
            message.metadata.message_type = MessageType::Response;
            let name = message.queries[0].name().clone();
            for n in 0..records {
                message.add_answer(Record::from_rdata(name.clone(), 60, RData::A(A::new(192, 0, 2, n))));
            }
            let bytes = message.to_vec().unwrap();
            if bytes.len() <= most {
                return bytes;
            }
            message.answers.clear();
            message.metadata.truncation = true;
            message.to_vec().unwrap()
        }
    };
    let over_tcp = reply.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = tcp.accept().await.unwrap();
            let answer = over_tcp(&read_message(&mut stream).await.unwrap(), usize::MAX);
            write_message(&mut stream, &answer).await.unwrap();
        }
    });
    let gate = let_go.clone();
    tokio::spawn(async move {
        let mut buffer = vec![0; 4096];
        loop {
            let (length, from) = udp.recv_from(&mut buffer).await.unwrap();
            let answer = reply(&buffer[..length], 1232);
            if waits {
                gate.notified().await;
            }
            udp.send_to(&answer, from).await.unwrap();
        }
    });
    Resolver { address, asked, let_go }
}

fn message(id: u16, name: &str, edns: bool) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    if edns {
        let mut edns = Edns::new();
        edns.set_max_payload(1400);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

async fn ask(forwarder: &Arc<Forwarder>, message: &[u8], transport: Transport) -> Message {
    let question = Question::parse(message).unwrap();
    Message::from_vec(&forwarder.answer(&question, transport).await).unwrap()
}

#[tokio::test]
async fn clients_that_ask_the_same_cost_one_question() {
    let resolver = resolver(1, true).await;
    let forwarder = Arc::new(Forwarder::to(vec![resolver.address]));
    let mut clients = tokio::task::JoinSet::new();
    for id in 0..50 {
        let forwarder = forwarder.clone();
        let name = if id % 2 == 0 { "Www.Example.com." } else { "www.example.com." };
        clients.spawn(async move {
            let answer = ask(&forwarder, &message(id, name, true), Transport::Udp).await;
            assert_eq!((answer.metadata.id, answer.queries[0].name().to_ascii().as_str()), (id, name));
            assert_eq!(answer.answers.len(), 1);
        });
    }
    resolver.let_go.notify_one();
    clients.join_all().await;
    // Whoever came after the answer found it kept.
    let question = message(1, "wWw.example.com.", true);
    let kept = forwarder.kept(&Question::parse(&question).unwrap(), Transport::Udp).unwrap();
    assert_eq!(Message::from_vec(&kept).unwrap().queries[0].name().to_ascii(), "wWw.example.com.");
    assert_eq!(resolver.asked.load(Ordering::SeqCst), 1);
    assert!(lock(&forwarder.flights).is_empty());
}

#[tokio::test]
async fn an_answer_is_no_longer_than_the_client_takes() {
    let some = resolver(60, false).await;
    let forwarder = Arc::new(Forwarder::to(vec![some.address]));
    for (message, transport, answers, cut) in [
        (message(1, "many.example.com.", true), Transport::Udp, 60, false),
        (message(2, "many.example.com.", false), Transport::Udp, 0, true),
        (message(3, "many.example.com.", false), Transport::Tcp, 60, false),
    ] {
        let answer = ask(&forwarder, &message, transport).await;
        let asked = Message::from_vec(&message).unwrap();
        assert_eq!((answer.answers.len(), answer.metadata.truncation), (answers, cut), "{asked}");
        assert_eq!(answer.edns.is_some(), asked.edns.is_some());
    }
    // Aliases are followed to the end, over TCP if there is much.
    let many = resolver(200, false).await;
    let forwarder = Arc::new(Forwarder::to(vec![many.address]));
    let name = super::super::name::encode("many.example.com").unwrap();
    let (code, records) = forwarder.records(&name, kind::A).await.unwrap();
    assert_eq!((code, records.len()), (Code::NoError, 200));
}

#[tokio::test]
async fn a_refusal_without_the_question_gets_it_back() {
    let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let forwarder = Arc::new(Forwarder::to(vec![udp.local_addr().unwrap()]));
    tokio::spawn(async move {
        let mut buffer = vec![0; 4096];
        loop {
            let (_, from) = udp.recv_from(&mut buffer).await.unwrap();
            udp.send_to(&[buffer[0], buffer[1], 0x81, 0x85, 0, 0, 0, 0, 0, 0, 0, 0], from).await.unwrap();
        }
    });
    let answer = ask(&forwarder, &message(9, "Www.example.com.", true), Transport::Udp).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
    assert_eq!((answer.metadata.id, answer.queries[0].name().to_ascii().as_str()), (9, "Www.example.com."));
}

#[tokio::test]
async fn a_resolver_that_says_nothing_is_not_waited_for_again() {
    let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let good = resolver(1, false).await;
    let forwarder = Arc::new(Forwarder::to(vec![silent.local_addr().unwrap(), good.address]));
    for name in ["a.example.com.", "b.example.com."] {
        let answer = ask(&forwarder, &message(1, name, true), Transport::Udp).await;
        assert_eq!(answer.answers.len(), 1);
    }
    let mut buffer = [0; 512];
    assert!(silent.try_recv(&mut buffer).is_ok(), "it was asked first");
    assert!(silent.try_recv(&mut buffer).is_err(), "and not again");
}

#[tokio::test]
async fn when_nobody_answers_the_client_is_told_before_it_gives_up() {
    let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let forwarder = Arc::new(Forwarder::to(vec![silent.local_addr().unwrap()]));
    let question = message(1, "a.example.com.", true);
    // glibc's and Go's time-out.
    let answer =
        tokio::time::timeout(std::time::Duration::from_secs(5), ask(&forwarder, &question, Transport::Udp));
    assert_eq!(answer.await.unwrap().metadata.response_code, ResponseCode::ServFail);
    // A lost packet is not the end.
    let mut buffer = [0; 512];
    for _ in 0..3 {
        assert!(silent.try_recv(&mut buffer).is_ok());
    }
}
