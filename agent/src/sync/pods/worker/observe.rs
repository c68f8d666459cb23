//! What the runtime says of the containers, and what follows from it.

use super::{
    super::{
        Containers,
        decide::{Health, backoff, count_failure, is_over},
    },
    PodNetwork, PodRuntime, Sandbox, Severity, Worker,
};
use crate::runtime::ContainerState;

impl<R: PodRuntime, N: PodNetwork> Worker<R, N> {
    /// Takes over what the runtime says, and what follows from it.
    pub(super) fn observe(&mut self) {
        let Some(state) = self.states.as_mut().map(|s| s.borrow_and_update().clone()) else { return };
        if !state.alive {
            self.sandbox = Sandbox::Ended;
        }
        for (name, mut new) in state.containers {
            self.earlier.remove(&name);
            let old = self.containers.get(&name);
            // A new shim does not know what its predecessor saw.
            if new.previous.is_none() {
                new.previous = match old {
                    Some(o) if o.attempt == new.attempt => o.previous.clone(),
                    Some(o) => o.exit.clone(),
                    None => None,
                };
            }
            let known = self.health.get(&name).is_some_and(|h| h.attempt == new.attempt);
            if old == Some(&new) && (new.exit.is_some() || known) {
                continue;
            }
            let seen = old.is_some_and(|o| o.attempt == new.attempt && o.exit.is_some());
            let (attempt, started_at) = (new.attempt, new.started_at);
            let running = new.is_running();
            if !running {
                self.tasks.remove(&name);
                if let Some(exit) = new.exit.as_ref().filter(|_| !seen) {
                    let count = count_failure(self.failures.get(&name).copied(), &new, exit);
                    self.failures.insert(name.clone(), count);
                    self.tell_of_end(&name, &new, count);
                }
            }
            self.containers.insert(name.clone(), new);
            if !known {
                // What was known of the start before says nothing of one that has ended already.
                self.health.insert(name.clone(), Health { attempt, ..Health::default() });
            }
            if running && !known {
                self.take_up(&name, attempt, started_at);
            }
        }
    }

    /// Tells the agent's API.
    pub(super) fn publish(&self) {
        let restart = self.restart();
        let all = self.over
            || self.stop().is_some()
            || is_over(&self.members, restart, &self.containers, &self.health);
        let over = self.containers.iter().filter(|(name, c)| {
            all || c.exit.as_ref().is_some_and(|exit| !self.is_started_again(name, exit))
        });
        let over = over.map(|(name, _)| name.clone()).collect();
        self.published.send_if_modified(|known| {
            let news = known.over != over || known.states != self.containers;
            *known = Containers { states: self.containers.clone(), over };
            news
        });
    }

    fn is_started_again(&self, name: &str, exit: &crate::runtime::Exit) -> bool {
        let condemned = self.health.get(name).is_some_and(|h| h.condemned.is_some());
        self.kind(name).restarts(self.restart(), exit, condemned)
    }

    fn tell_of_end(&self, name: &str, state: &ContainerState, failures: u32) {
        let Some(exit) = &state.exit else { return };
        if let Some(why) = &exit.not_started {
            self.event(Severity::Warning, "Failed", format!("container {name}: {why}"));
        }
        if self.stop().is_none() && self.is_started_again(name, exit) {
            let seconds = backoff(failures) / 1000;
            let message = format!("Back-off restarting container {name}: next start in {seconds} s");
            self.event(Severity::Warning, "BackOff", message);
        }
    }
}
