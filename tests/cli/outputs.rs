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
        (format!("{SYNTH} old"), "old/shape.npz"),
    ];
    for (_, file) in &commands {
        folder.write(file, "theirs");
    }
    let mut cases: Vec<_> =
        commands.iter().map(|(command, file)| case(file, command, &["already exists", "--force"])).collect();
    cases.push(case("demo", "demo --quick --out old", &["old already exists", "--force"]));
    assert_refused(&folder, &cases);

    for (command, file) in &commands {
        folder.done(&format!("{command} --force"));
        assert_ne!(folder.bytes(file), b"theirs", "{file}");
    }
    // The whole demonstration takes too long for here; that it starts shows that it was let in.
    let run = folder.start_until("demo --quick --out old --force", "seed 0").interrupt();
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
    for command in [TRAIN, MERGE, PREDICT, &format!("{LEARN} --out")] {
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
            case("learn", format!("{LEARN} --out disk/x"), space),
            case("learn's weights", format!("{LEARN} --out x --weights disk/x"), space),
            case("merge", format!("{MERGE} disk/x"), space),
            case("predict", "predict --model texture.safetensors --data many/texture.npz --out disk/x", space),
            case("synth", "synth --out disk --test 1000", space),
        ],
    );
    // What fits is written.
    folder.done(&format!("{PREDICT} disk/x"));
    assert_eq!(folder.text("disk/x").lines().count(), 1 + 24);
    // And is still there when what replaces it does not fit.
    let kept = folder.text("disk/x");
    let run = folder.run("predict --model texture.safetensors --data many/texture.npz --out disk/x --force");
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
    assert!(folder.path("link").is_symlink() && folder.text("there").starts_with("index,score0"));
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
