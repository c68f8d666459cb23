//! Addresses within the cluster and outside of it, and the name of an ExternalName.

use std::net::IpAddr;

use minisvc_proto::{Cause, Object, names::check_dns_subdomain};

use crate::{
    alloc::Family,
    registry::{
        Ranges,
        service::{EXTERNAL_NAME, families::ip_address, has_node_ports, is_headless, spec, texts, type_of},
    },
};

pub fn faults(old: Option<&Object>, new: &Object, ranges: &Ranges, faults: &mut Vec<Cause>) {
    if type_of(new) == EXTERNAL_NAME {
        let name = spec(new, "externalName");
        let bare = name.text().strip_suffix('.').unwrap_or(name.text());
        if bare.is_empty() {
            faults.push(name.required(""));
        } else if let Err(rule) = check_dns_subdomain(bare) {
            faults.push(name.invalid(rule.0));
        }
    } else if has_node_ports(new) && is_headless(new) {
        let rule = format!("may not be set to 'None' for {} services", type_of(new));
        faults.push(Cause::invalid("spec.clusterIPs[0]", "None", &rule));
    } else {
        let held = old.map(|old| texts(old, "clusterIPs")).unwrap_or_default();
        let list = spec(new, "clusterIPs");
        for ip in list.items().filter(|ip| !held.contains(&ip.text())) {
            let Ok(address) = ip_address(ip.text()) else { continue };
            if let Some(why) = not_given(address, ranges) {
                faults.push(list.invalid(&format!("failed to allocate IP {address}: {why}")));
            }
        }
    }
    for ip in spec(new, "externalIPs").items() {
        match ip_address(ip.text()) {
            Err(rule) => faults.push(ip.invalid(rule)),
            Ok(address) => {
                let rule = special(address).map(str::to_owned).or_else(|| own_range(address, ranges));
                faults.extend(rule.map(|rule| ip.invalid(&rule)));
            }
        }
    }
}

/// Why no service can have this cluster IP.
fn not_given(ip: IpAddr, ranges: &Ranges) -> Option<String> {
    let range = ranges.services_of(Family::of(ip))?;
    if !range.contains(ip) {
        let net = range.net();
        return Some(format!(
            "the provided IP ({ip}) is not in the valid range. The range of valid IPs is {net}"
        ));
    }
    let kept = ip == range.dns();
    if kept {
        return Some("it is the address of the cluster's DNS".into());
    }
    // That of the primary family is the service `kubernetes`, which holds it.
    let first = ip == range.api_server() && range.family() != ranges.services.family();
    first.then(|| "it is kept for the API server".into())
}

/// An address that means something else on each machine, or nothing. [validation.go, ValidateNonSpecialIP]
/// minisvc: no multicast address either, which no connection can be made to.
fn special(ip: IpAddr) -> Option<&'static str> {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    if ip.is_unspecified() {
        Some("may not be unspecified (0.0.0.0 or ::)")
    } else if ip.is_loopback() {
        Some("may not be in the loopback range (127.0.0.0/8, ::1/128)")
    } else if link_local {
        Some("may not be in the link-local range (169.254.0.0/16, fe80::/10)")
    } else if ip.is_multicast() || matches!(ip, IpAddr::V4(ip) if ip.is_broadcast()) {
        Some("may not be in the multicast range (224.0.0.0/4, ff00::/8) or the broadcast address")
    } else {
        None
    }
}

/// minisvc: the cluster's own addresses are no addresses of the outside. One that a service or a pod has would be taken from
/// it.
pub fn own_range(ip: IpAddr, ranges: &Ranges) -> Option<String> {
    let (what, net) = ranges.own().find(|(_, net)| net.contains(&ip))?;
    Some(format!("may not be in the cluster's {what} range ({net})"))
}
