//! `bench`: what merges, convolutions and steps take, beside what the machine can do.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::{Value, json};

use medmerge::bench::report::{account, compare, seconds};
use medmerge::bench::{self, Limits, Machine, Report, Row, Settings, Suite, is_emulated};
use medmerge::error::{Error, Result};
use medmerge::gpu::{self, Description, Failure, Library};
use medmerge::ops::conv2d::Pass;
use medmerge::ops::conv2d::tiles::MeasuredTiling;
use medmerge::ops::simd::Isa;
use medmerge::output::{OutputPath, shown};
use medmerge::tensor::Device;

use super::{bench_data, note, place, report};
use crate::cli::{Bench, BenchImages, BenchOptions, Global};
use crate::terminal;

pub fn run(verb: &Bench, global: &Global) -> Result<()> {
    let nothing = BenchImages { image_size: vec![], batch_size: None };
    let (kind, options, images, sources, passes) = match verb {
        Bench::Data(options) => return bench_data::run(options, global),
        Bench::Merge { sources, options } => (Suite::Merge, options, &nothing, &sources[..], &[][..]),
        Bench::Conv { pass, images, options, .. } => (Suite::Conv, options, images, &[][..], &pass[..]),
        Bench::Step { sources, images, options, .. } => (Suite::Step, options, images, &sources[..], &[][..]),
    };
    let baseline = options.baseline.as_ref().map(|path| Report::read(path, &kind.to_string()).map(|read| (path, read)));
    let baseline = baseline.transpose()?;
    if let Bench::Step { dry_run: true, launches, .. } = verb {
        let settings = settings(place::dry(global)?, options, images, sources, passes);
        return dry_run(&bench::Bench::new(kind, &settings)?, *launches, global);
    }
    if let Bench::Step { scaling: threads, .. } = verb
        && !threads.is_empty()
    {
        let settings = settings(place::open(global)?, options, images, sources, passes);
        return scaling(&bench::Bench::new(kind, &settings)?, threads, global);
    }
    if let Bench::Conv { dry_run: true, .. } = verb {
        let settings = settings(place::dry(global)?, options, images, sources, passes);
        return divisions(&bench::Bench::new(kind, &settings)?, global);
    }
    let place = place::open(global)?;
    let emulated = is_emulated(place.device);
    if let Some((path, earlier)) = &baseline {
        earlier.check_device(path, emulated)?;
    }
    if place.device == Device::Cpu && matches!(verb, Bench::Step { launches: true, .. }) {
        let hint = "give --device cuda, or --dry-run, which needs no GPU";
        return Err(Error::usage("--launches lists a GPU's kernels, and there are none on the CPU", hint));
    }
    let settings = settings(place, options, images, sources, passes);
    let to_tune = tune_file(verb, place.device)?;
    let bench = bench::Bench::new(kind, &settings)?;
    if let Some(path) = to_tune {
        return tune(&bench, path, emulated, global);
    }
    let machine = machine(&settings);
    let mut result = Report {
        bench: kind.to_string(),
        version: env!("CARGO_PKG_VERSION").into(),
        command: std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect(),
        device: machine,
        emulated,
        limits: None,
        complete: false,
        rows: Vec::new(),
    };
    if emulated {
        note(global, format_args!("note: the emulator checks kernels and does not time them: its times mean nothing"));
    }
    if let Some((_, earlier)) = &baseline
        && earlier.device != result.device
    {
        note(global, format_args!("note: the baseline is of another machine, driver or number of threads"));
    }
    let done = measure_all(&bench, baseline.as_ref().map(|(_, earlier)| earlier), &mut result, global);
    result.complete = done.is_ok();
    let launches = matches!(verb, Bench::Step { launches: true, .. });
    print(&result, baseline.as_ref().map(|(_, earlier)| earlier), launches, done.as_ref().err(), global)?;
    done
}

/// Prints what was measured, all of it or until `failure`.
fn print(
    result: &Report,
    baseline: Option<&Report>,
    launches: bool,
    failure: Option<&Error>,
    global: &Global,
) -> Result<()> {
    let is_nothing = if global.json { result.limits.is_none() } else { result.rows.is_empty() };
    if is_nothing {
        return Ok(());
    }
    let mut object = json_of(result);
    if let Some(error) = failure {
        object["error"] = terminal::of_error(error);
    }
    report(global, &object, |out| {
        print_rows(out, result, baseline)?;
        if launches { print_launches(out, &result.rows) } else { Ok(()) }
    })
}

