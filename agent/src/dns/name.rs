//! Names as they are on the wire (RFC 1035, section 3.1), in lower case, so that comparing bytes compares names.

use std::net::IpAddr;

/// Bytes of the longest name, the root's zero included.
const LONGEST: usize = 255;
const LONGEST_LABEL: usize = 63;
/// Labels of the longest name, the root not included.
const MOST_LABELS: usize = 127;

/// A name that was asked for, on the stack.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    bytes: [u8; LONGEST],
    length: usize,
    /// Where each label's length byte is.
    starts: [u8; MOST_LABELS],
    labels: usize,
}

impl Asked {
    /// Reads a name that is not compressed, as the first in a message cannot be, and says where it ends.
    pub(super) fn read(message: &[u8], at: usize) -> Option<(Self, usize)> {
        let mut name = Asked { bytes: [0; LONGEST], length: 0, starts: [0; MOST_LABELS], labels: 0 };
        let mut from = at;
        loop {
            let label = usize::from(*message.get(from)?);
            if label > LONGEST_LABEL || name.length + 1 + label > LONGEST {
                return None;
            }
            if label == 0 {
                name.length += 1;
                return Some((name, from + 1));
            }
            let text = message.get(from..=from + label)?;
            *name.starts.get_mut(name.labels)? = u8::try_from(name.length).ok()?;
            let place = &mut name.bytes[name.length..=name.length + label];
            place.copy_from_slice(text);
            // The length byte is below `A`.
            place.make_ascii_lowercase();
            name.length += 1 + label;
            name.labels += 1;
            from += 1 + label;
        }
    }

    /// Without the root.
    pub(super) fn labels(&self) -> usize {
        self.labels
    }

    /// A label's text.
    pub(super) fn label(&self, number: usize) -> &[u8] {
        let from = self.start(number);
        &self.bytes[from + 1..self.start(number + 1)]
    }

    /// Where a label begins; the root is the last.
    pub(super) fn start(&self, number: usize) -> usize {
        if number < self.labels { usize::from(self.starts[number]) } else { self.length - 1 }
    }

    /// The labels before this one, without the root.
    pub(super) fn before(&self, number: usize) -> &[u8] {
        &self.bytes[..self.start(number)]
    }

    /// This label and all that follow, the root included.
    pub(super) fn from(&self, number: usize) -> &[u8] {
        &self.bytes[self.start(number)..self.length]
    }

    /// How many labels stand before this suffix, which has `labels` labels; `None` if it is none.
    pub(super) fn below(&self, suffix: &[u8], labels: usize) -> Option<usize> {
        let number = self.labels.checked_sub(labels)?;
        (self.from(number) == suffix).then_some(number)
    }
}

/// A whole name on the wire, from text with or without a dot at its end; `None` if there is no such name.
pub(super) fn encode(text: &str) -> Option<Vec<u8>> {
    let text = text.strip_suffix('.').unwrap_or(text);
    let mut name = Vec::with_capacity(text.len() + 2);
    for label in text.split('.').filter(|_| !text.is_empty()) {
        push(&mut name, label)?;
    }
    name.push(0);
    (name.len() <= LONGEST).then_some(name)
}

/// Adds one label.
pub(super) fn push(name: &mut Vec<u8>, label: &str) -> Option<()> {
    let length = u8::try_from(label.len()).ok().filter(|l| (1..=LONGEST_LABEL).contains(&usize::from(*l)))?;
    name.push(length);
    name.extend(label.bytes().map(|b| b.to_ascii_lowercase()));
    Some(())
}

/// Whether labels before a whole name make a name that is not too long.
pub(super) fn fits(before: &[u8], name: &[u8]) -> bool {
    before.len() + name.len() <= LONGEST
}

/// How many labels a whole name on the wire has.
pub(super) fn count(name: &[u8]) -> usize {
    Asked::read(name, 0).map_or(0, |(n, _)| n.labels())
}

/// The label that stands for an endpoint without a host name: its address, with dashes.
pub(super) fn dashed(ip: IpAddr) -> String {
    let text = ip.to_string();
    let label = text.replace(['.', ':'], "-");
    match ip {
        // A label neither begins nor ends with a dash.
        IpAddr::V6(ip) if label.starts_with('-') || label.ends_with('-') => {
            ip.segments().map(|s| format!("{s:x}")).join("-")
        }
        _ => label,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_label_by_label() {
        let message = b"..\x03WeB\x01a\x00rest";
        let (name, end) = Asked::read(message, 2).unwrap();
        assert_eq!((name.labels(), end), (2, 9));
        assert_eq!((name.label(0), name.label(1)), (&b"web"[..], &b"a"[..]));
        assert_eq!((name.before(1), name.from(1)), (&b"\x03web"[..], &b"\x01a\x00"[..]));
        assert_eq!(name.below(b"\x01a\x00", 1), Some(1));
        assert_eq!(name.below(b"\x00", 0), Some(2));
        assert_eq!(name.below(b"\x01b\x00", 1), None);
        assert_eq!(name.below(b"\x01x\x03web\x01a\x00", 3), None);
        assert_eq!(encode("Web.A.").unwrap(), b"\x03web\x01a\x00");
        assert_eq!(encode("").unwrap(), b"\x00");
        assert_eq!(count(&encode("a.b.c").unwrap()), 3);
        for bad in [&b"\x03we"[..], b"\xc0\x0c", b"\x40", b"", b"\x01a"] {
            assert!(Asked::read(bad, 0).is_none(), "{bad:?}");
        }
        let long = "a".repeat(63);
        assert!(encode(&long).is_some() && encode(&format!("{long}a")).is_none() && encode("a..b").is_none());
        let longest = [&*long, &long, &long, &"a".repeat(61)].join(".");
        let wire = encode(&longest).unwrap();
        assert_eq!((wire.len(), Asked::read(&wire, 0).unwrap().1), (LONGEST, LONGEST));
        assert!(encode(&format!("{longest}a")).is_none());
        let most = encode(&["a"; MOST_LABELS].join(".")).unwrap();
        assert_eq!(Asked::read(&most, 0).unwrap().0.labels(), MOST_LABELS);
        let more = [&b"\x01a"[..], &most].concat();
        assert!(Asked::read(&more, 0).is_none());
    }

    #[test]
    fn addresses_become_labels() {
        for (ip, label) in [
            ("10.244.0.2", "10-244-0-2"),
            ("fd69::2", "fd69--2"),
            ("::1", "0-0-0-0-0-0-0-1"),
            ("fd69::", "fd69-0-0-0-0-0-0-0"),
        ] {
            assert_eq!(dashed(ip.parse().unwrap()), label);
        }
    }
}
