//! Answers of resolvers, for as long as they say, but not for long (RFC 1035, section 7.3; RFC 2308 for what does not exist).

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    super::{
        answer::kind,
        question::{HEADER, Records},
    },
    Plain, is_truncated,
};

/// A name that is changed is known here after so long, whatever its owner says.
const LONGEST: Duration = Duration::from_secs(30);
/// Answers of one generation, and their bytes; there are two.
const MOST: usize = 2048;
const MOST_BYTES: usize = 1 << 20;
/// Longer answers are rare and not worth the room.
const LARGEST: usize = 4096;
const NO_ERROR: u8 = 0;
const NO_SUCH_NAME: u8 = 3;

/// Two generations: when the younger is full it becomes the older, and what was the older is forgotten. What is asked for in the
/// older moves to the younger.
#[derive(Debug, Default)]
pub(super) struct Cache {
    young: Generation,
    old: Generation,
}

#[derive(Debug, Default)]
struct Generation {
    answers: HashMap<Plain, Kept>,
    bytes: usize,
}

#[derive(Clone, Debug)]
struct Kept {
    answer: Arc<[u8]>,
    /// Where the times to live are.
    ttls: Arc<[u16]>,
    since: Instant,
    until: Instant,
}

impl Cache {
    /// Keeps an answer if it may be kept.
    pub(super) fn put(&mut self, question: Plain, answer: Arc<[u8]>, now: Instant) {
        if let Some((time, ttls)) = lifetime(&answer) {
            self.insert(question, Kept { answer, ttls, since: now, until: now + time });
        }
    }

    fn insert(&mut self, question: Plain, kept: Kept) {
        let bytes = question.len() + kept.answer.len();
        if self.young.answers.len() >= MOST || self.young.bytes + bytes > MOST_BYTES {
            self.old = std::mem::take(&mut self.young);
        }
        // One that is there already is counted twice: the generation ends earlier.
        self.young.bytes += bytes;
        self.young.answers.insert(question, kept);
    }

    /// An answer with the times to live that are left of it.
    pub(super) fn get(&mut self, question: &[u8], now: Instant) -> Option<Vec<u8>> {
        let kept = if let Some(kept) = self.young.answers.get(question) {
            kept.clone()
        } else {
            let (question, kept) = self.old.answers.remove_entry(question)?;
            if kept.until > now {
                self.insert(question, kept.clone());
            }
            kept
        };
        if kept.until <= now {
            return None;
        }
        let age = u32::try_from(now.saturating_duration_since(kept.since).as_secs()).unwrap_or(u32::MAX);
        let mut answer = kept.answer.to_vec();
        for at in kept.ttls.iter().map(|at| usize::from(*at)) {
            let left = ttl(&answer, at)?.saturating_sub(age);
            answer[at..at + 4].copy_from_slice(&left.to_be_bytes());
        }
        Some(answer)
    }
}

fn ttl(answer: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*answer.get(at..)?.first_chunk()?))
}

/// How long an answer may be kept, and where its times to live are; `None` if it is not for keeping.
fn lifetime(answer: &[u8]) -> Option<(Duration, Arc<[u16]>)> {
    let header: &[u8; HEADER] = answer.first_chunk()?;
    let code = header[3] & 0x0f;
    if answer.len() > LARGEST || is_truncated(answer) || ![NO_ERROR, NO_SUCH_NAME].contains(&code) {
        return None;
    }
    let count = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let mut records = Records { message: answer, at: HEADER };
    for _ in 0..count(4) {
        records.at = records.skip_name(records.at)? + 4;
    }
    let (mut ttls, mut least, mut authority) = (Vec::new(), u32::MAX, false);
    for (section, count) in [count(6), count(8), count(10)].into_iter().enumerate() {
        for _ in 0..count {
            let record = records.next()?;
            if record.kind == kind::OPT {
                // The upper bits of the code are here.
                if record.ttl[0] != 0 {
                    return None;
                }
                continue;
            }
            ttls.push(u16::try_from(record.ttl_at).ok()?);
            // Values with the highest bit are as good as none (RFC 2181, section 8).
            let of = |ttl: u32| if ttl > i32::MAX as u32 { 0 } else { ttl };
            least = least.min(of(u32::from_be_bytes(record.ttl)));
            if section == 1 && record.kind == kind::SOA {
                authority = true;
                least = least.min(of(ttl(answer, record.end.checked_sub(4)?)?));
            }
        }
    }
    // That there is nothing is known for as long as the zone says, or not at all.
    let nothing = count(6) == 0 || code == NO_SUCH_NAME;
    if (nothing && !authority) || least == 0 {
        return None;
    }
    Some((LONGEST.min(Duration::from_secs(least.into())), ttls.into()))
}

#[cfg(test)]
mod tests {
    use hickory_proto::{
        op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
        rr::{
            Name, RData, Record, RecordType,
            rdata::{A, SOA},
        },
    };

