//! The only place that composes: watches the server, keeps the picture, and hands it to dataplane, pods and DNS.

pub mod registration;
pub mod reporter;
pub mod world;
