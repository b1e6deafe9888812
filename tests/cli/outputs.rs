//! Where results go: never over another file, never half, and not at all where they cannot.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use crate::support::{Folder, Run, assert_refused, case, limited, program, refusal_problems};

const TRAIN: &str = "train --data data/texture.npz --architecture resnet8 --width 4 --epochs 1 --out";
const LEARN: &str = "learn --models texture.safetensors shape.safetensors --data data/target.npz --anchor 0 --epochs 1";
const MERGE: &str = "merge --models texture.safetensors shape.safetensors --coefficients 0.5,0.5 --out";
const PREDICT: &str = "predict --model texture.safetensors --data data/texture.npz --out";
const EXPORT: &str = "export texture.safetensors --onnx";
const SYNTH: &str = "synth --image-size 16 --source-train 16 --target-train 16 --val 4 --test 4 --out";

#[test]
fn what_exists_is_kept_unless_forced() {
    let folder = Folder::with_sources();
    std::fs::create_dir(folder.path("old")).unwrap();
    // The command, and the file of it that stands in the way.
    let commands = [
        (format!("{TRAIN} old/train"), "old/train"),
        (format!("{LEARN} --out old/learn"), "old/learn"),
        (format!("{LEARN} --out new.safetensors --weights old/weights"), "old/weights"),
        (format!("{LEARN} --out old/beside.safetensors"), "old/beside.weights.safetensors"),
        (format!("{LEARN} --out new.safetensors --picture old/picture"), "old/picture"),
        (format!("{MERGE} old/merge"), "old/merge"),
        (format!("{PREDICT} old/predict"), "old/predict"),
        (format!("{EXPORT} old/export"), "old/export"),
        (format!("{SYNTH} old"), "old/shape.npz"),
    ];
    for (_, file) in &commands {
        folder.write(file, "theirs");
    }
    let mut cases: Vec<_> =
        commands.iter().map(|(command, file)| case(file, command, &["already exists", "--force"])).collect();
    cases.push(case("demo", "demo --out old", &["old already exists", "--force"]));
    assert_refused(&folder, &cases);

    for (command, file) in &commands {
        folder.done(&format!("{command} --force"));
        assert_ne!(folder.bytes(file), b"theirs", "{file}");
    }
    let run = folder.run("demo --architecture resnet9 --out nowhere");
    assert!(run.code == Some(2) && !folder.path("nowhere").exists(), "{}", run.stderr);
    // The whole demonstration takes too long for here; that it starts shows that it was let in.
    let run = folder.start_until("demo --out old --force", "seed 0").interrupt();
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    assert_eq!(folder.leftovers(), Vec::<PathBuf>::new());
}

#[test]
fn a_folder_that_is_not_there_is_not_made_for_a_file() {
    let folder = Folder::with_sources();
    let says = &["cannot write", "the folder nowhere does not exist"];
    assert_refused(
        &folder,
        &[
            case("train", format!("{TRAIN} nowhere/x"), says),
            case("learn", format!("{LEARN} --out nowhere/x"), says),
            case("learn's weights", format!("{LEARN} --out x --weights nowhere/x"), says),
            case("learn's picture", format!("{LEARN} --out x --picture nowhere/x"), says),
            case("merge", format!("{MERGE} nowhere/x"), says),
            case("predict", format!("{PREDICT} nowhere/x"), says),
            case("export", format!("{EXPORT} nowhere/x"), says),
            case("a folder", format!("{TRAIN} data --force"), &["cannot write data", "not of a folder"]),
            case("a file as folder", format!("{PREDICT} texture.safetensors/x"), &["cannot write"]),
            case("synth into a file", format!("{SYNTH} texture.safetensors"), &["texture.safetensors"]),
            case("demo into a file", "demo --out texture.safetensors", &["texture.safetensors"]),
        ],
    );
}

