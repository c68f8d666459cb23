//! The one binary: server, agent, command line and demo workload.

fn main() {}
