//! Which of the global options a verb reads. One that is given and would change nothing is refused: whoever gives it
//! expects otherwise. Those that are not listed here are taken everywhere.

use clap::ArgMatches;
use clap::parser::ValueSource;

use medmerge::error::{Error, Result};
use medmerge::merge::methods::{self, Number};

use crate::cli::{Bench, Global, Merge, Verb};

const ALL: [(&str, &str); 4] =
    [("device", "--device"), ("precision", "--precision"), ("no_fusion", "--no-fusion"), ("seed", "--seed")];

fn read_by(verb: &Verb) -> &'static [&'static str] {
    match verb {
        Verb::Demo(_) | Verb::Train(_) | Verb::Learn(_) | Verb::Compare(_) => {
            &["device", "precision", "no_fusion", "seed"]
        }
        Verb::Eval(_) | Verb::Predict(_) => &["device", "precision", "no_fusion"],
        // Running statistics are what a network that runs is needed for.
        Verb::Merge(options) if options.method.as_deref() == Some("list") => &[],
        Verb::Merge(options) => match (options.data.is_some(), draws(options)) {
            (true, true) => &["device", "precision", "no_fusion", "seed"],
            (true, false) => &["device", "precision", "no_fusion"],
            (false, true) => &["device", "seed"],
            (false, false) => &["device"],
        },
        Verb::Align(options) if options.data.is_some() => &["device", "precision"],
        Verb::Align(_) => &[],
        Verb::Inspect(options) if options.plan => &["precision", "no_fusion"],
        Verb::Inspect(_) => &[],
        Verb::Export(_) => &[],
        Verb::Synth(_) => &["seed"],
        Verb::Bench(Bench::Merge { .. }) => &["device"],
        Verb::Bench(Bench::Conv { dry_run: true, .. }) => &["precision"],
        Verb::Bench(Bench::Conv { .. }) => &["device", "precision"],
        Verb::Bench(Bench::Step { dry_run: true, .. }) => &["precision", "no_fusion"],
        Verb::Bench(Bench::Step { scaling, .. }) if !scaling.is_empty() => &["no_fusion"],
        Verb::Bench(Bench::Step { .. } | Bench::Data(_)) => &["device", "precision", "no_fusion"],
        Verb::Selftest(_) => &["device"],
        Verb::Kernels(_) | Verb::Devices => &[],
    }
}

/// Whether a merge goes by chance.
fn draws(options: &Merge) -> bool {
    let method = options.method.as_deref().and_then(|name| methods::named(name).ok());
    method.is_some_and(|method| method.reads().contains(&Number::Seed))
}

/// Refuses the first option that was given and that the verb does not read.
pub fn check(verb: &Verb, global: &Global, matches: &ArgMatches) -> Result<()> {
    let read = read_by(verb);
    let (name, matches) = innermost(matches);
    // The seed is also the emulator's, which orders threads by it.
    let is_read =
        |id| read.contains(&id) || (id == "seed" && read.contains(&"device") && global.device.starts_with("emulator"));
    let is_given = |id| matches.value_source(id) == Some(ValueSource::CommandLine);
    match ALL.iter().find(|(id, _)| is_given(id) && !is_read(*id)) {
        Some((_, option)) => Err(Error::usage(format!("{name} has no use for {option}"), "leave it out")),
        None => Ok(()),
    }
}

/// The verb as it was given, such as `bench conv`, and what was given to it.
fn innermost(mut matches: &ArgMatches) -> (String, &ArgMatches) {
    let mut names = Vec::new();
    while let Some((name, inner)) = matches.subcommand() {
        names.push(name);
        matches = inner;
    }
    (names.join(" "), matches)
}
