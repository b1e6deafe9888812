//! The report of a benchmark: rows of figures, as a table for people and as JSON, and beside an earlier run's.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::limits::{Bound, Limits};
use super::measure::Timing;
use crate::error::{Error, Result};
use crate::ops::Cost;
use crate::report::Table;

/// Everything about one run. Its JSON is what a later run takes as its baseline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// "merge", "conv" or "step".
    pub bench: String,
    pub version: String,
    /// The command line.
    pub command: Vec<String>,
    pub device: Machine,
    /// Whether the times are the emulator's: then they mean nothing.
    pub emulated: bool,
    pub limits: Option<Limits>,
    /// Whether every row was measured.
    pub complete: bool,
    pub rows: Vec<Row>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// As on the command line.
    pub device: String,
    /// The GPU's name, or the vector instructions of the CPU.
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multiprocessors: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compiler: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// Bytes of the last level of cache, which buffers exceed.
    pub cache_bytes: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The name by which a row of a baseline is known to be the same work.
    pub name: String,
    pub network: String,
    /// A pass, "blend", "dalpha", "training" …
    pub what: String,
    pub precision: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shape: Option<String>,
    /// How often the network has such a layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sources: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_size: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_size: Option<usize>,
    pub seconds: Timing,
    /// At least: each operand once.
    pub bytes: u64,
    pub flops: u64,
    pub bytes_per_second: f64,
    pub flops_per_second: f64,
    pub limit_seconds: f64,
    pub bound: Option<Bound>,
    /// The share of the limit that is reached: `limit_seconds` by the median.
    pub share: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<StepFigures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Comparison>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepFigures {
    pub images_per_second: f64,
    /// Launches of GPU kernels; as everything here that is `None`, not known on the CPU.
    pub launches: Option<u64>,
    /// Bytes that launches, copies and fills move, each operand once.
    #[serde(default)]
    pub bytes: Option<u64>,
    /// The time that they need at the bandwidth measured, by each kernel's mix of reads and writes.
    #[serde(default)]
    pub bytes_seconds: Option<f64>,
    /// Memory that the step allocates for itself: the arena that was planned, and the most that lives at the same time.
    #[serde(default)]
    pub arena_bytes: Option<u64>,
    #[serde(default)]
    pub live_bytes: Option<u64>,
    /// The peak of device memory, parameters included, of the step as a graph.
    pub peak_bytes: Option<u64>,
    /// The same of the first steps, launched kernel by kernel.
    #[serde(default)]
    pub first_peak_bytes: Option<u64>,
    /// The part of a learning step's time that merging takes by itself.
    pub merging_share: Option<f64>,
    /// By kernel, what moves most first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kernels: Vec<KernelFigures>,
}

/// A kernel's launches in one step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KernelFigures {
    pub name: String,
    pub launches: usize,
    pub read: u64,
    pub written: u64,
    pub flops: u64,
    /// Seconds that the bytes need at the bandwidth measured.
    pub limit_seconds: f64,
}

impl KernelFigures {
    pub fn cost(&self) -> Cost {
        Cost { flops: self.flops, read: self.read, written: self.written }
    }
}

/// A row beside that of the same name in an earlier run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    pub is_new: bool,
    /// This median by the earlier one; below 1 is faster.
    pub ratio: Option<f64>,
    /// Whether the quartiles of the two leave a gap.
    pub differs: bool,
}

impl Row {
    /// The kernels of a step, what moves most first.
    pub fn launches(&self) -> Option<Table> {
        let step = self.step.as_ref()?;
        let total = step.bytes.filter(|_| !step.kernels.is_empty())?;
        let mut table = Table::new(["kernel", "launches", "MB read", "MB written", "share", "at the bandwidth"]);
        for kernel in &step.kernels {
            let KernelFigures { name, launches, read, written, limit_seconds, .. } = kernel;
            let share = percent((read + written) as f64 / total.max(1) as f64);
            let megabytes = |bytes: &u64| format!("{:.2}", *bytes as f64 / 1e6);
            let cells = [launches.to_string(), megabytes(read), megabytes(written), share, seconds(*limit_seconds)];
            table.row([name.clone()].into_iter().chain(cells));
        }
        Some(table)
    }
}

