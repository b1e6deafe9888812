//! Running the program in a folder of its own. No check here depends on how long something takes: work is bounded by memory
//! and by what the program printed before it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Read};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::SystemTime;

use medmerge::checkpoint::{self, Numbers, StoredTensor, TensorFile};
use medmerge::output::OutputPath;
use tempfile::TempDir;

/// Memory of a run, in KiB of addresses. One that believes a number in a file must not take the machine with it.
const MEMORY: &str = "8000000";

/// Processor time of a run, so that one without an end does not outlive its test for ever. No check: the longest run here
/// takes two minutes of it, and a processor a hundred times slower would still finish.
const SECONDS: &str = "15000";

/// A command that runs `program` with little memory.
pub fn limited(program: &Path) -> Command {
    limited_to(program, MEMORY)
}

/// [`limited`] with another limit on memory, in KiB.
pub fn limited_to(program: &Path, memory: &str) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", &format!("ulimit -v {memory}; ulimit -t {SECONDS}; exec \"$@\""), "sh"])
        .arg(program)
        .stdin(Stdio::null());
    command
}

/// The program; MEDMERGE_BIN names another one, such as a release build.
pub fn program() -> PathBuf {
    let named = std::env::var_os("MEDMERGE_BIN").map(PathBuf::from);
    std::path::absolute(named.unwrap_or_else(|| env!("CARGO_BIN_EXE_medmerge").into())).unwrap()
}

