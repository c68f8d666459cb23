//! Much work of one kind on all cores. Pure.

use std::{
    panic::resume_unwind,
    thread::{available_parallelism, scope},
};

/// Fewer items are done sooner than threads are started.
const WORTH_A_THREAD: usize = 256;
/// Pods have more to do on a big machine than to wait for us.
const MOST_THREADS: usize = 8;

/// The result of each item, in the items' order. Items are dropped where they are worked on.
pub(super) fn map<T: Send, R: Send>(items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let cores = available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
    if cores == 1 || items.len() < WORTH_A_THREAD {
        return items.into_iter().map(work).collect();
    }
    let size = items.len().div_ceil(cores);
    let mut parts = vec![items];
    while let Some(last) = parts.last_mut().filter(|last| last.len() > size) {
        let rest = last.split_off(size);
        parts.push(rest);
    }
    scope(|threads| {
        let work = &work;
        let workers: Vec<_> = parts
            .into_iter()
            .map(|part| threads.spawn(move || part.into_iter().map(work).collect::<Vec<R>>()))
            .collect();
        workers
            .into_iter()
            .flat_map(|worker| worker.join().unwrap_or_else(|panic| resume_unwind(panic)))
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_done_once_and_in_order() {
        for count in [0, 1, WORTH_A_THREAD - 1, WORTH_A_THREAD, WORTH_A_THREAD + 1, 10 * WORTH_A_THREAD + 3] {
            let wanted: Vec<usize> = (0..count).map(|n| n * 2).collect();
            assert_eq!(map((0..count).collect(), |n| n * 2), wanted, "{count}");
        }
    }
}
