//! Whose turn it is to use a device, where several threads do.
//!
//! What is traced or recorded is the work of one thread: another's, in between, would become part of it, or break it off. So each call
//! takes the device, and who traces or records keeps it.

use std::sync::{Condvar, Mutex};
use std::thread::{self, ThreadId};

use super::lock;

#[derive(Default)]
pub(super) struct Turn {
    /// Who has it, and how often over.
    holder: Mutex<Option<(ThreadId, usize)>>,
    freed: Condvar,
}

/// Holds the turn of this thread.
pub(super) struct Held<'a> {
    turn: &'a Turn,
}

impl Turn {
    /// Waits until no other thread has it; who has it may take it again.
    pub fn take(&self) -> Held<'_> {
        let me = thread::current().id();
        let mut holder = lock(&self.holder);
        loop {
            match &mut *holder {
                None => *holder = Some((me, 1)),
                Some((thread, times)) if *thread == me => *times += 1,
                Some(_) => {
                    holder = self.freed.wait(holder).unwrap_or_else(|poisoned| poisoned.into_inner());
                    continue;
                }
            }
            return Held { turn: self };
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut holder = lock(&self.turn.holder);
        if let Some((_, times)) = &mut *holder {
            *times -= 1;
            if *times == 0 {
                *holder = None;
                self.turn.freed.notify_one();
            }
        }
    }
}