pub struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Run {
    fn from(output: Output) -> Run {
        let text = |bytes| String::from_utf8(bytes).expect("the program prints UTF-8");
        Run { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

/// A temporary folder in which the program runs.
pub struct Folder {
    dir: TempDir,
}

impl Folder {
    pub fn new() -> Folder {
        Folder { dir: tempfile::tempdir().unwrap() }
    }

    /// One with `data/{texture,shape,target}.npz` of 16×16 pixels, and `{texture,shape}.safetensors` trained on them.
    pub fn with_sources() -> Folder {
        let folder = Folder::new();
        folder.data("data", "");
        for name in ["texture", "shape"] {
            folder.source(name, name, "--architecture resnet8 --width 4");
        }
        folder
    }

    /// Generated data in `folder/name`.
    pub fn data(&self, name: &str, more: &str) {
        let counts = "--source-train 32 --target-train 32 --test 24";
        let val = if more.contains("--val") { "" } else { "--val 16" };
        let size = if more.contains("--image-size") { "" } else { "--image-size 16" };
        self.done(&format!("synth --out {name} {size} {counts} {val} {more}"));
    }

    /// `name.safetensors`, trained for an epoch on `data/task.npz`.
    pub fn source(&self, name: &str, task: &str, more: &str) {
        self.done(&format!("train --data data/{task}.npz --epochs 1 --batch-size 16 --out {name}.safetensors {more}"));
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub fn text(&self, name: &str) -> String {
        String::from_utf8(self.bytes(name)).unwrap()
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    /// Copies a safetensors file with its contents changed.
    pub fn rewrite(&self, from: &str, to: &str, change: impl FnOnce(&mut TensorFile)) {
        let mut file = TensorFile::read(&self.path(from)).unwrap();
        change(&mut file);
        let tensors: Vec<StoredTensor> = file.tensors.into_values().collect();
        let mut output = OutputPath::check(&self.path(to), false, 0).unwrap();
        checkpoint::write(&mut output, &tensors, &file.metadata).unwrap();
    }

    /// The program with `arguments`, which spaces separate.
    pub fn command(&self, arguments: &str) -> Command {
        let mut command = limited(&program());
        command.current_dir(self.dir.path()).args(arguments.split_whitespace());
        command
    }

    /// [`Folder::run`] with `memory` KiB of addresses.
    pub fn run_within(&self, memory: u64, arguments: &str) -> Run {
        let mut command = limited_to(&program(), &memory.to_string());
        command.current_dir(self.dir.path()).args(arguments.split_whitespace());
        Run::from(command.output().unwrap())
    }

    pub fn run(&self, arguments: &str) -> Run {
        Run::from(self.command(arguments).output().unwrap())
    }

    /// Runs what has to succeed and returns what it prints.
    #[track_caller]
    pub fn done(&self, arguments: &str) -> String {
        let run = self.run(arguments);
        assert_eq!(run.code, Some(0), "medmerge {arguments}\n{}", run.stderr);
        run.stdout
    }

    /// As [`Folder::done`], with `--json`.
    #[track_caller]
    pub fn json(&self, arguments: &str) -> serde_json::Value {
        let stdout = self.done(&format!("{arguments} --json"));
        serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("medmerge {arguments}: {error}\n{stdout}"))
    }

    /// Runs in the background until it prints a line that contains `text` on stderr. However slow the test is from then
    /// on, the run is no further than its next line but one: there it waits to be read (see [`pipe_of_one_write`]).
    pub fn start_until(&self, arguments: &str, text: &str) -> Running {
        let (reader, writer) = pipe_of_one_write();
        // The command, and with it this process's end for writing, is gone when the run is under way.
        let child = self.command(arguments).stdout(Stdio::piped()).stderr(writer).spawn().unwrap();
        let mut stderr = BufReader::with_capacity(PACKET, reader);
        let mut seen = String::new();
        while !seen.lines().any(|line| line.contains(text)) {
            let read = stderr.read_line(&mut seen).unwrap();
            assert_ne!(read, 0, "medmerge {arguments} ended before it said '{text}':\n{seen}");
        }
        Running { child, stderr, seen }
    }

    /// Every folder, and every file with its size and time of change.
    pub fn snapshot(&self) -> Snapshot {
        let mut files = BTreeMap::new();
        walk(self.dir.path(), &mut files);
        files
    }

    /// Names of temporary files that a run forgot.
    pub fn leftovers(&self) -> Vec<PathBuf> {
        let hidden = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        self.snapshot().into_keys().filter(hidden).collect()
    }
}

pub type Snapshot = BTreeMap<PathBuf, Option<(u64, SystemTime)>>;

fn walk(folder: &Path, files: &mut Snapshot) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let details = std::fs::symlink_metadata(&path).unwrap();
        if details.is_dir() {
            walk(&path, files);
        }
        // A temporary file that came and went is no change.
        let state = details.is_file().then(|| (details.len(), details.modified().unwrap()));
        files.insert(path, state);
    }
}

/// More than one write to a pipe can leave to be read at once.
const PACKET: usize = 1 << 16;

/// A pipe that holds a single write: the next one waits until it has been read.
fn pipe_of_one_write() -> (PipeReader, PipeWriter) {
    let (reader, writer) = std::io::pipe().unwrap();
    // SAFETY: both calls change a pipe that lives, and nothing else.
    let (packets, size) = unsafe {
        let writer = writer.as_raw_fd();
        // A pipe for packets holds as many as pages, and one page is the least that it can have.
        (libc::fcntl(writer, libc::F_SETFL, libc::O_DIRECT), libc::fcntl(writer, libc::F_SETPIPE_SZ, 1))
    };
    assert!(packets == 0 && size > 0, "{}", std::io::Error::last_os_error());
    (reader, writer)
}

pub struct Running {
    child: Child,
    stderr: BufReader<PipeReader>,
    seen: String,
}

impl Running {
    /// Presses Ctrl-C and waits.
    pub fn interrupt(mut self) -> Run {
        // SAFETY: the process is a child that nobody has waited for.
        assert_eq!(unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGINT) }, 0);
        // Line by line: a read that asks for less than a packet would lose the rest of it.
        while self.stderr.read_line(&mut self.seen).unwrap() > 0 {}
        let mut stdout = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
        let code = self.child.wait().unwrap().code();
        Run { code, stdout, stderr: self.seen }
    }
}

/// A command that must be refused, and what the refusal must say.
pub struct Case<'a> {
    pub name: &'a str,
    pub arguments: String,
    pub says: &'a [&'a str],
}

pub fn case<'a>(name: &'a str, arguments: impl Into<String>, says: &'a [&'a str]) -> Case<'a> {
    Case { name, arguments: arguments.into(), says }
}

