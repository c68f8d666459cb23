//! Firewalls of others: whether rules on this machine that are not ours drop our traffic, and what to run so that they do not.
//!
//! A drop in any base chain is final, whatever our own chains accept, so the rules of others are read ([`Foreign`]), and packets like
//! ours are sent through them as values ([`judge`]). Nothing is changed but by [`Foreign::insert`] and [`Foreign::remove`], which
//! write accept rules with the comment [`COMMENT`] and take back those alone.

mod evaluate;
mod judge;
mod kernel;
mod packet;
mod remedy;
mod ruleset;
mod traffic;
mod xtables;

pub use self::kernel::{Foreign, is_ours};
pub use self::{
    evaluate::Place,
    judge::{Blocker, Judgement, judge},
    remedy::{COMMENT, Pass, Remedy},
    ruleset::{Chain, Family, Hook, Ruleset, Table},
    traffic::{Ours, Traffic},
};
