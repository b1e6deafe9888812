//! The end of a program that gets no more memory: one line, a hint and exit code 1. Rust would abort by a signal, which
//! looks like a mistake in the program.
//!
//! Where there is no memory, nothing may be allocated: the lines are put together on the stack and written by the system
//! call itself.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Cursor, Write};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::terminal;

/// The system's allocator, which ends the program where it has nothing left to give.
pub struct Ending;

/// The thread that says how the program ends; 0 as long as there is none.
static ENDED_BY: AtomicUsize = AtomicUsize::new(0);

const HINT: &[u8] =
    b"hint: use smaller batches (--batch-size), images or networks, end other programs, or raise the limit (ulimit -v)\n";

// SAFETY: each method is the system's own, but for those that return null, and these do not return.
unsafe impl GlobalAlloc for Ending {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        given(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        given(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        given(unsafe { System.realloc(pointer, layout, size) }, size)
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn given(pointer: *mut u8, size: usize) -> *mut u8 {
    if pointer.is_null() {
        end(size)
    }
    pointer
}

/// The object that `--json` prints then.
const OBJECT: &[u8] = br#"{"error": {"message": "out of memory", "causes": [], "hint": "use smaller batches (--batch-size), images or networks, end other programs, or raise the limit (ulimit -v)", "exit_code": 1}}
"#;

/// Does what is due before the program ends without its destructors, such as removing temporary files. It runs at most
/// once, on the thread that got no memory, and must neither allocate nor wait for a lock: that thread may hold it.
fn on_exhausted() {
    medmerge::output::remove_unfinished();
}

/// A thread whose start finds no memory panics inside Rust's own code, before it does anything of ours: that is the same
/// end. Any other panic stays what it is.
pub fn end_where_a_thread_gets_no_stack() {
    let otherwise = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let is_stack = |text: &&str| text.starts_with("failed to allocate an alternative stack");
        match panic.payload_as_str().filter(is_stack) {
            Some(_) => end_with(b"error: out of memory: a thread got no stack\n"),
            None => otherwise(panic),
        }
    }));
}

/// The calling thread is the one that says how the program ends: a thread that gets no memory from here on ends nothing.
/// Where such a thread was first, this one waits for it to end the program.
pub fn take_the_end() {
    if !is_first() {
        wait_for_the_end()
    }
}

/// Whether the end is the calling thread's for the first time.
fn is_first() -> bool {
    // SAFETY: has no preconditions.
    let this = unsafe { libc::pthread_self() } as usize;
    match ENDED_BY.compare_exchange(0, this, Ordering::SeqCst, Ordering::SeqCst) {
        Ok(_) => true,
        // What the end itself asks for is not to be had either.
        Err(thread) if thread == this => exit(),
        Err(_) => false,
    }
}

fn wait_for_the_end() -> ! {
    loop {
        // SAFETY: waits for a signal, whose handler may return.
        unsafe { libc::pause() };
    }
}

#[cold]
fn end(size: usize) -> ! {
    let mut line = [0; 80];
    end_with(message(size, &mut line))
}

#[cold]
fn end_with(line: &[u8]) -> ! {
    if !is_first() {
        // Another thread got nothing as well, or is the one that says what went wrong: it ends the program for both.
        wait_for_the_end()
    }
    write_all(libc::STDERR_FILENO, line);
    write_all(libc::STDERR_FILENO, HINT);
    if terminal::takes_an_object() {
        write_all(libc::STDOUT_FILENO, OBJECT);
    }
    on_exhausted();
    exit()
}

/// The line of an error about `size` bytes, in `line`.
fn message(size: usize, line: &mut [u8; 80]) -> &[u8] {
    let mut cursor = Cursor::new(&mut line[..]);
    // 80 bytes hold the largest number.
    let _ = writeln!(cursor, "error: out of memory: {size} more bytes were asked for");
    let length = cursor.position() as usize;
    &line[..length]
}

/// Writes to a file descriptor, past Rust's own lock of it; where nobody reads, nothing can be done.
fn write_all(to: libc::c_int, mut text: &[u8]) {
    while !text.is_empty() {
        // SAFETY: the pointer and the length are those of a slice.
        let written = unsafe { libc::write(to, text.as_ptr().cast(), text.len()) };
        match usize::try_from(written) {
            Ok(written) if written > 0 => text = &text[written.min(text.len())..],
            _ => return,
        }
    }
}

fn exit() -> ! {
    // SAFETY: ends the process; destructors, which might allocate, do not run.
    unsafe { libc::_exit(1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_has_room_for_the_largest_number() {
        let line = message(usize::MAX, &mut [0; 80]).to_owned();
        assert_eq!(line, b"error: out of memory: 18446744073709551615 more bytes were asked for\n");
    }
}