/// Checks every case and reports all that fail: exit code 2, one error, a hint, nothing on stdout, nothing written.
/// Nor may anything else be on stderr, where work shows as a line about it.
#[track_caller]
pub fn assert_refused(folder: &Folder, cases: &[Case]) {
    let mut before = folder.snapshot();
    let mut failed = Vec::new();
    for case in cases {
        let run = folder.run(&case.arguments);
        let mut problems = refusal_problems(&run);
        problems.extend(
            case.says.iter().filter(|text| !run.stderr.contains(**text)).map(|t| format!("does not say '{t}'")),
        );
        let after = folder.snapshot();
        if after != before {
            problems.push("changed the folder".into());
            before = after;
        }
        if !problems.is_empty() {
            let (name, arguments) = (case.name, &case.arguments);
            failed.push(format!("{name}: {}\n$ medmerge {arguments}\n{}", problems.join("; "), run.stderr));
        }
        if std::env::var_os("MEDMERGE_SHOW").is_some() {
            println!("--- {}\n{}", case.name, run.stderr);
        }
    }
    assert!(failed.is_empty(), "{} of {} cases:\n\n{}", failed.len(), cases.len(), failed.join("\n"));
}

/// What is wrong with the way a command was refused.
pub fn refusal_problems(run: &Run) -> Vec<String> {
    let mut problems = Vec::new();
    if run.code != Some(2) {
        problems.push(format!("exit code {:?}", run.code));
    }
    if !run.stdout.is_empty() {
        problems.push(format!("stdout: {}", run.stdout));
    }
    let lines = || run.stderr.lines().filter(|line| !line.is_empty());
    if lines().filter(|line| line.starts_with("error: ")).count() != 1 {
        problems.push("not exactly one error line".into());
    }
    // The others are how the parser of the command line says the same.
    let ours = ["error: ", "caused by: ", "hint: ", "note: "];
    let parsers = ["  ", "Usage: ", "For more information, try '--help'."];
    let known = |line: &&str| ours.iter().chain(&parsers).any(|start| line.starts_with(start));
    problems.extend(lines().filter(|line| !known(line)).map(|line| format!("an odd line: {line}")));
    if !lines().any(|line| line.starts_with("hint: ") || line.starts_with(parsers[2])) {
        problems.push("no hint".into());
    }
    problems
}

/// Tensors of a safetensors file as floats, by name.
pub fn floats(folder: &Folder, name: &str) -> BTreeMap<String, Vec<f32>> {
    let file = TensorFile::read(&folder.path(name)).unwrap();
    let floats = |(name, tensor): (String, StoredTensor)| match tensor.numbers {
        Numbers::Floats(values) => Some((name, values)),
        _ => None,
    };
    file.tensors.into_iter().filter_map(floats).collect()
}

/// The scores of each image in a CSV of predictions without names, whose order is checked.
pub fn scores(csv: &str) -> Vec<Vec<f32>> {
    let mut lines = csv.lines().map(|line| line.split(',').collect::<Vec<_>>());
    let columns = lines.next().unwrap();
    assert_eq!(columns[0], "index");
    let first = columns.iter().position(|column| *column == "score0").unwrap();
    let names: Vec<String> = (0..columns.len() - first).map(|class| format!("score{class}")).collect();
    assert_eq!(columns[first..], names);
    let rows = lines.enumerate().map(|(index, row)| {
        assert_eq!((row[0], row.len()), (index.to_string().as_str(), columns.len()));
        row[first..].iter().map(|score| score.parse().unwrap()).collect()
    });
    rows.collect()
}

/// An entry of a file's header.
pub fn header(folder: &Folder, file: &str, key: &str) -> serde_json::Value {
    folder.json(&format!("inspect {file}"))["metadata"][format!("medmerge.{key}")].clone()
}

/// The last of the runs that a header tells.
pub fn last_phase(folder: &Folder, file: &str) -> serde_json::Value {
    let phases: Vec<serde_json::Value> =
        serde_json::from_str(header(folder, file, "training").as_str().unwrap()).unwrap();
    phases.last().unwrap().clone()
}

/// Runs to the end what is interrupted after the first epoch of its last phase.
pub fn in_parts(folder: &Folder, command: &str) {
    let phase = match command {
        _ if !command.starts_with("learn ") => "training",
        _ if command.contains("--start 0/0.5") => "learning merge weights from 0.5, anchor texture.safetensors",
        _ => "learning merge weights",
    };
    let run = folder.start_until(&format!("{command} --resume -v"), &format!("{phase}: epoch 1,")).interrupt();
    assert!(run.code == Some(1) && run.stderr.contains("interrupted"), "{}", run.stderr);
    let run = folder.run(&format!("{command} --resume"));
    assert!(run.code == Some(0) && run.stderr.contains("continuing from"), "{}", run.stderr);
}
