//! What users get wrong: one refusal, one hint, and nothing touched.

use std::io::Write;

use medmerge::checkpoint::Numbers;
use medmerge::data::npz;

use crate::support::{Case, Folder, assert_refused, case};

const TRAIN: &str = "train --data data/texture.npz --architecture resnet8 --width 4 --out out.safetensors";
const LEARN: &str = "learn --models texture.safetensors shape.safetensors --data data/target.npz --out out.safetensors";
const MERGE: &str = "merge --models texture.safetensors shape.safetensors --out out.safetensors";
const EVAL: &str = "eval --model texture.safetensors --data data/texture.npz";

#[test]
fn names_that_are_misspelled() {
    let folder = Folder::with_sources();
    assert_refused(
        &folder,
        &[
            case("verb", "trian --data data/texture.npz", &["'train'"]),
            case("flag", format!("{LEARN} --granularty filter"), &["'--granularity'"]),
            case("granularity", format!("{LEARN} --granularity filtre"), &["did you mean 'filter'?"]),
            case("constraint", format!("{LEARN} --constraint afine"), &["did you mean 'affine'?"]),
            case("batch norm", format!("{LEARN} --batch-norm anchors"), &["did you mean 'anchor'?"]),
            case("anchor", format!("{LEARN} --anchor textur"), &["did you mean 'texture'?"]),
            case("anchor of merge", format!("{MERGE} --coefficients 1,0 --anchor shap"), &["did you mean 'shape'?"]),
            case("anchor's number", format!("{LEARN} --anchor 2"), &["unknown anchor '2'"]),
            case(
                "architecture",
                "train --data data/texture.npz --architecture resnet-18 --out out.safetensors",
                &["did you mean 'resnet18'?"],
            ),
            case("stem", format!("{TRAIN} --stem 3x4"), &["did you mean '3x3'?"]),
            case("device", format!("{TRAIN} --device cpuu"), &["did you mean 'cpu'?"]),
            case("precision", format!("{TRAIN} --precision bf61"), &["did you mean 'bf16'?"]),
            case("split", format!("{EVAL} --split tset"), &["did you mean 'test'?"]),
            case("optimizer", format!("{TRAIN} --optimizer adam"), &["'adamw'"]),
            case("schedule", format!("{TRAIN} --schedule cosin"), &["'cosine'"]),
        ],
    );
}

#[test]
fn numbers_that_make_no_sense() {
    let folder = Folder::with_sources();
    assert_refused(
        &folder,
        &[
            case("no epoch", format!("{TRAIN} --epochs 0"), &["0 epochs"]),
            case("no epoch to learn", format!("{LEARN} --epochs 0"), &["0 epochs"]),
            case("patience of 0", format!("{TRAIN} --patience 0"), &["a patience of 0 epochs"]),
            case("batch size of 0", format!("{TRAIN} --batch-size 0"), &["a batch size of 0"]),
            case("batch size of 0 in eval", format!("{EVAL} --batch-size 0"), &["a batch size of 0"]),
            case("batch size below 0", format!("{TRAIN} --batch-size=-1"), &["--batch-size"]),
            case("learning rate below 0", format!("{TRAIN} --learning-rate -0.1"), &["--learning-rate -0.1"]),
            case("learning rate NaN", format!("{TRAIN} --learning-rate NaN"), &["--learning-rate NaN"]),
            case("learning rate inf", format!("{TRAIN} --learning-rate inf"), &["--learning-rate inf"]),
            case("merge rate", format!("{LEARN} --merge-learning-rate -1"), &["--merge-learning-rate -1"]),
            case("weight decay", format!("{TRAIN} --weight-decay=-1"), &["--weight-decay -1"]),
            case("label smoothing", format!("{TRAIN} --label-smoothing 1"), &["--label-smoothing 1"]),
            case("shift", format!("{TRAIN} --shift 18446744073709551615"), &["--shift"]),
            case("width of 0", "train --data data/texture.npz --width 0 --out o", &["a width of 0"]),
            case("no input channel", format!("{TRAIN} --input-channels 0"), &["--input-channels 0"]),
            case(
                "too many input channels",
                format!("{TRAIN} --input-channels 18446744073709551615"),
                &["--input-channels 18446744073709551615"],
            ),
            case("standard deviation of 0", format!("{TRAIN} --std 0"), &["a standard deviation of 0"]),
            case("mean NaN", format!("{TRAIN} --mean NaN"), &["a mean of NaN"]),
            case("too many means", format!("{EVAL} --mean 0.5,0.5"), &["2 values for the mean"]),
            case("start NaN", format!("{LEARN} --start NaN"), &["--start NaN"]),
            case(
                "start outside the clamp",
                format!("{LEARN} --constraint clamp --start 1.5"),
                &["clamped weights start between 0 and 1"],
            ),
            case("start in a corner", format!("{LEARN} --constraint simplex --start 0"), &["try --start uniform"]),
            case("no thread", format!("{TRAIN} --threads 0"), &["--threads 0"]),
            case("too many threads", format!("{TRAIN} --threads 5000"), &["between 1 and 1024"]),
            case("no image", "synth --out new --source-train 0", &["0 training images"]),
            case("tiny image", "synth --out new --image-size 4", &["images of 4 pixels"]),
            case("two channels", "synth --out new --channels 2", &["2 channels"]),
        ],
    );
}

#[test]
fn devices_that_are_not_here() {
    let folder = Folder::with_sources();
    assert_refused(
        &folder,
        &[
            #[cfg(not(feature = "emulator"))]
            case(
                "emulator",
                format!("{TRAIN} --device emulator"),
                &["device 'emulator' is not available", "this build has no emulator", "--features emulator"],
            ),
            case("no number", format!("{TRAIN} --device cuda:x"), &["unknown device 'cuda:x'", "cuda:0"]),
            case("numbered cpu", format!("{TRAIN} --device cpu:x"), &["unknown device 'cpu:x'"]),
            case(
                "bf16 on the CPU",
                format!("{TRAIN} --precision bf16 --device cpu"),
                &["precision bf16 is not available on the CPU"],
            ),
        ],
    );
}

