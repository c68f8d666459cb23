//! Address families, in a cluster with one and in a cluster with both.

use super::*;

const V4: &str = "10.96.1.1";
const V6: &str = "fd69:6d69:6e69:ffff::102";
/// Of a service whose IPv6 address is the first that is drawn.
const ONLY_V6: &str = "fd69:6d69:6e69:ffff::101";

/// Policy, families and addresses.
type Families = (String, Vec<String>, Vec<String>);

/// What comes of it, or the faults.
fn made(spec: Value, ranges: &Ranges) -> Result<Families, Vec<String>> {
    write(None, spec, ranges, &[]).map(|s| summary(&s))
}

fn summary(s: &Object) -> Families {
    let list = |field| texts(s, field).into_iter().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(s.str_at("/spec/clusterIP"), texts(s, "clusterIPs").first().copied());
    (s.str_at("/spec/ipFamilyPolicy").unwrap_or("").to_owned(), list("ipFamilies"), list("clusterIPs"))
}

fn is(policy: &str, families: &[&str], ips: &[&str]) -> Families {
    let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
    (policy.to_owned(), owned(families), owned(ips))
}

#[test]
fn a_new_service_has_the_families_it_asks_for() {
    let (one, two) = (ranges(), dual_ranges());
    let ports = json!([{"port": 80}]);
    let not_dual = "FieldValueInvalid spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services";
    for (ranges, wish, expected) in [
        (&one, json!({}), Ok(is("SingleStack", &["IPv4"], &[V4]))),
        (&two, json!({}), Ok(is("SingleStack", &["IPv4"], &[V4]))),
        (&two, json!({"ipFamilies": ["IPv6"]}), Ok(is("SingleStack", &["IPv6"], &[ONLY_V6]))),
        (
            &two,
            json!({"clusterIP": "FD69:6d69:6e69:FFFF:0:0:0:7"}),
            Ok(is("SingleStack", &["IPv6"], &["fd69:6d69:6e69:ffff::7"])),
        ),
        (&one, json!({"ipFamilyPolicy": "PreferDualStack"}), Ok(is("PreferDualStack", &["IPv4"], &[V4]))),
        (
            &two,
            json!({"ipFamilyPolicy": "PreferDualStack"}),
            Ok(is("PreferDualStack", &["IPv4", "IPv6"], &[V4, V6])),
        ),
        (
            &two,
            json!({"ipFamilyPolicy": "RequireDualStack"}),
            Ok(is("RequireDualStack", &["IPv4", "IPv6"], &[V4, V6])),
        ),
        (
            &two,
            json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6", "IPv4"]}),
            Ok(is("RequireDualStack", &["IPv6", "IPv4"], &[ONLY_V6, "10.96.1.2"])),
        ),
        (
            &two,
            json!({"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv6"]}),
            Ok(is("PreferDualStack", &["IPv6", "IPv4"], &[ONLY_V6, "10.96.1.2"])),
        ),
        (
            &two,
            json!({"ipFamilyPolicy": "RequireDualStack", "clusterIP": "10.96.0.20", "clusterIPs": ["10.96.0.20", "fd69:6d69:6e69:ffff::20"]}),
            Ok(is("RequireDualStack", &["IPv4", "IPv6"], &["10.96.0.20", "fd69:6d69:6e69:ffff::20"])),
        ),
        (
            &two,
            json!({"ipFamilyPolicy": "RequireDualStack", "clusterIP": "10.96.0.20"}),
            Ok(is("RequireDualStack", &["IPv4", "IPv6"], &["10.96.0.20", ONLY_V6])),
        ),
        (&one, json!({"ipFamilyPolicy": "RequireDualStack"}), Err(vec![not_dual.to_owned()])),
        // Headless: with a selector like others, without one whatever its owner writes.
        (
            &two,
            json!({"clusterIP": "None", "selector": {"a": "b"}}),
            Ok(is("SingleStack", &["IPv4"], &["None"])),
        ),
        (
            &two,
            json!({"clusterIP": "None", "selector": {"a": "b"}, "ipFamilyPolicy": "RequireDualStack"}),
            Ok(is("RequireDualStack", &["IPv4", "IPv6"], &["None"])),
        ),
        (
            &one,
            json!({"clusterIP": "None", "selector": {"a": "b"}, "ipFamilyPolicy": "RequireDualStack"}),
            Err(vec![not_dual.to_owned()]),
        ),
        (&one, json!({"clusterIP": "None"}), Ok(is("RequireDualStack", &["IPv4", "IPv6"], &["None"]))),
        (
            &one,
            json!({"clusterIP": "None", "ipFamilyPolicy": "SingleStack"}),
            Ok(is("SingleStack", &["IPv4"], &["None"])),
        ),
        (
            &one,
            json!({"clusterIP": "None", "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv6"]}),
            Ok(is("SingleStack", &["IPv6"], &["None"])),
        ),
    ] {
        let mut spec = wish.clone();
        spec["ports"] = ports.clone();
        assert_eq!(made(spec, ranges), expected, "{wish}");
    }
}

