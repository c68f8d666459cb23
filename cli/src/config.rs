//! Where the configuration is. Never KUBECONFIG: no command meant for minisvc reaches another cluster.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use minisvc_proto::client::Kubeconfig;

use crate::output::errors::NO_CLUSTER;

/// `--config`, else $MINISVC_CONFIG, else $XDG_CONFIG_HOME/minisvc/config, else ~/.config/minisvc/config.
pub fn path(flag: Option<&Path>) -> anyhow::Result<PathBuf> {
    find(flag, |name| env::var_os(name).map(PathBuf::from)).context(NO_CLUSTER)
}

fn find(flag: Option<&Path>, env: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let set = |name| env(name).filter(|v| !v.as_os_str().is_empty());
    flag.map(Path::to_path_buf)
        .or_else(|| set("MINISVC_CONFIG"))
        .or_else(|| Some(set("XDG_CONFIG_HOME").filter(|p| p.is_absolute())?.join("minisvc/config")))
        .or_else(|| Some(set("HOME")?.join(".config/minisvc/config")))
}

/// What a server on this machine, started by root, writes for its administrator; nobody else can see it.
const OF_THE_SERVER: &str = "/var/lib/minisvc/server/admin.kubeconfig";

/// The configuration that a command uses, and where it was found: at [`path`], or, where nothing is and nothing else was asked for,
/// the one of this machine's server.
pub fn load(flag: Option<&Path>) -> anyhow::Result<(PathBuf, Kubeconfig)> {
    let asked_for = flag.is_some() || env::var_os("MINISVC_CONFIG").is_some_and(|v| !v.is_empty());
    let path = match path(flag) {
        Ok(path) if asked_for || path.exists() => path,
        other if asked_for => other?,
        _ if Path::new(OF_THE_SERVER).exists() => OF_THE_SERVER.into(),
        _ => bail!(NO_CLUSTER),
    };
    let config = Kubeconfig::load(&path)?;
    Ok((path, config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_place_that_is_named_wins_and_kubeconfig_is_none() {
        let found = |flag: Option<&str>, vars: &[(&str, &str)]| {
            let env = |name: &str| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| PathBuf::from(v));
            find(flag.map(Path::new), env)
        };
        let all = [("MINISVC_CONFIG", "/m"), ("XDG_CONFIG_HOME", "/x"), ("HOME", "/h"), ("KUBECONFIG", "/k")];
        assert_eq!(found(Some("f"), &all), Some("f".into()));
        assert_eq!(found(None, &all), Some("/m".into()));
        assert_eq!(found(None, &all[1..]), Some("/x/minisvc/config".into()));
        assert_eq!(found(None, &all[2..]), Some("/h/.config/minisvc/config".into()));
        assert_eq!(
            found(None, &[("MINISVC_CONFIG", ""), ("HOME", "/h")]),
            Some("/h/.config/minisvc/config".into())
        );
        assert_eq!(found(None, &all[3..]), None);
    }
}
