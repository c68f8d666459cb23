//! Rows for people; what is in the cells is tested beside `registry::columns`.

use futures::StreamExt;
use minisvc_proto::{client::ListParams, path::Target};
use reqwest::header::ACCEPT;
use serde_json::{Value, json};

use crate::harness::{Api, SERVICES, service};

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

#[tokio::test]
async fn a_table_of_a_list_an_object_and_a_watch() {
    let api = Api::start().await;
    let made = api.create(SERVICES, service("web")).await;
    for path in [SERVICES.to_owned(), format!("{SERVICES}/web")] {
        let table = api.admin.table(&Target::parse(&path).unwrap(), &ListParams::default()).await.unwrap();
        assert_eq!(table.column_definitions[0].name, "Name");
        let row = &table.rows[0];
        assert_eq!((&row.cells[0], row.object.as_ref().unwrap()), (&json!("web"), &made), "{path}");
    }

    let plain = api.plain(true);
    let url = format!("{}{SERVICES}?watch=1", plain.url);
    let mut watch = plain.http.get(&url).header(ACCEPT, TABLE).send().await.unwrap().bytes_stream();
    let mut next =
        async || -> Value { serde_json::from_slice(&watch.next().await.unwrap().unwrap()).unwrap() };
    let first = next().await;
    assert_eq!((&first["type"], &first["object"]["kind"]), (&json!("ADDED"), &json!("Table")));
    assert_eq!(first["object"]["columnDefinitions"][2]["name"], "Cluster-IP");
    assert_eq!(first["object"]["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    api.create(SERVICES, service("api")).await;
    let second = next().await;
    assert_eq!(second["object"]["columnDefinitions"], json!([]));
    assert_eq!(second["object"]["rows"][0]["cells"][0], "api");
    api.end().await;
}
