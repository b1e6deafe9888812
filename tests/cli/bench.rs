//! `bench`: rows of figures, beside the machine's limits and an earlier run.

use serde_json::Value;

use crate::support::{Folder, assert_refused, case};

/// A few rows of each kind on small images.
const KINDS: [(&str, usize); 3] = [
    ("merge --network resnet8 --sources 2,3", 4),
    ("conv --network resnet8 --image-size 8 --batch-size 2 --pass fprop,wgrad --filter layer2", 6),
    ("step --network resnet8 --image-size 8 --batch-size 2", 2),
];

/// Everything that a row of any kind has.
#[track_caller]
fn check_row(row: &Value) {
    for figure in ["bytes", "flops", "bytes_per_second", "flops_per_second", "limit_seconds", "share"] {
        assert!(row[figure].as_f64().is_some_and(|value| value > 0.0), "{figure}: {row:#}");
    }
    let seconds = |name: &str| row["seconds"][name].as_f64().unwrap();
    let order = ["fastest", "first_quartile", "median", "third_quartile", "slowest"].map(seconds);
    assert!(order[0] > 0.0 && order.is_sorted(), "{row:#}");
    assert_eq!((&row["network"], &row["seconds"]["timings"]), (&"resnet8".into(), &3.into()));
    assert!(["memory", "arithmetic"].contains(&row["bound"].as_str().unwrap()), "{row:#}");
    let ratio = row["limit_seconds"].as_f64().unwrap() / seconds("median");
    assert!((row["share"].as_f64().unwrap() / ratio - 1.0).abs() < 1e-9, "{row:#}");
}

#[track_caller]
fn check(result: &Value, kind: &str, rows: usize, device: &str) {
    let bench = kind.split_whitespace().next().unwrap();
    assert_eq!((&result["bench"], &result["complete"]), (&bench.into(), &true.into()));
    assert_eq!((&result["device"]["device"], &result["emulated"]), (&device.into(), &(device == "emulator").into()));
    assert_eq!(result["command"][1], "bench");
    for limit in ["read", "triad", "copy", "multiply"] {
        assert!(result["limits"][limit].as_f64().unwrap() > 0.0, "{limit}: {result:#}");
    }
    for limit in ["multiply_bf16", "multiply_f16", "multiply_tf32"] {
        let on_tensor_cores = result["limits"][limit].as_f64();
        assert_eq!(on_tensor_cores.is_some_and(|rate| rate > 0.0), device == "emulator", "{limit}: {result:#}");
    }
    assert_eq!(result["rows"].as_array().unwrap().len(), rows, "{result:#}");
    result["rows"].as_array().unwrap().iter().for_each(check_row);
}

#[test]
fn as_json_on_the_cpu() {
    let folder = Folder::new();
    for (kind, rows) in KINDS {
        let result = folder.json(&format!("bench {kind} --device cpu --cache-mib 2 --rounds 3"));
        check(&result, kind, rows, "cpu");
        assert_eq!(result["device"]["cache_bytes"], 2 << 20);
        let last = &result["rows"][rows - 1];
        match &kind[..4] {
            "conv" => assert_eq!(
                (&last["layer"], &last["what"], &last["count"], &last["shape"]),
                (&"layer2.0.downsample.0".into(), &"wgrad".into(), &1.into(), &"2×8×8×16 → 32, 1×1 / 2".into())
            ),
            "step" => {
                for unknown in
                    ["launches", "bytes", "bytes_seconds", "arena_bytes", "live_bytes", "peak_bytes", "kernels"]
                {
                    assert!(last["step"][unknown].is_null(), "{unknown}: {last:#}");
                }
                let share = last["step"]["merging_share"].as_f64().unwrap();
                assert!(share > 0.0 && share < 1.0, "{share}");
                let images = last["step"]["images_per_second"].as_f64().unwrap();
                assert!((images * last["seconds"]["median"].as_f64().unwrap() - 2.0).abs() < 1e-9);
            }
            _ => assert_eq!((&last["sources"], &last["what"]), (&3.into(), &"dalpha".into())),
        }
    }
}

