//! Each rule of a new service: where, of which kind, in which words.

use super::*;

fn faults(spec: &Value) -> Vec<String> {
    write(None, spec.clone(), &ranges(), &[]).err().unwrap_or_default()
}

/// Each spec has the one fault: reason, field and message.
fn each(cases: &[(Value, &str)]) {
    for (spec, expected) in cases {
        assert_eq!(faults(spec), [expected.to_string()], "{spec}");
    }
}

#[test]
fn of_ports() {
    each(&[
        (json!({}), "FieldValueRequired spec.ports: Required value"),
        (json!({"ports": []}), "FieldValueRequired spec.ports: Required value"),
        (
            json!({"ports": [{"port": 80, "name": "a"}, {"port": 81}]}),
            "FieldValueRequired spec.ports[1].name: Required value",
        ),
        (
            json!({"ports": [{"port": 80, "name": "a"}, {"port": 81, "name": "a"}]}),
            "FieldValueDuplicate spec.ports[1].name: Duplicate value: \"a\"",
        ),
        (
            json!({"ports": [{"port": 80, "name": "A_b"}]}),
            "FieldValueInvalid spec.ports[0].name: Invalid value: \"A_b\": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
        ),
        (
            json!({"ports": [{"port": 0, "targetPort": 80}]}),
            "FieldValueInvalid spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
        ),
        (
            json!({"ports": [{"port": 65536, "targetPort": 80}]}),
            "FieldValueInvalid spec.ports[0].port: Invalid value: 65536: must be between 1 and 65535, inclusive",
        ),
        (
            json!({"ports": [{"port": 80, "targetPort": 65536}]}),
            "FieldValueInvalid spec.ports[0].targetPort: Invalid value: 65536: must be between 1 and 65535, inclusive",
        ),
        (
            json!({"ports": [{"port": 80, "targetPort": "8080"}]}),
            "FieldValueInvalid spec.ports[0].targetPort: Invalid value: \"8080\": must be an IANA service name: at most 15 characters of a-z, 0-9 and '-', with a letter in it",
        ),
        (
            json!({"ports": [{"port": 80, "protocol": "ICMP"}]}),
            "FieldValueNotSupported spec.ports[0].protocol: Unsupported value: \"ICMP\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
        ),
        (
            json!({"ports": [{"port": 80, "appProtocol": "a b"}]}),
            "FieldValueInvalid spec.ports[0].appProtocol: Invalid value: \"a b\": must be a name such as http or example.com/proto",
        ),
        (
            json!({"ports": [{"port": 80, "name": "a"}, {"port": 80, "name": "b"}]}),
            "FieldValueDuplicate spec.ports[1]: Duplicate value: {\"port\":80,\"protocol\":\"TCP\"}",
        ),
    ]);
}

#[test]
fn of_node_ports() {
    each(&[
        (
            json!({"ports": [{"port": 80, "nodePort": 30080}]}),
            "FieldValueForbidden spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
        ),
        (
            json!({"type": "ExternalName", "externalName": "a.b", "ports": [{"port": 80, "nodePort": 30080}]}),
            "FieldValueForbidden spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ExternalName'",
        ),
        (
            json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]}),
            "FieldValueInvalid spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-32767",
        ),
        (
            json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 95616}]}),
            "FieldValueInvalid spec.ports[0].nodePort: Invalid value: 95616: provided port is not in the valid range. The range of valid ports is 30000-32767",
        ),
        (
            json!({"type": "NodePort", "ports": [{"port": 80, "name": "a", "nodePort": 30080}, {"port": 81, "name": "b", "nodePort": 30080}]}),
            "FieldValueDuplicate spec.ports[1].nodePort: Duplicate value: 30080",
        ),
        (
            json!({"ports": [{"port": 80}], "healthCheckNodePort": 30090}),
            "FieldValueInvalid spec.healthCheckNodePort: Invalid value: 30090: may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
        ),
        (
            json!({"type": "LoadBalancer", "ports": [{"port": 80}], "healthCheckNodePort": 30090}),
            "FieldValueInvalid spec.healthCheckNodePort: Invalid value: 30090: may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
        ),
        (
            json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [{"port": 80}], "healthCheckNodePort": 8080}),
            "FieldValueInvalid spec.healthCheckNodePort: Invalid value: 8080: provided port is not in the valid range. The range of valid ports is 30000-32767",
        ),
        (
            json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [{"port": 80, "nodePort": 30090}], "healthCheckNodePort": 30090}),
            "FieldValueInvalid spec.healthCheckNodePort: Invalid value: 30090: provided port is already allocated",
        ),
    ]);
}

