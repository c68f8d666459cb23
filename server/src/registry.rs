//! What each kind demands of its objects: defaults, validation and reservations. Pure; the store's transaction is made elsewhere.

pub mod service;
