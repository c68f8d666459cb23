use std::{collections::BTreeSet, net::IpAddr, ops::RangeInclusive};

use ipnet::IpNet;
use proptest::prelude::*;

use super::*;

fn range(net: &str) -> ServiceRange {
    ServiceRange::new(net.parse::<IpNet>().unwrap()).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn the_default_ranges_have_the_bands_of_kubernetes() {
    let services = range("10.96.0.0/16");
    assert_eq!((services.api_server(), services.dns()), (ip("10.96.0.1"), ip("10.96.0.10")));
    assert_eq!(services.bands().fixed, 256);
    assert_eq!(services.pick(0, |_| false), Ok(ip("10.96.1.1")), "the first above the static band");
    let ports = NodePortRange::new(30000..=32767).unwrap();
    assert_eq!(ports.pick(0, |_| false), Ok(30086), "30000-30085 is the static band");
    assert_eq!(ports.to_string(), "30000-32767");
}

#[test]
fn a_range_of_the_second_family_has_the_same_bands() {
    let services = range("fd69:6d69:6e69:ffff::/112");
    assert_eq!(services.family(), Family::V6);
    assert_eq!(services.api_server(), ip("fd69:6d69:6e69:ffff::1"));
    assert_eq!(services.dns(), ip("fd69:6d69:6e69:ffff::a"));
    assert_eq!(services.bands().fixed, 256);
    assert_eq!(
        services.pick(0, |_| false),
        Ok(ip("fd69:6d69:6e69:ffff::101")),
        "the first above the static band"
    );
    assert_eq!(
        services.pick(65_278, |_| false),
        Ok(ip("fd69:6d69:6e69:ffff::ffff")),
        "there is no broadcast"
    );
    assert!(
        services.contains(ip("fd69:6d69:6e69:ffff::2")) && !services.contains(ip("fd69:6d69:6e69:ffff::"))
    );
    assert!(!services.contains(ip("10.96.0.2")) && !range("10.96.0.0/16").contains(ip("::10.96.0.2")));
    // The largest: numbers of 64 random bits reach all of it.
    let large = range("fd00:0:0:1::/64");
    assert_eq!(
        large.pick(u64::MAX, |_| false),
        Ok(ip("fd00:0:0:1::201")),
        "past the end it goes on from the start of the band"
    );
    assert_eq!(large.pick(1 << 63, |_| false), Ok(ip("fd00:0:0:1:8000::101")));
}

#[test]
fn what_has_no_room_is_refused() {
    for (net, why) in [
        ("10.0.0.0/29", "service range 10.0.0.0/29 is too small: at least /28 is needed"),
        ("fd00::/125", "service range fd00::/125 is too small: at least /124 is needed"),
        ("fd00::/63", "service range fd00::/63 is too large: at most /64 can be had"),
    ] {
        assert_eq!(ServiceRange::new(net.parse::<IpNet>().unwrap()).unwrap_err().to_string(), why);
    }
    assert_eq!(NodePortRange::new(0..=10), None);
    let empty = RangeInclusive::new(2, 1);
    assert_eq!(NodePortRange::new(empty), None);
    assert_eq!(NodePortRange::new(5..=5).unwrap().pick(7, |_| true), Err(Full));
}

proptest! {
    #[test]
    fn every_address_is_given_once_the_upper_band_first(bits in 4_u8..=10, v6 in any::<bool>(), seeds in any::<u64>()) {
        let range = if v6 { range(&format!("fd00::/{}", 128 - bits)) } else { range(&format!("10.0.0.0/{}", 32 - bits)) };
        let mut taken = BTreeSet::new();
        let mut seed = seeds;
        let dynamic_from = range.bands().first + range.bands().fixed;
        let mut lower_begun = false;
        while let Ok(ip) = range.pick(seed, |ip| taken.contains(&ip)) {
            prop_assert!(range.contains(ip) && taken.insert(ip));
            prop_assert!(ip != range.api_server() && ip != range.dns());
            let number = match ip {
                IpAddr::V4(ip) => u128::from(u32::from(ip)),
                IpAddr::V6(ip) => u128::from(ip),
            };
            lower_begun |= number < dynamic_from;
            prop_assert!(!(lower_begun && number >= dynamic_from), "the static band came too early");
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        }
        prop_assert_eq!(taken.len() as u128, range.bands().size() - 2);
    }

    #[test]
    fn every_port_is_given_once(first in 1_u16..2000, size in 1_u16..400, seed in any::<u64>()) {
        let range = NodePortRange::new(first..=first + size - 1).unwrap();
        let mut taken = BTreeSet::new();
        while let Ok(port) = range.pick(seed, |p| taken.contains(&p)) {
            prop_assert!(range.contains(port) && taken.insert(port));
        }
        prop_assert_eq!(taken.len(), usize::from(size));
    }
}

#[test]
fn each_node_gets_the_first_free_part_of_the_pod_range() {
    let net = |s: &str| s.parse::<IpNet>().unwrap();
    let range = PodRange::new(net("10.244.3.0/22")).unwrap();
    let first = net("10.244.0.0/24");
    assert_eq!(range.pick(|_| false), Ok(first));
    assert_eq!(range.pick(|p| p == first), Ok(net("10.244.1.0/24")));
    assert_eq!(range.pick(|_| true), Err(Full));
    for (cidr, part) in [
        ("10.244.3.0/24", true),
        ("10.244.4.0/24", false),
        ("10.244.3.1/24", false),
        ("10.244.2.0/23", false),
    ] {
        assert_eq!(range.is_part(net(cidr)), part, "{cidr}");
    }
    assert!(PodRange::new(net("10.244.0.0/25")).is_err());
    let range = PodRange::new(net("fd00:1::/48")).unwrap();
    assert_eq!(range.pick(|p| p == net("fd00:1::/64")), Ok(net("fd00:1:0:1::/64")));
    assert!(range.is_part(net("fd00:1:0:ffff::/64")) && !range.is_part(net("fd00:2::/64")));
    assert!(!range.is_part(net("10.244.3.0/24")) && PodRange::new(net("fd00:1::/65")).is_err());
}
