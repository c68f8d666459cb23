//! What is done with a server's data directory as a whole.

use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Args)]
pub struct Backup {
    /// The file, made for its owner alone; "-" for standard output. Whoever holds it holds the cluster: the CA's key is in it
    pub file: PathBuf,
    /// The server's data directory
    #[arg(long, env = "MINISVC_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Restore {
    /// A file that `backup` wrote; "-" for standard input
    pub file: PathBuf,
    /// The data directory that is made
    #[arg(long, env = "MINISVC_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Move what is there aside first, into before-restore-N of the data directory
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct Salvage {
    /// The server's data directory
    #[arg(long, env = "MINISVC_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
}
