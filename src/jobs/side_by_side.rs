//! Independent pieces of work, some at a time, each on its share of the threads.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::interrupt::{Listener, interrupted};
use crate::train::Observer;

/// How workers see whether all are to stop, and nothing else: what happens is told by [`side_by_side`]'s events.
pub(super) struct Worker<'a> {
    stops: &'a AtomicBool,
}

impl Worker<'_> {
    /// # Errors
    /// If all are to stop.
    pub fn check(&self) -> Result<()> {
        match self.stops.load(Ordering::Relaxed) || interrupted() {
            true => Err(Error::Interrupted { last_checkpoint: None }),
            false => Ok(()),
        }
    }
}

impl Observer for Worker<'_> {
    fn stops(&mut self) -> bool {
        self.stops.load(Ordering::Relaxed)
    }
}

enum Message<E> {
    Told(E),
    Failed(Error),
}

/// Does `work` with all of `todo`, `jobs` at a time, each worker taking the next; a single one has all threads. `watch` gets what
/// workers tell, and `None` every tenth of a second; where it returns true, or Ctrl-C is pressed, or one fails, all stop.
pub(super) fn side_by_side<T: Sync, E: Send>(
    todo: &[T],
    jobs: usize,
    work: impl Fn(&T, &mut Worker, &mut dyn FnMut(E)) -> Result<()> + Sync,
    watch: &mut dyn FnMut(Option<E>) -> bool,
) -> Result<()> {
    let jobs = jobs.min(todo.len()).max(1);
    let threads = (rayon::current_num_threads() / jobs).max(1);
    let (next, stops) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (sender, receiver) = mpsc::channel();
    // Also between two training loops, Ctrl-C waits for what is being done.
    let _listening = Listener::new();
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            let (sender, next, stops, work) = (sender.clone(), &next, &stops, &work);
            let take_turns = move || {
                while let Some(item) = todo.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let mut tell = |event| drop(sender.send(Message::Told(event)));
                    if let Err(error) = work(item, &mut Worker { stops }, &mut tell) {
                        drop(sender.send(Message::Failed(error)));
                        return;
                    }
                }
            };
            // A pool's threads are its own: nobody waits for another's work.
            scope.spawn(move || match jobs {
                1 => take_turns(),
                _ => {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                    pool.expect("threads can be started").install(take_turns);
                }
            });
        }
        drop(sender);
        let mut failure = None;
        loop {
            let stop = match receiver.recv_timeout(Duration::from_millis(100)) {
                Ok(Message::Told(event)) => watch(Some(event)),
                Ok(Message::Failed(error)) => {
                    failure.get_or_insert(error);
                    true
                }
                Err(mpsc::RecvTimeoutError::Timeout) => watch(None),
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            };
            if stop || interrupted() {
                stops.store(true, Ordering::Relaxed);
            }
        }
        failure.map_or(Ok(()), Err)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_done_once_by_any_number_of_workers() {
        let todo: Vec<usize> = (0..20).collect();
        for jobs in [1, 2, 3, 50] {
            let mut seen = Vec::new();
            let mut watch = |event: Option<usize>| {
                seen.extend(event);
                false
            };
            let twice = |item: &usize, _: &mut Worker, tell: &mut dyn FnMut(usize)| {
                tell(item * 2);
                Ok(())
            };
            side_by_side(&todo, jobs, twice, &mut watch).unwrap();
            seen.sort_unstable();
            assert_eq!(seen, (0..20).map(|item| item * 2).collect::<Vec<_>>(), "{jobs}");
        }
        side_by_side(&[], 2, |_: &usize, _, _: &mut dyn FnMut(())| panic!("nothing to do"), &mut |_| false).unwrap();
    }

    #[test]
    fn a_failure_stops_all_and_is_the_result() {
        let todo: Vec<usize> = (0..1000).collect();
        // What is not the failure waits for the stop.
        let wait = |worker: &mut Worker| -> Result<()> {
            loop {
                worker.check()?;
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        let fail = |item: &usize, worker: &mut Worker, tell: &mut dyn FnMut(usize)| {
            tell(*item);
            if *item == 0 { Err(Error::usage("nought", "take another")) } else { wait(worker) }
        };
        let mut told = 0;
        let error = side_by_side(&todo, 2, fail, &mut |event: Option<usize>| {
            told += usize::from(event.is_some());
            false
        });
        assert_eq!(error.unwrap_err().to_string(), Error::usage("nought", "take another").to_string());
        assert_eq!(told, 2, "one for each worker");
        let stopped = side_by_side(&todo, 2, |_, worker, _: &mut dyn FnMut(())| wait(worker), &mut |_| true);
        assert!(matches!(stopped, Err(Error::Interrupted { .. })));
    }
}