#[test]
fn what_contradicts_itself_or_is_not_to_be_had_is_named() {
    let (one, two) = (ranges(), dual_ranges());
    let unconfigured =
        "FieldValueInvalid spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster";
    for (ranges, wish, expected) in [
        (&one, json!({"ipFamilies": ["IPv6"]}), unconfigured),
        (
            &one,
            json!({"clusterIP": "fd69:6d69:6e69:ffff::7"}),
            "FieldValueInvalid spec.clusterIPs[0]: Invalid value: \"fd69:6d69:6e69:ffff::7\": IPv6 is not configured on this cluster",
        ),
        (
            &two,
            json!({"ipFamilies": ["IPv5"]}),
            "FieldValueNotSupported spec.ipFamilies[0]: Unsupported value: \"IPv5\": supported values: \"IPv4\", \"IPv6\"",
        ),
        (
            &two,
            json!({"ipFamilies": ["IPv4", "IPv4"], "ipFamilyPolicy": "RequireDualStack"}),
            "FieldValueDuplicate spec.ipFamilies[1]: Duplicate value: \"IPv4\"",
        ),
        (
            &two,
            json!({"ipFamilyPolicy": "Both"}),
            "FieldValueNotSupported spec.ipFamilyPolicy: Unsupported value: \"Both\": supported values: \"PreferDualStack\", \"RequireDualStack\", \"SingleStack\"",
        ),
        (
            &two,
            json!({"ipFamilies": ["IPv4", "IPv6"]}),
            "FieldValueInvalid spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified",
        ),
        (
            &two,
            json!({"clusterIP": "10.96.0.20", "clusterIPs": ["10.96.0.20", "fd69:6d69:6e69:ffff::20"]}),
            "FieldValueInvalid spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or 'PreferDualStack' when multiple cluster IPs are specified",
        ),
        (
            &two,
            json!({"clusterIP": "10.96.0.20", "ipFamilies": ["IPv6"]}),
            "FieldValueInvalid spec.clusterIPs[0]: Invalid value: \"10.96.0.20\": expected an IPv6 value as indicated by `ipFamilies[0]`",
        ),
        (
            &two,
            json!({"clusterIP": "10.96.0.20", "clusterIPs": ["10.96.0.20", "10.96.0.21"], "ipFamilyPolicy": "RequireDualStack"}),
            "FieldValueInvalid spec.clusterIPs: Invalid value: [\"10.96.0.20\",\"10.96.0.21\"]: may specify no more than one IP for each IP family",
        ),
        (
            &two,
            json!({"clusterIP": "None", "clusterIPs": ["None", "fd69:6d69:6e69:ffff::20"], "ipFamilyPolicy": "RequireDualStack"}),
            "FieldValueInvalid spec.clusterIPs: Invalid value: [\"None\",\"fd69:6d69:6e69:ffff::20\"]: 'None' must be the first and only value",
        ),
        (
            &two,
            json!({"clusterIP": "fd69:6d69:6e69:ffff::a"}),
            "FieldValueInvalid spec.clusterIPs: Invalid value: [\"fd69:6d69:6e69:ffff::a\"]: failed to allocate IP fd69:6d69:6e69:ffff::a: it is the address of the cluster's DNS",
        ),
        (
            &two,
            json!({"clusterIP": "fd69:6d69:6e69:ffff::1"}),
            "FieldValueInvalid spec.clusterIPs: Invalid value: [\"fd69:6d69:6e69:ffff::1\"]: failed to allocate IP fd69:6d69:6e69:ffff::1: it is kept for the API server",
        ),
        (
            &two,
            json!({"clusterIP": "fd00::7"}),
            "FieldValueInvalid spec.clusterIPs: Invalid value: [\"fd00::7\"]: failed to allocate IP fd00::7: the provided IP (fd00::7) is not in the valid range. The range of valid IPs is fd69:6d69:6e69:ffff::/112",
        ),
        (
            &two,
            json!({"clusterIP": "10.96.0.20", "clusterIPs": ["10.96.0.20", "fd69:6d69:6e69:ffff::20", "10.96.0.21"], "ipFamilyPolicy": "RequireDualStack"}),
            "FieldValueInvalid spec.clusterIPs: Invalid value: [\"10.96.0.20\",\"fd69:6d69:6e69:ffff::20\",\"10.96.0.21\"]: may only hold up to 2 values",
        ),
    ] {
        let mut spec = wish.clone();
        spec["ports"] = json!([{"port": 80}]);
        let faults = made(spec, ranges).unwrap_err();
        assert!(faults.contains(&expected.to_owned()) && faults.len() == 1, "{wish}: {faults:#?}");
    }
}

