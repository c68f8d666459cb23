//! Whether a foreign source comes back from another node.

use minisvc_agent::source::{probe::Failure, socket::ask};
use minisvc_tests::netns::isolated;

use crate::cluster::Cluster;

#[test]
fn a_probe_comes_back_exactly_where_clients_sources_may_stay() -> anyhow::Result<()> {
    isolated("source::probes::a_probe_comes_back_exactly_where_clients_sources_may_stay", || {
        let mut cluster = Cluster::routed()?;
        let asked = |cluster: &Cluster, from: u8, to: u8| {
            cluster.node(from).block_on(async || Ok(ask(Cluster::pods_of(to)).await))
        };
        cluster.answer_probes()?;
        // The other side does not know this one as an entry.
        for (from, to) in [(1, 2), (1, 3)] {
            assert_eq!(asked(&cluster, from, to)?, Err(Failure::Silent), "{from} to {to}");
        }
        cluster.keep_sources(&[])?;
        for (from, to) in [(1, 2), (2, 1), (1, 3), (3, 2)] {
            assert_eq!(asked(&cluster, from, to)?, Ok(()), "{from} to {to}");
        }
        // A network that drops what is not from the addresses that it knows.
        let rules = "table ip port_security { chain in { type filter hook prerouting priority -400; \
                     iifname eth0 ip daddr 10.244.0.0/16 ip saddr != { 10.244.0.0/16, 192.0.2.11 } drop; }; }";
        cluster.node(2).run("nft", &[rules])?;
        assert_eq!(asked(&cluster, 1, 2)?, Err(Failure::Silent));
        cluster.node(2).run("nft", &["delete", "table", "ip", "port_security"])?;
        assert_eq!(asked(&cluster, 1, 2)?, Ok(()));
        // The way back is gone, and nothing else.
        let rules = "table ip firewall { chain out { type filter hook postrouting priority 0; \
                     oifname eth0 ip saddr 10.244.2.0/24 ip daddr != { 10.244.0.0/16, 192.0.2.0/24 } drop; }; }";
        cluster.node(2).run("nft", &[rules])?;
        assert_eq!(asked(&cluster, 1, 2)?, Err(Failure::Silent));
        Ok(())
    })
}
