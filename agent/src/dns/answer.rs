//! One question in wire format, decided without I/O.

mod write;

use self::write::{Section, Writer};
use super::{
    name::Asked,
    question::{HEADER, Question, Unreadable},
    zone::{Addresses, Data, Lookup, ServiceNames, TTL, Target, Zone},
};

/// The largest UDP answer that crosses every link in one piece (DNS flag day 2020).
pub(super) const UDP_LIMIT: u16 = 1232;
/// What a client without EDNS takes.
pub(super) const PLAIN_LIMIT: u16 = 512;
/// Aliases of the cluster that lead to one another.
const MOST_ALIASES: usize = 8;

/// How a question came, which bounds the answer's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// What to do with a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Send this back.
    Answer(Vec<u8>),
    /// The name is somebody else's: ask there.
    Forward,
    /// The name is ours, and leads through these to the last of them, which is somebody else's: ask there, and say both.
    Follow(Vec<Vec<u8>>),
    /// Whoever sent it must get nothing.
    Ignore,
}

/// Response codes (RFC 1035, RFC 6891).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    NoError = 0,
    FormErr = 1,
    ServFail = 2,
    NxDomain = 3,
    NotImp = 4,
    Refused = 5,
    BadVers = 16,
}

/// Record types (RFC 1035, 2782, 3596).
pub(super) mod kind {
    pub const A: u16 = 1;
    pub const NS: u16 = 2;
    pub const CNAME: u16 = 5;
    pub const SOA: u16 = 6;
    pub const PTR: u16 = 12;
    pub const TXT: u16 = 16;
    pub const AAAA: u16 = 28;
    pub const SRV: u16 = 33;
    pub const OPT: u16 = 41;
    pub const IXFR: u16 = 251;
    pub const AXFR: u16 = 252;
    pub const ANY: u16 = 255;
}

const IN: u16 = 1;
const ANY_CLASS: u16 = 255;
/// Hosts of SRV records whose addresses are said too.
const MOST_HOSTS: usize = 64;

/// Judges one message. `spin` is any number, better another one each time: clients take the first address, and it says which that is.
pub(super) fn judge(zone: &Zone, message: &[u8], transport: Transport, spin: u32) -> Verdict {
    let question = match Question::parse(message) {
        Ok(question) => question,
        Err(Unreadable::NoQuestion) => return Verdict::Ignore,
        Err(Unreadable::OtherOperation) => return Verdict::Answer(write::bare(message, Code::NotImp)),
        Err(Unreadable::Malformed) => return Verdict::Answer(write::bare(message, Code::FormErr)),
    };
    let refuse = |code| Verdict::Answer(failure(&question, code));
    if question.edns.is_some_and(|e| e.version > 0) {
        return refuse(Code::BadVers);
    }
    // Nobody transfers zones, ours or others', through us; other classes than the Internet's have no names here.
    if [kind::AXFR, kind::IXFR].contains(&question.kind) || ![IN, ANY_CLASS].contains(&question.class) {
        return refuse(Code::Refused);
    }
    match zone.lookup(&question.name) {
        Lookup::Outside => Verdict::Forward,
        Lookup::Within(start, data) => {
            let writer = Writer::new(&question, limit(&question, transport));
            Answering { zone, kind: question.kind, spin: spin as usize, writer }.run(
                &question.name,
                start,
                data,
            )
        }
    }
}

/// How long an answer may be.
pub(super) fn limit(question: &Question, transport: Transport) -> usize {
    let limit = match (transport, question.edns) {
        (Transport::Tcp, _) => u16::MAX,
        (Transport::Udp, None) => PLAIN_LIMIT,
        (Transport::Udp, Some(edns)) => edns.payload.clamp(PLAIN_LIMIT, UDP_LIMIT),
    };
    limit.into()
}

/// An answer that says why there is none.
pub(super) fn failure(question: &Question, code: Code) -> Vec<u8> {
    Writer::new(question, UDP_LIMIT.into()).finish(code, false)
}

/// The answer to a question that led to somebody else's name: the aliases, and what was said about the last of them: its code and
/// its records, whole and not compressed.
pub(super) fn followed(
    question: &Question,
    transport: Transport,
    aliases: &[Vec<u8>],
    (code, records): (Code, &[Vec<u8>]),
) -> Vec<u8> {
    let mut writer = Writer::new(question, limit(question, transport));
    let mut owner = HEADER;
    for alias in aliases {
        owner = writer.alias(owner, alias).unwrap_or(owner);
    }
    for record in records {
        writer.raw(record);
    }
    writer.finish(code, false)
}

struct Answering<'z> {
    zone: &'z Zone,
    kind: u16,
    spin: usize,
    writer: Writer,
}

