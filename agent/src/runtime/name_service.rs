//! How programs find names on a machine, and where that has to be changed for those that are to ask the cluster's DNS.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Says whom to ask.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Holds sockets by which a C library would ask the machine's name service, past resolv.conf.
pub const NAME_SERVICES: [&str; 3] = ["/run/systemd/resolve", "/run/nscd", "/var/run/nscd"];

/// Where a path leads, also when the last link points nowhere.
pub fn target(path: &Path) -> PathBuf {
    let mut at = path.to_path_buf();
    for _ in 0..40 {
        let Ok(link) = fs::read_link(&at) else { break };
        at = at.parent().unwrap_or(Path::new("/")).join(link);
    }
    match (at.parent().and_then(|p| p.canonicalize().ok()), at.file_name()) {
        (Some(parent), Some(name)) => parent.join(name),
        _ => at,
    }
}
