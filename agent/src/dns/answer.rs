//! One question in wire format, decided without I/O.

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, SOA},
    },
};

use super::zone::{Lookup, Zone};

/// Seconds that clients may keep an answer, or the lack of one.
const TTL: u32 = 5;
/// The largest UDP answer that crosses every link in one piece (DNS flag day 2020).
const UDP_LIMIT: u16 = 1232;
/// What a client without EDNS takes.
const PLAIN_LIMIT: u16 = 512;
/// Bytes of an A record whose name is a pointer to the question's.
const A_RECORD_BYTES: usize = 16;

/// How a question came, which bounds the answer's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// Not a question: whoever sent it must get nothing, lest two servers answer each other for ever.
    Ignore,
}

/// Judges one message.
pub(super) fn judge(zone: &Zone, message: &[u8], transport: Transport) -> Verdict {
    let Ok(request) = Message::from_vec(message) else {
        return failure(message, ResponseCode::FormErr).map_or(Verdict::Ignore, Verdict::Answer);
    };
    if request.metadata.message_type != MessageType::Query {
        return Verdict::Ignore;
    }
    let refuse = |code| failure(message, code).map_or(Verdict::Ignore, Verdict::Answer);
    if request.metadata.op_code != OpCode::Query {
        return refuse(ResponseCode::NotImp);
    }
    let [question] = request.queries.as_slice() else { return refuse(ResponseCode::FormErr) };
    let name = question.name();
    let found = zone.lookup(&name.to_ascii());
    if found == Lookup::Outside {
        return Verdict::Forward;
    }

    let mut response = Message::response(request.metadata.id, OpCode::Query);
    response.metadata.authoritative = true;
    response.metadata.recursion_desired = request.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    response.add_query(question.clone());
    if let Some(asked) = &request.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_LIMIT).set_version(0);
        response.set_edns(edns);
        if asked.version() > 0 {
            response.metadata.response_code = ResponseCode::BADVERS;
            return encode(&response, UDP_LIMIT.into());
        }
    }
    let limit = match (transport, &request.edns) {
        (Transport::Tcp, _) => u16::MAX,
        (Transport::Udp, None) => PLAIN_LIMIT,
        (Transport::Udp, Some(edns)) => edns.max_payload().clamp(PLAIN_LIMIT, UDP_LIMIT),
    };
    if ![DNSClass::IN, DNSClass::ANY].contains(&question.query_class()) {
        response.metadata.response_code = ResponseCode::Refused;
        return encode(&response, limit.into());
    }
    let wants = |kind| [kind, RecordType::ANY].contains(&question.query_type());
    match found {
        Lookup::Addresses(addresses) if wants(RecordType::A) => {
            // Clients take the first address: another one for every question spreads them. The id is random enough.
            let (tail, head) = addresses.split_at(usize::from(request.metadata.id) % addresses.len());
            let records = head.iter().chain(tail);
            response.add_answers(records.map(|ip| Record::from_rdata(name.clone(), TTL, RData::A(A(*ip)))));
        }
        Lookup::Apex if wants(RecordType::SOA) => {
            response.add_answers(soa(zone));
        }
        found => {
            if found == Lookup::NoSuchName {
                response.metadata.response_code = ResponseCode::NXDomain;
            }
            // Tells caches how long to believe it.
            response.add_authorities(soa(zone));
        }
    }
    encode(&response, limit.into())
}

/// An error for a question that may not even be readable; `None` if it is no question.
pub(super) fn failure(message: &[u8], code: ResponseCode) -> Option<Vec<u8>> {
    let [id_high, id_low, flags, ..] = *message else { return None };
    if message.len() < 12 || flags & 0x80 != 0 {
        return None;
    }
    let mut response =
        Message::error_msg(u16::from_be_bytes([id_high, id_low]), OpCode::from_u8((flags >> 3) & 0x0f), code);
    response.metadata.recursion_desired = flags & 1 != 0;
    response.metadata.recursion_available = true;
    if let Ok(request) = Message::from_vec(message) {
        response.add_queries(request.queries);
        response.edns = request.edns.map(|_| {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_LIMIT);
            edns
        });
    }
    response.to_vec().ok()
}

fn encode(response: &Message, limit: usize) -> Verdict {
    let Ok(bytes) = response.to_vec() else { return Verdict::Ignore };
    if bytes.len() <= limit {
        return Verdict::Answer(bytes);
    }
    // Some addresses are better than none for a client that does not come again over TCP.
    let mut short = response.clone();
    let surplus = (bytes.len() - limit).div_ceil(A_RECORD_BYTES);
    short.answers.truncate(short.answers.len().saturating_sub(surplus));
    short.metadata.truncation = true;
    short.to_vec().map_or(Verdict::Ignore, Verdict::Answer)
}

fn soa(zone: &Zone) -> Option<Record> {
    let origin = Name::from_ascii(format!("{}.", zone.origin())).ok()?;
    let server = Name::from_ascii("ns.dns").ok()?.append_domain(&origin).ok()?;
    let mailbox = Name::from_ascii("hostmaster").ok()?.append_domain(&origin).ok()?;
    // Nobody transfers this zone, so that its serial says nothing.
    let data = SOA::new(server, mailbox, 1, 7200, 1800, 86_400, TTL);
    Some(Record::from_rdata(origin, TTL, RData::SOA(data)))
}

#[cfg(test)]
mod tests;
