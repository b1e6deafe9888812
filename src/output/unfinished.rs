//! Files that live only while a run does, temporary ones and locks, so that whoever ends the program in the middle of its
//! work can remove them first.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// More than a run has at a time; what finds no slot is not remembered.
const SLOTS: usize = 64;
static PATHS: [Mutex<Option<PathBuf>>; SLOTS] = [const { Mutex::new(None) }; SLOTS];
static IS_OVER: AtomicBool = AtomicBool::new(false);

/// Removes what this process would leave behind; only for a process that ends now, for every later output waits for
/// ever. It waits for nobody and allocates nothing (but for paths of several hundred bytes), so that it can run where
/// memory is out.
pub fn remove_unfinished() {
    IS_OVER.store(true, Ordering::SeqCst);
    for slot in &PATHS {
        if let Ok(path) = slot.try_lock()
            && let Some(path) = path.as_deref()
        {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A file to be removed if the program ends while this lives.
#[derive(Debug)]
pub(super) struct Unfinished(Option<&'static Mutex<Option<PathBuf>>>);

impl Unfinished {
    pub fn new(path: &Path) -> Unfinished {
        let slot = take_slot(path.to_path_buf());
        while IS_OVER.load(Ordering::SeqCst) {
            std::thread::park();
        }
        Unfinished(slot)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let path = self.0.and_then(|slot| slot.lock().ok()?.take());
        drop(path);
    }
}

fn take_slot(path: PathBuf) -> Option<&'static Mutex<Option<PathBuf>>> {
    for slot in &PATHS {
        if let Ok(mut place) = slot.lock()
            && place.is_none()
        {
            *place = Some(path);
            return Some(slot);
        }
    }
    None
}