fn json_of(result: &impl Serialize) -> Value {
    serde_json::to_value(result).expect("plain data is JSON")
}

/// Reports what steps come to, without running them.
fn dry_run(bench: &bench::Bench, launches: bool, global: &Global) -> Result<()> {
    let rows = bench.account()?;
    report(global, &json!({"bench": "step", "dry_run": true, "rows": json_of(&rows)}), |out| {
        writeln!(out, "{}", account(&rows).to_text())?;
        writeln!(
            out,
            "moves: what all launches read and write, each operand once. live, arena: the most memory that a step needs"
        )?;
        writeln!(out, "at a time for itself, and what it is planned in. Nothing was run.")?;
        if launches { print_launches(out, &rows) } else { Ok(()) }
    })
}

/// Reports how convolutions fill threads, without running them.
fn scaling(bench: &bench::Bench, threads: &[usize], global: &Global) -> Result<()> {
    let all = bench.scaling(threads);
    report(global, &json!({"bench": "step", "scaling": json_of(&all)}), |out| {
        writeln!(out, "{}", bench::scaling::table(&all).to_text())?;
        writeln!(
            out,
            "sum: the multiplications of all convolutions' tasks; longest path: in each product those of the thread that does"
        )?;
        writeln!(
            out,
            "most, if each takes the next task when it is free. Nothing was run: bandwidth and other ops are left out."
        )
    })
}

/// Reports how convolutions are divided between blocks, without running them.
fn divisions(bench: &bench::Bench, global: &Global) -> Result<()> {
    let divisions = bench.divisions();
    report(global, &json!({"bench": "conv", "dry_run": true, "rows": json_of(&divisions)}), |out| {
        writeln!(out, "{}", bench::division::table(&divisions).to_text())?;
        writeln!(
            out,
            "tile: rows and columns that a block computes on tensor cores; sm_90a has kernels of its own for most layers."
        )?;
        writeln!(out, "Nothing was run.")
    })
}

/// Where the fastest tiles are written, if they are asked for.
fn tune_file(bench: &Bench, device: Device) -> Result<Option<OutputPath>> {
    let Bench::Conv { tune: Some(path), force, .. } = bench else { return Ok(None) };
    if device == Device::Cpu {
        let hint = "give --device cuda, and a precision of tensor cores: --precision bf16";
        return Err(Error::usage("tiles are chosen for tensor cores", hint));
    }
    OutputPath::check(path, *force, 1 << 20).map(Some)
}

fn tune(bench: &bench::Bench, mut path: OutputPath, emulated: bool, global: &Global) -> Result<()> {
    if emulated {
        note(global, format_args!("note: the emulator's times mean nothing: this table only shows that tuning works"));
    }
    let mut all = Vec::new();
    bench.tune(&mut |tuned| {
        note(global, format_args!("{}: {}", tuned.name, tuned.best.choice));
        all.push(tuned);
    })?;
    if all.is_empty() {
        let hint = "the kernels for tensor cores take bf16, f16 and tf32: --precision bf16";
        return Err(Error::usage("no convolution here has a choice of tiles", hint));
    }
    let entries: Vec<&MeasuredTiling> = all.iter().map(|tuned| &tuned.entry).collect();
    path.write(|file| Ok(serde_json::to_writer_pretty(file, &entries)?))?;
    let result = json!({"bench": "conv", "out": shown(path.path()), "tiles": json_of(&entries)});
    report(global, &result, |out| writeln!(out, "{}", bench::tune::table(&all).to_text()))?;
    let file = terminal::quoted(path.path());
    note(global, format_args!("note: MEDMERGE_TILES={file} makes later runs follow this table"));
    Ok(())
}

fn settings(
    place: medmerge::train::Place,
    options: &BenchOptions,
    images: &BenchImages,
    sources: &[usize],
    passes: &[Pass],
) -> Settings {
    Settings {
        device: place.device,
        precision: place.precision,
        is_fused: place.is_fused,
        networks: options.network.clone(),
        image_sizes: images.image_size.clone(),
        batch_size: images.batch_size,
        sources: sources.to_vec(),
        passes: if passes.is_empty() { Pass::ALL.to_vec() } else { passes.to_vec() },
        filter: options.filter.clone(),
        rounds: options.rounds,
        cache: options.cache_mib.map(|mib| mib << 20),
    }
}

