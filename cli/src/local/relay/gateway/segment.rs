//! Packets as values: what asks for a TCP connection, and what a client is told when there is nobody.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::Pair;

const IP_HEADER: usize = 20;
const TCP_HEADER: usize = 20;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const HOPS: u8 = 64;

/// A packet that asks for a TCP connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Opening {
    packet: Vec<u8>,
    ip_header: usize,
    /// Who asks whom.
    pub(super) pair: Pair,
}

impl Opening {
    /// Reads a packet, IP header first; `None` if it is none, or is cut short.
    pub(super) fn read(packet: &[u8]) -> Option<Self> {
        let ip_header = usize::from(packet.first()? & 0x0f) * 4;
        let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
        // A short packet is padded on its way.
        let packet = packet.get(..total)?;
        if packet[0] >> 4 != 4 || ip_header < IP_HEADER || packet.get(9) != Some(&TCP) {
            return None;
        }
        let segment = packet.get(ip_header..).filter(|s| s.len() >= TCP_HEADER)?;
        let at = |ip: usize, port: usize| {
            let ip: [u8; 4] = *packet.get(ip..)?.first_chunk()?;
            Some(SocketAddrV4::new(
                Ipv4Addr::from(ip),
                u16::from_be_bytes([segment[port], segment[port + 1]]),
            ))
        };
        let pair = (at(12, 0)?, at(16, 2)?);
        Some(Opening { packet: packet.to_vec(), ip_header, pair })
    }

    /// The packet once more. What a virtual link brings has no checksum yet.
    pub(super) fn again(&self) -> Vec<u8> {
        let mut packet = self.packet.clone();
        let segment = &mut packet[self.ip_header..];
        with_checksum(segment, 16, pseudo_header(self.pair, TCP, segment.len()));
        packet
    }

    /// The answer of a machine where nobody listens.
    pub(super) fn reset(&self) -> Vec<u8> {
        const RST_ACK: u8 = 0x14;
        let (from, to) = self.pair;
        let segment = &self.packet[self.ip_header..];
        let sequence = u32::from_be_bytes([segment[4], segment[5], segment[6], segment[7]]);
        let data = segment.len() - (usize::from(segment[12] >> 4) * 4).clamp(TCP_HEADER, segment.len());
        let mut answer = vec![0; TCP_HEADER];
        answer[..2].copy_from_slice(&to.port().to_be_bytes());
        answer[2..4].copy_from_slice(&from.port().to_be_bytes());
        // The SYN counts as one byte.
        let acknowledged = sequence.wrapping_add(1).wrapping_add(data as u32);
        answer[8..12].copy_from_slice(&acknowledged.to_be_bytes());
        answer[12] = (TCP_HEADER as u8 / 4) << 4;
        answer[13] = RST_ACK;
        with_checksum(&mut answer, 16, pseudo_header((to, from), TCP, TCP_HEADER));
        ip((to, from), TCP, &answer)
    }

    /// ICMP "destination unreachable" as answer.
    pub(super) fn unreachable(&self, code: u8) -> Vec<u8> {
        let segment = &self.packet[self.ip_header..];
        unreachable(self.pair, &ip(self.pair, TCP, segment), code)
    }
}

/// ICMP "destination unreachable" as answer to a datagram of this size.
pub(super) fn datagram_unreachable(pair: Pair, size: usize, code: u8) -> Vec<u8> {
    let mut header = [pair.0.port().to_be_bytes(), pair.1.port().to_be_bytes()].concat();
    let length = u16::try_from(size + 8).unwrap_or(u16::MAX);
    header.extend(length.to_be_bytes());
    header.extend([0; 2]);
    unreachable(pair, &ip(pair, UDP, &header), code)
}

fn unreachable((from, to): Pair, about: &[u8], code: u8) -> Vec<u8> {
    const UNREACHABLE: u8 = 3;
    let mut message = vec![UNREACHABLE, code, 0, 0, 0, 0, 0, 0];
    // RFC 792: the packet's header and its first eight bytes.
    message.extend(&about[..about.len().min(IP_HEADER + 8)]);
    // The header that nobody filled in: receivers look at it.
    with_checksum(&mut message[8..8 + IP_HEADER], 10, 0);
    with_checksum(&mut message, 2, 0);
    ip((to, from), ICMP, &message)
}

