//! The output of the program: its result on stdout, everything else on stderr.
//!
//! Where nobody can read it (a full disk, a closed terminal) nothing here panics: a result that is not written is an
//! error of the run, and a line on stderr that is not written is lost. With `--json` a run prints one object on stdout,
//! whether it ends well or not.

use std::error::Error as _;
use std::fmt::Arguments;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use medmerge::error::{Error, Result};

/// Whether `--json` was given.
static IS_JSON: AtomicBool = AtomicBool::new(false);
/// Whether the object of this run has been printed.
static IS_PRINTED: Mutex<bool> = Mutex::new(false);

/// A failed run prints an object from now on, or no longer.
pub fn as_json(is_json: bool) {
    IS_JSON.store(is_json, Ordering::SeqCst);
}

/// Whether this run prints an object and has not done so yet. Waits for nobody.
pub fn takes_an_object() -> bool {
    IS_JSON.load(Ordering::SeqCst) && IS_PRINTED.try_lock().is_ok_and(|is_printed| !*is_printed)
}

/// A line on stderr.
pub fn say(text: Arguments) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// A path as a word of a command that a shell reads.
pub fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    // Only a zero byte cannot be quoted, and no path has one.
    shlex::try_quote(&text).map_or(text.clone(), |quoted| quoted.into_owned())
}

/// Writes to stdout what `fill` makes, at once.
pub fn print(fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let mut text = Vec::new();
    let written = fill(&mut text).and_then(|()| {
        let mut stdout = io::stdout().lock();
        stdout.write_all(&text)?;
        stdout.flush()
    });
    written.map_err(|source| Error::Stdout { source })
}

/// Prints the object of this run.
pub fn print_object(object: &Value) -> Result<()> {
    let mut is_printed = IS_PRINTED.lock().expect("nothing panics while it prints");
    *is_printed = true;
    print(|out| writeln!(out, "{object:#}"))
}

/// An error as an object, for machines.
pub fn of_error(error: &Error) -> Value {
    object(&error.to_string(), &causes(error), error.hint().as_deref(), error.exit_code())
}

fn causes(error: &Error) -> Vec<String> {
    let mut causes = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        causes.push(cause.to_string());
        next = cause.source();
    }
    causes
}

fn object(message: &str, causes: &[String], hint: Option<&str>, exit_code: u8) -> Value {
    json!({"message": message, "causes": causes, "hint": hint, "exit_code": exit_code})
}

/// Says what went wrong and what to do about it, unless a thread that got no memory is saying so already.
pub fn fail(error: &Error) -> ExitCode {
    // Put together before the end is this thread's: with no memory for it, that is what the end is about.
    let (lines, object) = (lines_of(error), json!({"error": of_error(error)}));
    #[cfg(unix)]
    crate::allocator::take_the_end();
    say(format_args!("{lines}"));
    print_failure(|| object);
    ExitCode::from(error.exit_code())
}

/// An error as lines, for people.
fn lines_of(error: &Error) -> String {
    let causes = causes(error).into_iter().map(|cause| format!("caused by: {cause}"));
    let hint = error.hint().map(|hint| format!("hint: {hint}"));
    let lines: Vec<String> = [format!("error: {error}")].into_iter().chain(causes).chain(hint).collect();
    lines.join("\n")
}

/// Prints what the parser of the command line has to say: help, the version, or what is wrong.
pub fn explain(error: &clap::Error) -> ExitCode {
    let printed = error.print();
    if !error.use_stderr() {
        return match printed.and_then(|()| io::stdout().flush()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(source) => fail(&Error::Stdout { source }),
        };
    }
    print_failure(|| json!({"error": of_parser(error)}));
    ExitCode::from(2)
}

/// The parser's text begins with the message, up to an empty line, and may go on with a tip.
fn of_parser(error: &clap::Error) -> Value {
    let text = error.render().to_string();
    let message: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
    let message = message.join(" ");
    let tip = text.lines().find_map(|line| line.trim().strip_prefix("tip: "));
    object(message.trim_start_matches("error: "), &[], Some(tip.unwrap_or("--help lists what there is")), 2)
}

/// Ctrl-C ended the program while nothing else could.
pub fn interrupted() {
    let error = Error::Interrupted { last_checkpoint: None };
    say(format_args!("{}", lines_of(&error)));
    print_failure(|| json!({"error": of_error(&error)}));
}

/// Prints the object of a run that failed, unless the run has printed it itself, or is about to.
fn print_failure(object: impl FnOnce() -> Value) {
    if !IS_JSON.load(Ordering::SeqCst) {
        return;
    }
    // Not waited for: whoever prints may be waiting for a reader that never comes.
    let Ok(mut is_printed) = IS_PRINTED.try_lock() else { return };
    if !*is_printed {
        *is_printed = true;
        let _ = print(|out| writeln!(out, "{:#}", object()));
    }
}
