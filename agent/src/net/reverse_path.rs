//! Whether this machine's settings let pods answer through other nodes. Pure. [Documentation/networking/ip-sysctl.rst]
//!
//! Such an answer has a mark when the kernel asks whether its sender is where it came from (`rp_filter`). With `src_valid_mark` the
//! question is asked with the mark, whose way leads to another link; and a link without an IPv4 address, as those of pods are, is
//! given no second chance by the loose setting either. [net/ipv4/fib_frontend.c, __fib_validate_source]

use std::fmt;

/// A setting of IPv4 links: what counts for all of them, and what a new link begins with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Setting {
    /// `net.ipv4.conf.all`.
    pub all: u32,
    /// `net.ipv4.conf.default`.
    pub default: u32,
}

impl Setting {
    /// Which of the two switches it on for pods' links.
    fn on(self) -> Option<&'static str> {
        match self {
            Setting { all: 1.., .. } => Some("all"),
            Setting { default: 1.., .. } => Some("default"),
            _ => None,
        }
    }
}

/// The settings that decide.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReversePath {
    /// 0: off, 1: strict, 2: loose; the greater one counts.
    pub rp_filter: Setting,
    /// 1: with the packet's mark; either is enough.
    pub src_valid_mark: Setting,
}

/// Why the kernel drops what pods answer through other nodes, and what to set. Its text is for administrators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hindrance {
    filter: &'static str,
    mark: &'static str,
}

impl ReversePath {
    /// What stands in the way; `None`: nothing.
    pub fn hindrance(self) -> Option<Hindrance> {
        Some(Hindrance { filter: self.rp_filter.on()?, mark: self.src_valid_mark.on()? })
    }
}

impl fmt::Display for Hindrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Hindrance { filter, mark } = self;
        write!(
            f,
            "net.ipv4.conf.{filter}.rp_filter drops what they answer through others, as net.ipv4.conf.{mark}.src_valid_mark is 1: \
             set net.ipv4.conf.{mark}.src_valid_mark=0"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_asks_with_the_mark_is_named_with_the_setting_that_helps() {
        let of = |all, default| Setting { all, default };
        let off = of(0, 0);
        for (rp_filter, src_valid_mark, wanted) in [
            (off, off, None),
            (of(1, 1), off, None),
            (of(2, 2), off, None),
            (off, of(1, 1), None),
            (of(1, 0), of(1, 0), Some(("all", "all"))),
            (of(2, 2), of(1, 1), Some(("all", "all"))),
            (of(0, 2), of(1, 0), Some(("default", "all"))),
            (of(2, 0), of(0, 1), Some(("all", "default"))),
        ] {
            let hindrance = ReversePath { rp_filter, src_valid_mark }.hindrance();
            assert_eq!(hindrance.map(|h| (h.filter, h.mark)), wanted, "{rp_filter:?} {src_valid_mark:?}");
        }
        let wg_quick = ReversePath { rp_filter: of(2, 2), src_valid_mark: of(1, 0) }.hindrance().unwrap();
        assert!(wg_quick.to_string().ends_with(": set net.ipv4.conf.all.src_valid_mark=0"), "{wg_quick}");
    }
}
