//! Ctrl-C: the first one asks a training loop to stop at the next step, or waits for a file to be whole. A second one, or one
//! while neither happens, ends the program at once.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::output::remove_unfinished;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
/// Loops that look at the flag, and files being written.
static LISTENING: AtomicUsize = AtomicUsize::new(0);

/// How the program tells that it was interrupted.
static SAY: OnceLock<fn()> = OnceLock::new();

/// Ends the program as `main` does when a training loop was interrupted.
fn end() -> ! {
    if let Some(say) = SAY.get() {
        say();
    }
    remove_unfinished();
    std::process::exit(1)
}

#[cfg(feature = "cli")]
/// Installs the handler; called once by the program, which tells by `say` that it was interrupted. A library's user keeps
/// their own.
pub fn watch_for_interrupt(say: fn()) {
    SAY.get_or_init(|| say);
    let handler = || {
        let is_second = INTERRUPTED.swap(true, Ordering::SeqCst);
        if is_second || LISTENING.load(Ordering::SeqCst) == 0 {
            end();
        }
    };
    // Without a handler Ctrl-C still ends the program, only less politely.
    let _ = ctrlc::set_handler(handler);
}

pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// A loop that looks at the flag, as long as this lives.
pub(crate) struct Listener(());

impl Listener {
    pub fn new() -> Listener {
        LISTENING.fetch_add(1, Ordering::SeqCst);
        Listener(())
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        LISTENING.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A file is being written: Ctrl-C waits until it is whole, so that no temporary file stays behind.
pub(crate) struct Shield(Option<Listener>);

impl Shield {
    pub fn new() -> Shield {
        Shield(Some(Listener::new()))
    }
}

impl Drop for Shield {
    fn drop(&mut self) {
        drop(self.0.take());
        if interrupted() && LISTENING.load(Ordering::SeqCst) == 0 {
            end();
        }
    }
}
