//! Several things at a time, on threads that mostly wait: for a network, for a disk.
//!
//! Rayon's threads are for computing: there are as many as cores, and one that waits is one that
//! doesn't compute.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Does something for each item, for at most `at_once` of them at a time; the results, in the
/// order of the items. After an error nothing more is begun.
pub fn concurrently<T: Sync, R: Send, E: Send>(
    at_once: usize,
    items: &[T],
    action: impl Fn(&T) -> Result<R, E> + Sync,
) -> Result<Vec<R>, E> {
    let threads = at_once.min(items.len());
    if threads < 2 {
        return items.iter().map(action).collect();
    }
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(index) else { return Ok(done) };
            match action(item) {
                Ok(result) => done.push((index, result)),
                Err(error) => {
                    next.store(items.len(), Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
    };
    let mut done = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let ended: Vec<Result<Vec<(usize, R)>, E>> =
            threads.into_iter().map(|it| it.join().expect("an action doesn't panic")).collect();
        ended.into_iter().collect::<Result<Vec<_>, E>>()
    })?
    .into_iter()
    .flatten()
    .collect::<Vec<_>>();
    done.sort_by_key(|(index, _)| *index);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn results_come_in_order_and_work_is_done_together() {
        // Nobody passes unless three are at work at once.
        let barrier = Barrier::new(3);
        let squares = concurrently(3, &[1, 2, 3, 4, 5, 6], |number| {
            barrier.wait();
            Ok::<_, ()>(number * number)
        });
        assert_eq!(squares, Ok(vec![1, 4, 9, 16, 25, 36]));
        assert_eq!(concurrently(8, &[], |(): &()| Ok::<(), ()>(())), Ok(vec![]));
    }

    #[test]
    fn after_an_error_nothing_is_begun() {
        let begun = AtomicUsize::new(0);
        for at_once in [1, 2] {
            let result = concurrently(at_once, &[0; 1000], |_| {
                begun.fetch_add(1, Ordering::Relaxed);
                Err::<(), _>("no")
            });
            assert_eq!(result, Err("no"));
        }
        assert!(begun.load(Ordering::Relaxed) <= 3);
    }
}
