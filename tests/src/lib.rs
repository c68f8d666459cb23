//! The test kit and the end-to-end tests.

pub mod binary;
