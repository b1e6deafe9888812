//! What the program says and how it names files, wherever its output goes and whatever bytes a name is made of.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::process::Stdio;

use serde_json::Value;

use crate::support::{Folder, Run};

const TRAIN: &str = "train --data data/texture.npz --architecture resnet8 --width 4 --epochs 1 --batch-size 16";
const LEARN: &str = "learn --models texture.safetensors shape.safetensors --data data/target.npz --epochs 1";
const MERGE: &str = "merge --models texture.safetensors shape.safetensors --coefficients 0.5,0.5";
const PREDICT: &str = "predict --model texture.safetensors --data data/texture.npz";
const EVAL: &str = "eval --model texture.safetensors --data data/texture.npz";
const SYNTH: &str = "synth --image-size 16 --source-train 16 --target-train 16 --val 4 --test 4";

/// The program with `arguments`, in which `NAME` stands for bytes that are not UTF-8.
fn run_named(folder: &Folder, arguments: &str) -> Run {
    let mut command = folder.command("");
    for argument in arguments.split_whitespace() {
        let mut bytes = argument.as_bytes().to_vec();
        if let Some(at) = argument.find("NAME") {
            bytes.splice(at..at + 4, *b"n\xff\xfe");
        }
        command.arg(OsStr::from_bytes(&bytes));
    }
    Run::from(command.output().unwrap())
}

fn object(run: &Run) -> Value {
    serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}\n{}\n{}", run.stdout, run.stderr))
}

#[test]
fn names_that_are_not_utf8_are_names_like_others() {
    let folder = Folder::with_sources();
    // A verb, and where in its object the name is shown.
    for (arguments, key) in [
        (format!("{TRAIN} --out NAME-train"), "out"),
        (format!("{TRAIN} --resume --out NAME-resumed"), "out"),
        (format!("{LEARN} --out NAME-learn --picture NAME.svg"), "weights"),
        ("learn --models NAME-train NAME-resumed --data data/texture.npz --epochs 1 --out learned".into(), "anchor"),
        ("merge --models NAME-train NAME-resumed --coefficients 0.5,0.5 --out merged".into(), "out"),
        (format!("{MERGE} --out NAME-merge"), "out"),
        (format!("{PREDICT} --out NAME.csv"), "out"),
        ("eval --model NAME-train --data data/texture.npz".into(), "model"),
        ("inspect NAME-train".into(), "sha256"),
        ("inspect NAME-learn.weights.safetensors".into(), "layers"),
        (format!("{SYNTH} --out NAME-data"), "out"),
        ("inspect NAME-data/shape.npz".into(), "summary"),
        ("inspect --plan NAME-train".into(), "network"),
        ("bench merge --device cpu --network resnet8 --sources 2 --rounds 1 --filter n".into(), "rows"),
    ] {
        let force = if arguments.contains("--out") { "--force" } else { "" };
        for json in ["", "--json"] {
            let run = run_named(&folder, &format!("{arguments} {force} {json}"));
            assert_eq!(run.code, Some(0), "{arguments}\n{}", run.stderr);
            assert!(json.is_empty() || !object(&run)[key].is_null(), "{arguments}: {}", run.stdout);
        }
    }
    let demo = run_named(&folder, "demo --out NAME-train --json");
    assert!(demo.code == Some(2) && demo.stderr.contains("is no folder"), "{}", demo.stderr);
    let missing = run_named(&folder, "eval --model NAME-missing --data NAME.npz --json");
    assert_eq!(missing.code, Some(2), "{}", missing.stderr);
    assert!(object(&missing)["error"]["message"].as_str().unwrap().contains("n\u{fffd}\u{fffd}-missing"));
    let no_number = run_named(&folder, &format!("{TRAIN} --out x --seed NAME"));
    assert_eq!(no_number.code, Some(2), "{}", no_number.stderr);
}

/// Commands that print a result, each by another part of the program.
fn printing() -> Vec<String> {
    vec![
        "devices".into(),
        "--help".into(),
        "train --help".into(),
        "--version".into(),
        "inspect texture.safetensors".into(),
        "inspect data/target.npz".into(),
        "inspect --plan resnet18".into(),
        "selftest --device cpu --op concat".into(),
        "bench merge --device cpu --network resnet8 --sources 2 --rounds 1".into(),
        "bench step --dry-run --network resnet8 --image-size 8".into(),
        EVAL.into(),
        format!("{TRAIN} --out trained --force"),
        format!("{LEARN} --out learned --force"),
        format!("{MERGE} --out merged --force"),
        format!("{PREDICT} --out scores.csv --force"),
        format!("{SYNTH} --out images --force"),
    ]
}

fn full() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