impl Report {
    /// Reads the JSON of an earlier run of the same benchmark.
    pub fn read(path: &Path, bench: &str) -> Result<Report> {
        let text = std::fs::read_to_string(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::InvalidData => foreign(path, "it is not text".into(), bench),
            _ => Error::io("read", path)(error),
        })?;
        let report: Report = serde_json::from_str(&text)
            .map_err(|error| foreign(path, format!("it is not the JSON of a benchmark: {error}"), bench))?;
        if report.bench != bench {
            let message = format!("it holds the times of `bench {}`, not of `bench {bench}`", report.bench);
            return Err(foreign(path, message, bench));
        }
        let is_time = |timing: &Timing| {
            timing.first_quartile > 0.0
                && timing.first_quartile <= timing.median
                && timing.median <= timing.third_quartile
        };
        match report.rows.iter().find(|row| !is_time(&row.seconds)) {
            Some(row) => Err(foreign(path, format!("the times of {} make no sense", row.name), bench)),
            None => Ok(report),
        }
    }

    /// Refuses to compare what the emulator took with what hardware took.
    pub fn check_device(&self, path: &Path, emulated: bool) -> Result<()> {
        match self.emulated == emulated {
            true => Ok(()),
            false if emulated => Err(foreign(path, "its times are not the emulator's".into(), &self.bench)),
            false => Err(foreign(path, "its times are the emulator's and mean nothing".into(), &self.bench)),
        }
    }

    pub fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.name == name)
    }

    /// For people.
    pub fn table(&self) -> Table {
        let has_baseline = self.rows.iter().any(|row| row.baseline.is_some());
        let columns: Vec<&Column> =
            COLUMNS.iter().filter(|column| self.rows.iter().any(|row| (column.cell)(self, row).is_some())).collect();
        let baseline = has_baseline.then(|| "× baseline".to_string());
        let headers = columns.iter().map(|column| (column.header)(self)).chain(baseline);
        let mut table = Table::new(headers);
        for row in &self.rows {
            let cells = columns.iter().map(|column| (column.cell)(self, row).unwrap_or("–".into()));
            let baseline = has_baseline.then(|| row.baseline.map_or("–".into(), comparison));
            table.row(cells.chain(baseline));
        }
        table
    }

    /// A summary of convolutions: for each network and pass, all layers together and the mean share.
    pub fn summary(&self) -> Option<Table> {
        let key = |row: &Row| (row.network.clone(), row.image_size, row.what.clone());
        let mut keys: Vec<_> = self.rows.iter().filter(|row| row.count.is_some()).map(key).collect();
        keys.sort();
        keys.dedup();
        let mut table =
            Table::new(["network", "px", "pass", "layers", "all of them", "share of the limit, geometric mean"]);
        for of in keys {
            let rows: Vec<&Row> = self.rows.iter().filter(|row| key(row) == of).collect();
            let layers: usize = rows.iter().filter_map(|row| row.count).sum();
            let total: f64 = rows.iter().map(|row| row.count.unwrap_or(1) as f64 * row.seconds.median).sum();
            let mean = (rows.iter().map(|row| row.share.ln()).sum::<f64>() / rows.len() as f64).exp();
            let (network, image_size, pass) = of;
            let image_size = image_size.map_or("–".into(), |size| size.to_string());
            table.row([network, image_size, pass, layers.to_string(), seconds(total), percent(mean)]);
        }
        (!table.is_empty()).then_some(table)
    }

    /// Operations come in units that fit the device.
    fn flop_unit(&self) -> (f64, &'static str) {
        if self.device.multiprocessors.is_some() { (1e12, "TFLOP/s") } else { (1e9, "GFLOP/s") }
    }
}

/// A table of what steps launch, move and allocate, where they were not run.
pub fn account(rows: &[Row]) -> Table {
    let mut table = Table::new(["step", "launches", "moves", "operations", "live", "arena"]);
    let gigabytes = |bytes: Option<u64>| format!("{:.2} GB", bytes.unwrap_or_default() as f64 / 1e9);
    for row in rows {
        let Some(step) = &row.step else { continue };
        table.row([
            row.name.clone(),
            step.launches.unwrap_or_default().to_string(),
            gigabytes(step.bytes),
            format!("{:.2} TFLOP", row.flops as f64 / 1e12),
            gigabytes(step.live_bytes),
            gigabytes(step.arena_bytes),
        ]);
    }
    table
}

