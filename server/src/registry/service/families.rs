//! Which address families a service has: ipFamilyPolicy, ipFamilies and clusterIPs say one thing in three ways (KEP-563).
//! [pkg/registry/core/service/storage/alloc.go, initIPFamilyFields; validation.go, ValidateServiceClusterIPsRelatedFields]

use std::{collections::BTreeSet, net::IpAddr};

use minisvc_proto::{Cause, Object};
use serde_json::{Value, json};

use super::{NONE, has_cluster_ip, inherit::one_address, is_headless, spec, texts, type_of};
use crate::{alloc::Family, registry::Ranges};

const SINGLE: &str = "SingleStack";
const PREFER: &str = "PreferDualStack";
const REQUIRE: &str = "RequireDualStack";
const POLICIES: [&str; 3] = [PREFER, REQUIRE, SINGLE];

/// The endpoints of such a service are its owner's business, of whatever family they are.
fn is_headless_without_selector(service: &Object) -> bool {
    is_headless(service) && !spec(service, "selector").is_set()
}

fn is_same(old: &Object, new: &Object, field: &str) -> bool {
    spec(old, field).value == spec(new, field).value
}

/// Who leaves out one of two addresses or families without asking for one alone.
fn is_reduced(old: &Object, new: &Object, field: &str) -> bool {
    let now = texts(new, field).len();
    now > 0 && now < texts(old, field).len()
}

/// A preference is followed when it is expressed, not when the cluster changes.
fn keeps_preference(old: &Object, new: &Object) -> bool {
    type_of(old) == type_of(new)
        && [old, new].iter().all(|s| spec(s, "ipFamilyPolicy").text() == PREFER)
        && is_same(old, new, "clusterIPs")
        && is_same(old, new, "ipFamilies")
}

/// Fills what the user left out of the three fields. What contradicts itself stays as it is, for [`faults`] to name.
pub fn settle(old: Option<&Object>, new: &mut Object, ranges: &Ranges) {
    one_address(new);
    if !has_cluster_ip(new) || old.is_some_and(|old| keeps_preference(old, new)) {
        return;
    }
    if spec(new, "ipFamilyPolicy").value.is_none() {
        let policy = match old.map(|old| spec(old, "ipFamilyPolicy").text()) {
            Some(kept) if !kept.is_empty() => kept,
            _ if is_headless_without_selector(new) => REQUIRE,
            _ => SINGLE,
        };
        new.spec_mut().insert("ipFamilyPolicy".into(), policy.into());
    }
    let single = spec(new, "ipFamilyPolicy").text() == SINGLE;
    if let Some(old) = old {
        for field in ["clusterIPs", "ipFamilies"] {
            if single && is_same(old, new, field) {
                // The second one was only sent back: the policy says what is meant.
                if let Some(Value::Array(list)) = new.spec_mut().get_mut(field) {
                    list.truncate(1);
                }
            } else if !single && is_reduced(old, new, field) {
                return;
            }
        }
    }
    let mut families: Vec<String> = texts(new, "ipFamilies").into_iter().map(str::to_owned).collect();
    let most = if single { 1 } else { 2 };
    for ip in texts(new, "clusterIPs").into_iter().take(most).skip(families.len()) {
        let family = ip.parse().ok().map(Family::of).filter(|f| ranges.services_of(*f).is_some());
        let Some(family) = family.filter(|f| !families.iter().any(|known| known == f.name())) else {
            break;
        };
        families.push(family.name().to_owned());
    }
    if families.is_empty() && texts(new, "clusterIPs").iter().all(|ip| *ip == NONE) {
        families.push(ranges.services.family().name().to_owned());
    }
    let both = ranges.services6.is_some() || is_headless_without_selector(new);
    if let [only] = families.as_slice()
        && let Some(family) = Family::named(only)
        && both
        && [PREFER, REQUIRE].contains(&spec(new, "ipFamilyPolicy").text())
    {
        families.push(family.other().name().to_owned());
    }
    if !families.is_empty() {
        new.spec_mut().insert("ipFamilies".into(), json!(families));
    }
}

/// Every fault of the three fields, and of their change.
pub fn faults(old: Option<&Object>, new: &Object, ranges: &Ranges) -> Vec<Cause> {
    let (policy, families) = (spec(new, "ipFamilyPolicy"), spec(new, "ipFamilies"));
    if !has_cluster_ip(new) {
        let why = "may not be set for ExternalName services";
        let set = ["clusterIPs", "ipFamilies", "ipFamilyPolicy"].map(|field| spec(new, field));
        return set.iter().filter(|f| f.value.is_some()).map(|f| f.forbidden(why)).collect();
    }
    let mut faults = Vec::new();
    faults.extend(policy.one_of(&POLICIES));
    let mut seen = BTreeSet::new();
    for family in families.items() {
        match family.one_of(&["IPv4", "IPv6"]) {
            Some(fault) => faults.push(fault),
            None if !seen.insert(family.text()) => faults.push(Cause::duplicate(&family.path, family.text())),
            None => {}
        }
    }
    let well_formed = faults.is_empty();
    let addresses = address_faults(new);
    let legible = addresses.is_empty();
    faults.extend(addresses);
    if !(well_formed && legible) {
        return faults;
    }
    if let Some(old) = old {
        faults.extend(changed(old, new));
    }
    if faults.is_empty() {
        faults.extend(not_to_be_had(old, new, ranges));
    }
    faults
}

