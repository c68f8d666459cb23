//! A new certificate before the present one ends, without a restart.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use minisvc_proto::{client::ClientError, join::BACKDATED};
use tokio_util::sync::CancellationToken;

use super::{IdentityError, Membership, key::Key, stored::Facts, stored::Stored};

/// A clock may be set, and a machine may sleep: the time is looked at this often at least.
const LOOK_EVERY: Duration = Duration::from_hours(1);
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_mins(5);

/// Keeps the certificate young until cancelled. What fails is tried again; pods and rules do not depend on it.
pub async fn run(member: Membership, shutdown: CancellationToken) {
    let mut retry = FIRST_RETRY;
    let mut due = match Stored::load(&member.data_dir) {
        Ok(Some(stored)) => due(&stored.facts),
        // Somebody removed or damaged the file: a new one puts that right.
        _ => Timestamp::now(),
    };
    loop {
        let left = Timestamp::now().duration_until(due);
        let wait = Duration::try_from(left).unwrap_or(Duration::ZERO).min(LOOK_EVERY);
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
        if Timestamp::now() < due {
            continue;
        }
        match renew(&member).await {
            Ok(facts) => {
                tracing::info!(until = %facts.not_after, "the node's certificate was renewed");
                (due, retry) = (self::due(&facts), FIRST_RETRY);
            }
            Err(error) => {
                tracing::warn!(%error, "the node's certificate is not renewed yet; trying again in {retry:?}");
                due = Timestamp::now()
                    .saturating_add(SignedDuration::try_from(retry).unwrap_or_default())
                    .unwrap_or(due);
                retry = (retry * 2).min(LAST_RETRY);
            }
        }
    }
}

async fn renew(member: &Membership) -> Result<Facts, IdentityError> {
    let key = Key::new()?;
    let answer = member.client.renew(&member.name, &key.request()?).await?;
    let stored = Stored::new(member.client.server(), &answer.ca, &answer.certificate, &key.pem())
        .map_err(|why| ClientError::Decode(format!("the server's answer is of no use: {why}")))?;
    // First the disk: what is shown must outlive this process.
    stored.save(&member.data_dir)?;
    member.identity.replace(answer.certificate.as_bytes(), key.pem().as_bytes())?;
    Ok(stored.facts)
}

/// After two thirds of its life; what it was back-dated by does not count.
fn due(facts: &Facts) -> Timestamp {
    let issued = facts.not_before + BACKDATED;
    let life = issued.duration_until(facts.not_after);
    facts.not_after.saturating_sub(life / 3).unwrap_or(facts.not_before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_at_two_thirds_of_its_life_by_any_length_of_it() {
        let issued: Timestamp = "2026-01-10T00:00:00Z".parse().unwrap();
        for (life, due_after) in [("PT30S", "PT20S"), ("PT720H", "PT480H")] {
            let life: SignedDuration = life.parse().unwrap();
            let facts = Facts {
                server: String::new(),
                ca_hash: String::new(),
                node: "n".parse().unwrap(),
                not_before: issued - BACKDATED,
                not_after: issued + life,
            };
            let wanted: SignedDuration = due_after.parse().unwrap();
            assert_eq!(due(&facts), issued + wanted);
        }
    }
}