/// What is known of a step on a GPU.
#[cfg(feature = "emulator")]
#[track_caller]
fn check_step(step: &Value) {
    let number = |name: &str| step[name].as_u64().unwrap_or_else(|| panic!("{name}: {step:#}"));
    assert!(number("launches") > 50, "{step:#}");
    let (live, arena) = (number("live_bytes"), number("arena_bytes"));
    assert!(0 < live && live <= arena && arena < live + live / 10, "{step:#}");
    // Besides, parameters and their like.
    assert!(arena < number("peak_bytes") && arena < number("first_peak_bytes"), "{step:#}");
    let kernels = step["kernels"].as_array().unwrap();
    let sum = |name: &str| kernels.iter().map(|kernel| kernel[name].as_u64().unwrap()).sum::<u64>();
    assert_eq!(number("bytes"), sum("read") + sum("written"), "{step:#}");
    // Copies and fills are no launches.
    let is_kernel = |kernel: &&Value| !["memcpy", "memset"].contains(&kernel["name"].as_str().unwrap());
    let launches: u64 = kernels.iter().filter(is_kernel).map(|kernel| kernel["launches"].as_u64().unwrap()).sum();
    assert_eq!(number("launches"), launches);
    let seconds: f64 = kernels.iter().map(|kernel| kernel["limit_seconds"].as_f64().unwrap()).sum();
    assert!((step["bytes_seconds"].as_f64().unwrap() / seconds - 1.0).abs() < 1e-9, "{step:#}");
}

/// The same rows by the kernels, marked as what nobody should quote.
#[cfg(feature = "emulator")]
#[test]
fn as_json_on_the_emulator() {
    let folder = Folder::new();
    for ((kind, rows), precision) in KINDS.into_iter().zip(["f32", "bf16", "f16"]) {
        // Merging is f32, and has no such option.
        let precision_flag = if kind.starts_with("merge") { String::new() } else { format!("--precision {precision}") };
        let result = folder.json(&format!("bench {kind} --device emulator --rounds 3 {precision_flag}"));
        check(&result, kind, rows, "emulator");
        assert_eq!(result["rows"][0]["precision"], precision);
        if kind.starts_with("step") {
            result["rows"].as_array().unwrap().iter().for_each(|row| check_step(&row["step"]));
        }
    }
    let stdout = folder.done(&format!("bench {} --device emulator --rounds 1 --launches", KINDS[2].0));
    for says in ["  moves  ", "  arena  ", "/training/f32, one step:", "adamw_f32  "] {
        assert!(stdout.contains(says), "no '{says}' in\n{stdout}");
    }
    let stdout = folder.done("bench merge --device emulator --sources 2");
    assert!(stdout.contains("EMULATED") && stdout.contains("  emulated  ") && !stdout.contains("median"), "{stdout}");
}

/// The limits come first, then the rows; a baseline adds a column, and rows that it has not are new.
#[test]
fn beside_an_earlier_run() {
    let folder = Folder::new();
    let run = |more: &str| format!("bench merge --device cpu --cache-mib 2 --network resnet8 --rounds 3 {more}");
    let mut earlier = folder.json(&run("--sources 2"));
    // As if the first row had taken a billion times as long, and the second a billionth: no machine is busy enough to make
    // up for that.
    for (row, factor) in [(0, 1e9), (1, 1e-9)] {
        for (_, value) in earlier["rows"][row]["seconds"].as_object_mut().unwrap() {
            *value =
                value.as_f64().filter(|_| value.is_f64()).map_or(value.clone(), |seconds| (seconds * factor).into());
        }
    }
    folder.write("earlier.json", earlier.to_string());
    let stdout = folder.done(&run("--sources 2,3 --baseline earlier.json"));
    let place = |text: &str| stdout.find(text).unwrap_or_else(|| panic!("no '{text}' in\n{stdout}"));
    assert!(place("limits, measured now") < place("× baseline"));
    let row = |number: usize| stdout.lines().filter(|line| line.starts_with("resnet8")).nth(number).unwrap();
    assert!(row(0).ends_with(" faster") && row(1).ends_with(" slower") && row(2).ends_with(" new"), "{stdout}");
    let result = folder.json(&run("--sources 2,3 --baseline earlier.json"));
    let of = |number: usize| &result["rows"][number]["baseline"];
    assert!(of(0)["ratio"].as_f64().unwrap() < 0.1 && of(0)["differs"] == true, "{result:#}");
    assert!(of(2)["ratio"].is_null() && of(2)["is_new"] == true, "{result:#}");
}

