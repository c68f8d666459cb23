//! Services without a selector, through the real controllers.

use minisvc_proto::{
    Object, ObjectKey,
    resource::{ENDPOINT_SLICES, ENDPOINTS, EVENTS, SERVICES},
};
use serde_json::{Value, json};

use super::cluster::Cluster;
use crate::{
    controllers::{
        endpoints, mirroring,
        slices::{MANAGED_BY, SERVICE_NAME},
    },
    registry::{DeleteOptions, Part},
};

async fn change(cluster: &Cluster, key: &ObjectKey, change: impl Fn(&mut Object)) {
    let change = |o: &mut Object| {
        change(o);
        Ok(true)
    };
    cluster.registry.modify(key, Part::Main, change).await.unwrap();
}

/// The addresses in the slices of a service, by who wrote them.
async fn slices(cluster: &Cluster, expected: &[(&str, &str)]) {
    cluster
        .until(&ENDPOINT_SLICES, |all| {
            let of = all.iter().filter(|s| s.label(SERVICE_NAME) == Some("db"));
            let mut seen: Vec<_> = of
                .flat_map(|s| {
                    let endpoints = s.pointer("/endpoints").and_then(Value::as_array).unwrap();
                    endpoints.iter().map(|e| {
                        (s.label(MANAGED_BY).unwrap_or(""), e["addresses"][0].as_str().unwrap().to_owned())
                    })
                })
                .collect();
            seen.sort_unstable();
            seen.iter().map(|(by, ip)| (*by, ip.as_str())).eq(expected.iter().copied())
        })
        .await;
}

#[tokio::test]
async fn hand_made_endpoints_are_mirrored_until_they_or_the_service_go_and_hand_made_slices_stay() {
    let cluster = Cluster::start().await;
    cluster.create(&SERVICES, json!({"metadata": {"name": "db"}, "spec": {"ports": [{"port": 5432}]}})).await;
    let subset =
        json!([{"addresses": [{"ip": "192.0.2.1"}, {"ip": "192.0.2.1"}], "ports": [{"port": 5432}]}]);
    cluster.create(&ENDPOINTS, json!({"metadata": {"name": "db"}, "subsets": subset})).await;
    cluster
        .create(
            &ENDPOINT_SLICES,
            json!({"metadata": {"name": "mine", "labels": {SERVICE_NAME: "db"}}, "addressType": "IPv4",
            "endpoints": [{"addresses": ["192.0.2.7"]}], "ports": [{"port": 5432}]}),
        )
        .await;
    slices(&cluster, &[("", "192.0.2.7"), (mirroring::MANAGER, "192.0.2.1")]).await;
    let key = ObjectKey::namespaced(&ENDPOINTS, "default", "db");
    let more = json!([{"addresses": [{"ip": "192.0.2.2"}], "ports": [{"port": 5432}]}]);
    change(&cluster, &key, |e| drop(e.0.insert("subsets".into(), more.clone()))).await;
    slices(&cluster, &[("", "192.0.2.7"), (mirroring::MANAGER, "192.0.2.2")]).await;
    // Somebody who deletes a mirrored slice meets it again.
    let mirrored = cluster.registry.list(&ENDPOINT_SLICES, Some("default")).1;
    let mirrored = mirrored.iter().find(|s| s.label(MANAGED_BY) == Some(mirroring::MANAGER)).unwrap();
    cluster.delete(&ENDPOINT_SLICES, mirrored.name(), DeleteOptions::default()).await;
    slices(&cluster, &[("", "192.0.2.7"), (mirroring::MANAGER, "192.0.2.2")]).await;
    cluster.delete(&ENDPOINTS, "db", DeleteOptions::default()).await;
    slices(&cluster, &[("", "192.0.2.7")]).await;

    cluster.create(&ENDPOINTS, json!({"metadata": {"name": "db"}, "subsets": more})).await;
    slices(&cluster, &[("", "192.0.2.7"), (mirroring::MANAGER, "192.0.2.2")]).await;
    cluster.delete(&SERVICES, "db", DeleteOptions::default()).await;
    slices(&cluster, &[("", "192.0.2.7")]).await;
    cluster.until(&ENDPOINTS, |all| all.iter().all(|e| e.name() != "db")).await;
}

#[tokio::test]
async fn a_selector_that_comes_takes_the_endpoints_over_and_one_that_goes_takes_them_along() {
    let cluster = Cluster::start().await;
    cluster.node("n1").await;
    // Endpoints may be there before their service.
    let many: Vec<Value> =
        (0..1001).map(|n| json!({"ip": format!("192.0.{}.{}", n / 250, n % 250 + 1)})).collect();
    cluster.create(&ENDPOINTS, json!({"metadata": {"name": "db"}, "subsets": [{"addresses": many}]})).await;
    cluster.create(&SERVICES, json!({"metadata": {"name": "db"}, "spec": {"ports": [{"port": 80}]}})).await;
    cluster
        .until(&EVENTS, |all| all.iter().any(|e| e.str_at("/reason") == Some("TooManyAddressesToMirror")))
        .await;
    cluster.deployment("db", 1).await;
    let pods = cluster.ready_pods(1).await;
    let ip = pods[0].str_at("/status/podIP").unwrap();
    let service = ObjectKey::namespaced(&SERVICES, "default", "db");
    change(&cluster, &service, |s| drop(s.spec_mut().insert("selector".into(), json!({"app": "db"})))).await;
    slices(&cluster, &[("endpointslice-controller.minisvc.io", ip)]).await;
    cluster
        .until(&ENDPOINTS, |all| {
            all.iter().any(|e| endpoints::is_ours(e) && e.str_at("/subsets/0/addresses/0/ip") == Some(ip))
        })
        .await;
    change(&cluster, &service, |s| drop(s.spec_mut().remove("selector"))).await;
    slices(&cluster, &[]).await;
    cluster.until(&ENDPOINTS, |all| all.iter().all(|e| e.name() != "db")).await;
}