#[test]
fn of_types_and_addresses() {
    each(&[
        (
            json!({"type": "Magic", "ports": [{"port": 80}]}),
            "FieldValueNotSupported spec.type: Unsupported value: \"Magic\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
        ),
        (
            json!({"type": "NodePort", "clusterIP": "None", "ports": [{"port": 80}]}),
            "FieldValueInvalid spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services",
        ),
        (
            json!({"type": "LoadBalancer", "clusterIP": "None", "ports": [{"port": 80}]}),
            "FieldValueInvalid spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for LoadBalancer services",
        ),
        (json!({"type": "ExternalName"}), "FieldValueRequired spec.externalName: Required value"),
        (
            json!({"type": "ExternalName", "externalName": "a_b"}),
            "FieldValueInvalid spec.externalName: Invalid value: \"a_b\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
        ),
        (
            json!({"type": "ExternalName", "externalName": "a.b", "clusterIP": "10.96.7.7"}),
            "FieldValueForbidden spec.clusterIPs: Forbidden: may not be set for ExternalName services",
        ),
        (
            json!({"type": "ExternalName", "externalName": "a.b", "ipFamilies": ["IPv4"]}),
            "FieldValueForbidden spec.ipFamilies: Forbidden: may not be set for ExternalName services",
        ),
        (
            json!({"type": "ExternalName", "externalName": "a.b", "ipFamilyPolicy": "SingleStack"}),
            "FieldValueForbidden spec.ipFamilyPolicy: Forbidden: may not be set for ExternalName services",
        ),
        (
            json!({"clusterIP": "10.96.0", "ports": [{"port": 80}]}),
            "FieldValueInvalid spec.clusterIPs[0]: Invalid value: \"10.96.0\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ),
        (
            json!({"clusterIP": "::ffff:10.96.7.7", "ports": [{"port": 80}]}),
            "FieldValueInvalid spec.clusterIPs[0]: Invalid value: \"::ffff:10.96.7.7\": must not be an IPv4-mapped IPv6 address",
        ),
        (
            json!({"clusterIP": "10.97.0.1", "ports": [{"port": 80}]}),
            "FieldValueInvalid spec.clusterIPs: Invalid value: [\"10.97.0.1\"]: failed to allocate IP 10.97.0.1: the provided IP (10.97.0.1) is not in the valid range. The range of valid IPs is 10.96.0.0/16",
        ),
        (
            json!({"clusterIP": "10.96.255.255", "ports": [{"port": 80}]}),
            "FieldValueInvalid spec.clusterIPs: Invalid value: [\"10.96.255.255\"]: failed to allocate IP 10.96.255.255: the provided IP (10.96.255.255) is not in the valid range. The range of valid IPs is 10.96.0.0/16",
        ),
        (
            json!({"clusterIP": "10.96.0.10", "ports": [{"port": 80}]}),
            "FieldValueInvalid spec.clusterIPs: Invalid value: [\"10.96.0.10\"]: failed to allocate IP 10.96.0.10: it is the address of the cluster's DNS",
        ),
        (
            json!({"clusterIP": "10.96.7.7", "clusterIPs": ["10.96.7.8"], "ports": [{"port": 80}]}),
            "FieldValueInvalid spec.clusterIPs: Invalid value: [\"10.96.7.8\"]: first value must match `clusterIP`",
        ),
        (
            json!({"clusterIPs": ["10.96.7.8"], "ports": [{"port": 80}]}),
            "FieldValueInvalid spec.clusterIPs: Invalid value: [\"10.96.7.8\"]: must be empty when `clusterIP` is not specified",
        ),
    ]);
}

#[test]
fn of_addresses_outside() {
    let reached = |ip: &str| json!({"externalIPs": [ip], "ports": [{"port": 80}]});
    let fault = |ip: &str, rule: &str| {
        format!("FieldValueInvalid spec.externalIPs[0]: Invalid value: \"{ip}\": {rule}")
    };
    for (ip, rule) in [
        ("one", "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"),
        ("0.0.0.0", "may not be unspecified (0.0.0.0 or ::)"),
        ("::", "may not be unspecified (0.0.0.0 or ::)"),
        ("127.8.0.1", "may not be in the loopback range (127.0.0.0/8, ::1/128)"),
        ("::1", "may not be in the loopback range (127.0.0.0/8, ::1/128)"),
        ("169.254.169.254", "may not be in the link-local range (169.254.0.0/16, fe80::/10)"),
        ("fe80::1", "may not be in the link-local range (169.254.0.0/16, fe80::/10)"),
        ("224.0.0.1", "may not be in the multicast range (224.0.0.0/4, ff00::/8) or the broadcast address"),
        ("239.1.1.1", "may not be in the multicast range (224.0.0.0/4, ff00::/8) or the broadcast address"),
        ("ff02::1", "may not be in the multicast range (224.0.0.0/4, ff00::/8) or the broadcast address"),
        (
            "255.255.255.255",
            "may not be in the multicast range (224.0.0.0/4, ff00::/8) or the broadcast address",
        ),
        ("10.96.0.10", "may not be in the cluster's service range (10.96.0.0/16)"),
        ("10.244.3.3", "may not be in the cluster's pod range (10.244.0.0/16)"),
    ] {
        assert_eq!(faults(&reached(ip)), [fault(ip, rule)]);
    }
}

#[test]
fn of_policies_and_load_balancers() {
    each(&[
        (
            json!({"ports": [{"port": 80}], "sessionAffinity": "Cookie"}),
            "FieldValueNotSupported spec.sessionAffinity: Unsupported value: \"Cookie\": supported values: \"ClientIP\", \"None\"",
        ),
        (
            json!({"ports": [{"port": 80}], "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}}),
            "FieldValueInvalid spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 0: must be greater than 0 and less than 86400",
        ),
        (
            json!({"ports": [{"port": 80}], "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86401}}}),
            "FieldValueInvalid spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 86401: must be greater than 0 and less than 86400",
        ),
        (
            json!({"externalTrafficPolicy": "Cluster", "ports": [{"port": 80}]}),
            "FieldValueInvalid spec.externalTrafficPolicy: Invalid value: \"Cluster\": may only be set for externally-accessible services",
        ),
        (
            json!({"type": "NodePort", "externalTrafficPolicy": "Near", "ports": [{"port": 80}]}),
            "FieldValueNotSupported spec.externalTrafficPolicy: Unsupported value: \"Near\": supported values: \"Cluster\", \"Local\"",
        ),
        (
            json!({"internalTrafficPolicy": "Near", "ports": [{"port": 80}]}),
            "FieldValueNotSupported spec.internalTrafficPolicy: Unsupported value: \"Near\": supported values: \"Cluster\", \"Local\"",
        ),
        (
            json!({"trafficDistribution": "PreferFar", "ports": [{"port": 80}]}),
            "FieldValueNotSupported spec.trafficDistribution: Unsupported value: \"PreferFar\": supported values: \"PreferClose\", \"PreferSameNode\", \"PreferSameZone\"",
        ),
        (
            json!({"loadBalancerSourceRanges": ["192.0.2.0/24"], "ports": [{"port": 80}]}),
            "FieldValueForbidden spec.loadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer'",
        ),
        (
            json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ["192.0.2.0/24", "192.0.2.1"], "ports": [{"port": 80}]}),
            "FieldValueInvalid spec.loadBalancerSourceRanges[1]: Invalid value: \"192.0.2.1\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
        ),
        (
            json!({"allocateLoadBalancerNodePorts": true, "type": "NodePort", "ports": [{"port": 80}]}),
            "FieldValueForbidden spec.allocateLoadBalancerNodePorts: Forbidden: may only be used when `type` is 'LoadBalancer'",
        ),
        (
            json!({"loadBalancerClass": "example.com/vip", "ports": [{"port": 80}]}),
            "FieldValueForbidden spec.loadBalancerClass: Forbidden: may only be used when `type` is 'LoadBalancer'",
        ),
        (
            json!({"type": "LoadBalancer", "loadBalancerClass": "a b", "ports": [{"port": 80}]}),
            "FieldValueInvalid spec.loadBalancerClass: Invalid value: \"a b\": must be a name such as example.com/internal-vip",
        ),
        (
            json!({"selector": {"app": "a b"}, "ports": [{"port": 80}]}),
            "FieldValueInvalid spec.selector: Invalid value: \"a b\": a valid label must be an empty string or consist of at most 63 alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue' or '12345')",
        ),
    ]);
    let mut annotated = created(json!({"type": "LoadBalancer", "ports": [{"port": 80}]}));
    let key = "service.beta.kubernetes.io/load-balancer-source-ranges";
    annotated.metadata_mut().insert("annotations".into(), json!({key: "192.0.2.0/24"}));
    assert_eq!(
        validate(None, &annotated, &ranges())[0].to_string(),
        format!("metadata.annotations[{key}]: Forbidden: not supported, use spec.loadBalancerSourceRanges")
    );
}

#[test]
fn what_is_good_passes() {
    for good in [
        json!({"clusterIP": "None"}),
        json!({"clusterIP": "None", "clusterIPs": ["None"], "selector": {"app": "db"}, "ports": [{"port": 5432}]}),
        json!({"type": "ExternalName", "externalName": "db.example.com."}),
        json!({"type": "ExternalName", "externalName": "db.example.com", "ports": [{"port": 5432}]}),
        json!({"ipFamilyPolicy": "PreferDualStack", "ports": [{"port": 80}]}),
        json!({"clusterIP": "10.96.0.20", "ports": [{"port": 80}]}),
        json!({"ports": [{"port": 53, "name": "a"}, {"port": 53, "protocol": "UDP", "name": "b", "targetPort": "dns-udp"}, {"port": 53, "protocol": "SCTP", "name": "c"}]}),
        json!({"ports": [{"port": 80, "appProtocol": "kubernetes.io/h2c"}], "publishNotReadyAddresses": true}),
        json!({"externalIPs": ["192.0.2.1", "2001:db8::1"], "externalTrafficPolicy": "Local", "ports": [{"port": 80}]}),
        json!({"type": "NodePort", "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local", "ports": [{"port": 80}]}),
        json!({"type": "LoadBalancer", "loadBalancerIP": "192.0.2.7", "loadBalancerClass": "example.com/vip",
            "loadBalancerSourceRanges": ["192.0.2.0/24", "2001:db8::/32"], "ports": [{"port": 80}]}),
        json!({"trafficDistribution": "PreferClose", "ports": [{"port": 80}]}),
        json!({"trafficDistribution": "PreferSameZone", "ports": [{"port": 80}]}),
        json!({"trafficDistribution": "PreferSameNode", "ports": [{"port": 80}]}),
        json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86400}}, "ports": [{"port": 80}]}),
    ] {
        assert_eq!(faults(&good), Vec::<String>::new(), "{good}");
    }
}
