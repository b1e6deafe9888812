//! The program: parse, run, print what went wrong and what to do about it.

#[cfg(unix)]
mod allocator;
mod cli;
mod commands;
mod terminal;

use std::process::ExitCode;

use clap::Parser;

#[cfg(unix)]
#[global_allocator]
static ALLOCATOR: allocator::Ending = allocator::Ending;

fn main() -> ExitCode {
    set_signals();
    // A command line that cannot be parsed is answered in the same form.
    terminal::as_json(std::env::args_os().any(|argument| argument == "--json"));
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return terminal::explain(&error),
    };
    terminal::as_json(cli.global.json);
    medmerge::interrupt::watch_for_interrupt(terminal::interrupted);
    match commands::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => terminal::fail(&error),
    }
}

/// `medmerge … | head` ends when `head` does, as other programs do; Rust would turn the closed pipe into an error. A file
/// that grows beyond the shell's limit is an error like others; the signal would end the program without a word.
fn set_signals() {
    #[cfg(unix)]
    // SAFETY: nothing runs yet that could handle the signals otherwise.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}