#[test]
fn a_result_that_nobody_takes_is_an_error_and_no_panic() {
    let folder = Folder::with_sources();
    for arguments in printing() {
        for json in ["", " --json"] {
            let mut command = folder.command(&format!("{arguments}{json}"));
            let run = Run::from(command.stdout(full()).output().unwrap());
            assert_eq!(run.code, Some(1), "{arguments}{json}\n{}", run.stderr);
            for says in ["error: cannot write to the standard output", "caused by: No space left", "hint: "] {
                assert!(run.stderr.contains(says), "{arguments}{json}: no '{says}' in\n{}", run.stderr);
            }
            assert_eq!(run.stderr.matches("error: ").count(), 1, "{arguments}{json}\n{}", run.stderr);
        }
    }
    // The files of such a run are whole.
    folder.done("eval --model trained --data data/texture.npz");
}

#[test]
fn what_stderr_does_not_take_is_lost_and_changes_nothing() {
    let folder = Folder::with_sources();
    for (arguments, code) in [
        (format!("{TRAIN} -v --out trained"), 0),
        (format!("{TRAIN} --out trained"), 2),
        ("trian".into(), 2),
        ("bench merge --device cpu --network resnet8 --sources 2 --rounds 1".into(), 0),
        (format!("{TRAIN} --optimizer sgd --learning-rate 1e30 --out diverged"), 1),
    ] {
        let run = Run::from(folder.command(&arguments).stderr(full()).output().unwrap());
        assert_eq!(run.code, Some(code), "{arguments}");
    }
    // Nor where there is no stderr at all.
    let mut closed = std::process::Command::new("sh");
    closed.args(["-c", "exec \"$@\" 2>&-", "sh"]).arg(crate::support::program()).arg("trian");
    assert_eq!(closed.output().unwrap().status.code(), Some(2));
}

#[test]
fn as_json_every_command_prints_one_object() {
    let folder = Folder::with_sources();
    let commands =
        printing().into_iter().filter(|arguments| !arguments.starts_with("--") && !arguments.contains("help"));
    for arguments in commands {
        let run = folder.run(&format!("{arguments} --json"));
        assert_eq!(run.code, Some(0), "{arguments}\n{}", run.stderr);
        assert!(object(&run).is_object() && object(&run)["error"].is_null(), "{arguments}: {}", run.stdout);
    }
}

/// A failed run prints for machines what it says to people.
#[test]
fn as_json_every_failure_is_one_object() {
    let folder = Folder::with_sources();
    folder.write("there", "theirs");
    for (arguments, code, says) in [
        ("trian", 2, "unrecognized subcommand 'trian'"),
        ("train --data data/texture.npz", 2, "not provided: --out <FILE.safetensors>"),
        ("train --data x --out y --epochs many", 2, "invalid value 'many'"),
        ("", 2, "requires a subcommand"),
        ("train --data none.npz --out x", 2, "cannot read none.npz"),
        ("learn --models texture.safetensors --data data/target.npz --out x", 2, "at least two sources"),
        ("merge --models texture.safetensors shape.safetensors --coefficients 1,0 --out there", 2, "already exists"),
        ("eval --model none --data data/texture.npz", 2, "cannot read none"),
        ("predict --model texture.safetensors --data data/texture.npz --out there", 2, "already exists"),
        ("inspect none", 2, "cannot read none"),
        ("synth --out there", 2, "there"),
        ("demo --out there", 2, "there is no folder"),
        ("bench conv --device cpu --filter nothing", 2, "'nothing'"),
        ("bench step --dry-run --network resnet19", 2, "unknown network"),
        ("selftest --device cpu --op conv2", 2, "unknown op"),
        ("kernels --arch sm_1", 2, ""),
        ("devices --threads 0", 2, "--threads 0"),
        ("eval --model texture.safetensors --data data/texture.npz --device cuda:99", 2, "is not available"),
        (
            "train --from texture.safetensors --data data/texture.npz --optimizer sgd --learning-rate 1e38 --out x",
            1,
            "the loss became",
        ),
    ] {
        let run = folder.run(&format!("{arguments} --json"));
        assert_eq!(run.code, Some(code), "{arguments}\n{}", run.stderr);
        let object = object(&run);
        assert_eq!(object.as_object().unwrap().len(), 1, "{arguments}: {object:#}");
        let error = &object["error"];
        assert_eq!(error["exit_code"], code, "{arguments}: {object:#}");
        let message = error["message"].as_str().unwrap();
        assert!(!message.is_empty() && message.contains(says), "{arguments}: {object:#}");
        assert!(
            error["causes"].is_array() && error["hint"].as_str().is_some_and(|hint| !hint.is_empty()),
            "{object:#}"
        );
        assert!(!run.stderr.is_empty(), "{arguments}");
    }
    // Without the flag there is nothing on stdout.
    assert_eq!(folder.run("trian").stdout, "");
}