#[test]
fn a_service_moves_between_one_family_and_two() {
    let two = dual_ranges();
    let single = created(json!({"ports": [{"port": 80}]}));
    let both =
        write(Some(&single), with(&single, json!({"ipFamilyPolicy": "PreferDualStack"})), &two, &[]).unwrap();
    assert_eq!(summary(&both), is("PreferDualStack", &["IPv4", "IPv6"], &[V4, ONLY_V6]));
    assert_eq!(held(&both).len(), 2);

    // Back again by the policy alone, by the policy and one of the lists, and from the original manifest.
    for change in [
        json!({"ipFamilyPolicy": "SingleStack"}),
        json!({"ipFamilyPolicy": "SingleStack", "clusterIPs": [V4]}),
        json!({"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"]}),
        json!({"ipFamilyPolicy": "SingleStack", "ipFamilies": null, "clusterIPs": null, "clusterIP": null}),
    ] {
        let back = write(Some(&both), with(&both, change.clone()), &two, &[]).unwrap();
        assert_eq!(summary(&back), is("SingleStack", &["IPv4"], &[V4]), "{change}");
        assert_eq!(held(&back), held(&single));
    }
    // A second address by name.
    let named = json!({"ipFamilyPolicy": "RequireDualStack", "clusterIPs": [V4, "fd69:6d69:6e69:ffff::20"]});
    let both = write(Some(&single), with(&single, named), &two, &[]).unwrap();
    assert_eq!(summary(&both).2, [V4, "fd69:6d69:6e69:ffff::20"]);
    // The original manifest again, which never said a policy.
    let again = write(Some(&both), json!({"ports": [{"port": 80}]}), &two, &[]).unwrap();
    assert_eq!(again, both);
}

