//! Work that needs more memory than there is: one line and an exit code, and neither a signal nor a panic.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::support::{Folder, Run};

/// Checks that a run ended well, or as one does that says what is wrong.
#[track_caller]
fn assert_ended(run: &Run, what: &str) {
    let errors = run.stderr.lines().filter(|line| line.starts_with("error: ")).count();
    match run.code {
        Some(0) => assert_eq!(errors, 0, "{what}:\n{}", run.stderr),
        Some(1 | 2) => {
            assert_eq!(errors, 1, "{what}:\n{}", run.stderr);
            assert!(run.stderr.contains("hint: "), "{what}:\n{}", run.stderr);
        }
        code => panic!("{what}: exit code {code:?}\n{}", run.stderr),
    }
    assert!(!run.stderr.contains("panicked"), "{what}:\n{}", run.stderr);
}

/// Whether the C library ended the program itself, in a line of its own, where it had no memory for a new thread's destructors: nobody else
/// is asked. Few limits lead there.
fn is_given_up(run: &Run) -> bool {
    run.stderr.starts_with("Fatal glibc error: failed to register TLS destructor")
}

#[test]
fn a_job_that_gets_no_more_memory_ends_in_one_line() {
    let folder = Folder::new();
    // Images of 800 MB.
    let synth = "synth --out big --image-size 64 --test 200000 --threads 2";
    for as_json in ["", "--json"] {
        let run = folder.run_within(400_000, &format!("{synth} {as_json}"));
        assert_ended(&run, synth);
        assert_eq!(run.code, Some(1), "{}", run.stderr);
        assert!(run.stderr.contains("error: out of memory: ") && run.stderr.contains("more bytes"), "{}", run.stderr);
        match as_json {
            "" => assert_eq!(run.stdout, ""),
            _ => {
                let result: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
                assert!(result["error"]["message"].as_str().unwrap().starts_with("out of memory"), "{result}");
            }
        }
    }
    assert_eq!(folder.leftovers(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn whatever_the_limit_a_job_ends_well_or_in_one_line() {
    let folder = Folder::with_sources();
    // With less, the program itself finds no room, and the system says so in its own way.
    let starts = |limit: &u64| folder.run_within(*limit, "--version").code == Some(0);
    let least = (10_000..200_000).step_by(1000).find(starts).expect("a limit under which the program starts");
    let mut codes = Vec::new();
    let mut given_up = Vec::new();
    for more in [0, 2, 4, 6, 7, 8, 9, 10, 11, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 40, 60, 80, 120, 2000] {
        let limit = least + 1000 * more;
        let eval = "eval --model texture.safetensors --data data/texture.npz --threads 3";
        let run = folder.run_within(limit, eval);
        if is_given_up(&run) {
            given_up.push(limit);
            continue;
        }
        assert_ended(&run, &format!("{limit} KiB"));
        codes.push(run.code);
    }
    assert!(given_up.len() <= 2, "the C library gave up within {given_up:?} KiB");
    assert!(codes[0] != Some(0) && codes.last() == Some(&Some(0)), "{codes:?}");
}

/// Where the limit falls decides who meets it: the one who starts a thread, or the thread itself, which asks for memory
/// before anything of ours runs. Limits a fraction of a thread's stack apart meet both sides of it.
#[test]
fn threads_that_cannot_be_started_are_an_error() {
    let folder = Folder::with_sources();
    let eval = "eval --model texture.safetensors --data data/texture.npz --threads 1000";
    let mut refused = 0;
    let mut given_up = Vec::new();
    for limit in (500_000..504_000).step_by(500) {
        let run = folder.run_within(limit, eval);
        if is_given_up(&run) {
            given_up.push(limit);
            continue;
        }
        assert_ended(&run, &format!("1000 threads within {limit} KiB"));
        match run.code {
            Some(2) => {
                assert!(run.stderr.contains("error: the threads cannot be started"), "{}", run.stderr);
                refused += 1;
            }
            _ => assert!(run.stderr.contains("error: out of memory: "), "{}", run.stderr),
        }
    }
    assert!(refused > 0, "no limit was met by the one who starts threads");
    assert!(given_up.len() <= 2, "the C library gave up within {given_up:?} KiB");
}

#[test]
fn a_network_larger_than_memory_is_refused_before_it_is_read() {
    let folder = Folder::with_sources();
    let header = r#"{"x":{"dtype":"F16","shape":[1000000000],"data_offsets":[0,2000000000]}}"#;
    // A file of zeros that takes no place.
    let file = File::create(folder.path("large.safetensors")).unwrap();
    file.write_all_at(&(header.len() as u64).to_le_bytes(), 0).unwrap();
    file.write_all_at(header.as_bytes(), 8).unwrap();
    file.set_len(8 + header.len() as u64 + 2_000_000_000).unwrap();
    for verb in ["eval --data data/texture.npz --model large.safetensors", "inspect large.safetensors"] {
        let run = folder.run_within(3_000_000, verb);
        assert_ended(&run, verb);
        assert_eq!(run.code, Some(2), "{}", run.stderr);
        assert!(
            run.stderr.contains("large.safetensors: reading it takes 5723 MiB of memory, of which"),
            "{}",
            run.stderr
        );
    }
}

/// The least that a step needs is known before it runs.
#[test]
fn a_batch_larger_than_memory_is_refused_before_the_first_step() {
    let folder = Folder::new();
    folder.done("synth --out data --image-size 64 --source-train 200 --target-train 16 --val 4 --test 200");
    let train = "train --data data/shape.npz --architecture resnet18 --stem 3x3 --epochs 1 --threads 2 --out out";
    // Of the outputs of the stages alone, 200 images take 3.5 GB.
    let run = folder.run_within(3_000_000, &format!("{train} --batch-size 200"));
    assert_ended(&run, train);
    assert_eq!(run.code, Some(2), "{}", run.stderr);
    assert!(run.stderr.contains("200 images of 64×64 at a time take "), "{}", run.stderr);
    assert!(run.stderr.contains("MiB of memory at least, of which "), "{}", run.stderr);
    assert!(run.stderr.contains("a smaller --batch-size") && !run.stderr.contains("step 1"), "{}", run.stderr);
}
