//! Join tokens that ended long ago are cleared away. Until then they are shown as expired, to whoever wonders.

use std::time::Duration;

use jiff::Timestamp;
use minisvc_proto::resource::JOIN_TOKENS;
use tokio_util::sync::CancellationToken;

use crate::registry::{DeleteOptions, Registry, join_token};

const PERIOD: Duration = Duration::from_mins(1);

/// Clears away until shutdown.
pub async fn run(registry: &Registry, shutdown: &CancellationToken) {
    let mut tick = tokio::time::interval(PERIOD);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = tick.tick() => sweep(registry, Timestamp::now()).await,
        }
    }
}

async fn sweep(registry: &Registry, now: Timestamp) {
    let (_, all) = registry.list(&JOIN_TOKENS, None);
    for key in all.iter().filter(|t| join_token::is_forgotten(t, now)).filter_map(|t| t.key()) {
        if let Err(error) = registry.delete(&key, DeleteOptions::default()).await {
            tracing::debug!(%error, "an expired join token could not be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use minisvc_proto::{Object, path::Target};
    use serde_json::json;

    use super::*;
    use crate::registry::{WriteOptions, testing};

    #[tokio::test]
    async fn a_token_goes_a_day_after_its_end_and_one_without_an_end_stays() {
        let (registry, now) = (testing::registry(), Timestamp::now());
        for (id, ttl) in [("00000000aa", 60), ("00000000bb", 0)] {
            let mut asked = Object::new(&JOIN_TOKENS, None, "");
            asked.metadata_mut().remove("name");
            asked.0.insert("spec".into(), json!({"ttlSeconds": ttl}));
            let token = join_token::issue(&asked, id, "secret", now).unwrap();
            let target = Target::collection(&JOIN_TOKENS, None);
            registry.create(&target, token, WriteOptions::default()).await.unwrap();
        }
        for (hours, left) in [(24, 2), (25, 1), (25 * 365, 1)] {
            sweep(&registry, now + SignedDuration::from_hours(hours)).await;
            assert_eq!(registry.list(&JOIN_TOKENS, None).1.len(), left, "{hours}");
        }
    }
}