    use super::*;

    /// An answer with these times to live, and an SOA record with the time and its own for what does not exist.
    fn answer(ttls: &[u32], soa: Option<(u32, u32)>, change: impl Fn(&mut Message)) -> Arc<[u8]> {
        let name = Name::from_ascii("www.example.com.").unwrap();
        let mut message = Message::new(1, MessageType::Response, OpCode::Query);
        message.add_query(Query::query(name.clone(), RecordType::A));
        for ttl in ttls {
            message.add_answer(Record::from_rdata(name.clone(), *ttl, RData::A(A::new(192, 0, 2, 1))));
        }
        if let Some((ttl, minimum)) = soa {
            let zone = Name::from_ascii("example.com.").unwrap();
            let data = SOA::new(zone.clone(), zone.clone(), 1, 2, 3, 4, minimum);
            message.add_authority(Record::from_rdata(zone, ttl, RData::SOA(data)));
        }
        let mut edns = Edns::new();
        edns.set_max_payload(1232);
        message.set_edns(edns);
        change(&mut message);
        message.to_vec().unwrap().into()
    }

    #[test]
    fn an_answer_says_how_long_it_may_be_kept() {
        let seconds = |a: Arc<[u8]>| lifetime(&a).map(|(time, _)| time.as_secs());
        let nothing = |_: &mut Message| {};
        let absent = |m: &mut Message| m.metadata.response_code = ResponseCode::NXDomain;
        assert_eq!(seconds(answer(&[20, 7], None, nothing)), Some(7));
        assert_eq!(seconds(answer(&[3600], None, nothing)), Some(30));
        assert_eq!(seconds(answer(&[9, 0], None, nothing)), None);
        assert_eq!(seconds(answer(&[9, 1 << 31], None, nothing)), None);
        assert_eq!(seconds(answer(&[], Some((20, 9)), absent)), Some(9));
        assert_eq!(seconds(answer(&[], Some((8, 900)), nothing)), Some(8));
        assert_eq!(seconds(answer(&[], None, absent)), None);
        assert_eq!(seconds(answer(&[], None, nothing)), None);
        // An alias to a name that does not exist.
        assert_eq!(seconds(answer(&[20], Some((20, 9)), absent)), Some(9));
        assert_eq!(seconds(answer(&[20], None, absent)), None);
        assert_eq!(seconds(answer(&[20], None, |m| m.metadata.truncation = true)), None);
        assert_eq!(seconds(answer(&[20], None, |m| m.metadata.response_code = ResponseCode::ServFail)), None);
        assert_eq!(seconds(answer(&[20], None, |m| m.metadata.response_code = ResponseCode::BADVERS)), None);
        let whole = answer(&[20, 7], Some((20, 9)), nothing);
        for length in 0..whole.len() {
            assert!(lifetime(&whole[..length]).is_none(), "cut to {length}");
        }
    }

    #[test]
    fn what_is_kept_grows_old_and_is_forgotten() {
        let began = Instant::now();
        let at = |seconds: u64| began + Duration::from_secs(seconds);
        let mut cache = Cache::default();
        cache.put((*b"q").into(), answer(&[20, 12], Some((25, 900)), |_| {}), began);
        let read = |bytes: Vec<u8>| Message::from_vec(&bytes).unwrap();
        let later = read(cache.get(b"q", at(5)).unwrap());
        assert_eq!(later.answers.iter().map(|r| r.ttl).collect::<Vec<_>>(), [15, 7]);
        assert_eq!(later.authorities[0].ttl, 20);
        // The other fields of an OPT record are no time.
        assert_eq!(later.max_payload(), 1232);
        assert!(cache.get(b"other", at(5)).is_none());
        assert!(cache.get(b"q", at(12)).is_none());
    }

    #[test]
    fn room_is_bounded_and_what_is_asked_for_stays() {
        let now = Instant::now();
        let mut cache = Cache::default();
        let one = answer(&[20], None, |_| {});
        let key = |n: usize| Plain::from(n.to_be_bytes());
        for n in 0..10 * MOST {
            cache.put(key(n), one.clone(), now);
            assert!(cache.get(&key(0), now).is_some(), "after {n}");
        }
        assert!(cache.young.answers.len() <= MOST && cache.old.answers.len() <= MOST);
        assert!(cache.get(&key(1), now).is_none());
        let large = answer(&[20; 200], None, |_| {});
        assert!(large.len() > 3000);
        for n in 0..MOST {
            cache.put(key(n), large.clone(), now);
            assert!(cache.young.bytes <= MOST_BYTES && cache.old.bytes <= MOST_BYTES);
        }
        let largest = answer(&[20; 300], None, |_| {});
        assert!(largest.len() > LARGEST);
        cache.put((*b"largest").into(), largest, now);
        assert!(cache.get(b"largest", now).is_none());
    }
}