/// As root, who may write anywhere, the program runs as another user, from a copy which that user may read.
#[test]
fn a_folder_that_cannot_be_written_to() {
    const NOBODY: u32 = 65_534;
    let folder = Folder::with_sources();
    std::fs::create_dir(folder.path("locked")).unwrap();
    let mode = |path: &str, mode| std::fs::set_permissions(folder.path(path), PermissionsExt::from_mode(mode)).unwrap();
    mode("locked", 0o555);
    mode(".", 0o755);
    let is_root = std::fs::metadata(folder.path(".")).unwrap().uid() == 0;
    if is_root {
        std::fs::copy(program(), folder.path("medmerge")).unwrap();
    }
    let before = folder.snapshot();
    for command in [TRAIN, MERGE, PREDICT, EXPORT, &format!("{LEARN} --out")] {
        let command = format!("{command} locked/x");
        let output = if is_root {
            let mut as_nobody = limited(&folder.path("medmerge"));
            as_nobody.current_dir(folder.path(".")).args(command.split_whitespace()).uid(NOBODY).gid(NOBODY);
            match as_nobody.output() {
                Ok(output) => output,
                Err(error) => {
                    println!("not run: root cannot become another user here ({error})");
                    return;
                }
            }
        } else {
            folder.command(&command).output().unwrap()
        };
        let run = Run::from(output);
        assert_eq!(refusal_problems(&run), Vec::<String>::new(), "{command}\n{}", run.stderr);
        assert!(run.stderr.contains("check the permissions"), "{command}\n{}", run.stderr);
    }
    assert_eq!(folder.snapshot(), before);
    mode("locked", 0o755);
}

/// A small disk in a folder, as long as it lives.
struct Disk(PathBuf);

