//! A program in a container, of which only the end and the first words count.

use std::{io::Read as _, os::fd::OwnedFd};

use tokio::{io::AsyncReadExt, net::unix::pipe};

use super::Place;
use crate::runtime::{ExecSpec, PodRuntime};

/// What is kept of a program's output; the rest is read and thrown away. Kubernetes keeps as much.
const LONGEST: usize = 10 << 10;

/// Runs it to its end; dropped, it is killed.
pub async fn run<R: PodRuntime>(place: &Place<R>, argv: &[String]) -> Result<(), String> {
    let system = |e: std::io::Error| format!("pipe: {e}");
    let (reader, writer) = std::io::pipe().map_err(system)?;
    let reader = OwnedFd::from(reader);
    let mut output = pipe::Receiver::from_owned_fd(reader).map_err(system)?;
    let null = std::fs::File::open("/dev/null").map_err(|e| format!("/dev/null: {e}"))?;
    let stdio = [null.into(), writer.try_clone().map_err(system)?.into(), writer.into()];
    let spec = ExecSpec { container: place.container.clone(), argv: argv.to_vec(), tty: false };
    let mut session = place.runtime.exec(&place.uid, spec, stdio).await.map_err(|e| e.to_string())?;
    let mut said = Vec::new();
    let mut buffer = [0; 4096];
    // What it started may hold the pipe for longer than it runs: its own end is what counts.
    let exit = loop {
        tokio::select! {
            biased;
            read = output.read(&mut buffer) => match read {
                Ok(n) if n > 0 => keep(&mut said, &buffer[..n]),
                _ => break (&mut session.exit).await,
            },
            exit = &mut session.exit => break exit,
        }
    };
    let exit = exit.map_err(|_| "the container ended under the command".to_owned())?;
    if exit.code == 0 {
        return Ok(());
    }
    // What is in the pipe by now, whether the reactor has heard of it or not.
    let mut rest = std::fs::File::from(output.into_nonblocking_fd().map_err(system)?);
    while let Ok(n) = rest.read(&mut buffer)
        && n > 0
    {
        keep(&mut said, &buffer[..n]);
    }
    let said = String::from_utf8_lossy(&said);
    let program = argv.first().map_or("", String::as_str);
    Err(match said.trim() {
        "" => format!("command \"{program}\" exited with {}", exit.code),
        said => said.to_owned(),
    })
}

fn keep(said: &mut Vec<u8>, more: &[u8]) {
    let room = LONGEST.saturating_sub(said.len());
    said.extend_from_slice(&more[..more.len().min(room)]);
}

#[cfg(test)]
mod tests {
    use super::{super::tests::running, *};

    #[tokio::test]
    async fn a_command_is_good_when_it_ends_with_0_and_says_why_not() {
        let place = running().await;
        let ask = async |program: &str| run(&place, &[program.to_owned()]).await;
        assert_eq!(ask("true").await, Ok(()));
        place.runtime.fails("unwell", 3, "no database\n");
        place.runtime.fails("silent", 3, "");
        place.runtime.fails("talker", 1, &"x".repeat(100_000));
        assert_eq!(ask("unwell").await, Err("no database".into()));
        assert_eq!(ask("silent").await, Err("command \"silent\" exited with 3".into()));
        assert_eq!(ask("talker").await.unwrap_err().len(), LONGEST);
        place.runtime.missing("gone");
        assert_eq!(ask("gone").await, Err("exec: \"gone\": not found in PATH".into()));
    }
}