/// clusterIP and clusterIPs by themselves, and against the families that are named.
fn address_faults(new: &Object) -> Vec<Cause> {
    let (one, list) = (spec(new, "clusterIP"), spec(new, "clusterIPs"));
    let all = texts(new, "clusterIPs");
    let mut faults = Vec::new();
    match all.first() {
        None if one.is_set() => faults.push(list.required("")),
        Some(_) if !one.is_set() => {
            faults.push(list.invalid("must be empty when `clusterIP` is not specified"));
        }
        Some(first) if *first != one.text() => {
            faults.push(list.invalid("first value must match `clusterIP`"));
        }
        _ => {}
    }
    if all.len() > 2 {
        faults.push(list.invalid("may only hold up to 2 values"));
    }
    if all.first() == Some(&NONE) {
        if all.len() > 1 {
            faults.push(list.invalid("'None' must be the first and only value"));
        }
        return faults;
    }
    let mut ips = Vec::new();
    for ip in list.items() {
        match ip_address(ip.text()) {
            Ok(address) => ips.push((ip, address)),
            Err(rule) => faults.push(ip.invalid(rule)),
        }
    }
    if !faults.is_empty() {
        return faults;
    }
    let given: BTreeSet<Family> = ips.iter().map(|(_, ip)| Family::of(*ip)).collect();
    if given.len() < ips.len() {
        faults.push(list.invalid("may specify no more than one IP for each IP family"));
        return faults;
    }
    for (i, ((ip, address), family)) in ips.iter().zip(texts(new, "ipFamilies")).enumerate() {
        if Family::named(family).is_some_and(|family| family != Family::of(*address)) {
            let rule = format!("expected an {family} value as indicated by `ipFamilies[{i}]`");
            faults.push(ip.invalid(&rule));
        }
    }
    faults
}

/// [validation.IsValidIP]
pub fn ip_address(text: &str) -> Result<IpAddr, &'static str> {
    match text.parse() {
        Ok(IpAddr::V6(ip)) if ip.to_ipv4_mapped().is_some() => Err("must not be an IPv4-mapped IPv6 address"),
        Ok(ip) => Ok(ip),
        Err(_) => Err("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"),
    }
}

/// What an update may not do with addresses and families: the first of them is for life, the second comes and goes with the
/// policy. Moving to and from ExternalName changes all. [validateUpgradeDowngradeClusterIPs, validateUpgradeDowngradeIPFamilies]
fn changed(old: &Object, new: &Object) -> Vec<Cause> {
    const FIXED: &str = "may not change once set";
    if !has_cluster_ip(old) || (is_headless(old) && is_headless(new)) {
        return Vec::new();
    }
    let mut faults = Vec::new();
    let (before, after) = (texts(old, "clusterIPs"), texts(new, "clusterIPs"));
    let whole = spec(new, "clusterIPs").value.cloned().unwrap_or_default();
    for (i, (was, is)) in before.iter().zip(&after).enumerate() {
        if was != is {
            faults.push(Cause::invalid(format!("spec.clusterIPs[{i}]"), whole.clone(), FIXED));
        }
    }
    let policy = spec(new, "ipFamilyPolicy");
    if policy.text() != SINGLE && faults.is_empty() {
        for (field, what) in [("clusterIPs", "cluster IP"), ("ipFamilies", "IP family")] {
            if is_reduced(old, new, field) {
                let rule = format!("must be 'SingleStack' to release the secondary {what}");
                faults.push(policy.invalid(&rule));
            }
        }
    }
    let families = spec(new, "ipFamilies");
    let first = |service: &Object| texts(service, "ipFamilies").first().map(|f| (*f).to_owned());
    if is_headless(old) == is_headless(new)
        && let (Some(was), Some(is)) = (first(old), first(new))
        && was != is
        && faults.is_empty()
    {
        let value = families.value.cloned().unwrap_or_default();
        faults.push(Cause::invalid("spec.ipFamilies[0]", value, FIXED));
    }
    faults
}

/// What this cluster does not have. What an update leaves as it was is not asked again: the cluster may have changed since.
fn not_to_be_had(old: Option<&Object>, new: &Object, ranges: &Ranges) -> Vec<Cause> {
    let (policy, families) = (spec(new, "ipFamilyPolicy"), spec(new, "ipFamilies"));
    let mut faults = Vec::new();
    if policy.text() == SINGLE {
        for (field, what) in [("clusterIPs", "cluster IPs"), ("ipFamilies", "IP families")] {
            if texts(new, field).len() > 1 {
                let rule = format!(
                    "must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified"
                );
                faults.push(policy.invalid(&rule));
            }
        }
        if !faults.is_empty() {
            return faults;
        }
    }
    let all = ["clusterIPs", "ipFamilies", "ipFamilyPolicy"];
    let unchanged = old.is_some_and(|old| all.iter().all(|field| is_same(old, new, field)));
    if is_headless_without_selector(new) || unchanged {
        return faults;
    }
    if policy.text() == REQUIRE && ranges.services6.is_none() {
        faults.push(policy.invalid("this cluster is not configured for dual-stack services"));
    }
    for family in families.items() {
        if Family::named(family.text()).is_some_and(|f| ranges.services_of(f).is_none()) {
            faults.push(family.invalid("not configured on this cluster"));
        }
    }
    for ip in spec(new, "clusterIPs").items().skip(families.items().count()) {
        if let Ok(family) = ip.text().parse().map(Family::of) {
            faults.push(ip.invalid(&format!("{family} is not configured on this cluster")));
        }
    }
    faults
}