#[test]
fn what_is_refused() {
    let folder = Folder::new();
    folder.write("foreign.json", "{\"ops\": []}");
    folder.write("picture.gif", b"GIF89a\xff\xfe");
    let conv = folder.done(
        "bench conv --device cpu --cache-mib 2 --network resnet8 --image-size 8 --filter layer2.0.conv1/fprop --json",
    );
    folder.write("conv.json", conv);
    assert_refused(
        &folder,
        &[
            case("kind", "bench marge", &["merge"]),
            case(
                "network",
                "bench merge --device cpu --network resnet19",
                &["unknown network 'resnet19'", "did you mean"],
            ),
            case("pass", "bench conv --device cpu --pass fpro", &["did you mean 'fprop'?"]),
            case(
                "filter",
                "bench conv --device cpu --filter nothing",
                &["'nothing'", "names look like 'conv/resnet18/28px"],
            ),
            case("sources", "bench merge --device cpu --sources 1", &["--sources 1", "from 2"]),
            case("rounds", "bench merge --device cpu --rounds 0", &["--rounds 0"]),
            case("cache", "bench merge --device cpu --cache-mib 0", &["--cache-mib", "1..=4096"]),
            case("batch", "bench step --device cpu --batch-size 0", &["--batch-size 0"]),
            case(
                "image size",
                "bench conv --device cpu --network densenet121 --image-size 2",
                &["2 pixels", "--image-size"],
            ),
            case("precision", "bench step --device cpu --precision bf16", &["not available on the CPU"]),
            case("missing", "bench merge --device cpu --baseline none.json", &["none.json"]),
            case(
                "foreign",
                "bench merge --device cpu --baseline foreign.json",
                &["not the JSON of a benchmark", "--json"],
            ),
            case("no text", "bench merge --device cpu --baseline picture.gif", &["not text", "--json"]),
            case("other kind", "bench merge --device cpu --baseline conv.json", &["bench conv", "bench merge"]),
        ],
    );
}

/// Rows that were measured are shown.
#[cfg(unix)]
#[test]
fn interrupted_between_rows() {
    let folder = Folder::new();
    let arguments = "bench conv --device cpu --network resnet20 --image-size 16 --rounds 3 --json";
    let run = folder.start_until(arguments, "1/").interrupt();
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    assert!(run.stderr.contains("error: interrupted"), "{}", run.stderr);
    let result: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(result["complete"], false);
    assert!(!result["rows"].as_array().unwrap().is_empty());
}

/// ResNet-50 with images of 224 pixels, counted without a GPU. From its layers' shapes a step with 32 takes 3.04 ms at 4 TB/s where
/// batch norm is not fused, 2.30 ms where it is, and with 128 11.8 and 8.8: ours is below the first, and with 128 at most 1.15 times the second.
#[test]
fn a_step_stays_near_its_floor() {
    let folder = Folder::new();
    let of = |more: &str| {
        let step = "bench step --dry-run --network resnet50 --image-size 224 --precision bf16";
        let rows = &folder.json(&format!("{step} --filter training {more}"))["rows"];
        let launches = rows[0]["step"]["launches"].as_u64().unwrap();
        (launches, rows[0]["bytes"].as_f64().unwrap() / 4e12 * 1e3)
    };
    let ((launches, milliseconds), (_, of_many)) = (of("--batch-size 32"), of("--batch-size 128"));
    let (unfused_launches, unfused) = of("--batch-size 32 --no-fusion");
    assert!(launches <= 450 && milliseconds < 3.04, "{launches} launches, {milliseconds} ms");
    assert!(of_many < 1.15 * 8.8, "{of_many} ms");
    assert!(unfused_launches > launches + 150 && unfused > 1.25 * milliseconds, "{unfused_launches}, {unfused} ms");
}