fn foreign(path: &Path, message: String, bench: &str) -> Error {
    Error::data(path, message, format!("give what `medmerge bench {bench} --json` wrote"))
}

/// Puts each row beside that of the same name.
pub fn compare(row: &mut Row, baseline: &Report) {
    let earlier = baseline.row(&row.name);
    row.baseline = Some(Comparison {
        is_new: earlier.is_none(),
        ratio: earlier.map(|earlier| row.seconds.median / earlier.seconds.median),
        differs: earlier.is_some_and(|earlier| row.seconds.differs_from(&earlier.seconds)),
    });
}

fn comparison(comparison: Comparison) -> String {
    match comparison.ratio {
        None => "new".into(),
        Some(ratio) if comparison.differs => format!("{ratio:.3} {}", if ratio < 1.0 { "faster" } else { "slower" }),
        Some(ratio) => format!("{ratio:.3}"),
    }
}

struct Column {
    header: fn(&Report) -> String,
    /// `None` where a row has no such figure; a column that none has is left out.
    cell: fn(&Report, &Row) -> Option<String>,
}

#[rustfmt::skip]
const COLUMNS: &[Column] = &[
    Column { header: |_| "network".into(), cell: |_, row| Some(row.network.clone()) },
    Column { header: |_| "px".into(), cell: |_, row| Some(row.image_size?.to_string()) },
    Column { header: |_| "batch".into(), cell: |_, row| match row.shape { Some(_) => None, None => Some(row.batch_size?.to_string()) } },
    Column { header: |_| "layer".into(), cell: |_, row| row.layer.clone() },
    Column { header: |_| "times".into(), cell: |_, row| Some(row.count?.to_string()) },
    Column { header: |_| "shape".into(), cell: |_, row| row.shape.clone() },
    Column { header: |_| "sources".into(), cell: |_, row| match row.step { Some(_) => None, None => Some(row.sources?.to_string()) } },
    Column { header: |_| "what".into(), cell: |_, row| Some(row.what.clone()) },
    Column { header: |report| if report.emulated { "emulated".into() } else { "median".into() }, cell: |_, row| Some(seconds(row.seconds.median)) },
    Column { header: |_| "±".into(), cell: |_, row| Some(format!("{:.1} %", 100.0 * row.seconds.spread())) },
    Column { header: |_| "images/s".into(), cell: |_, row| Some(format!("{:.1}", row.step.as_ref()?.images_per_second)) },
    Column { header: |_| "launches".into(), cell: |_, row| Some(row.step.as_ref()?.launches?.to_string()) },
    Column { header: |_| "moves".into(), cell: |_, row| Some(megabytes(row.step.as_ref()?.bytes?)) },
    Column { header: |_| "needs".into(), cell: |_, row| Some(seconds(row.step.as_ref()?.bytes_seconds?)) },
    Column { header: |_| "live".into(), cell: |_, row| Some(megabytes(row.step.as_ref()?.live_bytes?)) },
    Column { header: |_| "arena".into(), cell: |_, row| Some(megabytes(row.step.as_ref()?.arena_bytes?)) },
    Column { header: |_| "memory".into(), cell: |_, row| Some(megabytes(row.step.as_ref()?.peak_bytes?)) },
    Column { header: |_| "merging".into(), cell: |_, row| Some(percent(row.step.as_ref()?.merging_share?)) },
    Column { header: |_| "GB/s".into(), cell: |_, row| match row.step { Some(_) => None, None => Some(format!("{:.1}", row.bytes_per_second / 1e9)) } },
    Column { header: |report| report.flop_unit().1.into(), cell: |report, row| Some(format!("{:.2}", row.flops_per_second / report.flop_unit().0)) },
    Column { header: |_| "limit".into(), cell: |_, row| Some(match row.bound? { Bound::Memory => "memory".into(), Bound::Arithmetic => "arithmetic".into() }) },
    Column { header: |_| "share".into(), cell: |_, row| Some(percent(row.share)) },
];

/// Three digits.
pub fn seconds(seconds: f64) -> String {
    let (value, unit) = match seconds {
        s if s < 1e-6 => (s * 1e9, "ns"),
        s if s < 1e-3 => (s * 1e6, "µs"),
        s if s < 1.0 => (s * 1e3, "ms"),
        s => (s, "s"),
    };
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$} {unit}")
}

