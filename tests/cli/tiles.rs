//! `bench conv --tune`, and the table that it writes.
#![cfg(feature = "emulator")]

use serde_json::Value;

use crate::support::{Folder, assert_refused, case};

const CONV: &str =
    "bench conv --device emulator --precision bf16 --network resnet8 --image-size 8 --filter layer2.0.conv1";

/// Three passes of one convolution, of 16 channels and 32 filters at stride 2.
#[test]
fn a_table_is_written_and_followed() {
    let folder = Folder::new();
    let stdout = folder.done(&format!("{CONV} --rounds 1 --tune tiles.json"));
    assert_eq!(stdout.lines().filter(|line| line.contains("layer2.0.conv1")).count(), 3, "{stdout}");
    let table: Value = serde_json::from_str(&folder.text("tiles.json")).unwrap();
    let entries = table.as_array().unwrap();
    assert_eq!(entries.len(), 3);
    for (entry, pass) in entries.iter().zip(["fprop", "dgrad", "wgrad"]) {
        assert_eq!((&entry["pass"], &entry["precision"]), (&pass.into(), &"bf16".into()));
        assert_eq!((entry["x"][3].as_u64(), entry["filters"][0].as_u64()), (Some(16), Some(32)));
    }
    // A choice that no rule would make shows as what the launch is called.
    folder.write("odd.json", folder.text("tiles.json").replace("64x64", "128x128").replace("128x32", "128x128"));
    let step = "bench step --device emulator --precision bf16 --network resnet8 --image-size 8 --batch-size 2 --rounds 1 --json";
    assert!(folder.run(step).code == Some(0));
    let mut followed = folder.command(step);
    followed.env("MEDMERGE_TILES", "odd.json");
    assert!(followed.output().unwrap().status.success());
}

/// With kernels of warpgroups their tiles are timed too, and a table may leave a pass to the others.
#[test]
fn tiles_of_warpgroups_are_tuned_and_followed() {
    let folder = Folder::new();
    let conv =
        "bench conv --precision bf16 --network resnet18 --image-size 32 --batch-size 1 --filter layer4.0.downsample.0";
    let emulated = format!("{conv} --device emulator:sm_90a --rounds 1");
    let stdout = folder.done(&format!("{emulated} --tune tiles.json"));
    assert!(stdout.contains("128×128, in clusters of 2, warpgroups"), "{stdout}");
    let mut table: Value = serde_json::from_str(&folder.text("tiles.json")).unwrap();
    let entries = table.as_array_mut().unwrap();
    assert_eq!(entries.len(), 3);
    for (entry, choice) in entries.iter_mut().zip([("256x64", Some(1)), ("128x256", Some(2)), ("64x64", None)]) {
        let entry = entry.as_object_mut().unwrap();
        entry.remove("cluster");
        entry.extend([("tile".into(), choice.0.into()), ("splits".into(), 1.into())]);
        entry.extend(choice.1.map(|cluster| ("cluster".into(), cluster.into())));
    }
    folder.write("odd.json", table.to_string());
    let divisions = |tiles: Option<&str>| {
        let mut command = folder.command(&format!("{conv} --dry-run"));
        command.envs(tiles.map(|tiles| ("MEDMERGE_TILES", tiles)));
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    let of_sm_90a = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| line.starts_with("conv/"));
        lines.map(|line| line.rsplit("  ").next().unwrap().trim().to_string()).collect()
    };
    assert_eq!(of_sm_90a(&divisions(Some("odd.json"))), ["256×64", "128×256, in clusters of 2", "64×64"]);
    assert_ne!(of_sm_90a(&divisions(None)), of_sm_90a(&divisions(Some("odd.json"))));
    // And all of them run.
    let mut followed = folder.command(&emulated);
    assert!(followed.env("MEDMERGE_TILES", "odd.json").output().unwrap().status.success());
}

#[test]
fn what_is_refused() {
    let folder = Folder::new();
    folder.write("there.json", "[]");
    assert_refused(
        &folder,
        &[
            case("overwriting", format!("{CONV} --tune there.json"), &["there.json", "--force"]),
            case("f32", CONV.replace("bf16", "f32") + " --tune new.json", &["no convolution", "--precision bf16"]),
            case(
                "cpu",
                "bench conv --device cpu --network resnet8 --image-size 8 --tune new.json",
                &["tensor cores", "--device cuda"],
            ),
        ],
    );
    for (name, content) in [
        ("no table", "{\"tiles\": 3}".to_string()),
        ("impossible", entry("fprop", "64x64", 2)),
        ("no such tile", entry("fprop", "32x32", 1)),
    ] {
        folder.write("wrong.json", content);
        let mut command = folder.command(CONV);
        let output = command.env("MEDMERGE_TILES", "wrong.json").output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{name}: {stderr}");
        assert!(stderr.contains("wrong.json") && stderr.contains("--tune"), "{name}: {stderr}");
    }
}

fn entry(pass: &str, tile: &str, splits: usize) -> String {
    serde_json::json!([{
        "pass": pass, "precision": "bf16", "x": [2, 8, 8, 16], "filters": [32, 3, 3], "stride": [2, 2], "padding": [1, 1],
        "dilation": [1, 1], "tile": tile, "splits": splits,
    }])
    .to_string()
}
