//! `doctor`: whether this machine can be a node.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use minisvc_agent::doctor::{Asked, Facts, Finding, Status, findings};
use minisvc_proto::join::JoinToken;
use serde_json::json;

use super::{DONE, FAILED, Outcome};
use crate::output;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DoctorFormat {
    Json,
}

/// Check whether this machine can be a node, and say what to do about what is in the way. Changes nothing; as an ordinary user it
/// looks at less. Ends with 1 if something fails.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// URL of the server, https://HOST:7443 [default: the one that this machine joined]
    #[arg(long, env = "MINISVC_SERVER", value_name = "URL")]
    pub server: Option<String>,
    /// Join token: the server is known by its CA hash. It is not used up
    #[arg(long, env = "MINISVC_TOKEN", hide_env_values = true)]
    pub token: Option<JoinToken>,
    /// The agent's data directory
    #[arg(long, default_value = "/var/lib/minisvc/agent")]
    pub data_dir: PathBuf,
    /// How to print it
    #[arg(long, short)]
    pub output: Option<DoctorFormat>,
}

/// Looks, judges, prints.
pub async fn run(args: DoctorArgs) -> Outcome {
    let server = args.server.map(|url| url.trim_end_matches('/').to_owned());
    if let Some(server) = server.as_deref().filter(|s| !s.starts_with("https://")) {
        anyhow::bail!("--server: \"{server}\" is no https:// URL; https://HOST:7443 would be right");
    }
    let asked = Asked { server, token: args.token, data_dir: args.data_dir };
    let all = findings(&Facts::look(&asked).await);
    match args.output {
        Some(DoctorFormat::Json) => output::line(&output::to_json(&json!({"findings": all})))?,
        None => output::bytes(output::grid(&rows(&all)).as_bytes())?,
    }
    Ok(if all.iter().any(|f| f.status == Status::Fail) { FAILED } else { DONE })
}

fn rows(all: &[Finding]) -> Vec<Vec<String>> {
    let head = ["CHECK", "STATUS", "FINDING"].map(str::to_owned).to_vec();
    let row = |f: &Finding| {
        let status = match f.status {
            Status::Ok => "ok",
            Status::Warn => "warn",
            Status::Fail => "FAIL",
        };
        vec![f.check.to_owned(), status.to_owned(), f.message.clone()]
    };
    [head].into_iter().chain(all.iter().map(row)).collect()
}
