//! Answers in wire format (RFC 1035, section 4): whatever does not fit is left out, and the answer says so.

use super::{
    super::question::{Edns, HEADER, Question},
    Code, TTL, UDP_LIMIT, kind,
};

/// From a record's first byte to its data, where its name is a pointer.
pub(in super::super) const DATA: usize = 12;
/// Bytes of an OPT record without options.
const OPT_BYTES: usize = 11;
/// Names can be pointed to up to here.
const LAST_POINTED: usize = 0x3fff;
const QR: u8 = 0x80;
const AA: u8 = 0x04;
const TC: u8 = 0x02;
const RD: u8 = 0x01;
const RA: u8 = 0x80;
const CD: u8 = 0x10;

/// Sections that records go to, in the order in which they must be filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Section {
    Answer,
    Authority,
    Additional,
}

/// An answer that grows.
#[derive(Clone, Debug)]
pub(super) struct Writer {
    out: Vec<u8>,
    /// With room for the OPT record.
    limit: usize,
    counts: [u16; 3],
    flags: [u8; 2],
    truncated: bool,
    edns: Option<Edns>,
}

impl Writer {
    pub(super) fn new(question: &Question, limit: usize) -> Self {
        let [id_high, id_low, flags_high, flags_low] = question.head;
        let mut out = Vec::with_capacity(256);
        out.extend([id_high, id_low, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        out.extend(question.section);
        Writer {
            out,
            limit: limit - question.edns.map_or(0, |_| OPT_BYTES),
            counts: [0; 3],
            flags: [QR | (flags_high & RD), RA | (flags_low & CD)],
            truncated: false,
            edns: question.edns,
        }
    }

    /// Where the next record begins.
    pub(super) fn end(&self) -> usize {
        self.out.len()
    }

    /// Adds a record of class IN for a name that is in the message; whether there is room.
    pub(super) fn add(
        &mut self,
        section: Section,
        owner: usize,
        kind: u16,
        data: impl FnOnce(&mut Vec<u8>),
    ) -> bool {
        let before = self.out.len();
        // The name is at the message's end then, where no pointer leads: no answer of ours comes there with its first records.
        let Some(pointer) = u16::try_from(owner).ok().filter(|p| usize::from(*p) <= LAST_POINTED) else {
            return false;
        };
        self.out.extend((0xc000 | pointer).to_be_bytes());
        self.out.extend(kind.to_be_bytes());
        self.out.extend([0, 1]);
        self.out.extend(TTL.to_be_bytes());
        self.out.extend([0, 0]);
        data(&mut self.out);
        let length = (self.out.len() - before - DATA) as u16;
        self.out[before + DATA - 2..before + DATA].copy_from_slice(&length.to_be_bytes());
        self.keep(section, before)
    }

    /// Adds a CNAME record; where the target's name is then.
    pub(super) fn alias(&mut self, owner: usize, target: &[u8]) -> Option<usize> {
        let at = self.end() + DATA;
        self.add(Section::Answer, owner, kind::CNAME, |v| v.extend(target)).then_some(at)
    }

    /// Adds a whole record to the answer section.
    pub(super) fn raw(&mut self, record: &[u8]) {
        let before = self.out.len();
        self.out.extend(record);
        self.keep(Section::Answer, before);
    }

    fn keep(&mut self, section: Section, before: usize) -> bool {
        if self.out.len() > self.limit || self.truncated {
            self.out.truncate(before);
            // What is only useful is left out without a word.
            self.truncated |= section != Section::Additional;
            return false;
        }
        self.counts[section as usize] += 1;
        true
    }

    /// The whole message.
    pub(super) fn finish(mut self, code: Code, authoritative: bool) -> Vec<u8> {
        let code = code as u8;
        self.out[2] =
            self.flags[0] | if authoritative { AA } else { 0 } | if self.truncated { TC } else { 0 };
        self.out[3] = self.flags[1] | (code & 0x0f);
        if let Some(edns) = self.edns {
            self.out.extend([0]);
            self.out.extend(kind::OPT.to_be_bytes());
            self.out.extend(UDP_LIMIT.to_be_bytes());
            self.out.extend([code >> 4, 0, if edns.dnssec { 0x80 } else { 0 }, 0, 0, 0]);
            self.counts[Section::Additional as usize] += 1;
        }
        for (section, count) in self.counts.iter().enumerate() {
            self.out[6 + 2 * section..8 + 2 * section].copy_from_slice(&count.to_be_bytes());
        }
        self.out
    }
}

/// An error for a question that cannot be repeated, as it cannot be read.
pub(super) fn bare(message: &[u8], code: Code) -> Vec<u8> {
    let mut out = vec![0; HEADER];
    if let Some([id_high, id_low, flags, _]) = message.first_chunk() {
        // The operation, and whether recursion was wanted, come back.
        out[..4].copy_from_slice(&[*id_high, *id_low, QR | (flags & 0x79), RA | (code as u8 & 0x0f)]);
    }
    out
}
