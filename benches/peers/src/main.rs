//! Measures the works of `shapes.json` in one peer and prints one JSON line for each.
//!
//!     medmerge-peers list
//!     medmerge-peers works [--quick]
//!     medmerge-peers PEER [--only step,conv,merge,learn,infer,triad] [--match TEXT,TEXT] [--seconds S] [--cap S] [--quick]
//!
//! Each work runs in a process of its own, so that none finds the memory of another, and its peak is its own.
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

use std::process::{Command, ExitCode};

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
    /// The one work of this process; without it, each is measured by a process of its own.
    alone: Option<String>,
}

fn options() -> Result<Options, String> {
    let mut words = std::env::args().skip(1);
    let peer = words.next().ok_or("name a peer, or `list` or `works`")?;
    let mut options =
        Options { peer, only: vec![], texts: vec![String::new()], quick: false, policy: Policy::default(), alone: None };
    while let Some(flag) = words.next() {
        let mut value = || words.next().ok_or(format!("{flag} needs a value"));
        let seconds = |text: String| text.parse::<f64>().map_err(|e| format!("{text}: {e}"));
        match flag.as_str() {
            "--only" => options.only = value()?.split(',').map(String::from).collect(),
            "--match" => options.texts = value()?.split(',').map(String::from).collect(),
            "--seconds" => options.policy.seconds = seconds(value()?)?,
            "--cap" => options.policy.cap = seconds(value()?)?,
            "--quick" => options.quick = true,
            "--alone" => options.alone = Some(value()?),
            _ => return Err(format!("unknown option {flag}")),
        }
    }
    Ok(options)
}

fn run() -> Result<(), String> {
    let options = options()?;
    let peers = peers();
    if options.peer == "works" {
        cases(options.quick).iter().for_each(|case| println!("{}", case.name()));
        return Ok(());
    }
    if options.peer == "list" {
        peers.iter().for_each(|(name, _)| println!("{name}"));
        return Ok(());
    }
    let (name, peer) = peers
        .into_iter()
        .find(|(name, _)| *name == options.peer)
        .ok_or(format!("this build has no peer `{}`; `list` names those it has", options.peer))?;
    for case in cases(options.quick) {
        if let Some(alone) = &options.alone {
            if case.name() == *alone {
                report(name, peer.as_ref(), &case, options.policy);
            }
            continue;
        }
        let chosen = options.only.is_empty() || options.only.iter().any(|group| group == case.group());
        if chosen && options.texts.iter().any(|text| case.name().contains(text)) {
            measure_apart(&case)?;
        }
    }
    Ok(())
}

/// Measures a work in a process with this one's options.
fn measure_apart(case: &Case) -> Result<(), String> {
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let status = Command::new(program).args(std::env::args().skip(1)).args(["--alone", &case.name()]).status();
    match status.map_err(|e| e.to_string())? {
        status if status.success() => Ok(()),
        status => Err(format!("{}: {status}", case.name())),
    }
}

fn report(name: &str, peer: &dyn Peer, case: &Case, policy: Policy) {
    let before = memory("VmRSS");
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
        "peak_bytes": memory("VmHWM").zip(before).map(|(peak, before)| peak.saturating_sub(before)),
        "check": work.check(),
        "isa": peer.isa(),
        "threads": rayon::current_num_threads(),
    });
    println!("{line}");
}

/// Bytes of this process, as Linux counts them.
fn memory(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(1024 * line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?)
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
