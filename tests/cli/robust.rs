//! What the program says and how it names files, wherever its output goes and whatever bytes a name is made of.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::process::Stdio;

use serde_json::Value;

use crate::support::{Folder, Run, assert_refused, case, floats};

const TRAIN: &str = "train --data data/texture.npz --architecture resnet8 --width 4 --epochs 1 --batch-size 16";
const LEARN: &str = "learn --models texture.safetensors shape.safetensors --data data/target.npz --epochs 1";
const MERGE: &str = "merge --models texture.safetensors shape.safetensors --coefficients 0.5,0.5";
const PREDICT: &str = "predict --model texture.safetensors --data data/texture.npz";
const EVAL: &str = "eval --model texture.safetensors --data data/texture.npz";
const EXPORT: &str = "export texture.safetensors";
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
        ("export NAME-train --onnx NAME.onnx".into(), "onnx"),
        ("eval --model NAME-train --data data/texture.npz".into(), "model"),
        ("inspect NAME-train".into(), "sha256"),
        ("inspect NAME-learn.weights.safetensors".into(), "layers"),
        (format!("{SYNTH} --out NAME-data"), "out"),
        ("inspect NAME-data/shape.npz".into(), "summary"),
        ("inspect --plan NAME-train".into(), "network"),
        ("bench merge --device cpu --cache-mib 2 --network resnet8 --sources 2 --rounds 1 --filter n".into(), "rows"),
    ] {
        let force = if ["--out", "--onnx"].iter().any(|option| arguments.contains(option)) { "--force" } else { "" };
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
        "bench merge --device cpu --cache-mib 2 --network resnet8 --sources 2 --rounds 1".into(),
        "bench step --dry-run --network resnet8 --image-size 8".into(),
        EVAL.into(),
        format!("{TRAIN} --out trained --force"),
        format!("{LEARN} --out learned --force"),
        format!("{MERGE} --out merged --force"),
        format!("{PREDICT} --out scores.csv --force"),
        format!("{EXPORT} --onnx network.onnx --force"),
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
        ("bench merge --device cpu --cache-mib 2 --network resnet8 --sources 2 --rounds 1".into(), 0),
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
        (
            "learn --models texture.safetensors --data data/target.npz --out x",
            2,
            "a single source with --constraint affine",
        ),
        ("merge --models texture.safetensors shape.safetensors --coefficients 1,0 --out there", 2, "already exists"),
        ("eval --model none --data data/texture.npz", 2, "cannot read none"),
        ("predict --model texture.safetensors --data data/texture.npz --out there", 2, "already exists"),
        ("export texture.safetensors --onnx there", 2, "already exists"),
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

#[test]
fn an_option_that_a_verb_does_not_read_is_refused() {
    let folder = Folder::with_sources();
    let all = ["--device cpu", "--precision f32", "--no-fusion", "--seed 1"];
    // A verb, and which of them it has no use for.
    let verbs: [(&str, &str, &[usize]); 15] = [
        ("eval", EVAL, &[3]),
        ("predict", &format!("{PREDICT} --out new"), &[3]),
        ("merge", &format!("{MERGE} --out new"), &[1, 2, 3]),
        ("merge", &format!("{MERGE} --data data/target.npz --out new"), &[3]),
        ("export", &format!("{EXPORT} --onnx new"), &[0, 1, 2, 3]),
        ("inspect", "inspect texture.safetensors", &[0, 1, 2, 3]),
        ("inspect", "inspect --plan resnet8", &[0, 3]),
        ("synth", &format!("{SYNTH} --out new"), &[0, 1, 2]),
        ("bench merge", "bench merge --network resnet8", &[1, 2, 3]),
        ("bench conv", "bench conv --network resnet8", &[2, 3]),
        ("bench conv", "bench conv --dry-run --network resnet8", &[0, 2, 3]),
        ("bench step", "bench step --dry-run --network resnet8 --image-size 8", &[0, 3]),
        ("selftest", "selftest --op concat", &[1, 2, 3]),
        ("kernels", "kernels", &[0, 1, 2, 3]),
        ("devices", "devices", &[0, 1, 2, 3]),
    ];
    for (verb, command, unread) in verbs {
        for &index in unread {
            let says = format!("{verb} has no use for {}", all[index].split(' ').next().unwrap());
            let says = [says.as_str()];
            // Before the verb, and behind it.
            let cases = [format!("{} {command}", all[index]), format!("{command} {}", all[index])];
            assert_refused(&folder, &cases.map(|arguments| case(verb, arguments, &says)));
        }
    }
    // The other ones are taken, and so are those that every verb takes.
    let everywhere = "--threads 1 -v --json";
    for (verb, command, unread) in verbs {
        let read: Vec<&str> = (0..all.len()).filter(|index| !unread.contains(index)).map(|index| all[index]).collect();
        if verb == "kernels" || verb.starts_with("bench ") && !command.contains("--dry-run") {
            continue;
        }
        folder.done(
            &format!("{command} {} {everywhere}", read.join(" ")).replace(" new", &format!(" new-{verb} --force")),
        );
    }
    let launches = "bench step --device cpu --network resnet8 --image-size 8 --launches";
    assert_refused(&folder, &[case("launches", launches, &["--launches lists a GPU's kernels", "--dry-run"])]);
}

/// It orders the emulator's threads.
#[cfg(feature = "emulator")]
#[test]
fn the_emulator_reads_the_seed_of_every_verb() {
    let folder = Folder::with_sources();
    folder.done(&format!("{EVAL} --device emulator --seed 3"));
    folder.done(&format!("{MERGE} --device emulator --seed 3 --out new"));
}

#[test]
fn lists_of_numbers_may_begin_below_zero() {
    let folder = Folder::with_sources();
    let merge = "merge --models texture.safetensors shape.safetensors";
    folder.done(&format!("{merge} --coefficients -0.5,1.5 --out one"));
    folder.done(&format!("{merge} --coefficients=-0.5,1.5 --out other"));
    assert_eq!(floats(&folder, "one"), floats(&folder, "other"));
    folder.done(&format!("{EVAL} --mean -0.1 --std 0.2"));
    folder.data("rgb", "--channels 3");
    let train = TRAIN.replace("data/texture.npz", "rgb/texture.npz");
    folder.done(&format!("{train} --mean -0.1,0.2,-0.3 --out color"));
    assert_refused(
        &folder,
        &[
            case("an option", format!("{merge} --coefficients --out x"), &["a value is required for '--coefficients"]),
            case("an option behind mean", format!("{EVAL} --mean --std 0.5"), &["a value is required for '--mean"]),
            case("nothing", format!("{merge} --out x --coefficients"), &["a value is required"]),
            case(
                "a short option",
                format!("{merge} --coefficients -v --out x"),
                &["a value is required for '--coefficients"],
            ),
            case("no number", format!("{merge} --coefficients half,0.5 --out x"), &["invalid value 'half'"]),
            case("beyond f32", format!("{merge} --coefficients 1e39,0.5 --out x"), &["a coefficient of 1e39", "f32"]),
            case("below f32", format!("{merge} --coefficients -1e39,0.5 --out x"), &["a coefficient of -1e39"]),
            case("not finite", format!("{merge} --coefficients inf,0.5 --out x"), &["a coefficient of inf"]),
            case("mean beyond f32", format!("{EVAL} --mean -1e39"), &["a mean of -inf"]),
            case("std below zero", format!("{EVAL} --std -0.5"), &["a standard deviation of -0.5"]),
        ],
    );
}

/// What is printed can be given to a shell as it is.
#[test]
fn the_next_command_is_quoted() {
    let folder = Folder::with_sources();
    let [name, data] = ["it's a $HOME `x`", "my data.npz"];
    std::fs::copy(folder.path("data/target.npz"), folder.path(data)).unwrap();
    let mut command = folder.command("learn --models texture.safetensors shape.safetensors --epochs 1 --anchor 0");
    let run = Run::from(command.args(["--data", data, "--out", name]).output().unwrap());
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let next = run.stdout.lines().find_map(|line| line.strip_prefix("next: medmerge ")).unwrap();
    let script = format!("printf '%s\\n' {next}");
    let words = std::process::Command::new("sh").args(["-c", &script]).output().unwrap().stdout;
    let words = String::from_utf8(words).unwrap();
    assert_eq!(words.lines().collect::<Vec<_>>(), ["train", "--from", name, "--data", data, "--out", "FILE"]);
}

#[test]
fn help_has_a_line_with_the_formula_of_each_constraint_and_granularity() {
    let help = Folder::new().done("learn --help");
    let lines: Vec<&str> = help.lines().map(str::trim).collect();
    for (name, says) in [
        ("affine", "α_a = 1 − Σ w_m"),
        ("clamp", "[0, 1]"),
        ("simplex", "softmax(l)"),
        ("free", "whatever their sum"),
        ("model", "whole network"),
        ("layer", "batch norm"),
        ("filter", "C·R·S"),
        ("kernel", "R·S"),
    ] {
        let line = lines.iter().find(|line| line.starts_with(&format!("{name}: ")));
        assert!(line.is_some_and(|line| line.contains(says)), "{name} in\n{help}");
    }
}

#[test]
fn the_picture_shows_every_source_and_marks_the_anchor() {
    let folder = Folder::with_sources();
    folder.source("third", "texture", "--architecture resnet8 --width 4 --seed 3");
    folder.done(
        "learn --models texture.safetensors shape.safetensors third.safetensors --data data/target.npz --epochs 1 \
         --anchor 1 --out merged --picture picture.svg",
    );
    let picture = folder.text("picture.svg");
    // A text stands on a line of its own.
    for name in ["texture.safetensors", "shape.safetensors (anchor)", "third.safetensors"] {
        assert_eq!(picture.lines().filter(|line| *line == name).count(), 1, "{name} in {picture}");
    }
}

#[test]
fn a_log_has_a_row_for_each_epoch_of_each_phase() {
    let folder = Folder::with_sources();
    let columns =
        "phase,epoch,train_loss,val_accuracy,val_macro_f1,val_balanced_accuracy,val_auc,val_loss,learning_rate,seconds";
    let rows = |name: &str| -> Vec<Vec<String>> {
        let text = folder.text(name);
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some(columns));
        lines.map(|line| line.split(',').map(String::from).collect()).collect()
    };
    let trained =
        folder.json("train --from texture.safetensors --data data/texture.npz --epochs 3 --out t.safetensors");
    assert_eq!(trained["log"], "t.log.csv");
    let log = rows("t.log.csv");
    assert_eq!(log.len(), 3);
    for (row, epoch) in log.iter().zip(trained["epochs"].as_array().unwrap()) {
        assert_eq!((row[0].as_str(), row[1].parse().ok()), ("training", epoch["epoch"].as_u64()));
        for (field, key) in
            columns.split(',').enumerate().filter(|(_, key)| !["phase", "epoch", "seconds"].contains(key))
        {
            assert_eq!(row[field].parse().ok(), epoch[key].as_f64(), "{key}");
        }
        assert!((row[9].parse::<f64>().unwrap() - epoch["seconds"].as_f64().unwrap()).abs() <= 5e-4);
    }

    folder.done(&LEARN.replace("--epochs 1", "--epochs 2 --out m.safetensors"));
    let phases: Vec<String> = rows("m.log.csv").iter().map(|row| format!("{} {}", row[0], row[1])).collect();
    let expected =
        ["linear probe of texture.safetensors", "linear probe of shape.safetensors", "learning merge weights"];
    let expected: Vec<String> =
        expected.iter().flat_map(|phase| [1, 2].map(|epoch| format!("{phase} {epoch}"))).collect();
    assert_eq!(phases, expected);

    folder.write("old.log.csv", "theirs");
    let says = &["old.log.csv already exists", "--force"];
    assert_refused(
        &folder,
        &[
            case("train", format!("{TRAIN} --out old.safetensors"), says),
            case("learn", format!("{LEARN} --out old.safetensors"), says),
        ],
    );
    folder.done(&format!("{TRAIN} --out old.safetensors --force"));
    assert_eq!(rows("old.log.csv").len(), 1);
}

#[test]
fn a_stderr_that_is_no_terminal_gets_a_line_when_a_job_starts() {
    let folder = Folder::with_sources();
    let lines = |arguments: &str| -> Vec<String> {
        let run = folder.run(arguments);
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        run.stderr.lines().filter(|line| line.contains(" of ")).map(String::from).collect()
    };
    let train = format!("{TRAIN} --out trained --force");
    assert!(lines(&train)[0].starts_with("training: step 1 of 2, loss "), "{:?}", lines(&train));
    let learn = lines(&format!("{LEARN} --out learned"));
    for (line, name) in learn.iter().zip(["texture", "shape"]) {
        assert!(line.starts_with(&format!("linear probe of {name}.safetensors: step 1 of 1, loss ")), "{learn:?}");
    }
    assert!(learn[2].starts_with("learning merge weights: step 1 of 1, loss "), "{learn:?}");
    assert_eq!(lines(EVAL), ["test split: image 24 of 24"]);
    for arguments in [train, EVAL.to_string(), format!("{PREDICT} --out scores.csv")] {
        assert_eq!(lines(&format!("{arguments} --quiet")), Vec::<String>::new());
    }
}
