//! Asks the server to take this machine in.

use std::time::{Duration, Instant};

use minisvc_proto::{
    NodeName,
    client::{self, ClientError},
    join::JoinToken,
};
use tokio_util::sync::CancellationToken;

use super::{IdentityError, key::Key, stored::Stored};

const FIRST_RETRY: Duration = Duration::from_millis(200);
const LAST_RETRY: Duration = Duration::from_secs(5);
/// How long a name may be another machine's: one that lost its data directory and comes back at once meets its own earlier self,
/// until the server has missed that for [`minisvc_proto::report::NODE_SILENCE_LIMIT`].
const TAKEN: Duration = Duration::from_secs(10);

/// Joins; waits for a server that does not answer. `None` when cancelled meanwhile.
pub async fn join(
    server: &str,
    token: &JoinToken,
    node: &NodeName,
    shutdown: &CancellationToken,
) -> Result<Option<Stored>, IdentityError> {
    // One key for all tries: the server knows a request whose answer was lost, and counts it once.
    let key = Key::new()?;
    let request = key.request()?;
    let start = Instant::now();
    let mut wait = FIRST_RETRY;
    loop {
        let refused = |cause| IdentityError::Refused { node: node.clone(), cause };
        match client::join(server, token, node, &request).await {
            Ok(answer) => {
                let stored =
                    Stored::new(server, &answer.ca, &answer.certificate, &key.pem()).map_err(|why| {
                        refused(ClientError::Decode(format!("the server's answer is of no use: {why}")))
                    })?;
                if stored.facts.ca_hash != token.ca_hash || stored.facts.node != *node {
                    let why = "the server's answer is of no use: it is for another cluster or node";
                    return Err(refused(ClientError::Decode(why.into())));
                }
                return Ok(Some(stored));
            }
            Err(error) if is_worth_a_try(&error, start.elapsed()) => {
                tracing::warn!(%error, "this machine has not joined yet; trying again in {wait:?}");
            }
            Err(error) => return Err(refused(error)),
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(None),
            () = tokio::time::sleep(wait) => wait = (wait * 2).min(LAST_RETRY),
        }
    }
}

/// Whether the same request may do better later.
fn is_worth_a_try(error: &ClientError, waited: Duration) -> bool {
    match error {
        ClientError::Unreachable { .. } => true,
        ClientError::Api(status) if status.is_conflict() => waited < TAKEN,
        ClientError::Api(status) => status.code >= 500 || status.code == 429,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use minisvc_proto::{ApiError, Reason};

    use super::*;

    #[test]
    fn only_what_may_pass_is_tried_again() {
        let gone = ClientError::Unreachable { server: "s".into(), cause: "c".into() };
        let api = |reason| ClientError::Api(ApiError::new(reason, "why"));
        let late = TAKEN + Duration::from_secs(1);
        for (error, soon, later) in [
            (gone, true, true),
            (api(Reason::InternalError), true, true),
            (api(Reason::Conflict), true, false),
            (api(Reason::Unauthorized), false, false),
            (api(Reason::Forbidden), false, false),
            (api(Reason::Invalid), false, false),
            (ClientError::Tls("another CA".into()), false, false),
        ] {
            assert_eq!(is_worth_a_try(&error, Duration::ZERO), soon, "{error}");
            assert_eq!(is_worth_a_try(&error, late), later, "{error}");
        }
    }
}
