use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn range(net: &str) -> ServiceRange {
    ServiceRange::new(net.parse().unwrap()).unwrap()
}

#[test]
fn the_default_ranges_have_the_bands_of_kubernetes() {
    let services = range("10.96.0.0/16");
    assert_eq!(services.api_server(), Ipv4Addr::new(10, 96, 0, 1));
    assert_eq!(services.dns(), Ipv4Addr::new(10, 96, 0, 10));
    assert_eq!(services.bands.fixed, 256);
    assert_eq!(
        services.pick(0, |_| false),
        Ok(Ipv4Addr::new(10, 96, 1, 1)),
        "the first above the static band"
    );
    let ports = NodePortRange::new(30000..=32767).unwrap();
    assert_eq!(ports.pick(0, |_| false), Ok(30086), "30000-30085 is the static band");
    assert_eq!(ports.to_string(), "30000-32767");
}

#[test]
fn what_has_no_room_is_refused() {
    assert!(ServiceRange::new("10.0.0.0/29".parse().unwrap()).is_err());
    assert_eq!(NodePortRange::new(0..=10), None);
    let empty = RangeInclusive::new(2, 1);
    assert_eq!(NodePortRange::new(empty), None);
    assert_eq!(NodePortRange::new(5..=5).unwrap().pick(7, |_| true), Err(Full));
}

proptest! {
    #[test]
    fn every_address_is_given_once_the_upper_band_first(prefix in 22_u8..=28, seeds in any::<u32>()) {
        let range = range(&format!("10.0.0.0/{prefix}"));
        let mut taken = BTreeSet::new();
        let mut seed = seeds;
        let dynamic_from = range.bands.first + range.bands.fixed;
        let mut lower_begun = false;
        while let Ok(ip) = range.pick(seed, |ip| taken.contains(&ip)) {
            prop_assert!(range.contains(ip) && taken.insert(ip));
            prop_assert!(ip != range.api_server() && ip != range.dns());
            lower_begun |= u32::from(ip) < dynamic_from;
            prop_assert!(!(lower_begun && u32::from(ip) >= dynamic_from), "the static band came too early");
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        }
        prop_assert_eq!(taken.len() as u32, range.bands.size() - 2);
    }

    #[test]
    fn every_port_is_given_once(first in 1_u16..2000, size in 1_u16..400, seed in any::<u32>()) {
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
    let net = |s: &str| s.parse::<Ipv4Net>().unwrap();
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
}
