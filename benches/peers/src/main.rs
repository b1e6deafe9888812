//! Measures the works of `shapes.json` in one peer and prints one JSON line for each.
//!
//!     medmerge-peers list
//!     medmerge-peers PEER [--only step,conv,merge,learn,triad] [--match TEXT,TEXT] [--seconds S] [--cap S] [--quick]
//!
//! The thread count comes from RAYON_NUM_THREADS, which every peer here obeys. Results go to stdout, progress to stderr.

#[cfg(feature = "burn")]
mod burn;
#[cfg(feature = "candle")]
mod candle;
mod machine;
mod measure;
#[allow(dead_code)] // how much of it is used depends on the peers in this build
mod numbers;
#[cfg(feature = "ours")]
mod ours;
#[allow(dead_code)] // as above
mod works;

use std::process::ExitCode;

use measure::{Policy, measure};
use works::{Case, Peer, cases};

/// Every peer that this build contains, by the name it has in the table.
fn peers() -> Vec<(&'static str, Box<dyn Peer>)> {
    vec![
        #[cfg(feature = "ours")]
        ("ours", Box::new(ours::Ours)),
        ("machine", Box::new(machine::Machine)),
        #[cfg(feature = "candle")]
        ("candle", Box::new(candle::Candle)),
        #[cfg(feature = "burn")]
        ("burn-flex", Box::new(burn::Burn::flex())),
        #[cfg(feature = "burn")]
        ("burn-ndarray", Box::new(burn::Burn::ndarray())),
    ]
}

struct Options {
    peer: String,
    only: Vec<String>,
    /// A work is measured if its name contains one of these.
    texts: Vec<String>,
    quick: bool,
    policy: Policy,
}

fn options() -> Result<Options, String> {
    let mut words = std::env::args().skip(1);
    let peer = words.next().ok_or("name a peer, or `list`")?;
    let mut options =
        Options { peer, only: vec![], texts: vec![String::new()], quick: false, policy: Policy::default() };
    while let Some(flag) = words.next() {
        let mut value = || words.next().ok_or(format!("{flag} needs a value"));
        let seconds = |text: String| text.parse::<f64>().map_err(|e| format!("{text}: {e}"));
        match flag.as_str() {
            "--only" => options.only = value()?.split(',').map(String::from).collect(),
            "--match" => options.texts = value()?.split(',').map(String::from).collect(),
            "--seconds" => options.policy.seconds = seconds(value()?)?,
            "--cap" => options.policy.cap = seconds(value()?)?,
            "--quick" => options.quick = true,
            _ => return Err(format!("unknown option {flag}")),
        }
    }
    Ok(options)
}

fn run() -> Result<(), String> {
    let options = options()?;
    let peers = peers();
    if options.peer == "list" {
        peers.iter().for_each(|(name, _)| println!("{name}"));
        return Ok(());
    }
    let (name, peer) = peers
        .into_iter()
        .find(|(name, _)| *name == options.peer)
        .ok_or(format!("this build has no peer `{}`; `list` names those it has", options.peer))?;
    for case in cases(options.quick) {
        let chosen = options.only.is_empty() || options.only.iter().any(|group| group == case.group());
        if chosen && options.texts.iter().any(|text| case.name().contains(text)) {
            report(name, peer.as_ref(), &case, options.policy);
        }
    }
    Ok(())
}

fn report(name: &str, peer: &dyn Peer, case: &Case, policy: Policy) {
    let Some(mut work) = case.prepare(peer) else { return };
    eprintln!("{name}: {}", case.name());
    let timing = measure(work.as_mut(), policy);
    let line = serde_json::json!({
        "peer": name,
        "work": case.name(),
        "seconds_median": timing.median,
        "seconds_min": timing.min,
        "seconds_max": timing.max,
        "runs": timing.runs,
        "flops": case.flops(),
        "bytes": case.bytes(),
        "check": work.check(),
        "threads": rayon::current_num_threads(),
    });
    println!("{line}");
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::from(2)
        }
    }
}
