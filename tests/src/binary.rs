//! The program under test.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};

/// The path of `minisvc`: `$MINISVC_BIN`, or the one that cargo builds beside the test executable.
pub fn minisvc() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("MINISVC_BIN") {
        return Ok(path.into());
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let status =
        Command::new(cargo).args(["build", "--quiet", "--package", "minisvc"]).current_dir(root).status()?;
    if !status.success() {
        bail!("minisvc does not build");
    }
    let test = std::env::current_exe()?;
    let directory = test.parent().and_then(Path::parent).context("a test executable outside of a target")?;
    Ok(directory.join("minisvc"))
}
