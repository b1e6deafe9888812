//! `selftest`: one line per op, or one object.

#[cfg(feature = "emulator")]
use crate::support::Run;
use crate::support::{Folder, assert_refused, case};

#[test]
fn every_op_has_a_line() {
    let folder = Folder::new();
    let stdout = folder.done("selftest --device cpu");
    let lines: Vec<&str> = stdout.lines().collect();
    let ops = medmerge::selftest::OPS;
    assert_eq!(lines.len(), ops.len(), "{stdout}");
    for (line, op) in lines.iter().zip(ops) {
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!((words[0], words[2], words[3]), (op.name, "cases", "f32"), "{line}");
        assert!(words[1].parse::<usize>().unwrap() > 0 && words[4].parse::<f64>().unwrap() < 1e-5, "{line}");
        assert_eq!(words.last(), Some(&"ok"), "{line}");
    }
}

#[test]
fn as_json() {
    let result = Folder::new().json("selftest --device cpu --op concat --op linear");
    assert_eq!((&result["device"], &result["passed"]), (&"cpu".into(), &true.into()));
    let [concat, linear] = result["ops"].as_array().unwrap().as_slice() else { panic!("{result:#}") };
    assert_eq!(
        (&concat["op"], &concat["outcome"], &concat["errors"]["f32"]["error"]),
        (&"concat".into(), &"passed".into(), &0.0.into())
    );
    assert_eq!((&linear["op"], &linear["bitwise_on_integers"]), (&"linear".into(), &true.into()));
    assert!(linear["errors"]["f32"]["pass"].is_string() && linear["wrong"].is_null());
}

#[test]
fn what_is_refused() {
    assert_refused(
        &Folder::new(),
        &[
            case("op", "selftest --device cpu --op conv2", &["unknown op 'conv2'", "did you mean 'conv2d'?"]),
            case("device", "selftest --device cdua", &["did you mean 'cuda'?"]),
            case("number of a device", "selftest --device cuda:x", &["--device cuda:0"]),
        ],
    );
}

/// The order of threads and blocks changes; results do not. That a whole step's do not, to the last bit, is shown elsewhere.
#[cfg(feature = "emulator")]
#[test]
fn seeds_of_the_emulator() {
    let run = |seed: u64| {
        let ops = "--op pool --op softmax_cross_entropy --op linear";
        Run::from(Folder::new().command(&format!("selftest --device emulator --seed {seed} {ops}")).output().unwrap())
    };
    let [first, second] = [1, 2].map(run);
    assert_eq!(first.code, Some(0), "{}{}", first.stdout, first.stderr);
    assert_eq!(first.stdout, second.stdout);
    let pool = first.stdout.lines().next().unwrap();
    assert!(["f32 ", "bf16 ", "f16 "].iter().all(|dtype| pool.contains(dtype)), "{pool}");
}
