//! Where the configuration is. Never KUBECONFIG: no command meant for minisvc reaches another cluster.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

/// `--config`, else $MINISVC_CONFIG, else $XDG_CONFIG_HOME/minisvc/config.
pub fn path(flag: Option<&Path>) -> anyhow::Result<PathBuf> {
    let set = |name| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(path) = flag {
        return Ok(path.to_owned());
    }
    if let Some(path) = set("MINISVC_CONFIG") {
        return Ok(path);
    }
    let base = set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")));
    Ok(base.context("no configuration: give --config, or set MINISVC_CONFIG or HOME")?.join("minisvc/config"))
}
