//! Thin layers over system calls.

pub mod netlink;