impl<'z> Answering<'z> {
    /// Answers for a name in a zone that begins at its label `start`.
    fn run(mut self, name: &Asked, mut start: usize, mut data: Option<Data<'z>>) -> Verdict {
        // Where the name stands in the answer.
        let mut owner = HEADER;
        let mut name = name.clone();
        let mut aliases: Vec<Vec<u8>> = Vec::new();
        while let Some(Data::Alias(target)) = data {
            let Some((asked, _)) = Asked::read(target, 0) else { break };
            aliases.push(target.to_vec());
            if self.kind == kind::CNAME || self.kind == kind::ANY {
                self.writer.alias(owner, target);
                return self.done(Code::NoError);
            }
            // Names of the cluster that lead in a circle.
            if aliases.len() > MOST_ALIASES {
                return self.done(Code::ServFail);
            }
            match self.zone.lookup(&asked) {
                Lookup::Outside => return Verdict::Follow(aliases),
                Lookup::Within(next, found) => {
                    let Some(at) = self.writer.alias(owner, target) else { return self.done(Code::NoError) };
                    (owner, name, start, data) = (at, asked, next, found);
                }
            }
        }
        let found = data.is_some_and(|data| self.records(owner, data));
        if !found {
            // Tells caches how long to believe it.
            self.writer.add(Section::Authority, owner + name.start(start), kind::SOA, |v| {
                v.extend(self.zone.authority());
            });
        }
        self.done(if data.is_some() { Code::NoError } else { Code::NxDomain })
    }

    fn done(self, code: Code) -> Verdict {
        Verdict::Answer(self.writer.finish(code, true))
    }

    /// The records of the wanted type; whether there are any. Who wants any type gets one that there is (RFC 8482).
    fn records(&mut self, owner: usize, data: Data<'z>) -> bool {
        let wanted = self.kind;
        let wants = |kind| [kind, kind::ANY].contains(&wanted);
        match data {
            Data::Addresses(addresses) => {
                let v4 = wants(kind::A) && self.v4(Section::Answer, owner, addresses);
                v4 || (wants(kind::AAAA) && self.v6(Section::Answer, owner, addresses))
            }
            Data::Targets(service, targets) if wants(kind::SRV) => {
                self.targets(owner, service, targets);
                true
            }
            Data::Text(text) if wants(kind::TXT) => self.writer.add(Section::Answer, owner, kind::TXT, |v| {
                v.push(text.len() as u8);
                v.extend(text.bytes());
            }),
            Data::Pointers(names) if wants(kind::PTR) => {
                for name in names {
                    self.writer.add(Section::Answer, owner, kind::PTR, |v| v.extend(&**name));
                }
                true
            }
            Data::Apex if wants(kind::SOA) => {
                self.writer.add(Section::Answer, owner, kind::SOA, |v| v.extend(self.zone.authority()))
            }
            Data::Apex if wants(kind::NS) => {
                let name = self.writer.end() + write::DATA;
                let added =
                    self.writer.add(Section::Answer, owner, kind::NS, |v| v.extend(self.zone.server()));
                let servers = self.zone.servers();
                self.v4(Section::Additional, name, servers);
                self.v6(Section::Additional, name, servers);
                added
            }
            _ => false,
        }
    }

    fn v4(&mut self, section: Section, owner: usize, addresses: &Addresses) -> bool {
        spun(&addresses.v4, self.spin)
            .all(|ip| self.writer.add(section, owner, kind::A, |v| v.extend(ip.octets())));
        !addresses.v4.is_empty()
    }

    fn v6(&mut self, section: Section, owner: usize, addresses: &Addresses) -> bool {
        spun(&addresses.v6, self.spin)
            .all(|ip| self.writer.add(section, owner, kind::AAAA, |v| v.extend(ip.octets())));
        !addresses.v6.is_empty()
    }

    /// SRV records, then the addresses of their hosts as far as there is room.
    fn targets(&mut self, owner: usize, service: &ServiceNames, targets: &[Target]) {
        let mut hosts: Vec<(usize, u32, &Addresses)> = Vec::new();
        let full = |hosts: &[_]| hosts.len() >= MOST_HOSTS;
        for target in spun(targets, self.spin) {
            let Some((name, addresses)) = service.host(*target) else { continue };
            let at = self.writer.end() + write::DATA + 6;
            let added = self.writer.add(Section::Answer, owner, kind::SRV, |v| {
                // Priority and weight: all are as good as each other.
                v.extend([0, 0, 0, 100]);
                v.extend(target.port.to_be_bytes());
                // Not compressed (RFC 2782).
                v.extend(name.concat());
            });
            if !added {
                return;
            }
            // Clients ask for what is missing here. Ports of one host stand beside each other.
            if !full(&hosts) && hosts.last().is_none_or(|(_, host, _)| *host != target.host) {
                hosts.push((at, target.host, addresses));
            }
        }
        for (at, _, addresses) in hosts {
            self.v4(Section::Additional, at, addresses);
            self.v6(Section::Additional, at, addresses);
        }
    }
}

/// All, beginning somewhere.
fn spun<T>(all: &[T], spin: usize) -> impl Iterator<Item = &T> {
    let (tail, head) = all.split_at(if all.is_empty() { 0 } else { spin % all.len() });
    head.iter().chain(tail)
}

#[cfg(test)]
mod tests;