/// Whatever GPU this machine has, it has no 99th.
#[test]
fn a_gpu_that_is_not_here() {
    let folder = Folder::with_sources();
    for device in ["cuda:99", "cuda:98"] {
        let line = format!("{TRAIN} --device {device}");
        assert_refused(&folder, &[case(device, line, &[&format!("device '{device}' is not available"), "hint: "])]);
    }
}

/// Eight bytes of length, a header, and what follows.
fn safetensors(header: impl AsRef<[u8]>, data: &[u8]) -> Vec<u8> {
    let header = header.as_ref();
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

#[test]
fn files_that_are_no_checkpoints() {
    let folder = Folder::with_sources();
    let whole = folder.bytes("texture.safetensors");
    let header_of = |length: u64| [&length.to_le_bytes()[..], b"{}"].concat();
    let one = |tensor: &str, data: &[u8]| safetensors(format!("{{{tensor}}}"), data);
    folder.write("text", "This is a text file, and no network at all.\n");
    folder.write("empty", "");
    folder.write("model.pth", b"PK\x03\x04 a zip archive, as torch.save writes it");
    folder.write("pickle.pth", b"\x80\x02}q\x00. an old one");
    folder.write("pickle", b"\x80\x02}q\x00. an old one");
    folder.write("code.pth", b"\x80\x02cos\nsystem\nX\x04\0\0\0true\x85R.");
    folder.write("cut", &whole[..whole.len() - 7]);
    folder.write("cut-header", &whole[..200]);
    folder.write("longer", [&whole[..], &[0; 16]].concat());
    folder.write("header-2-60", header_of(1 << 60));
    folder.write("header-100-mb", header_of(100_000_001));
    folder.write("header-longer-than-file", header_of(1000));
    folder.write("no-json", safetensors("{conv1.weight: oops}", &[]));
    folder.write("no-utf8", safetensors(b"{\"\xff\xfe\": 1}", &[]));
    folder.write("deep", safetensors("[".repeat(1 << 20), &[]));
    folder.write("list", safetensors("[1, 2]", &[]));
    folder.write("beyond", one(r#""a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}"#, &[0; 4]));
    folder.write("backwards", one(r#""a":{"dtype":"F32","shape":[4],"data_offsets":[16,0]}"#, &[0; 16]));
    folder.write("shape-lies", one(r#""a":{"dtype":"F32","shape":[5],"data_offsets":[0,16]}"#, &[0; 16]));
    folder.write(
        "shape-overflows",
        one(r#""a":{"dtype":"F32","shape":[9223372036854775807,16],"data_offsets":[0,16]}"#, &[0; 16]),
    );
    folder.write(
        "overlap",
        one(
            r#""a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},
                "b":{"dtype":"F32","shape":[4],"data_offsets":[8,24]}"#,
            &[0; 24],
        ),
    );
    folder.write(
        "hole",
        one(
            r#""a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
                "b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}"#,
            &[0; 12],
        ),
    );
    folder.write("f8", one(r#""conv1.weight":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}"#, &[0; 4]));
    folder.write("new-f8", one(r#""conv1.weight":{"dtype":"F8_E3M4","shape":[4],"data_offsets":[0,4]}"#, &[0; 4]));
    folder.write("u64", one(r#""n":{"dtype":"U64","shape":[],"data_offsets":[0,8]}"#, &[0xff; 8]));
    folder.write(
        "other-network",
        one(r#""features.0.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#, &[0; 4]),
    );

    const BROKEN: &[&str] = &["the safetensors header is broken"];
    let files: &[(&str, &[&str])] = &[
        ("missing.safetensors", &["cannot read missing.safetensors", "check the spelling"]),
        ("nowhere/missing.safetensors", &["the folder nowhere does not exist"]),
        ("data", &["cannot read data", "not of a folder"]),
        ("text", &["this is a text file, not a network", "a network is a .safetensors file"]),
        ("empty", &["shorter than 8 bytes"]),
        ("model.pth", &["model.pth: its zip archive is damaged or cut off", "download or export the file again"]),
        ("pickle.pth", &["pickle.pth: it is a Python pickle, and not what torch.save writes"]),
        ("pickle", &["this is a Python pickle, not a network", "safetensors.torch.save_file"]),
        ("code.pth", &["it asks for os.system, as no checkpoint does", "nothing was run here"]),
        ("data/texture.npz", &["this is a data set (.npz), not a network", "give it as --data"]),
        ("cut", BROKEN),
        ("cut-header", &["it claims a header of", "the file is cut off"]),
        ("longer", BROKEN),
        ("header-2-60", &["1152921504606846976 bytes", "100 MB is the most"]),
        ("header-100-mb", &["100000001 bytes", "100 MB is the most"]),
        ("header-longer-than-file", &["it claims a header of 1000 bytes and has 10 in all"]),
        ("no-json", BROKEN),
        ("no-utf8", BROKEN),
        ("deep", BROKEN),
        ("list", BROKEN),
        ("beyond", BROKEN),
        ("backwards", BROKEN),
        ("shape-lies", BROKEN),
        ("shape-overflows", BROKEN),
        ("overlap", BROKEN),
        ("hole", BROKEN),
        ("f8", &["conv1.weight is of type F8_E4M3"]),
        ("new-f8", &["conv1.weight is of type F8_E3M4"]),
        ("u64", &["n holds 18446744073709551615"]),
        ("other-network", &["no network that medmerge knows", "features.0.weight has shape [1]"]),
    ];
    let mut cases = Vec::new();
    for &(file, says) in files {
        cases.push(case(file, format!("eval --model {file} --data data/texture.npz"), says));
        cases.push(case(file, format!("merge --models texture.safetensors {file} --coefficients 1,0 --out o"), says));
    }
    assert_refused(&folder, &cases);
}

#[test]
fn networks_that_cannot_be_used() {
    let folder = Folder::with_sources();
    let broken = |to: &str, name: &str, change: fn(&mut Vec<usize>, &mut Numbers)| {
        folder.rewrite("texture.safetensors", to, |file| {
            let tensor = file.tensors.get_mut(name).unwrap();
            change(&mut tensor.shape, &mut tensor.numbers);
        });
    };
    fn last(numbers: &mut Numbers, value: f32) {
        let Numbers::Floats(values) = numbers else { panic!("floats") };
        *values.last_mut().unwrap() = value;
    }
    let filters = "layer2.0.conv1.weight";
    broken("nan", filters, |_, numbers| last(numbers, f32::NAN));
    broken("inf", "layer3.0.bn2.running_var", |_, numbers| last(numbers, f32::INFINITY));
    broken("negative", "layer1.0.bn1.running_var", |_, numbers| last(numbers, -0.5));
    broken("nan-variance", "bn1.running_var", |_, numbers| last(numbers, f32::NAN));
    broken("no-class", "fc.weight", |shape, numbers| {
        (*shape, *numbers) = (vec![0, shape[1]], Numbers::Floats(Vec::new()));
    });
    broken("nan-head", "fc.bias", |_, numbers| last(numbers, f32::NAN));
    broken("integers", filters, |shape, numbers| *numbers = Numbers::Integers(vec![1; shape.iter().product()]));
    broken("transposed", "layer2.0.downsample.0.weight", |shape, _| shape.swap(0, 1));
    broken("flat", filters, |shape, _| *shape = vec![shape.iter().product()]);
    broken("no-numbers", "conv1.weight", |shape, numbers| {
        (*shape, *numbers) = (vec![1 << 40, 0, 3, 3], Numbers::Floats(Vec::new()));
    });
    broken("huge", "layer1.0.conv1.weight", |shape, numbers| {
        (*shape, *numbers) = (vec![usize::MAX >> 1, 0, 3, 3], Numbers::Floats(Vec::new()));
    });
    broken("no-counter", "bn1.num_batches_tracked", |shape, numbers| {
        (*shape, *numbers) = (vec![0], Numbers::Integers(Vec::new()));
    });
    folder.rewrite("texture.safetensors", "incomplete", |file| drop(file.tensors.remove("layer2.0.bn1.weight")));
    folder.rewrite("texture.safetensors", "extra", |file| {
        let more = file.tensors["fc.bias"].clone();
        file.tensors
            .insert("extra.bias".into(), medmerge::checkpoint::StoredTensor { name: "extra.bias".into(), ..more });
    });
    let files: &[(&str, &[&str])] = &[
        ("nan", &["layer2.0.conv1.weight holds NaN or infinity", "diverged"]),
        ("inf", &["layer3.0.bn2", "holds NaN or infinity"]),
        ("negative", &["layer1.0.bn1.running_var is -0.5 in channel 3, and no variance is negative"]),
        ("nan-variance", &["bn1.running_var holds NaN or infinity, in channel 3"]),
        ("no-class", &["fc.weight tells 0 classes apart"]),
        ("nan-head", &["fc.bias holds NaN or infinity"]),
        ("integers", &["layer2.0.conv1.weight holds integers"]),
        ("transposed", &["layer2.0.downsample.0.weight has shape [4, 8, 1, 1] where [8, 4, 1, 1] belongs"]),
        ("flat", &["layer2.0.conv1.weight"]),
        ("no-numbers", &["conv1.weight"]),
        ("huge", &["layer1.0.conv1.weight"]),
        ("no-counter", &["bn1.num_batches_tracked"]),
        ("incomplete", &["layer2.0.bn1.weight is missing"]),
        ("extra", &["extra.bias belongs to no layer"]),
    ];
    let mut cases = Vec::new();
    for &(file, says) in files {
        cases.push(case(file, format!("eval --model {file} --data data/texture.npz"), says));
        cases.push(case(file, format!("train --from {file} --data data/texture.npz --out o"), says));
        cases.push(case(file, format!("learn --models shape.safetensors {file} --data data/target.npz --out o"), says));
    }
    assert_refused(&folder, &cases);
}

/// The six arrays of a data set: 8, 4 and 4 images of 6×6 pixels, two classes.
struct Arrays(Vec<(String, String, Vec<usize>, Vec<u8>)>);

impl Arrays {
    fn good() -> Arrays {
        let mut arrays = Vec::new();
        for (split, images) in [("train", 8), ("val", 4), ("test", 4)] {
            let pixels = (0..images * 36).map(|i| (i * 7 % 251) as u8).collect();
            let labels = (0..images).map(|i| (i % 2) as u8).collect();
            arrays.push((format!("{split}_images"), "|u1".into(), vec![images, 6, 6], pixels));
            arrays.push((format!("{split}_labels"), "|u1".into(), vec![images, 1], labels));
        }
        Arrays(arrays)
    }

    fn with(mut self, name: &str, descr: &str, shape: &[usize], elements: Vec<u8>) -> Arrays {
        let array = self.0.iter_mut().find(|array| array.0 == name).unwrap();
        *array = (name.into(), descr.into(), shape.into(), elements);
        self
    }

    fn without(mut self, name: &str) -> Arrays {
        self.0.retain(|array| array.0 != name);
        self
    }

    fn write(&self, folder: &Folder, to: &str) {
        let array = |(name, descr, shape, elements): &'_ (String, String, Vec<usize>, Vec<u8>)| npz::Array {
            name: name.clone(),
            descr: descr.clone().leak(),
            shape: shape.clone(),
            elements: elements.clone().into(),
        };
        npz::write(&folder.path(to), &self.0.iter().map(array).collect::<Vec<_>>()).unwrap();
    }
}

/// Overwrites the size that the archive declares for its first entry, in the entry's own header and in the directory.
fn declare(archive: &mut [u8], size: u32) {
    let find = |signature: &[u8]| archive.windows(4).position(|bytes| bytes == signature).unwrap();
    let fields = [find(b"PK\x03\x04") + 22, find(b"PK\x01\x02") + 24];
    for field in fields {
        archive[field..][..4].copy_from_slice(&size.to_le_bytes());
    }
}

fn little_endian<const N: usize>(values: impl IntoIterator<Item = [u8; N]>) -> Vec<u8> {
    values.into_iter().flatten().collect()
}

#[test]
fn data_sets_that_cannot_be_used() {
    let folder = Folder::new();
    Arrays::good().write(&folder, "good.npz");
    folder.done("train --data good.npz --architecture resnet8 --width 4 --epochs 1 --out model.safetensors");

    let names: Vec<String> = Arrays::good().0.into_iter().map(|array| array.0).collect();
    for name in &names {
        Arrays::good().without(name).write(&folder, &format!("without-{name}.npz"));
    }
    let labels = |descr: &str, elements| Arrays::good().with("train_labels", descr, &[8, 1], elements);
    let images =
        |descr: &str, shape: &[usize], count: usize| Arrays::good().with("train_images", descr, shape, vec![0; count]);
    images("<c8", &[8, 6, 6], 8 * 36 * 8).write(&folder, "float-images.npz");
    images("<u4", &[8, 6, 6], 8 * 36 * 4).write(&folder, "wide-images.npz");
    images("|i1", &[8, 6, 6], 8 * 36).write(&folder, "signed-images.npz");
    images("|O", &[8, 6, 6], 8 * 36).write(&folder, "objects.npz");
    images("|u1", &[8, 3, 6, 6], 8 * 108).write(&folder, "channels-first.npz");
    images("|u1", &[8, 6, 6, 4], 8 * 144).write(&folder, "alpha.npz");
    images("|u1", &[8, 6, 6, 6], 8 * 216).write(&folder, "volumes.npz");
    images("|u1", &[8, 0, 6], 0).write(&folder, "no-height.npz");
    images("|u1", &[8, 6, 5], 8 * 30).write(&folder, "two-shapes.npz");
    images("|u1", &[usize::MAX, 6, 6], 8 * 36).write(&folder, "overflow.npz");
    images("|u1", &[8_000_000, 28, 28], 8 * 36).write(&folder, "claims-more.npz");
    Arrays::good()
        .with("train_images", "|u1", &[0, 6, 6], vec![])
        .with("train_labels", "|u1", &[0, 1], vec![])
        .write(&folder, "no-training-image.npz");
    labels("<f4", vec![0; 32]).write(&folder, "float-labels.npz");
    labels("|i1", vec![0, 1, 0, 255, 0, 1, 0, 1]).write(&folder, "negative.npz");
    labels("<u4", little_endian([0u32, 1, 0, 70_000, 0, 1, 0, 1].map(u32::to_le_bytes))).write(&folder, "large.npz");
    labels("<i8", little_endian([0, 1, 0, i64::MIN, 0, 1, 0, 1].map(i64::to_le_bytes))).write(&folder, "smallest.npz");
    labels("|u1", vec![0; 8]).write(&folder, "unseen.npz");
    labels("|u1", vec![0; 8])
        .with("val_labels", "|u1", &[4], vec![0; 4])
        .with("test_labels", "|u1", &[4], vec![0; 4])
        .write(&folder, "one-class.npz");
    Arrays::good().with("val_labels", "|u1", &[3, 1], vec![0, 1, 0]).write(&folder, "counts.npz");
    Arrays::good().with("val_labels", "|u1", &[4, 14], vec![0; 56]).write(&folder, "multi-label.npz");

    // A bomb that only declares, and one that goes off: 256 MiB of zeros whose numpy header claims far more.
    let mut archive = folder.bytes("good.npz");
    declare(&mut archive, 0xffff_fff0);
    folder.write("declared-bomb.npz", &archive);
    Arrays::good().with("train_images", "|u1", &[8_000_000, 28, 28], vec![0; 256 << 20]).write(&folder, "bomb.npz");
    assert!(folder.bytes("bomb.npz").len() < 1 << 20);
    // The same zeros where 8 images are declared: reading has to end there.
    Arrays::good().with("train_images", "|u1", &[8, 6, 6], vec![0; 64 << 20]).write(&folder, "overfull.npz");
    let mut archive = folder.bytes("overfull.npz");
    declare(&mut archive, 128 + 8 * 36);
    folder.write("overfull.npz", &archive);
    // And fewer zeros than both the archive and numpy's header say.
    Arrays::good()
        .with("train_images", "|u1", &[1000, 6, 6], vec![0; 4096])
        .with("train_labels", "|u1", &[1000], (0..1000).map(|i| (i % 2) as u8).collect())
        .write(&folder, "underfull.npz");
    let mut archive = folder.bytes("underfull.npz");
    declare(&mut archive, 128 + 36_000);
    folder.write("underfull.npz", &archive);

    let whole = folder.bytes("good.npz");
    folder.write("cut.npz", &whole[..whole.len() / 2]);
    folder.write("cut-early.npz", &whole[..10]);
    folder.write("empty.npz", "");
    folder.write("text.npz", "A,comma,separated,file\n");
    folder.write("single.npy", b"\x93NUMPY\x01\x00");
    let mut damaged = whole.clone();
    // Inside the compressed pixels of the first array.
    damaged[250..270].iter_mut().for_each(|byte| *byte ^= 0x55);
    folder.write("damaged.npz", &damaged);
    let mut archive = zip::ZipWriter::new(std::fs::File::create(folder.path("other.zip")).unwrap());
    archive.start_file("readme.txt", zip::write::SimpleFileOptions::default()).unwrap();
    archive.write_all(b"no arrays here").unwrap();
    archive.finish().unwrap();

    const LABELS: &str = "labels are classes from 0 to 65535";
    const DAMAGED: &[&str] = &["damaged", "download or write it again"];
    let missing: Vec<String> = names.iter().map(|name| format!("there is no {name}")).collect();
    let missing: Vec<[&str; 1]> = missing.iter().map(|text| [text.as_str()]).collect();
    let mut files: Vec<(String, &[&str])> = vec![
        ("missing.npz".into(), &["cannot read missing.npz", "check the spelling"]),
        (".".into(), &["no image in it"]),
        ("float-images.npz".into(), &["train_images has elements of type '<c8', not numbers"]),
        ("wide-images.npz".into(), &["train_images", "not unsigned bytes"]),
        ("signed-images.npz".into(), &["train_images", "not unsigned bytes"]),
        ("objects.npz".into(), &["train_images has elements of type '|O'"]),
        ("channels-first.npz".into(), &["channels come first"]),
        ("alpha.npz".into(), &["one or three channels"]),
        ("volumes.npz".into(), &["volumes are not supported"]),
        ("no-height.npz".into(), &["too small or too large"]),
        ("two-shapes.npz".into(), &["train_images has the shape [8, 6, 5], val_images the shape [4, 6, 6]"]),
        ("overflow.npz".into(), &["train_images of shape", "does not take"]),
        ("claims-more.npz".into(), &["train_images of shape [8000000, 28, 28] does not take"]),
        ("no-training-image.npz".into(), &["the train split is empty"]),
        ("float-labels.npz".into(), &["train_labels has elements of type '<f4'"]),
        ("negative.npz".into(), &["train_labels has the label -1 at index 3", LABELS]),
        ("large.npz".into(), &["train_labels has the label 70000 at index 3", LABELS]),
        ("smallest.npz".into(), &["train_labels has the label -9223372036854775808 at index 3", LABELS]),
        ("unseen.npz".into(), &["no training image of class 1"]),
        ("one-class.npz".into(), &["every image has the label 0"]),
        ("counts.npz".into(), &["val_images has 4 images and val_labels has 3 labels"]),
        ("multi-label.npz".into(), &["val_labels has "]),
        ("declared-bomb.npz".into(), &["train_images claims to expand", "which deflate cannot do"]),
        ("bomb.npz".into(), &["train_images of shape [8000000, 28, 28] does not take"]),
        ("overfull.npz".into(), DAMAGED),
        ("underfull.npz".into(), DAMAGED),
        ("cut.npz".into(), DAMAGED),
        ("cut-early.npz".into(), DAMAGED),
        ("empty.npz".into(), &["the file is empty"]),
        ("text.npz".into(), &["this is a text file, not a data set"]),
        ("single.npy".into(), &["a single .npy array"]),
        ("damaged.npz".into(), DAMAGED),
        ("other.zip".into(), &["this is a zip archive (of readme.txt), not a data set"]),
        (
            "model.safetensors".into(),
            &["this is a safetensors file, as networks are, not a data set", "give it as --model"],
        ),
    ];
    files.extend(names.iter().zip(&missing).map(|(name, says)| (format!("without-{name}.npz"), &says[..])));
    // Faults that training alone minds: splits that do not go together, absent classes.
    let fits_a_network = ["two-shapes.npz", "no-training-image.npz", "unseen.npz", "one-class.npz"];
    let mut cases = Vec::new();
    for (file, says) in &files {
        cases.push(case(file, format!("train --data {file} --architecture resnet8 --width 4 --out o"), says));
        if !fits_a_network.contains(&file.as_str()) {
            let is_at_fault = |split: &&str| says[0].contains(&format!("{split}_"));
            let split = ["val", "test"].into_iter().find(is_at_fault).unwrap_or("train");
            cases.push(case(file, format!("eval --model model.safetensors --data {file} --split {split}"), says));
        }
    }
    assert_refused(&folder, &cases);
}

#[test]
fn companions_that_do_not_fit() {
    let folder = Folder::with_sources();
    folder.data("rgb", "--channels 3");
    folder.source("deep", "shape", "--architecture resnet14 --width 4");
    folder.source("wide", "shape", "--architecture resnet8 --width 8");
    folder.source("other", "shape", "--architecture resnet8 --width 4 --seed 5");
    folder.done(
        "learn --models texture.safetensors shape.safetensors --data data/target.npz --anchor 0 --epochs 1 \
         --granularity filter --out merged.safetensors",
    );
    folder.rewrite("texture.safetensors", "headless.safetensors", |file| {
        file.tensors.retain(|name, _| !name.starts_with("fc."));
    });
    let header = |to: &str, key: &str, value: &str| {
        folder.rewrite("merged.weights.safetensors", to, |file| {
            file.metadata.insert(format!("medmerge.{key}"), value.into()).expect("a key that is there");
        });
    };
    let architecture = |blocks: &str, widths: &str| {
        format!(r#"{{"bottleneck": false, "blocks": {blocks}, "widths": {widths}, "stem": "3x3"}}"#)
    };
    header("many-channels", "input_channels", "18446744073709551615");
    header("three-channels", "input_channels", "3");
    header("no-channels", "input_channels", "0");
    header("far-anchor", "anchor", "7");
    header("odd-start", "start", "halfway");
    header("odd-granularity", "granularity", "filtr");
    header("odd-sources", "sources", "[]");
    header("many-blocks", "architecture", &architecture("[1000000000000]", "[4]"));
    header("wide-blocks", "architecture", &architecture("[1, 1, 1]", "[4, 8, 4611686018427387904]"));
    header("no-blocks", "architecture", &architecture("[]", "[]"));
    folder.rewrite("merged.weights.safetensors", "nan-weights", |file| {
        let tensor = file.tensors.get_mut("layer1.0.conv1.merge_weight").unwrap();
        let Numbers::Floats(values) = &mut tensor.numbers else { panic!("floats") };
        values[0] = f32::NAN;
    });
    for (to, value) in [("negative-statistics", -1.0), ("nan-statistics", f32::NAN)] {
        folder.rewrite("merged.weights.safetensors", to, |file| {
            let tensor = file.tensors.get_mut("layer2.0.bn1.running_var").unwrap();
            let Numbers::Floats(values) = &mut tensor.numbers else { panic!("floats") };
            values[1] = value;
        });
    }
    folder.source("colour", "texture", "--architecture resnet8 --width 4 --input-channels 3");
    let sources = |names: &str| {
        let paths: Vec<String> = names.split(' ').map(|name| format!("{name}.safetensors")).collect();
        format!("--models {}", paths.join(" "))
    };
    let learn = |names: &str| format!("learn {} --data data/target.npz --out o", sources(names));
    let merge = |names: &str, how: &str| format!("merge {} {how} --out o", sources(names));
    const WEIGHTS: &str = "--weights merged.weights.safetensors";
    let with_weights = |name: &str| merge("texture shape", &format!("--weights {name}"));
    let cases: &[Case] = &[
        case("one source", learn("texture"), &["a single source with --constraint affine", "--constraint free"]),
        case("one source to merge", merge("texture", "--coefficients 1"), &["at least two sources, not 1"]),
        case(
            "a deeper source",
            learn("texture deep"),
            &["deep.safetensors: it differs from texture.safetensors", "layer1.1.conv1.weight", "resnet8", "resnet14"],
        ),
        case(
            "a wider source",
            merge("texture wide", "--coefficients 0.5,0.5"),
            &["wide.safetensors: it differs from texture.safetensors", "conv1.weight is", "and", "more"],
        ),
        case("too few coefficients", merge("texture shape", "--coefficients 1"), &["1 coefficients for 2 sources"]),
        case("too many", merge("texture shape", "--coefficients 1,2,3"), &["3 coefficients for 2 sources"]),
        case(
            "NaN",
            merge("texture shape", "--coefficients NaN,1"),
            &["a coefficient of NaN", "--coefficients 0.5,0.5"],
        ),
        case("words", merge("texture shape", "--coefficients half,half"), &["--coefficients"]),
        case("neither", merge("texture shape", ""), &["--weights <FILE>", "--coefficients"]),
        case("both", merge("texture shape", &format!("{WEIGHTS} --coefficients 1,0")), &["cannot be used with"]),
        case(
            "another source",
            merge("texture other", WEIGHTS),
            &["another file than other.safetensors", "shape.safetensors"],
        ),
        case(
            "wrong order",
            merge("shape texture", WEIGHTS),
            &["another file than shape.safetensors", "texture.safetensors"],
        ),
        case("a third source", merge("texture shape other", WEIGHTS), &["for 2 sources, not for 3", "in this order"]),
        case("network as weights", with_weights("shape.safetensors"), &["it is no file of merge weights"]),
        case("data as weights", with_weights("data/shape.npz"), &["a data set (.npz), not a file of merge weights"]),
        case(
            "weights as network",
            "eval --model merged.weights.safetensors --data data/target.npz",
            &["these are merge weights, not a network", "--weights"],
        ),
        case(
            "weights as source",
            merge("texture merged.weights", "--coefficients 1,0"),
            &["these are merge weights, not a network"],
        ),
        case("weights: many channels", with_weights("many-channels"), &["input_channels"]),
        case("weights: three channels", with_weights("three-channels"), &["3 input channels", "with 1"]),
        case("weights: negative variance", with_weights("negative-statistics"), &["running_var is -1 in channel 1"]),
        case("weights: NaN in a variance", with_weights("nan-statistics"), &["running_var holds NaN or infinity"]),
        case(
            "a source for colour",
            learn("texture colour"),
            &["texture.safetensors sees grey images (1 channel), colour.safetensors colour images (3 channels)"],
        ),
        case("anchor 7 of two", format!("{} --anchor 7", learn("texture shape")), &["'7' of 2 sources", "from 0 to 1"]),
        case("weights: no channels", with_weights("no-channels"), &["input_channels"]),
        case("weights: far anchor", with_weights("far-anchor"), &["anchor makes no sense"]),
        case("weights: start", with_weights("odd-start"), &["halfway"]),
        case("weights: granularity", with_weights("odd-granularity"), &["did you mean 'filter'?"]),
        case("weights: sources", with_weights("odd-sources"), &["makes no sense"]),
        case("weights: many blocks", with_weights("many-blocks"), &["its header's architecture"]),
        case("weights: wide blocks", with_weights("wide-blocks"), &["its header's architecture"]),
        case("weights: no blocks", with_weights("no-blocks"), &["its header's architecture"]),
        case("inspect many blocks", "inspect many-blocks", &["its header's architecture"]),
        case("weights: NaN", with_weights("nan-weights"), &["NaN or infinity"]),
        case(
            "other classes",
            "eval --model texture.safetensors --data data/target.npz",
            &["test_labels has the label ", "and the network tells 4 classes apart", "train --from"],
        ),
        case("no head", "eval --model headless.safetensors --data data/texture.npz", &["it has no classifier"]),
        case(
            "colour for a grey network",
            "eval --model texture.safetensors --data rgb/texture.npz",
            &["images of 3 channels cannot feed a network of 1"],
        ),
        case(
            "colour for grey sources",
            learn("texture shape").replace("data/", "rgb/"),
            &["images of 3 channels cannot feed a network of 1"],
        ),
        case("head without a network", "train --data data/texture.npz --head-only --out o", &["--from"]),
        case(
            "two architectures",
            "train --data data/texture.npz --from texture.safetensors --architecture resnet8 --out o",
            &["cannot be used with"],
        ),
        case("one file for two", format!("{} --weights o", learn("texture shape")), &["the same file"]),
        case("one file for picture and network", format!("{} --picture o", learn("texture shape")), &["the same file"]),
        case(
            "one file for picture and weights",
            format!("{} --picture p --weights p", learn("texture shape")),
            &["the same file"],
        ),
    ];
    assert_refused(&folder, cases);
}

/// What the files of [`files_are_named_for_what_they_are`] hold, and what they are called.
fn foreign_files(folder: &Folder) -> Vec<(&'static str, &'static str)> {
    let files: &[(&str, &[u8], &str)] = &[
        ("x.npy", b"\x93NUMPY\x01\0", "a single .npy array"),
        ("x.jpg", b"\xff\xd8\xff\xe0\0\x10JFIF", "a JPEG image"),
        ("png", b"\x89PNG\r\n\x1a\n\0\0", "a PNG image"),
        ("x.dcm", &[&[0; 128][..], b"DICM\x02"].concat(), "a DICOM image"),
        ("x.pkl", b"\x80\x04\x95", "a Python pickle"),
        ("x.h5", b"\x89HDF\r\n\x1a\n\0", "an HDF5 file, as Keras writes them"),
        ("x.onnx", b"\x08\x08\x12\x07pytorch\x1a\x05", "an ONNX model"),
        ("x.gz", b"\x1f\x8b\x08\0\0\0\0\0\x02\x03", "a gzip file"),
        ("x.tar", &[&[0; 257][..], b"ustar\0"].concat(), "a tar archive"),
        ("x.csv", b"index,label\n0,1\n", "a table (CSV)"),
        ("x.txt", b"a few words", "a text file"),
        ("x.html", b"<!DOCTYPE html><html>", "a web page"),
        ("pointer.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    ];
    for (name, content, _) in files {
        folder.write(name, content);
    }
    let mut archive = zip::ZipWriter::new(std::fs::File::create(folder.path("x.zip")).unwrap());
    archive.start_file("readme.txt", zip::write::SimpleFileOptions::default()).unwrap();
    archive.finish().unwrap();
    let pipe = std::process::Command::new("mkfifo").arg(folder.path("pipe.npz")).status().unwrap();
    assert!(pipe.success());
    drop(std::os::unix::net::UnixListener::bind(folder.path("socket")).unwrap());
    let special = [
        ("x.zip", "a zip archive (of readme.txt)"),
        ("pipe.npz", "a pipe (FIFO)"),
        ("socket", "a socket"),
        ("/dev/zero", "a device"),
    ];
    files.iter().map(|&(name, _, called)| (name, called)).chain(special).collect()
}

/// Files of PyTorch are networks, and nothing else.
#[test]
fn pytorch_files_are_named_for_what_they_are() {
    let folder = Folder::with_sources();
    let magic = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
    let files: &[(&str, &[u8], &str)] = &[
        ("x.pth", b"PK\x03\x04 as torch.save writes it", "its zip archive is damaged or cut off"),
        ("x.th", b"\x80\x02}q\0.", "it is a Python pickle, and not what torch.save writes"),
        ("x.pt", magic, "it is cut off within its pickle"),
        ("x.bin", b"\0\x01\x02", "it is not what torch.save writes"),
    ];
    let merge = "merge --models texture.safetensors shape.safetensors --out o --weights";
    let mut cases = Vec::new();
    for &(file, content, says) in files {
        folder.write(file, content);
        let says: &[&str] = vec![says].leak();
        cases.push(case(file, format!("eval --model {file} --data data/texture.npz"), says));
        cases.push(case(file, format!("inspect {file}"), says));
        const DATA: &[&str] = &["a PyTorch file, not a data set", "give it as --model"];
        cases.push(case(file, format!("eval --model texture.safetensors --data {file}"), DATA));
        cases.push(case(file, format!("{merge} {file}"), &["a PyTorch file, not a file of merge weights"]));
    }
    assert_refused(&folder, &cases);
}

#[test]
fn inspect_lists_what_pytorch_saved() {
    let folder = Folder::new();
    let files = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/files/pytorch");
    for file in ["zip.pth", "legacy.pth"] {
        std::fs::copy(files.join(file), folder.path(file)).unwrap();
        let listed = folder.json(&format!("inspect {file}"));
        assert_eq!(listed["kind"], "checkpoint", "{listed}");
        assert_eq!(listed["metadata"]["pickle.best_prec1"], "91.78", "{listed}");
        let tensors = listed["tensors"].as_array().unwrap();
        let filters = tensors.iter().find(|tensor| tensor["name"] == "state_dict.conv1.weight").unwrap();
        assert_eq!(filters["shape"], serde_json::json!([2, 3, 1, 1]), "{listed}");
    }
}

#[test]
fn files_are_named_for_what_they_are() {
    let folder = Folder::with_sources();
    let files = foreign_files(&folder);
    let mut cases = Vec::new();
    for (file, called) in &files {
        let says: &[&str] = vec![*called].leak();
        let not: &dyn Fn(&'static str) -> &'static [&'static str] = &|what| vec![*called, what].leak();
        cases.push(case(file, format!("eval --model {file} --data data/texture.npz"), not(", not a network")));
        cases.push(case(file, format!("eval --model texture.safetensors --data {file}"), not(", not a data set")));
        cases.push(case(
            file,
            format!("merge --models texture.safetensors shape.safetensors --weights {file} --out o"),
            not(", not a file of merge weights"),
        ));
        cases.push(case(file, format!("inspect {file}"), says));
    }
    assert_refused(&folder, &cases);
}

#[test]
fn what_a_file_is_called_does_not_matter() {
    let folder = Folder::with_sources();
    std::fs::copy(folder.path("data/texture.npz"), folder.path("X.NPZ")).unwrap();
    std::fs::copy(folder.path("data/texture.npz"), folder.path("data.safetensors")).unwrap();
    std::fs::copy(folder.path("texture.safetensors"), folder.path("network.npz")).unwrap();
    let expected = folder.json("eval --model texture.safetensors --data data/texture.npz");
    for data in ["X.NPZ", "data.safetensors"] {
        assert_eq!(folder.json(&format!("inspect {data}"))["kind"], "data set", "{data}");
        let metrics = folder.json(&format!("eval --model network.npz --data {data}"));
        assert_eq!(metrics["metrics"], expected["metrics"], "{data}");
    }
    assert_eq!(folder.json("inspect network.npz")["kind"], "checkpoint");
}

#[test]
fn inspect_lists_tensors_of_any_type() {
    let folder = Folder::new();
    let types = ["F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E3M4", "F4", "C64", "U16", "BOOL"];
    let entries: Vec<String> = types
        .iter()
        .enumerate()
        .map(|(at, dtype)| {
            let shape = match *dtype {
                "F4" => 16,
                "C64" => 1,
                "U16" => 4,
                _ => 8,
            };
            let (from, to) = (at * 8, at * 8 + 8);
            format!(r#""t{at}":{{"dtype":"{dtype}","shape":[1,{shape}],"data_offsets":[{from},{to}]}}"#)
        })
        .collect();
    folder.write("types", safetensors(format!("{{{}}}", entries.join(",")), &vec![1; 8 * types.len()]));
    let listed = folder.json("inspect types");
    let text = folder.done("inspect types");
    for (at, dtype) in types.iter().enumerate() {
        let tensor = &listed["tensors"][at];
        assert_eq!((&tensor["name"], &tensor["dtype"]), (&format!("t{at}").into(), &(*dtype).into()), "{listed}");
        assert_eq!(tensor["shape"][0], 1, "{listed}");
        assert!(text.contains(&format!("  t{at} {dtype} [1, ")), "{text}");
    }
    assert!(listed["problem"].as_str().unwrap().starts_with("t0 is of type F8_E4M3"), "{listed}");
    let first = text.lines().next().unwrap();
    assert_eq!(first, "types: not a network that medmerge can use (t0 is of type F8_E4M3)");
}

/// A copy of a network whose counters of batches are integers of another type.
fn with_counters(folder: &Folder, to: &str, dtype: &str, bytes: &[u8]) {
    let file = medmerge::checkpoint::TensorFile::read(&folder.path("texture.safetensors")).unwrap();
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, tensor) in file.tensors {
        let from = data.len();
        let dtype = match &tensor.numbers {
            Numbers::Floats(values) => {
                data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
                "F32"
            }
            _ => {
                data.extend(bytes);
                dtype
            }
        };
        let entry = serde_json::json!({"dtype": dtype, "shape": tensor.shape, "data_offsets": [from, data.len()]});
        header.insert(name, entry);
    }
    folder.write(to, safetensors(serde_json::Value::from(header).to_string(), &data));
}

#[test]
fn counters_of_batches_may_be_integers_of_any_type() {
    let folder = Folder::with_sources();
    let expected = folder.json("eval --model texture.safetensors --data data/texture.npz");
    for (dtype, width) in [("U8", 1), ("I8", 1), ("U16", 2), ("I16", 2), ("U32", 4), ("I32", 4), ("U64", 8), ("I64", 8)]
    {
        let mut bytes = vec![0; width];
        bytes[0] = 2;
        with_counters(&folder, dtype, dtype, &bytes);
        let metrics = folder.json(&format!("eval --model {dtype} --data data/texture.npz"));
        assert_eq!(metrics["metrics"], expected["metrics"], "{dtype}");
    }
    with_counters(&folder, "beyond", "U64", &[0xff; 8]);
    with_counters(&folder, "float8", "F8_E4M3FNUZ", &[0]);
    assert_refused(
        &folder,
        &[
            case("beyond", "eval --model beyond --data data/texture.npz", &["bn1.num_batches_tracked holds 184467"]),
            case(
                "float8",
                "eval --model float8 --data data/texture.npz",
                &["bn1.num_batches_tracked is of type F8_E4M3FNUZ"],
            ),
        ],
    );
}

/// Every layer pads its input, so that no image is too small for these networks.
#[test]
fn the_smallest_images_pass() {
    let folder = Folder::new();
    let mut arrays = Arrays::good();
    for array in arrays.0.iter_mut().filter(|array| array.0.ends_with("images")) {
        array.2 = vec![array.2[0], 1, 1];
        array.3.truncate(array.2[0]);
    }
    arrays.write(&folder, "points.npz");
    for stem in ["3x3", "7x7"] {
        folder.done(&format!(
            "train --data points.npz --architecture resnet8 --stem {stem} --width 4 --epochs 1 --out {stem}.safetensors"
        ));
        folder.done(&format!("eval --model {stem}.safetensors --data points.npz"));
    }
}