/// ResNet-50's layers: the stem alone is left to the kernels that all tensor cores have, and in tf32 all that turns an operand.
#[test]
fn tiles_are_told_without_a_gpu() {
    let folder = Folder::new();
    let of = |precision: &str| {
        let conv = "bench conv --dry-run --network resnet50 --image-size 224 --batch-size 128 --precision";
        folder.json(&format!("{conv} {precision}"))["rows"].as_array().unwrap().clone()
    };
    let rows = of("bf16");
    let row = |layer: &str| {
        let row = rows.iter().find(|row| row["name"].as_str().unwrap().contains(layer)).unwrap();
        (row["tile"].as_str().map(str::to_string), row["tile_of_warpgroups"].as_str().map(str::to_string))
    };
    let some = |tile: &str| Some(tile.to_string());
    assert_eq!(row("/conv1/fprop"), (some("stem"), None));
    assert_eq!(row("/layer1.0.conv2/fprop"), (some("128×64"), some("256×64")));
    assert_eq!(row("/layer2.0.conv2/dgrad"), (some("128×128"), some("128×128, in clusters of 2")));
    assert_eq!(row("/layer4.1.conv2/dgrad").1, some("128×256, in clusters of 2"));
    let left = rows.iter().filter(|row| row["tile_of_warpgroups"].is_null());
    assert!(left.clone().all(|row| row["name"].as_str().unwrap().contains("/conv1/")) && left.count() == 2);
    assert!(row("/layer2.0.conv2/wgrad").1.is_some_and(|tile| tile.contains(" splits")));
    for row in of("tf32") {
        let name = row["name"].as_str().unwrap();
        assert_eq!(
            row["tile_of_warpgroups"].is_string(),
            name.contains("/fprop/") && !name.contains("/conv1/f"),
            "{name}"
        );
    }
    assert_refused(&folder, &[case("device", "bench conv --dry-run --device cpu", &["no use for --device"])]);
}

#[test]
fn loading_is_told_stage_by_stage() {
    let folder = Folder::new();
    folder.data("data", "");
    let small = "--network resnet8 --images 20 --batch-size 8 --rounds 1";
    let found = folder.json(&format!("bench data --data data/target.npz {small} --rotate 10"));
    let measured = &found["measured"];
    assert_eq!((&measured["images"], &measured["shape"]), (&20.into(), &serde_json::json!([16, 16, 1])));
    let stages = |found: &serde_json::Value| -> Vec<String> {
        let stages = found["measured"]["stages"].as_array().unwrap();
        assert!(stages.iter().all(|stage| stage["images_per_second"].as_f64().unwrap() > 0.0));
        stages.iter().map(|stage| stage["name"].as_str().unwrap().to_string()).collect()
    };
    let batches = ["batches of the first epoch", "batches of later epochs"];
    assert_eq!(stages(&found), [&batches[..], &["those, augmented"]].concat());
    assert!(measured["step_images_per_second"].as_f64().unwrap() > 0.0);
    for (name, value) in [("a", 10), ("b", 200)] {
        std::fs::create_dir_all(folder.path(&format!("set/{name}"))).unwrap();
        for index in 0..6 {
            let image = image::GrayImage::from_pixel(20, 10, image::Luma([value + index]));
            image.save(folder.path(&format!("set/{name}/{index}.png"))).unwrap();
        }
    }
    let found = folder.json(&format!("bench data --data set --image-size 16 {small}"));
    assert_eq!(stages(&found), [&["read", "read, decode"], &batches[..]].concat());
    let said = folder.done(&format!("bench data --data set --image-size 16 {small}"));
    assert!(said.contains("× the step") && said.contains("step of resnet8, 8 images, cpu"), "{said}");
    assert_refused(
        &folder,
        &[
            case("rounds", "bench data --data set --rounds 0", &["0 images, batches or rounds"]),
            case("network", "bench data --data set --network resnet99", &["resnet99"]),
        ],
    );
}

#[test]
fn tasks_fill_more_threads_than_there_are() {
    let folder = Folder::new();
    let step = "bench step --network resnet18 --image-size 224 --batch-size 8 --filter training --scaling 1,2,64";
    let rows = folder.json(step)["scaling"].clone();
    let of = |index: usize, name: &str| rows[index][name].as_u64().unwrap_or_else(|| panic!("{name} of {rows}"));
    assert_eq!(rows.as_array().map(Vec::len), Some(3));
    assert_eq!([0, 1, 2].map(|row| of(row, "threads")), [1, 2, 64]);
    assert_eq!(of(0, "sum"), of(0, "longest_path"));
    for row in 0..3 {
        assert_eq!(of(row, "sum"), of(0, "sum"));
        assert!(of(row, "fewest_tasks") >= of(row, "threads"), "row {row} of {rows}");
    }
    assert!(of(2, "longest_path") * 16 < of(2, "sum"), "{rows}");
    assert!(folder.done(step).contains("sum ÷ longest path"));
    assert_refused(&folder, &[case("threads", "bench step --scaling 0", &["1..=1024"])]);
}