/// A packet; its header's checksum is left to the kernel.
fn ip((from, to): Pair, protocol: u8, contents: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; IP_HEADER];
    packet[0] = 0x45;
    let length = u16::try_from(IP_HEADER + contents.len()).unwrap_or(u16::MAX);
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet[8] = HOPS;
    packet[9] = protocol;
    packet[12..16].copy_from_slice(&from.ip().octets());
    packet[16..20].copy_from_slice(&to.ip().octets());
    packet.extend(contents);
    packet
}

/// What a TCP checksum covers of the IP header, as a sum of words.
fn pseudo_header((from, to): Pair, protocol: u8, length: usize) -> u32 {
    sum(&from.ip().octets()) + sum(&to.ip().octets()) + u32::from(protocol) + length as u32
}

/// Sets the checksum at an offset (RFC 1071); `sum` is what it covers besides.
fn with_checksum(bytes: &mut [u8], at: usize, covered: u32) {
    bytes[at..at + 2].fill(0);
    let mut total = covered + sum(bytes);
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    let complement = !(total as u16);
    bytes[at..at + 2].copy_from_slice(&complement.to_be_bytes());
}

fn sum(bytes: &[u8]) -> u32 {
    let word = |c: &[u8]| u32::from(c[0]) << 8 | c.get(1).map_or(0, |b| u32::from(*b));
    bytes.chunks(2).map(word).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A SYN as tcpdump showed it: 192.0.2.9:50000 to 198.51.100.7:80, sequence 0x01020304, segment size 1460.
    fn syn() -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 44, 0, 1, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 9, 198, 51, 100, 7];
        packet.extend([0xc3, 0x50, 0, 80, 1, 2, 3, 4, 0, 0, 0, 0, 0x60, 2, 0xfa, 0xf0, 0xde, 0xad, 0, 0]);
        packet.extend([2, 4, 5, 0xb4]);
        packet
    }

    /// Sum over what a checksum covers, the checksum included: zero when it is right.
    fn off(covered: u32, bytes: &[u8]) -> u16 {
        let mut total = covered + sum(bytes);
        while total > 0xffff {
            total = (total & 0xffff) + (total >> 16);
        }
        !(total as u16)
    }

    #[test]
    fn an_opening_is_read_and_sent_again_with_its_checksum() {
        let mut padded = syn();
        padded.extend([0; 6]);
        let opening = Opening::read(&padded).unwrap();
        let (from, to) = ("192.0.2.9:50000".parse().unwrap(), "198.51.100.7:80".parse().unwrap());
        assert_eq!(opening.pair, (from, to));
        let again = opening.again();
        assert_eq!(off(pseudo_header((from, to), TCP, 24), &again[20..]), 0);
        let same = |packet: &[u8]| [&packet[..36], &packet[38..]].concat();
        assert_eq!(same(&again), same(&syn()));
    }

    #[test]
    fn what_is_cut_short_or_something_else_is_none() {
        for length in 0..syn().len() {
            assert_eq!(Opening::read(&syn()[..length]), None, "{length}");
        }
        let with = |at: usize, byte: u8| {
            let mut packet = syn();
            packet[at] = byte;
            Opening::read(&packet)
        };
        assert!(with(0, 0x45).is_some());
        assert_eq!(
            (with(0, 0x65), with(0, 0x44), with(0, 0x4f), with(9, 17), with(3, 39)),
            (None, None, None, None, None)
        );
    }

    #[test]
    fn a_refusal_names_the_connection_that_was_asked_for() {
        let opening = Opening::read(&syn()).unwrap();
        let reset = opening.reset();
        let (from, to) = opening.pair;
        assert_eq!(reset[12..20], [198, 51, 100, 7, 192, 0, 2, 9]);
        assert_eq!(reset[20..24], [0, 80, 0xc3, 0x50]);
        // Acknowledged: one more than the sequence number. Flags: RST and ACK.
        assert_eq!((&reset[28..32], reset[33]), (&[1, 2, 3, 5][..], 0x14));
        assert_eq!(off(pseudo_header((to, from), TCP, 20), &reset[20..]), 0);

        let answer = opening.unreachable(1);
        assert_eq!((answer[9], answer[20], answer[21], answer.len()), (ICMP, 3, 1, 20 + 8 + 28));
        assert_eq!((off(0, &answer[20..]), off(0, &answer[28..48])), (0, 0));
        assert_eq!(answer[40..56], [&syn()[12..20], &syn()[20..28]].concat());

        let answer = datagram_unreachable(opening.pair, 5, 3);
        assert_eq!(answer[40..56], [&syn()[12..20], &[0xc3, 0x50, 0, 80, 0, 13, 0, 0]].concat());
        assert_eq!(off(0, &answer[20..]), 0);
    }
}
