//! The program: parse, run, print what went wrong and what to do about it.

#[cfg(unix)]
mod allocator;
mod cli;
mod commands;

use std::error::Error as _;
use std::process::ExitCode;

use clap::Parser;

#[cfg(unix)]
#[global_allocator]
static ALLOCATOR: allocator::Ending = allocator::Ending;

fn main() -> ExitCode {
    end_with_a_closed_pipe();
    let cli = cli::Cli::parse();
    medmerge::interrupt::watch_for_interrupt();
    match commands::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                eprintln!("caused by: {error}");
                cause = error.source();
            }
            if let Some(hint) = error.hint() {
                eprintln!("hint: {hint}");
            }
            ExitCode::from(error.exit_code())
        }
    }
}

/// `medmerge … | head` ends when `head` does, as other programs do; Rust would turn the closed pipe into a panic.
fn end_with_a_closed_pipe() {
    #[cfg(unix)]
    // SAFETY: nothing runs yet that could handle the signal otherwise.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}
