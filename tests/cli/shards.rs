//! Networks in several files, which an index names.

use std::collections::BTreeMap;

use medmerge::checkpoint::{self, StoredTensor, TensorFile};
use medmerge::output::OutputPath;
use sha2::{Digest, Sha256};

use crate::support::{Folder, assert_refused, case};

const INDEX: &str = "whole.safetensors.index.json";
const SHARDS: [&str; 3] = ["whole-1-of-3.safetensors", "whole-2-of-3.safetensors", "whole-3-of-3.safetensors"];

const AGAIN: &str = "download the index and all of its shards again";
const BESIDE: &str = "which is not beside it";

/// A folder with sources, of which the first also lies there in shards.
fn folder() -> Folder {
    let folder = Folder::with_sources();
    let TensorFile { tensors, metadata, .. } = TensorFile::read(&folder.path("texture.safetensors")).unwrap();
    let mut shards: [Vec<StoredTensor>; 3] = Default::default();
    for (index, tensor) in tensors.into_values().enumerate() {
        shards[index % 3].push(tensor);
    }
    let mut map = BTreeMap::new();
    for (shard, tensors) in SHARDS.into_iter().zip(&shards) {
        map.extend(tensors.iter().map(|tensor| (tensor.name.clone(), shard.to_string())));
        let mut output = OutputPath::check(&folder.path(shard), false, 0).unwrap();
        checkpoint::write(&mut output, tensors, &metadata).unwrap();
    }
    write_index(&folder, INDEX, &map);
    folder
}

type Map = BTreeMap<String, String>;

fn write_index(folder: &Folder, name: &str, map: &Map) {
    folder.write(name, serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string());
}

/// Another index of the same shards.
fn changed(folder: &Folder, name: &str, change: impl FnOnce(&mut Map)) {
    let index: serde_json::Value = serde_json::from_str(&folder.text(INDEX)).unwrap();
    let mut map: Map = serde_json::from_value(index["weight_map"].clone()).unwrap();
    change(&mut map);
    write_index(folder, name, &map);
}

#[test]
fn a_network_in_shards_is_the_network() {
    let folder = folder();
    let of = |model: &str| folder.done(&format!("predict --model {model} --data data/texture.npz --logits --out -"));
    assert_eq!(of(INDEX), of("texture.safetensors"));
    let hex = |bytes: &[u8]| Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let all: String = SHARDS.iter().map(|shard| hex(&folder.bytes(shard))).collect();
    let listed = folder.json(&format!("inspect {INDEX}"));
    assert_eq!(listed["sha256"], hex(&[folder.bytes(INDEX), all.into_bytes()].concat()));
    assert_eq!(listed["metadata"], folder.json("inspect texture.safetensors")["metadata"]);

    for first in [INDEX, "texture.safetensors"] {
        folder.done(&format!("merge --models {first} shape.safetensors --coefficients 0.5,0.5 --out m --force"));
    }
    // In a folder of its own, the index finds its shards from elsewhere.
    std::fs::create_dir(folder.path("apart")).unwrap();
    for file in SHARDS.into_iter().chain([INDEX]) {
        std::fs::rename(folder.path(file), folder.path(&format!("apart/{file}"))).unwrap();
    }
    assert_eq!(of(&format!("apart/{INDEX}")), of("texture.safetensors"));
}

#[test]
fn shards_of_pytorch_are_read_too() {
    let folder = Folder::new();
    let files = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/files/pytorch");
    std::fs::copy(files.join("zip.pth"), folder.path("part.bin")).unwrap();
    let listed = folder.json("inspect part.bin");
    let names = listed["tensors"].as_array().unwrap().iter().map(|tensor| tensor["name"].as_str().unwrap().to_string());
    let map: Map = names.map(|name| (name, "part.bin".to_string())).collect();
    write_index(&folder, "pytorch_model.bin.index.json", &map);
    let of_index = folder.json("inspect pytorch_model.bin.index.json");
    assert_eq!(of_index["tensors"], listed["tensors"]);
    let some: Map = map.into_iter().skip(1).collect();
    write_index(&folder, "some.json", &some);
    assert_refused(&folder, &[case("surplus", "inspect some.json", &["which the index does not place there"])]);
}

#[test]
fn shards_that_do_not_fit_their_index_are_refused() {
    let folder = folder();
    let first = "bn1.bias".to_string();
    let set = |name: &str, tensor: &str, shard: &str| {
        changed(&folder, name, |map| drop(map.insert(tensor.to_string(), shard.to_string())));
    };
    set("absent.json", "new.weight", SHARDS[0]);
    set("elsewhere.json", &first, SHARDS[1]);
    changed(&folder, "surplus.json", |map| drop(map.remove(&first)));
    set("missing.json", &first, "whole-4-of-3.safetensors");
    set("above.json", &first, "../whole-1-of-3.safetensors");
    set("root.json", &first, "/etc/passwd");
    set("windows.json", &first, "..\\whole-1-of-3.safetensors");
    set("empty.json", &first, "");
    set("itself.json", &first, "itself.json");
    set("data.json", &first, "data/texture.npz");
    folder.write("twice.json", r#"{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}"#);
    folder.rewrite(SHARDS[0], "other.safetensors", |file| {
        file.metadata.insert("medmerge.seed".into(), "99".into());
    });
    changed(&folder, "contradicts.json", |map| {
        map.values_mut().filter(|shard| *shard == SHARDS[0]).for_each(|shard| *shard = "other.safetensors".into());
    });
    let cases: [(&str, &[&str]); 12] = [
        ("absent.json", &["new.weight is not in whole-1-of-3.safetensors", AGAIN]),
        ("elsewhere.json", &["bn1.bias, which the index does not place there", AGAIN]),
        ("surplus.json", &["has bn1.bias, which the index does not place there", AGAIN]),
        ("missing.json", &["its shard whole-4-of-3.safetensors is missing", "beside their index"]),
        ("above.json", &["'../whole-1-of-3.safetensors'", BESIDE]),
        ("root.json", &["'/etc/passwd'", BESIDE]),
        ("windows.json", &["whole-1-of-3.safetensors'", BESIDE]),
        ("empty.json", &["the shard ''", BESIDE]),
        ("itself.json", &["an index, and one of its own shards"]),
        ("data.json", &["a data set (.npz), not a network"]),
        ("twice.json", &["it names a twice", AGAIN]),
        ("contradicts.json", &["contradict each other about medmerge.seed", AGAIN]),
    ];
    let of = |(file, says): &(&'static str, &'static [&'static str])| {
        case(file, format!("eval --model {file} --data data/texture.npz"), says)
    };
    assert_refused(&folder, &cases.iter().map(of).collect::<Vec<_>>());
    let weights = format!("merge --models texture.safetensors shape.safetensors --out o --weights {INDEX}");
    let data = format!("eval --model texture.safetensors --data {INDEX}");
    assert_refused(
        &folder,
        &[
            case("as weights", weights, &["an index of shards (whole-1-of-3", "not a file of merge weights"]),
            case("as data", data, &["an index of shards (whole-1-of-3", "not a data set", "give it as --model"]),
        ],
    );
}
