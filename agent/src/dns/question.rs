//! One question in wire format, taken apart without copying (RFC 1035, section 4; EDNS: RFC 6891).

use super::name::Asked;

/// Id, flags and counts.
pub(super) const HEADER: usize = 12;
const QUERY: u8 = 0;
const OPT: u16 = 41;

/// A question that is well-formed.
#[derive(Clone, Debug)]
pub(super) struct Question<'m> {
    /// The first four bytes: id and flags.
    pub(super) head: [u8; 4],
    /// Name, type and class as they came, in the letters' own case.
    pub(super) section: &'m [u8],
    /// The name, in lower case.
    pub(super) name: Asked,
    /// QTYPE.
    pub(super) kind: u16,
    /// QCLASS.
    pub(super) class: u16,
    /// What the client says of itself, if it speaks EDNS.
    pub(super) edns: Option<Edns>,
}

/// What an OPT record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Edns {
    /// Bytes that the client takes over UDP.
    pub(super) payload: u16,
    /// Only 0 is defined.
    pub(super) version: u8,
    /// The client wants signatures.
    pub(super) dnssec: bool,
}

/// A message that is no question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// An answer, or too short for anything: whoever sent it must get nothing, lest two servers answer each other for ever.
    NoQuestion,
    /// Something else is asked than a name.
    OtherOperation,
    /// Not as the RFCs say.
    Malformed,
}

impl<'m> Question<'m> {
    /// Takes a message apart. Bytes after its last record are ignored.
    pub(super) fn parse(message: &'m [u8]) -> Result<Self, Unreadable> {
        let header: &[u8; HEADER] = message.first_chunk().ok_or(Unreadable::NoQuestion)?;
        let head = [header[0], header[1], header[2], header[3]];
        if head[2] & 0x80 != 0 {
            return Err(Unreadable::NoQuestion);
        }
        if (head[2] >> 3) & 0x0f != QUERY {
            return Err(Unreadable::OtherOperation);
        }
        let count = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        if count(4) != 1 {
            return Err(Unreadable::Malformed);
        }
        Self::body(head, message, [count(6), count(8), count(10)]).ok_or(Unreadable::Malformed)
    }

    fn body(head: [u8; 4], message: &'m [u8], counts: [u16; 3]) -> Option<Self> {
        let (name, end) = Asked::read(message, HEADER)?;
        let kind = u16::from_be_bytes(*message.get(end..)?.first_chunk()?);
        let class = u16::from_be_bytes(*message.get(end + 2..)?.first_chunk()?);
        let section = &message[HEADER..end + 4];
        let mut records = Records { message, at: end + 4 };
        for _ in 0..u32::from(counts[0]) + u32::from(counts[1]) {
            records.next()?;
        }
        let mut edns = None;
        for _ in 0..counts[2] {
            let record = records.next()?;
            if record.kind != OPT {
                continue;
            }
            // There is one, and it belongs to the root.
            if edns.is_some() || message[record.start] != 0 {
                return None;
            }
            let [_, version, flags, _] = record.ttl;
            edns = Some(Edns { payload: record.class, version, dnssec: flags & 0x80 != 0 });
        }
        Some(Question { head, section, name, kind, class, edns })
    }
}

/// Walks over the records of a message.
#[derive(Clone, Debug)]
pub(super) struct Records<'m> {
    /// The whole message.
    pub(super) message: &'m [u8],
    /// Where the next record begins.
    pub(super) at: usize,
}

/// Where a record is, and what it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecordAt {
    /// Its first byte.
    pub(super) start: usize,
    pub(super) kind: u16,
    pub(super) class: u16,
    /// Bytes of its time to live; an OPT record keeps other things there.
    pub(super) ttl: [u8; 4],
    /// Where its time to live is.
    pub(super) ttl_at: usize,
    /// Where it ends.
    pub(super) end: usize,
}

impl Records<'_> {
    /// The next record, `None` where there is none or a broken one.
    pub(super) fn next(&mut self) -> Option<RecordAt> {
        let (start, name_end) = (self.at, self.skip_name(self.at)?);
        let fixed: [u8; 10] = *self.message.get(name_end..)?.first_chunk()?;
        let [k0, k1, c0, c1, t0, t1, t2, t3, l0, l1] = fixed;
        let data = name_end + fixed.len();
        let end = data + usize::from(u16::from_be_bytes([l0, l1]));
        self.message.get(data..end)?;
        self.at = end;
        Some(RecordAt {
            start,
            kind: u16::from_be_bytes([k0, k1]),
            class: u16::from_be_bytes([c0, c1]),
            ttl: [t0, t1, t2, t3],
            ttl_at: name_end + 4,
            end,
        })
    }

    /// Where the name that begins here ends; a pointer ends it, and is not followed.
    pub(super) fn skip_name(&self, mut at: usize) -> Option<usize> {
        loop {
            match *self.message.get(at)? {
                0 => return Some(at + 1),
                label @ 1..=63 => at += 1 + usize::from(label),
                0xc0.. => return self.message.get(at + 1).map(|_| at + 2),
                _ => return None,
            }
        }
    }
}
