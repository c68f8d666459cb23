//! Names that are not the cluster's: asked of the machine's resolvers, each question once at a time, and kept for a while.

mod cache;
mod exchange;
mod resolvers;

use std::{
    collections::HashMap,
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use tokio::sync::{Semaphore, watch};

#[cfg(test)]
pub(super) use self::exchange::{read_message, write_message};
use self::{
    cache::Cache,
    exchange::{Outcome, ask, is_truncated, records},
    resolvers::Resolvers,
};
use super::{
    answer::{Code, Transport, UDP_LIMIT, failure, kind, limit},
    question::{HEADER, Question},
};

/// Questions that are asked at once; one more is refused, so that dead resolvers cost bounded memory.
const MOST_ASKED: usize = 1024;
const TC: u8 = 0x02;
const RD: u8 = 0x01;
const CD: u8 = 0x10;

/// A question as it is asked of resolvers, but for its id: what clients may ask in different words is one here.
type Plain = Box<[u8]>;
/// What the resolvers said, if they did.
type Answer = Option<Arc<[u8]>>;
/// Questions under way, with where their answers will be.
type Flights = HashMap<(Plain, Transport), watch::Receiver<Option<Answer>>>;

/// Asks resolvers. Shared by all sockets.
#[derive(Debug)]
pub(super) struct Forwarder {
    resolvers: Mutex<Resolvers>,
    cache: Mutex<Cache>,
    flights: Mutex<Flights>,
    places: Semaphore,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Forwarder {
    /// Asks the servers of a resolv.conf, without `own`: a question must not come back to where it left.
    pub(super) fn new(resolv_conf: PathBuf, own: Vec<IpAddr>) -> Self {
        Self::with(Resolvers::of_file(resolv_conf, own))
    }

    fn with(resolvers: Resolvers) -> Self {
        Forwarder {
            resolvers: Mutex::new(resolvers),
            cache: Mutex::default(),
            flights: Mutex::default(),
            places: Semaphore::new(MOST_ASKED),
        }
    }

    /// Asks these alone.
    #[cfg(test)]
    pub(super) fn to(resolvers: Vec<std::net::SocketAddr>) -> Self {
        Self::with(Resolvers::fixed(resolvers))
    }

    /// The answer that is kept from an earlier time, if any.
    pub(super) fn kept(&self, question: &Question, transport: Transport) -> Option<Vec<u8>> {
        let found = lock(&self.cache).get(&plain(question), Instant::now())?;
        fit(question, transport, found)
    }

    /// The answer for a client; that there is none, if no resolver gave one in time.
    pub(super) async fn answer(self: &Arc<Self>, question: &Question<'_>, transport: Transport) -> Vec<u8> {
        let found = self.look_up(plain(question), transport).await;
        let fitted = found.and_then(|a| fit(question, transport, a.to_vec()));
        fitted.unwrap_or_else(|| failure(question, Code::ServFail))
    }

    /// What the resolvers say of a name on the wire, whole: their code, and records that are not compressed.
    pub(super) async fn records(self: &Arc<Self>, name: &[u8], kind: u16) -> Option<(Code, Vec<Vec<u8>>)> {
        let question = write([RD, 0], name, kind, 1, Some(false));
        let mut answer = self.look_up(question.clone(), Transport::Udp).await?;
        if is_truncated(&answer) {
            answer = self.look_up(question, Transport::Tcp).await?;
        }
        records(&answer)
    }

    /// From the cache, from whoever asks the same just now, or from the resolvers.
    async fn look_up(self: &Arc<Self>, question: Plain, transport: Transport) -> Answer {
        if let Some(kept) = lock(&self.cache).get(&question, Instant::now()) {
            return Some(kept.into());
        }
        let mut answer = {
            let mut flights = lock(&self.flights);
            let key = (question, transport);
            if let Some(flight) = flights.get(&key) {
                flight.clone()
            } else {
                let (sender, receiver) = watch::channel(None);
                flights.insert(key.clone(), receiver.clone());
                // On its own: the client that asked first may go away while others wait.
                tokio::spawn(self.clone().fly(key, sender));
                receiver
            }
        };
        answer.wait_for(Option::is_some).await.ok()?.clone().flatten()
    }

    async fn fly(self: Arc<Self>, key: (Plain, Transport), sender: watch::Sender<Option<Answer>>) {
        let (question, transport) = &key;
        let answer = match self.places.try_acquire() {
            Ok(_place) => self.ask(question, *transport).await,
            Err(_) => None,
        };
        if let Some(answer) = &answer {
            lock(&self.cache).put(question.clone(), answer.clone(), Instant::now());
        }
        // After the cache: whoever comes now finds it there.
        lock(&self.flights).remove(&key);
        sender.send_replace(Some(answer));
    }

    async fn ask(&self, question: &[u8], transport: Transport) -> Answer {
        let order = lock(&self.resolvers).order(Instant::now());
        let Outcome { answer, silent } = ask(&order, question, transport).await;
        let answered = answer.as_ref().map(|(who, _)| *who);
        lock(&self.resolvers).learn(answered, &silent, Instant::now());
        answer.map(|(_, bytes)| bytes.into())
    }
}

/// A client's question in the words that resolvers get: nothing of the client's but what it wants.
fn plain(question: &Question) -> Plain {
    let flags = [question.head[2] & RD, question.head[3] & CD];
    write(flags, question.name.from(0), question.kind, question.class, question.edns.map(|e| e.dnssec))
}

fn write(flags: [u8; 2], name: &[u8], kind: u16, class: u16, edns: Option<bool>) -> Plain {
    let mut out = Vec::with_capacity(HEADER + name.len() + 15);
    out.extend([0, 0, flags[0], flags[1], 0, 1, 0, 0, 0, 0, 0, u8::from(edns.is_some())]);
    out.extend(name);
    out.extend(kind.to_be_bytes());
    out.extend(class.to_be_bytes());
    if let Some(dnssec) = edns {
        out.push(0);
        out.extend(kind::OPT.to_be_bytes());
        out.extend(UDP_LIMIT.to_be_bytes());
        out.extend([0, 0, if dnssec { 0x80 } else { 0 }, 0, 0, 0]);
    }
    out.into()
}

/// A resolver's answer as an answer to this very question: its id, its letters' case, and no longer than the client takes.
fn fit(question: &Question, transport: Transport, mut answer: Vec<u8>) -> Option<Vec<u8>> {
    let end = HEADER + question.section.len();
    let code = *answer.get(3)? & 0x0f;
    let repeated = answer.get(4..6)? != [0, 0];
    answer[..2].copy_from_slice(&question.head[..2]);
    if repeated {
        answer.get_mut(HEADER..end)?.copy_from_slice(question.section);
    }
    // Resolvers that refuse may leave the question out: clients do not like that.
    let short = answer.len() > limit(question, transport);
    if short || !repeated {
        answer = failure(question, Code::NoError);
        answer[3] |= code;
    }
    if short {
        answer[2] |= TC;
    }
    Some(answer)
}

#[cfg(test)]
mod tests;