/// Fills `result` row by row, so that what was measured before an error is not lost.
fn measure_all(bench: &bench::Bench, baseline: Option<&Report>, result: &mut Report, global: &Global) -> Result<()> {
    let limits = bench.limits()?;
    result.limits = Some(limits);
    if !global.json {
        terminal::print(|out| print_limits(out, result, &limits))?;
    }
    let rows = &mut result.rows;
    bench.run(&limits, &mut |mut row: Row| {
        if let Some(baseline) = baseline {
            compare(&mut row, baseline);
        }
        rows.push(row);
        let row = rows.last().expect("just put there");
        note(global, format_args!("{}/{} {}: {}", rows.len(), bench.len(), row.name, seconds(row.seconds.median)));
    })
}

fn machine(settings: &Settings) -> Machine {
    let device = settings.device;
    let named = Machine { device: device.to_string(), cache_bytes: settings.cache(), ..Machine::default() };
    let Device::Gpu(gpu) = device else {
        let threads = Some(rayon::current_num_threads());
        return Machine { name: Isa::chosen().to_string(), threads, ..named };
    };
    let Description { name, architecture, multiprocessors, memory, .. } = gpu.description().clone();
    let named = Machine { name, architecture: Some(architecture), ..named };
    if is_emulated(device) {
        return named;
    }
    let probe = gpu::probe();
    let version = |library: std::result::Result<Library, Failure>| Some(library.ok()?.version.to_string());
    Machine {
        multiprocessors: Some(multiprocessors),
        memory_bytes: Some(memory),
        driver: version(probe.driver),
        compiler: version(probe.compiler),
        ..named
    }
}

fn print_limits(out: &mut dyn Write, result: &Report, limits: &Limits) -> io::Result<()> {
    let Machine { device, name, architecture, threads, .. } = &result.device;
    let more = architecture.clone().or(threads.map(|threads| format!("{threads} threads"))).unwrap_or_default();
    writeln!(out, "{device}: {name}, {more}")?;
    if result.emulated {
        writeln!(out, "EMULATED: the times below mean nothing")?;
    }
    writeln!(out, "limits, measured now:")?;
    for (name, rate) in [("read", limits.read), ("2 reads, 1 write", limits.triad), ("copy", limits.copy)] {
        writeln!(out, "  {name:<22}{:>10.1} GB/s", rate / 1e9)?;
    }
    writeln!(out, "  {:<22}{:>10.1} GFLOP/s, f32", "multiply and add", limits.multiply / 1e9)?;
    let Limits { multiply_bf16, multiply_f16, multiply_tf32, .. } = *limits;
    let products = [("bf16", multiply_bf16), ("f16", multiply_f16), ("tf32", multiply_tf32)];
    for (precision, rate) in products.into_iter().filter_map(|(name, rate)| Some((name, rate?))) {
        writeln!(out, "  {:<22}{:>10.1} GFLOP/s, {precision}", "matrix products", rate / 1e9)?;
    }
    Ok(())
}

fn print_launches(out: &mut dyn Write, rows: &[Row]) -> io::Result<()> {
    for row in rows {
        if let Some(table) = row.launches() {
            writeln!(out, "\n{}, one step:\n{}", row.name, table.to_text())?;
        }
    }
    Ok(())
}

fn print_rows(out: &mut dyn Write, result: &Report, baseline: Option<&Report>) -> io::Result<()> {
    writeln!(out, "\n{}", result.table().to_text())?;
    if let Some(summary) = result.summary() {
        writeln!(out, "{}", summary.to_text())?;
    }
    writeln!(out, "±: half the distance between the quartiles. Bytes and operations: the least, each operand once.")?;
    writeln!(out, "share: of the nearer limit, for the row's own mix of reads and writes.")?;
    if result.rows.iter().any(|row| row.step.is_some()) {
        writeln!(out, "Of a step, operations and limit are those of its convolutions and of merging alone.")?;
    }
    if result.rows.iter().any(|row| row.step.as_ref().is_some_and(|step| step.bytes.is_some())) {
        writeln!(
            out,
            "moves: what all launches of a step read and write. needs: the time for that at the bandwidth measured."
        )?;
        writeln!(
            out,
            "live, arena: the most memory that a step needs at a time for itself, and what it is planned in;"
        )?;
        writeln!(out, "memory: of the device, parameters included, while the step is replayed.")?;
    }
    if result.emulated {
        writeln!(out, "EMULATED: no figure above means anything.")?;
    }
    if let Some(baseline) = baseline {
        writeln!(
            out,
            "× baseline: time by that of {}; faster, slower: the quartiles leave a gap.",
            baseline.command.join(" ")
        )?;
    }
    Ok(())
}