#[test]
fn the_first_family_is_for_life_and_the_second_goes_by_the_policy() {
    let two = dual_ranges();
    let both = created(json!({"ipFamilyPolicy": "RequireDualStack", "ports": [{"port": 80}]}));
    let single = created(json!({"ports": [{"port": 80}]}));
    for (old, change, expected) in [
        (
            &both,
            json!({"clusterIPs": [V4]}),
            "FieldValueInvalid spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": must be 'SingleStack' to release the secondary cluster IP",
        ),
        (
            &both,
            json!({"ipFamilies": ["IPv4"]}),
            "FieldValueInvalid spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": must be 'SingleStack' to release the secondary IP family",
        ),
        (
            &both,
            json!({"clusterIPs": [V4, "fd69:6d69:6e69:ffff::20"]}),
            "FieldValueInvalid spec.clusterIPs[1]: Invalid value: [\"10.96.1.1\",\"fd69:6d69:6e69:ffff::20\"]: may not change once set",
        ),
        (
            &single,
            json!({"ipFamilies": ["IPv6"]}),
            "FieldValueInvalid spec.clusterIPs[0]: Invalid value: \"10.96.1.1\": expected an IPv6 value as indicated by `ipFamilies[0]`",
        ),
        (
            &single,
            json!({"clusterIP": "10.96.9.9"}),
            "FieldValueInvalid spec.clusterIPs[0]: Invalid value: [\"10.96.9.9\"]: may not change once set",
        ),
        (
            &single,
            json!({"clusterIP": "None"}),
            "FieldValueInvalid spec.clusterIPs[0]: Invalid value: [\"None\"]: may not change once set",
        ),
        (
            &single,
            json!({"ipFamilies": ["IPv4", "IPv6"]}),
            "FieldValueInvalid spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified",
        ),
    ] {
        let faults = write(Some(old), with(old, change.clone()), &two, &[]).unwrap_err();
        assert_eq!(faults, [expected], "{change}");
    }
    let headless = created(json!({"clusterIP": "None", "selector": {"a": "b"}, "ports": [{"port": 80}]}));
    let address = write(Some(&headless), with(&headless, json!({"clusterIP": V4})), &two, &[]).unwrap_err();
    assert_eq!(
        address,
        ["FieldValueInvalid spec.clusterIPs[0]: Invalid value: [\"10.96.1.1\"]: may not change once set"]
    );
    // Headless has no address to keep: its families may change.
    let turned = write(Some(&headless), with(&headless, json!({"ipFamilies": ["IPv6"]})), &two, &[]).unwrap();
    assert_eq!(summary(&turned).1, ["IPv6"]);
}

#[test]
fn a_cluster_that_gains_or_loses_a_family_changes_no_service_by_itself() {
    let (one, two) = (ranges(), dual_ranges());
    let label = json!({"selector": {"app": "web"}});
    let preferring =
        write(None, json!({"ipFamilyPolicy": "PreferDualStack", "ports": [{"port": 80}]}), &one, &[])
            .unwrap();
    let later = write(Some(&preferring), with(&preferring, label.clone()), &two, &[]).unwrap();
    assert_eq!(summary(&later), is("PreferDualStack", &["IPv4"], &[V4]), "it was sent back as it was");
    let asked =
        write(Some(&preferring), with(&preferring, json!({"ipFamilies": ["IPv4", "IPv6"]})), &two, &[])
            .unwrap();
    assert_eq!(summary(&asked).2.len(), 2);
    for policy in ["PreferDualStack", "RequireDualStack"] {
        let both = created(json!({"ipFamilyPolicy": policy, "ports": [{"port": 80}]}));
        let later = write(Some(&both), with(&both, label.clone()), &one, &[]).unwrap();
        assert_eq!(summary(&later), summary(&both));
        assert_eq!(held(&later), held(&both));
    }
    // Nor does another range.
    let moved = Ranges { services: crate::registry::testing::services("10.100.0.0/16"), ..ranges() };
    assert!(write(Some(&later), with(&later, label), &moved, &[]).is_ok());
}
