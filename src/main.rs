//! The program: parse, run, print what went wrong and what to do about it.

#[cfg(unix)]
mod allocator;
mod cli;
mod commands;
mod terminal;

use std::process::ExitCode;

use clap::{ArgMatches, CommandFactory, FromArgMatches};

#[cfg(unix)]
#[global_allocator]
static ALLOCATOR: allocator::Ending = allocator::Ending;

fn main() -> ExitCode {
    set_signals();
    allocator::end_where_a_thread_gets_no_stack();
    // A command line that cannot be parsed is answered in the same form.
    terminal::as_json(std::env::args_os().any(|argument| argument == "--json"));
    let (cli, matches) = match parse() {
        Ok(parsed) => parsed,
        Err(error) => return terminal::explain(&error),
    };
    terminal::as_json(cli.global.json);
    medmerge::interrupt::watch_for_interrupt(terminal::interrupted);
    match commands::run(cli, &matches) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => terminal::fail(&error),
    }
}

/// The command line, and which of its options were given.
fn parse() -> Result<(cli::Cli, ArgMatches), clap::Error> {
    let matches = cli::Cli::command().try_get_matches_from(cli::arguments(std::env::args_os()))?;
    let cli = cli::Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut cli::Cli::command()))?;
    Ok((cli, matches))
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
