//! The API over TLS on 127.0.0.1, as clients see it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

#[path = "api/harness.rs"]
mod harness;

#[path = "api/objects.rs"]
mod objects;

#[path = "api/access.rs"]
mod access;

#[path = "api/join.rs"]
mod join;

#[path = "api/identity.rs"]
mod identity;

#[path = "api/edge.rs"]
mod edge;

#[path = "api/families.rs"]
mod families;

#[path = "api/watches.rs"]
mod watches;

#[path = "api/services.rs"]
mod services;

#[path = "api/tables.rs"]
mod tables;

#[path = "api/bad_input.rs"]
mod bad_input;

#[path = "api/proxies.rs"]
mod proxies;

#[path = "api/lifetime.rs"]
mod lifetime;