impl Disk {
    /// None where this user may not mount one.
    fn mount(folder: &Folder, name: &str, options: &str) -> Option<Disk> {
        let path = folder.path(name);
        std::fs::create_dir(&path).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&path).output();
        mounted.is_ok_and(|output| output.status.success()).then_some(Disk(path))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk() {
    let folder = Folder::with_sources();
    let Some(_disk) = Disk::mount(&folder, "disk", "size=64k") else {
        println!("not run: this user may not mount a small disk");
        return;
    };
    let space = &["free some space"];
    folder.done("synth --out many --image-size 16 --source-train 4 --target-train 16 --val 4 --test 3000");
    assert_refused(
        &folder,
        &[
            // Too large by the estimate, before any work; the others find out while they write.
            case("train", format!("{TRAIN} disk/x"), &["disk/x needs", "KB free", "free some space"]),
            case("learn", format!("--quiet {LEARN} --out disk/x"), space),
            case("learn's weights", format!("--quiet {LEARN} --out x --weights disk/x"), space),
            case("merge", format!("{MERGE} disk/x"), space),
            case("predict", "--quiet predict --model texture.safetensors --data many/texture.npz --out disk/x", space),
            case("synth", "synth --out disk --test 1000", space),
        ],
    );
    // What fits is written.
    folder.done(&format!("{PREDICT} disk/x"));
    assert_eq!(folder.text("disk/x").lines().count(), 1 + 24);
    // And is still there when what replaces it does not fit.
    let kept = folder.text("disk/x");
    let run = folder.run("--quiet predict --model texture.safetensors --data many/texture.npz --out disk/x --force");
    assert_eq!(refusal_problems(&run), Vec::<String>::new(), "{}", run.stderr);
    assert_eq!(folder.text("disk/x"), kept);
    assert_eq!(folder.leftovers(), Vec::<PathBuf>::new());
}

/// A pipe is not replaced by a file; a link leads to the file that is.
#[test]
fn what_is_no_ordinary_file_stays() {
    let folder = Folder::with_sources();
    let pipe = folder.path("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    std::os::unix::fs::symlink("pipe", folder.path("to-pipe")).unwrap();
    std::os::unix::fs::symlink("nothing", folder.path("to-nothing")).unwrap();
    assert_refused(
        &folder,
        &[
            case("pipe", format!("{PREDICT} pipe --force"), &["pipe is no ordinary file"]),
            case("link to a pipe", format!("{PREDICT} to-pipe --force"), &["to-pipe is no ordinary file"]),
            case("link to nothing", format!("{PREDICT} to-nothing --force"), &["cannot write to-nothing"]),
        ],
    );
    folder.write("there", "theirs");
    std::os::unix::fs::symlink("there", folder.path("link")).unwrap();
    assert_refused(&folder, &[case("link", format!("{PREDICT} link"), &["already exists"])]);
    folder.done(&format!("{PREDICT} link --force"));
    assert!(folder.path("link").is_symlink() && folder.text("there").starts_with("index,label,predicted,score0"));
}

/// Whoever reads no further ends the program, without a word.
#[test]
fn a_closed_pipe_is_no_panic() {
    let folder = Folder::with_sources();
    let mut child = limited(&program())
        .args(["selftest", "--device", "cpu", "--op", "concat", "--op", "linear"])
        .current_dir(folder.path(""))
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn a_path_that_names_a_folder_is_refused_before_any_work() {
    let folder = Folder::with_sources();
    let mut cases = Vec::new();
    for command in [TRAIN, MERGE, PREDICT, EXPORT, &format!("{LEARN} --out"), &format!("{LEARN} --out x --weights")] {
        for path in ["new/", "data/", "new/.", "data/..", ".", ".."] {
            cases.push(case("a folder", format!("{command} {path} --force"), &["names a folder"]));
        }
    }
    assert_refused(&folder, &cases);
}

/// Under its own name, by a link, and under a name that the program makes up.
#[test]
fn what_a_command_reads_it_does_not_overwrite_even_if_forced() {
    let folder = Folder::with_sources();
    folder.done(&format!("{LEARN} --out merged.safetensors"));
    std::fs::hard_link(folder.path("texture.safetensors"), folder.path("hard")).unwrap();
    std::os::unix::fs::symlink("texture.safetensors", folder.path("soft")).unwrap();
    std::fs::copy(folder.path("texture.safetensors"), folder.path("x.weights.safetensors")).unwrap();
    std::fs::copy(folder.path("texture.safetensors"), folder.path("x.resume.safetensors")).unwrap();
    let same = "name the same file";
    let mut cases = Vec::new();
    for path in ["texture.safetensors", "./data/../texture.safetensors", "hard", "soft"] {
        for (command, input) in [
            ("train --from texture.safetensors --data data/texture.npz --epochs 1 --out", "--from and --out"),
            (&format!("{LEARN} --out"), "--models and --out"),
            (&format!("{LEARN} --out x --weights"), "--models and --weights"),
            (&format!("{LEARN} --out x --picture"), "--models and --picture"),
            (MERGE, "--models and --out"),
            (PREDICT, "--model and --out"),
            (EXPORT, "the network and --onnx"),
        ] {
            cases.push((format!("{command} {path} --force"), input));
        }
    }
    for (command, input) in [
        (format!("{TRAIN} data/texture.npz"), "--data and --out"),
        (format!("{LEARN} --out data/target.npz"), "--data and --out"),
        (format!("{PREDICT} data/texture.npz"), "--data and --out"),
        (format!("{MERGE} data/target.npz --data data/target.npz"), "--data and --out"),
        (
            "merge --models texture.safetensors shape.safetensors --weights merged.weights.safetensors \
             --out merged.weights.safetensors"
                .into(),
            "--weights and --out",
        ),
        (
            "learn --models x.weights.safetensors shape.safetensors --data data/target.npz --out x.safetensors".into(),
            "--models and --weights",
        ),
        (
            "train --from x.resume.safetensors --data data/texture.npz --resume --out x.safetensors".into(),
            "--from and the state of --resume",
        ),
        (format!("{LEARN} --out new --weights ./new"), "--out and --weights"),
        (format!("{LEARN} --out new --picture data/../new"), "--out and --picture"),
    ] {
        cases.push((format!("{command} --force"), input));
    }
    let says: Vec<[&str; 2]> = cases.iter().map(|(_, input)| [*input, same]).collect();
    let cases: Vec<_> = cases.iter().zip(&says).map(|((command, input), says)| case(input, command, says)).collect();
    assert_refused(&folder, &cases);
}

const LONG: &str = "train --from texture.safetensors --data data/texture.npz --epochs 1000000 -v --out out";

#[test]
fn the_second_of_two_runs_with_one_output_is_refused() {
    let folder = Folder::with_sources();
    std::os::unix::fs::symlink(".", folder.path("here")).unwrap();
    let first = folder.start_until(LONG, "epoch 2,");
    for path in ["out", "./out", "here/out"] {
        for command in [TRAIN, MERGE, PREDICT, &format!("{LEARN} --out"), &format!("{LEARN} --out x --picture")] {
            let run = folder.run(&format!("{command} {path} --force"));
            assert_eq!(refusal_problems(&run), Vec::<String>::new(), "{command} {path}\n{}", run.stderr);
            assert!(run.stderr.contains("another run is writing"), "{command} {path}\n{}", run.stderr);
        }
    }
    // Another file is free.
    folder.done(&format!("{PREDICT} other"));
    first.interrupt();
    assert_eq!(folder.leftovers(), Vec::<PathBuf>::new());
    folder.done(&format!("{PREDICT} out --force"));
    assert_eq!(folder.leftovers(), Vec::<PathBuf>::new());
}

#[test]
fn what_a_killed_run_leaves_is_in_nobodys_way() {
    let folder = Folder::with_sources();
    let lock = folder.path(".out.medmerge-lock");
    let mut killed = folder.command(LONG).stderr(std::process::Stdio::null()).spawn().unwrap();
    while !lock.exists() {
        assert!(killed.try_wait().unwrap().is_none(), "it ended without a lock");
        std::thread::yield_now();
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(lock.exists());
    folder.done(&format!("{PREDICT} out --force"));
    assert!(!lock.exists());
}

/// While images are drawn nothing waits for the next step: the program ends at once.
#[test]
fn an_interrupt_removes_locks_and_temporary_files() {
    let folder = Folder::new();
    let synth = "synth --out images --image-size 64 --source-train 200000";
    let mut child = folder.command(synth).stderr(std::process::Stdio::piped()).spawn().unwrap();
    while !folder.path("images/.target.npz.medmerge-lock").exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended without a lock");
        std::thread::yield_now();
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let run = Run::from(child.wait_with_output().unwrap());
    assert!(run.code == Some(1) && run.stderr.contains("error: interrupted"), "{}", run.stderr);
    assert_eq!(std::fs::read_dir(folder.path("images")).unwrap().count(), 0);
}

#[test]
fn a_file_beyond_the_shells_limit_is_an_error_that_leaves_nothing() {
    let folder = Folder::with_sources();
    let before = folder.snapshot();
    let learn = format!("{LEARN} --out");
    for command in [TRAIN, MERGE, PREDICT, EXPORT, &learn, SYNTH] {
        // Found out while it writes, which is after the line that training has begun.
        let arguments = format!("--quiet {command} x");
        let mut limited = Command::new("sh");
        limited.args(["-c", "ulimit -f 1; exec \"$@\"", "sh"]).arg(program()).current_dir(folder.path(""));
        let run = Run::from(limited.args(arguments.split_whitespace()).output().unwrap());
        assert_eq!(refusal_problems(&run), Vec::<String>::new(), "{command}\n{}", run.stderr);
        assert!(run.stderr.contains("cannot write") && run.stderr.contains("ulimit -f"), "{command}\n{}", run.stderr);
        if command == SYNTH {
            std::fs::remove_dir(folder.path("x")).unwrap();
        }
        if *command == *learn {
            // Small enough, and whole.
            std::fs::remove_file(folder.path("x.log.csv")).unwrap();
        }
        assert_eq!(folder.snapshot(), before, "{command}");
    }
}
