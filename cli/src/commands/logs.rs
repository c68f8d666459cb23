//! `logs`

use anyhow::bail;
use futures::StreamExt;
use minisvc_proto::{
    Object,
    client::{ListParams, query},
    path::Target,
    resource::PODS,
};

use super::{DONE, Outcome, Session, complain, pods};
use crate::{args::Logs, output};

/// Lines of each pod where several are shown and nothing else is said.
const TAIL_OF_MANY: i64 = 10;

pub(super) async fn run(session: &Session, args: Logs) -> Outcome {
    if args.tail.is_some_and(|t| t < -1) {
        bail!("--tail: a number of lines would be right, or -1 for all");
    }
    if let Some(selector) = &args.selector {
        let target = session.collection(&PODS, false);
        let (_, found) = session.client.list(&target, &ListParams::labels(selector.clone())).await?;
        if found.is_empty() {
            output::note(&format!("No resources found in {} namespace.", session.namespace));
        }
        let mut code = DONE;
        for pod in &found {
            match show(session, pod, &args, args.tail.unwrap_or(TAIL_OF_MANY)).await {
                Err(e) if !e.is::<output::PrintError>() => code = complain(e),
                other => other?,
            }
        }
        return Ok(code);
    }
    let word = args.pod.as_deref().unwrap_or_default();
    let pod = pods::pick(session, word).await?;
    show(session, &pod, &args, args.tail.unwrap_or(-1)).await?;
    Ok(DONE)
}

async fn show(session: &Session, pod: &Object, args: &Logs, tail: i64) -> anyhow::Result<()> {
    let target = Target::object(&session.key(&PODS, pod.name())).with_subresource("log");
    let container = pods::container(pod, args.container.as_deref())?;
    let path = format!("{target}{}", parameters(args, &container, tail));
    let mut log = session.client.stream(&path).await?;
    while let Some(bytes) = log.next().await {
        output::bytes(&bytes?)?;
    }
    Ok(())
}

/// The query of the log subresource.
fn parameters(args: &Logs, container: &str, tail: i64) -> String {
    let tail = (tail >= 0).then(|| tail.to_string());
    // A part of a second counts as one.
    let since = args.since.map(|s| (s.as_secs() + u64::from(s.subsec_nanos() > 0)).max(1).to_string());
    let mut pairs = vec![("container", container)];
    let flags = [("follow", args.follow), ("previous", args.previous), ("timestamps", args.timestamps)];
    pairs.extend(flags.iter().filter(|(_, on)| *on).map(|(name, _)| (*name, "true")));
    pairs.extend(tail.as_deref().map(|t| ("tailLines", t)));
    pairs.extend(since.as_deref().map(|s| ("sinceSeconds", s)));
    query(pairs)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Args, ClusterCommand, Command};

    #[test]
    fn flags_become_the_parameters_of_the_api() {
        let line = "minisvc logs -f x --tail=3 --since=1500ms --timestamps -p";
        let Command::Cluster(ClusterCommand::Logs(args)) =
            Args::try_parse_from(line.split(' ')).unwrap().command
        else {
            unreachable!()
        };
        assert_eq!(
            parameters(&args, "c", 3),
            "?container=c&follow=true&previous=true&timestamps=true&tailLines=3&sinceSeconds=2"
        );
        assert!(!parameters(&args, "c", -1).contains("tail"));
    }
}