fn megabytes(bytes: u64) -> String {
    let value = bytes as f64 / 1e6;
    format!("{value:.0$} MB", if value < 100.0 { 1 } else { 0 })
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, first_quartile: f64, median: f64, third_quartile: f64) -> Row {
        let seconds = Timing { first_quartile, median, third_quartile, ..Timing::default() };
        Row { name: name.into(), seconds, ..Row::default() }
    }

    fn report(rows: Vec<Row>) -> Report {
        Report {
            bench: "merge".into(),
            version: "0".into(),
            command: vec![],
            device: Machine::default(),
            emulated: false,
            limits: None,
            complete: true,
            rows,
        }
    }

    #[test]
    fn rows_beside_those_of_a_baseline() {
        let baseline = report(vec![row("a", 1.0, 2.0, 3.0), row("b", 1.0, 2.0, 3.0), row("gone", 1.0, 1.0, 1.0)]);
        let compared = |mut row: Row| {
            compare(&mut row, &baseline);
            row.baseline.unwrap()
        };
        let expected = |is_new, ratio, differs| Comparison { is_new, ratio, differs };
        assert_eq!(compared(row("a", 2.5, 3.0, 3.5)), expected(false, Some(1.5), false));
        assert_eq!(compared(row("b", 0.4, 0.5, 0.6)), expected(false, Some(0.25), true));
        assert_eq!(compared(row("c", 1.0, 1.0, 1.0)), expected(true, None, false));
        let says = |row| comparison(compared(row));
        assert_eq!(says(row("a", 2.5, 3.0, 3.5)), "1.500");
        assert_eq!(says(row("b", 0.4, 0.5, 0.6)), "0.250 faster");
        assert_eq!(says(row("b", 4.0, 5.0, 6.0)), "2.500 slower");
        assert_eq!(says(row("c", 1.0, 1.0, 1.0)), "new");
    }

    #[test]
    fn baselines_that_are_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("baseline.json");
        let refused = |text: &str, bench: &str| {
            std::fs::write(&path, text).unwrap();
            let error = Report::read(&path, bench).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{error}");
            assert!(error.hint().unwrap().contains("--json"), "{error}");
            error.to_string()
        };
        let good = serde_json::to_string(&report(vec![row("a", 1.0, 2.0, 3.0)])).unwrap();
        std::fs::write(&path, &good).unwrap();
        assert_eq!(Report::read(&path, "merge").unwrap().rows.len(), 1);
        assert!(refused(&good, "conv").contains("`bench merge`, not of `bench conv`"));
        assert!(refused("{\"rows\": []}", "merge").contains("not the JSON of a benchmark"));
        assert!(refused("GIF89a", "merge").contains("not the JSON of a benchmark"));
        let senseless = serde_json::to_string(&report(vec![row("a", 0.0, 0.0, 0.0)])).unwrap();
        assert!(refused(&senseless, "merge").contains("a make no sense"));
        let read = report(vec![]);
        assert!(read.check_device(&path, false).is_ok() && read.check_device(&path, true).is_err());
    }

    #[test]
    fn times_for_people() {
        let texts = [2.5e-8, 3.14159e-6, 4.2e-5, 0.1234, 1.0, 99.96].map(seconds);
        assert_eq!(texts, ["25.0 ns", "3.14 µs", "42.0 µs", "123 ms", "1.00 s", "100.0 s"]);
    }

    /// A column that says nothing is left out.
    #[test]
    fn a_table_of_convolutions() {
        let conv = |layer: &str, count, median| Row {
            network: "resnet8".into(),
            what: "fprop".into(),
            layer: Some(layer.into()),
            count: Some(count),
            share: 0.25,
            ..row(layer, median, median, median)
        };
        let report = report(vec![conv("conv1", 1, 1.0), conv("layer1.0.conv1", 4, 0.5)]);
        let text = report.table().to_text();
        assert!(text.starts_with("network  layer           times  what   median"), "{text}");
        assert!(!text.contains("images/s") && !text.contains("baseline"), "{text}");
        let summary = report.summary().unwrap().to_text();
        let words: Vec<&str> = summary.lines().nth(2).unwrap().split_whitespace().collect();
        assert_eq!(words, ["resnet8", "–", "fprop", "5", "3.00", "s", "25.0", "%"]);
    }
}
