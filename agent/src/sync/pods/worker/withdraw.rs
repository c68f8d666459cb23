//! A pod leaves rotation before its containers are told to end.

use std::time::{Duration, Instant};

use minisvc_proto::client::Client;

use super::{super::decide::Withdrawal, PodNetwork, PodRuntime, Severity, Worker};

/// Until a server that did not answer is asked again.
const RETRY: Duration = Duration::from_millis(250);

/// The end of the wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    took: Duration,
    /// Why new connections may still come.
    late: Option<String>,
}

impl<R: PodRuntime, N: PodNetwork> Worker<R, N> {
    /// Begins to wait. See `Action::Withdraw`.
    pub(super) fn withdraw(&mut self) {
        self.withdrawal = Some(Withdrawal::Waits);
        let grace = self.stop().and_then(|s| u64::try_from(s.grace).ok()).unwrap_or(0);
        // The containers need time to end as well.
        let most = self.shared.config.withdraw_timeout.min(Duration::from_millis(grace / 2));
        let (client, sender) = (self.shared.client.clone(), self.left.0.clone());
        let (namespace, name) = (self.namespace.clone(), self.name.clone());
        tokio::spawn(async move {
            let began = Instant::now();
            let late = tokio::select! {
                late = out_of_rotation(&client, &namespace, &name, most) => late,
                () = sender.closed() => return,
            };
            // Fails when nobody looks after the pod any more.
            let _ = sender.send(Left { took: began.elapsed(), late }).await;
        });
    }

    /// The wait is over.
    pub(super) fn has_left(&mut self, left: Left) {
        self.withdrawal =
            Some(Withdrawal::Over { took: i64::try_from(left.took.as_millis()).unwrap_or(i64::MAX) });
        if let Some(why) = left.late {
            let message = format!(
                "Ending after {:.1} s, though new connections may still come: {why}",
                left.took.as_secs_f64()
            );
            self.event(Severity::Warning, "WithdrawalTimeout", message);
        }
    }
}

/// Waits until no node leads new connections to the pod, or why that is not so when the time is over.
async fn out_of_rotation(client: &Client, namespace: &str, name: &str, most: Duration) -> Option<String> {
    let end = Instant::now() + most;
    let mut why = String::new();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Some(why).filter(|why| !why.is_empty());
        }
        match client.pod_withdrawal(namespace, name, left).await {
            Ok(state) if state.complete => return None,
            Ok(state) if state.late_nodes.is_empty() => {
                why = String::from("its EndpointSlices do not show its end yet");
            }
            Ok(state) => why = format!("not programmed by {}", state.late_nodes.join(", ")),
            // Then nobody leads anything to it.
            Err(error) if error.api().is_some_and(minisvc_proto::ApiError::is_not_found) => return None,
            Err(error) => {
                why = error.to_string();
                tokio::time::sleep(RETRY.min(left)).await;
            }
        }
    }
}
