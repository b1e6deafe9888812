//! Files of every layout, valid and hostile, written by hand: a pickle is put together from fragments, each of which leaves
//! one value on the stack.

use std::io::Write;

use tempfile::TempPath;
use zip::CompressionMethod::{self, Deflated, Stored};
use zip::write::SimpleFileOptions;

use super::*;
use crate::file_kind::Wanted;

type Bytes = Vec<u8>;

const MEMORY: u64 = 1 << 30;

fn text(text: &str) -> Bytes {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

fn int(value: i64) -> Bytes {
    [&b"\x8a\x08"[..], &value.to_le_bytes()].concat()
}

fn float(value: f64) -> Bytes {
    [&b"G"[..], &value.to_be_bytes()].concat()
}

fn tuple(items: &[Bytes]) -> Bytes {
    [b"(", &items.concat()[..], b"t"].concat()
}

fn list(items: &[Bytes]) -> Bytes {
    [b"](", &items.concat()[..], b"e"].concat()
}

fn dict(entries: &[(Bytes, Bytes)]) -> Bytes {
    let items: Bytes = entries.iter().flat_map(|(key, value)| [&key[..], value].concat()).collect();
    [b"}(", &items[..], b"u"].concat()
}

/// A dict of text keys.
fn named(entries: &[(&str, Bytes)]) -> Bytes {
    dict(&entries.iter().map(|(key, value)| (text(key), value.clone())).collect::<Vec<_>>())
}

fn global(module: &str, name: &str) -> Bytes {
    format!("c{module}\n{name}\n").into()
}

fn call(module: &str, name: &str, arguments: &[Bytes]) -> Bytes {
    [&global(module, name)[..], &tuple(arguments), b"R"].concat()
}

fn ints(values: &[i64]) -> Bytes {
    tuple(&values.iter().map(|value| int(*value)).collect::<Vec<_>>())
}

fn storage(class: &str, key: &str, count: i64) -> Bytes {
    let arguments = [text("storage"), global("torch", class), text(key), text("cuda:0"), int(count)];
    [&tuple(&arguments)[..], b"Q"].concat()
}

fn view(storage: Bytes, offset: i64, shape: &[i64], strides: &[i64]) -> Bytes {
    let hooks = call("collections", "OrderedDict", &[]);
    let arguments = [storage, int(offset), ints(shape), ints(strides), b"\x89".into(), hooks];
    call("torch._utils", "_rebuild_tensor_v2", &arguments)
}

/// All of a storage of floats.
fn floats(key: &str, count: i64) -> Bytes {
    view(storage("FloatStorage", key, count), 0, &[count], &[1])
}

fn pickle(object: &[u8]) -> Bytes {
    [b"\x80\x02", object, b"."].concat()
}

fn zipped(members: &[(&str, Bytes)], method: CompressionMethod) -> Bytes {
    let mut zip = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
    for (name, bytes) in members {
        zip.start_file(*name, SimpleFileOptions::default().compression_method(method)).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// A file of PyTorch 1.6 and later.
fn archive(object: &[u8], storages: &[(&str, Bytes)]) -> Bytes {
    let names: Vec<String> = storages.iter().map(|(key, _)| format!("m/data/{key}")).collect();
    let mut members = vec![("m/data.pkl", pickle(object)), ("m/version", b"3\n".into())];
    members.extend(names.iter().zip(storages).map(|(name, (_, bytes))| (name.as_str(), bytes.clone())));
    zipped(&members, Stored)
}

/// An older file; each storage has numbers of `size` bytes.
fn legacy(object: &[u8], size: usize, storages: &[(&str, Bytes)]) -> Bytes {
    let magic = [&b"\x8a\x0a"[..], &[0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19]].concat();
    let system = named(&[("protocol_version", int(1001)), ("little_endian", b"\x88".into())]);
    let keys = list(&storages.iter().map(|(key, _)| text(key)).collect::<Vec<_>>());
    let mut bytes = [magic, int(1001), system, object.to_vec(), keys].map(|object| pickle(&object)).concat();
    for (_, numbers) in storages {
        bytes.extend(((numbers.len() / size) as u64).to_le_bytes());
        bytes.extend(numbers);
    }
    bytes
}

fn f32s(values: &[f32]) -> Bytes {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn file_of(bytes: &[u8]) -> TempPath {
    let path = tempfile::Builder::new().suffix(".pth").tempfile().unwrap().into_temp_path();
    std::fs::write(&path, bytes).unwrap();
    path
}

fn read(bytes: &[u8]) -> Result<TensorFile, Error> {
    TensorFile::read_within(&file_of(bytes), Wanted::Network, MEMORY)
}

/// The message of a refusal, which has a hint and takes one line.
#[track_caller]
fn refused(bytes: &[u8]) -> String {
    let error = read(bytes).map(|file| file.tensors).unwrap_err();
    let (message, hint) = (error.to_string(), error.hint().expect("a hint"));
    assert!(matches!(error, Error::Checkpoint { .. }) && error.exit_code() == 2, "{error:?}");
    assert!(!(message.clone() + &hint).contains(char::is_control) && !hint.is_empty(), "{message}: {hint}");
    message
}

/// Checks that an object is refused with these words, in a file of either form, which has a storage `0` of one float if the
/// object names any.
#[track_caller]
fn check_refused(object: &[u8], says: &str) {
    let has_storage = object.windows(7).any(|window| window == b"Storage");
    let storages: &[_] = if has_storage { &[("0", f32s(&[1.0]))] } else { &[] };
    for file in [archive(object, storages), legacy(object, 4, storages)] {
        let message = refused(&file);
        assert!(message.contains(says), "'{message}' for '{says}'");
    }
}

#[track_caller]
fn check_floats(file: &TensorFile, name: &str, shape: &[usize], values: &[f32]) {
    assert_eq!(file.floats(name, shape).unwrap(), values, "{name}");
}

#[test]
fn names_are_keys_and_places_with_dots_between() {
    let tensors = call("collections", "OrderedDict", &[]);
    let fill = [b"(", &text("conv1.weight")[..], &floats("0", 2), b"u"].concat();
    // PyTorch sets the versions of modules on a state dict.
    let versions = [named(&[("_metadata", named(&[("", named(&[("version", int(1))]))]))]), b"b".into()].concat();
    let old = call("collections", "OrderedDict", &[list(&[list(&[text("w"), floats("1", 1)])])]);
    let object = named(&[
        ("state_dict", [tensors, fill, versions].concat()),
        ("old", old),
        ("list", list(&[int(7), tuple(&[floats("1", 1)])])),
        ("numbers", dict(&[(int(-3), floats("1", 1)), (float(0.5), floats("1", 1)), (b"\x88".into(), floats("1", 1))])),
        ("callbacks", dict(&[(global("lightning", "Best"), named(&[("score", floats("1", 1))]))])),
        ("best_prec1", float(91.78)),
        ("arch", text("resnet20")),
        ("epoch", int(199)),
        ("args", named(&[("lr", float(0.1)), ("deep", named(&[("er", int(1))])), ("nesterov", b"\x89".into())])),
        ("none", b"N".into()),
        ("long", text(&"x".repeat(201))),
        ("control", text("\x1b[2J")),
    ]);
    let storages = [("0", f32s(&[1.5, -2.0])), ("1", f32s(&[3.0]))];
    for bytes in [archive(&object, &storages), legacy(&object, 4, &storages)] {
        let file = read(&bytes).unwrap();
        let others =
            ["callbacks.lightning.Best.score", "list.1.0", "numbers.-3", "numbers.0.5", "numbers.True", "old.w"];
        let names: Vec<&str> = others.into_iter().chain(["state_dict.conv1.weight"]).collect();
        assert_eq!(file.tensors.keys().collect::<Vec<_>>(), names);
        check_floats(&file, "state_dict.conv1.weight", &[2], &[1.5, -2.0]);
        others.iter().for_each(|name| check_floats(&file, name, &[1], &[3.0]));
        let notes = ["arch resnet20", "args.lr 0.1", "args.nesterov False", "best_prec1 91.78", "epoch 199"];
        let kept: Vec<String> = file.metadata.iter().map(|(key, value)| format!("{key} {value}")).collect();
        assert_eq!(kept, notes.map(|note| format!("pickle.{note}")));
        assert_eq!(file.sha256, hex(Sha256::digest(&bytes)));
    }
}

#[test]
fn every_view_of_a_storage_is_read() {
    let whole = || storage("FloatStorage", "0", 6);
    let parameter = call("torch._utils", "_rebuild_parameter", &[floats("0", 6), b"\x88".into(), b"N".into()]);
    let plain = [global("torch._utils", "_rebuild_tensor_v2"), global("torch", "Tensor")];
    let arguments = tuple(&[whole(), int(1), ints(&[2]), ints(&[2]), b"\x89".into(), b"N".into()]);
    let typed = [&plain[..], &[arguments, named(&[("tag", int(1))])]].concat();
    let size = [int(5), call("torch", "Size", &[ints(&[1])]), ints(&[1])];
    let object = named(&[
        ("contiguous", view(whole(), 0, &[2, 3], &[3, 1])),
        ("transposed", view(whole(), 0, &[3, 2], &[1, 3])),
        ("sliced", view(whole(), 2, &[2, 1, 2], &[2, 9, 1])),
        ("expanded", view(whole(), 5, &[2, 2], &[0, 0])),
        ("row", view(whole(), 1, &[2, 3], &[0, 1])),
        ("scalar", view(whole(), 4, &[], &[])),
        ("empty", view(whole(), 0, &[2, 0, 3], &[3, 3, 1])),
        ("parameter", parameter),
        ("typed", call("torch._tensor", "_rebuild_from_type_v2", &typed)),
        ("old", call("torch._utils", "_rebuild_tensor", &[&[whole()], &size[..]].concat())),
    ]);
    let storages = [("0", f32s(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]))];
    for bytes in [archive(&object, &storages), legacy(&object, 4, &storages)] {
        let file = read(&bytes).unwrap();
        check_floats(&file, "contiguous", &[2, 3], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        check_floats(&file, "transposed", &[3, 2], &[0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        check_floats(&file, "sliced", &[2, 1, 2], &[2.0, 3.0, 4.0, 5.0]);
        check_floats(&file, "expanded", &[2, 2], &[5.0; 4]);
        check_floats(&file, "row", &[2, 3], &[1.0, 2.0, 3.0, 1.0, 2.0, 3.0]);
        check_floats(&file, "scalar", &[], &[4.0]);
        check_floats(&file, "empty", &[2, 0, 3], &[]);
        check_floats(&file, "parameter", &[6], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        check_floats(&file, "typed", &[2], &[1.0, 3.0]);
        check_floats(&file, "old", &[1], &[5.0]);
    }
}

/// A storage may be a part of another in files before PyTorch 0.4.
#[test]
fn a_part_of_a_storage_is_one() {
    let part = |from, count| {
        let part = tuple(&[text("part"), int(from), int(count)]);
        let arguments = [text("storage"), global("torch", "FloatStorage"), text("0"), text("cpu"), int(4), part];
        [&tuple(&arguments)[..], b"Q"].concat()
    };
    let file = |from, count, offset| {
        let object = named(&[("x", view(part(from, count), offset, &[2], &[1]))]);
        legacy(&object, 4, &[("0", f32s(&[0.0, 1.0, 2.0, 3.0]))])
    };
    check_floats(&read(&file(1, 2, 0)).unwrap(), "x", &[2], &[1.0, 2.0]);
    check_floats(&read(&file(1, 3, 1)).unwrap(), "x", &[2], &[2.0, 3.0]);
    assert!(refused(&file(1, 2, 1)).contains("reaches beyond its storage"));
    assert!(refused(&file(2, 3, 0)).contains("with a part that reaches beyond it"));
    assert!(refused(&file(-1, 3, 0)).contains("of no length"));
}

#[test]
fn numbers_of_every_type_are_read() {
    let half = |value: f32| half::f16::from_f32(value).to_le_bytes().to_vec();
    let brain = |value: f32| half::bf16::from_f32(value).to_le_bytes().to_vec();
    let one = |class: &str, numbers: Bytes, count: usize| {
        let object = named(&[("x", view(storage(class, "0", count as i64), 0, &[count as i64], &[1]))]);
        let old = read(&legacy(&object, numbers.len() / count, &[("0", numbers.clone())])).unwrap();
        let new = read(&archive(&object, &[("0", numbers)])).unwrap();
        assert_eq!(old.tensors["x"].numbers, new.tensors["x"].numbers);
        new.tensors["x"].clone()
    };
    for (class, dtype, numbers) in [
        ("FloatStorage", "F32", f32s(&[1.5, -2.0])),
        ("DoubleStorage", "F64", [1.5f64, -2.0].map(f64::to_le_bytes).concat()),
        ("HalfStorage", "F16", [half(1.5), half(-2.0)].concat()),
        ("BFloat16Storage", "BF16", [brain(1.5), brain(-2.0)].concat()),
    ] {
        let tensor = one(class, numbers, 2);
        assert_eq!((tensor.dtype.as_str(), tensor.numbers), (dtype, Numbers::Floats(vec![1.5, -2.0])));
    }
    for (class, dtype, numbers, expected) in [
        ("LongStorage", "I64", [-7i64, i64::MAX].map(i64::to_le_bytes).concat(), [-7, i64::MAX]),
        ("IntStorage", "I32", [-7i32, 8].map(i32::to_le_bytes).concat(), [-7, 8]),
        ("ShortStorage", "I16", [-7i16, 8].map(i16::to_le_bytes).concat(), [-7, 8]),
        ("CharStorage", "I8", vec![0xf9, 8], [-7, 8]),
        ("ByteStorage", "U8", vec![0xf9, 8], [249, 8]),
        ("BoolStorage", "BOOL", vec![0, 1], [0, 1]),
    ] {
        let tensor = one(class, numbers, 2);
        assert_eq!((tensor.dtype.as_str(), tensor.numbers), (dtype, Numbers::Integers(expected.into())));
    }
}

/// A tensor that tells its type beside an untyped storage.
fn untyped(dtype: &str, bytes: i64, count: i64) -> Bytes {
    let storage = storage("UntypedStorage", "0", bytes);
    let rest = [b"\x89".into(), b"N".into(), global("torch", dtype)];
    call("torch._utils", "_rebuild_tensor_v3", &[&[storage, int(0), ints(&[count]), ints(&[1])], &rest[..]].concat())
}

#[test]
fn a_storage_may_be_untyped() {
    let file =
        |dtype, count| archive(&named(&[("x", untyped(dtype, 8, count))]), &[("0", vec![1, 0, 2, 0, 0, 0, 0, 0x80])]);
    let numbers = |dtype, count| read(&file(dtype, count)).unwrap().tensors["x"].numbers.clone();
    assert_eq!(numbers("uint16", 4), Numbers::Integers(vec![1, 2, 0, 0x8000]));
    assert_eq!(numbers("uint32", 2), Numbers::Integers(vec![0x2_0001, 0x8000_0000]));
    assert_eq!(numbers("uint8", 3), Numbers::Integers(vec![1, 0, 2]));
    assert!(refused(&file("uint16", 5)).contains("reaches beyond its storage"));
    assert!(refused(&file("uint64", 1)).contains("x holds 9223372036854906881"));
    assert!(refused(&file("float8_e4m3fn", 1)).contains("(torch.float8_e4m3fn)"));
}

#[test]
fn big_endian_numbers_are_turned_round_and_old_files_of_them_refused() {
    let object = named(&[("x", floats("0", 2)), ("y", view(storage("CharStorage", "1", 2), 0, &[2], &[1]))]);
    let member = |order: &[u8]| {
        let numbers = [1.5f32, -2.0].map(f32::to_be_bytes).concat();
        let members = [("m/data.pkl", pickle(&object)), ("m/byteorder", order.into()), ("m/data/0", numbers)];
        zipped(&[&members[..], &[("m/data/1", vec![1, 2])]].concat(), Stored)
    };
    let file = read(&member(b"big")).unwrap();
    check_floats(&file, "x", &[2], &[1.5, -2.0]);
    assert_eq!(file.tensors["y"].numbers, Numbers::Integers(vec![1, 2]));
    assert_ne!(read(&member(b"little")).unwrap().floats("x", &[2]).unwrap(), [1.5, -2.0]);
    assert!(refused(&member(b"middle")).contains("byteorder"));
    let mut old = legacy(&named(&[("x", floats("0", 1))]), 4, &[("0", f32s(&[1.0]))]);
    let at = old.windows(13).position(|window| window == b"little_endian").unwrap() + 13;
    assert_eq!(std::mem::replace(&mut old[at], 0x89), 0x88);
    assert!(refused(&old).contains("big-endian"));
}

#[test]
fn opcodes_of_later_protocols_are_read() {
    let short = |text: &str| [&[0x8c, text.len() as u8], text.as_bytes(), b"\x94"].concat();
    let class = |module: &str, name: &str| [short(module), short(name), b"\x93\x94".into()].concat();
    let key = [&b"\x8d\x01\0\0\0\0\0\0\0"[..], b"0"].concat();
    let name = [short("storage"), class("torch", "FloatStorage"), key, short("cpu"), b"K\x02t\x94Q".into()];
    let place = b"K\0K\x02\x85\x94K\x01\x85\x94\x89N".to_vec();
    let tensor =
        [class("torch._utils", "_rebuild_tensor_v2"), b"((".into(), name.concat(), place, b"t\x94R\x94".into()];
    let others = [&b"]\x94("[..], b"C\x02ab", b"\x96\x01\0\0\0\0\0\0\0z", b"\x8f\x94(K\x01\x90", b"(K\x01\x91", b"e"];
    let new = [class("m", "C"), b")\x81\x94}b".into(), class("m", "C"), b")}\x92".into(), b"\x86".into()];
    // Memo 2 is the first key, which names another.
    let body =
        [b"}\x94(", &short("x")[..], &tensor.concat(), &short("rest"), &others.concat(), b"h\x01", &new.concat()];
    for protocol in [4, 5] {
        let object = [&body.concat()[..], b"u."].concat();
        let frame = [&[0x80, protocol, 0x95], &(object.len() as u64).to_le_bytes()[..], &object].concat();
        let file = zipped(&[("m/data.pkl", frame), ("m/data/0", f32s(&[1.0, 2.0]))], Stored);
        check_floats(&read(&file).unwrap(), "x", &[2], &[1.0, 2.0]);
    }
}

#[test]
fn objects_without_tensors_are_passed_over() {
    let namespace = [&global("argparse", "Namespace")[..], b")\x81", &named(&[("lr", float(0.1))]), b"b"].concat();
    let numpy =
        call("numpy.core.multiarray", "scalar", &[call("numpy", "dtype", &[text("f8")]), b"U\x02\xff\xfe".into()]);
    let itself = b"]\x71\x05h\x05a".to_vec();
    let mut bomb = list(&[int(1)]);
    for _ in 0..60 {
        bomb = [b"]", &bomb[..], b"2q\x06h\x06l0a"].concat();
    }
    let getter = call("builtins", "getattr", &[global("m", "Kind"), text("A")]);
    let object = named(&[
        ("x", floats("0", 1)),
        ("args", namespace),
        ("best", numpy),
        ("itself", itself),
        ("device", call("torch", "device", &[text("cuda:0")])),
        ("dtype", global("torch", "float32")),
        ("method", [&getter[..], b")R"].concat()),
    ]);
    let file = read(&archive(&object, &[("0", f32s(&[1.0]))])).unwrap();
    assert_eq!((file.tensors.len(), file.metadata.len()), (1, 0));
}

#[test]
fn what_would_lose_a_tensor_is_refused_by_name() {
    let x = || floats("0", 1);
    let module = [&global("torchvision.models", "ResNet")[..], b")\x81", &named(&[("w", x())]), b"b"].concat();
    check_refused(&module, "it is a whole model object of class torchvision.models.ResNet, not a state dict");
    check_refused(&named(&[("net", module)]), "its 'net' is a whole object of class torchvision.models.ResNet");
    let old =
        [tuple(&[text("module"), global("m", "Net"), text("net.py"), text("class Net: …")]), b"Q".into()].concat();
    check_refused(&[&old[..], &tuple(&[x()]), b"b"].concat(), "it is a whole model object of class m.Net");
    check_refused(&call("m", "partial", &[x()]), "of class m.partial");
    check_refused(&[call("m", "f", &[]), tuple(&[x()]), b"R".into()].concat(), "of class m.f");
    check_refused(&[&named(&[])[..], &named(&[("hidden", x())]), b"b"].concat(), "it has tensors among the attributes");
    check_refused(&named(&[("s", storage("FloatStorage", "0", 1))]), "its 's' is a storage");
    check_refused(&dict(&[(tuple(&[int(1)]), x())]), "a key that is neither text nor a number");
    check_refused(&named(&[("a.b", x()), ("a", named(&[("b", x())]))]), "two tensors of the name its 'a.b'");
    check_refused(&named(&[("epoch", int(1))]), "it holds no tensors");
    check_refused(&call("torch._utils", "_rebuild_qtensor", &[x()]), "it holds quantised tensors");
    check_refused(&call("torch._utils", "_rebuild_sparse_tensor", &[x()]), "it holds sparse tensors");
    check_refused(&call("torch._utils", "_rebuild_new", &[x()]), "other tensors (torch._utils._rebuild_new)");
    check_refused(&storage("QInt8Storage", "0", 1), "quantised numbers (torch.QInt8Storage)");
    check_refused(&storage("ComplexFloatStorage", "0", 1), "not read (torch.ComplexFloatStorage)");
    check_refused(&call("torch.storage", "_load_from_bytes", &[b"C\x01x".into()]), "without torch.save");
    let function = global("torch._utils", "_rebuild_tensor_v2");
    let of_class = [function, global("m", "Special"), tuple(&[]), b"N".into()];
    check_refused(&call("torch._tensor", "_rebuild_from_type_v2", &of_class), "tensors of class m.Special");
    let lazy = [storage("FloatStorage", "0", 1), int(0), ints(&[1]), ints(&[1]), b"\x89".into(), b"N".into()];
    let negated = [&lazy[..], &[named(&[("neg", b"\x88".into())])]].concat();
    check_refused(&call("torch._utils", "_rebuild_tensor_v2", &negated), "negated or conjugated");
}

#[test]
fn a_pickle_that_calls_code_is_refused_and_called_so() {
    let witness = tempfile::tempdir().unwrap().path().join("ran");
    let command = text(&format!("touch {}", witness.display()));
    for (module, name) in [
        ("os", "system"),
        ("posix", "system"),
        ("subprocess", "Popen"),
        ("builtins", "eval"),
        ("__builtin__", "exec"),
        ("torch.serialization", "os.system"),
        ("builtins", "eval.__call__"),
        ("os.path", "os.system"),
    ] {
        let says = &format!("it asks for {module}.{name}, as no checkpoint does");
        check_refused(&call(module, name, std::slice::from_ref(&command)), says);
        check_refused(&named(&[("x", floats("0", 1)), ("y", global(module, name))]), says);
        let stacked = [&text(module)[..], &text(name), b"\x93"].concat();
        check_refused(&stacked, says);
        check_refused(&[&stacked[..], &tuple(std::slice::from_ref(&command)), b"\x81"].concat(), says);
    }
    // An unknown function is not called, and what it would have made is not there.
    check_refused(&call("m", "run", std::slice::from_ref(&command)), "it holds no tensors");
    check_refused(&global("os\x1b[2J", "a\x1bb"), "it holds no tensors");
    check_refused(&global("os.\x1b[2J", "a\x1bb"), "it asks for os.\\u{1b}[2J.a\\u{1b}b");
    for (opcode, name) in
        [(&b"(ios\nsystem\n"[..], "INST"), (b"(cm\nC\no", "OBJ"), (b"P0\n", "PERSID"), (b"\x82\x01", "EXT1")]
    {
        check_refused(opcode, &format!("the opcode {name}, which no checkpoint needs"));
    }
    assert!(!witness.exists());
}

#[test]
fn lengths_that_lie_are_refused() {
    let huge = (1u64 << 63).to_le_bytes();
    for opcode in [&b"\x8d"[..], b"\x8e", b"\x96", b"\x95"] {
        check_refused(&[opcode, &huge].concat(), "cut off within its pickle");
    }
    for opcode in [&b"\x8b"[..], b"X", b"T", b"B"] {
        check_refused(&[opcode, &[0xff; 4]].concat(), "cut off within its pickle");
    }
    let tensor = |offset, shape: &[i64], strides: &[i64]| {
        named(&[("x", view(storage("FloatStorage", "0", 1), offset, shape, strides))])
    };
    let large = i64::MAX;
    check_refused(&tensor(0, &[1 << 32, 1 << 32], &[0, 0]), "its shape is larger than any memory");
    check_refused(&tensor(0, &[1 << 40, 1 << 40, 0], &[0, 0, 0]), "its shape is larger than any memory");
    check_refused(&tensor(0, &[1 << 40], &[0]), "reading it takes 4194305 MiB of memory");
    check_refused(&tensor(0, &[2], &[1]), "reaches beyond its storage");
    check_refused(&tensor(1, &[1], &[1]), "reaches beyond its storage");
    check_refused(&tensor(large, &[1], &[1]), "reaches beyond its storage");
    check_refused(&tensor(0, &[3, 2], &[large, large]), "reaches beyond its storage");
    check_refused(&tensor(0, &[2], &[-1]), "negative size, stride or offset");
    check_refused(&tensor(-1, &[1], &[1]), "negative size, stride or offset");
    check_refused(&tensor(0, &[-1], &[1]), "negative size, stride or offset");
    check_refused(&tensor(0, &[1, 1], &[1]), "not as many strides as dimensions");
    check_refused(&tensor(0, &[1; 33], &[1; 33]), "more than 32 dimensions");
    check_refused(&named(&[("x", floats("0", large))]), "larger than any memory");
    check_refused(&named(&[("x", floats("0", -1))]), "of no length");
    assert!(read(&archive(&tensor(0, &[1; 32], &[large; 32]), &[("0", f32s(&[1.0]))])).is_ok());
    // A count that its container contradicts.
    let two = named(&[("x", floats("0", 2))]);
    assert!(refused(&archive(&two, &[("0", f32s(&[1.0]))])).contains("has 4 bytes where its pickle tells of 8"));
    assert!(refused(&legacy(&two, 4, &[("0", f32s(&[1.0]))])).contains("has 4 bytes where its pickle tells of 8"));
    let one = named(&[("x", floats("0", 1))]);
    assert!(refused(&archive(&one, &[("1", f32s(&[1.0]))])).contains("no m/data/0"));
    assert!(refused(&legacy(&one, 4, &[])).contains("storage '0' is missing"));
    let mut file = legacy(&one, 4, &[("0", f32s(&[1.0]))]);
    let at = file.len() - 12;
    for count in [2, u64::MAX, 1 << 62] {
        file[at..at + 8].copy_from_slice(&count.to_le_bytes());
        assert!(refused(&file).contains(&format!("storage '0' claims {count} numbers")));
    }
    file[at..at + 8].fill(0);
    assert!(refused(&file).contains("4 bytes follow its last storage"));
}

#[test]
fn persistent_ids_of_another_shape_are_refused() {
    let class = || global("torch", "FloatStorage");
    let id = |items: &[Bytes]| [tuple(items), b"Q".into()].concat();
    let odd = "outside of it that is no storage";
    check_refused(&[text("0"), b"Q".into()].concat(), odd);
    check_refused(&id(&[]), odd);
    check_refused(&id(&[text("file"), text("/etc/passwd")]), odd);
    check_refused(&id(&[text("storage"), class(), text("0"), text("cpu")]), odd);
    check_refused(&id(&[text("storage"), class(), int(0), text("cpu"), int(1)]), "a storage without a name");
    check_refused(&id(&[text("storage"), text("F"), text("0"), text("cpu"), int(1)]), "a storage without a type");
    check_refused(&id(&[text("storage"), class(), text("0"), text("cpu"), text("1")]), "of no length");
    let part = [text("storage"), class(), text("0"), text("cpu"), int(1), int(0)];
    check_refused(&id(&part), "with an odd part");
}

#[test]
fn objects_that_hold_themselves_or_grow_are_refused() {
    let x = floats("0", 1);
    let itself = [b"}q\x00(", &text("a")[..], b"h\x00", &text("b"), &x, b"u"].concat();
    check_refused(&itself, "its 'a' holds itself");
    let nested = |inner: &[u8], depth: usize| [&b"(".repeat(depth)[..], inner, &b"l".repeat(depth)].concat();
    check_refused(&nested(b"", 1_000_000), "it holds no tensors");
    check_refused(&nested(&x, 1_000_000), "is nested deeper than 32 levels");
    let deep = read(&archive(&nested(&x, 32), &[("0", f32s(&[1.0]))])).unwrap();
    check_floats(&deep, &["0"; 32].join("."), &[1], &[1.0]);
    check_refused(&nested(&x, 33), "is nested deeper than 32 levels");
    // 2³⁰ tensors by thirty lists, each of the former twice.
    let doubled = |inner: &[u8]| [inner, &b"q\x01](h\x01h\x01e".repeat(30)].concat();
    check_refused(&doubled(&x), "leads past more than 262144 entries");
    check_refused(&doubled(b"]"), "it holds no tensors");
    check_refused(&named(&[(&"x".repeat(500), x)]), "longer than 500 bytes");
    check_refused(&b"]".repeat(10_000_001), "more steps than any network needs");
    // As many dicts from one list of pairs.
    let pairs = list(&vec![tuple(&[int(1), int(1)]); 1000]);
    let copies = [&pairs[..], b"q\x00ccollections\nOrderedDict\nq\x01", &b"h\x01h\x00\x85R".repeat(100_000)].concat();
    check_refused(&copies, "more steps than any network needs");
}

#[test]
fn a_stack_that_is_empty_is_no_place_to_take_from() {
    for opcode in b"012aeustR\x81\x92b\x93Q\x85\x86\x87\x90\x91\x94ld" {
        for before in [&b""[..], b"(", b"N", b"(N"] {
            for after in [&b""[..], b"N"] {
                let object = [before, &[*opcode], after].concat();
                assert!(read(&archive(&object, &[])).is_err(), "{object:?}");
            }
        }
    }
    check_refused(b"", "a value that it did not make");
    check_refused(b"h\x00", "a value that it did not make");
    check_refused(b"N}s", "a value that it did not make");
    check_refused(b"}(Nu", "a key without a value");
    check_refused(b"(NNNd", "a key without a value");
    check_refused(b"\xfe", "the byte 0xfe where an opcode belongs");
    check_refused(b"I1x\n", "a number that is none");
    check_refused(&[b"c".to_vec(), b"x".repeat(2000)].concat(), "a name without an end");
    check_refused(b"X\x01\0\0\0\xff", "text that is not UTF-8");
    check_refused(b"\x80\x07", "its pickle is of protocol 7; 2 to 5 are read");
    assert!(refused(&zipped(&[("m/data.pkl", b"(dp0\n.".into())], Stored)).contains("no pickle of protocol 2 to 5"));
}

#[test]
fn many_tensors_are_read() {
    let keys: Vec<String> = (0..1200).map(|at| at.to_string()).collect();
    let entries: Vec<(&str, Bytes)> = keys.iter().map(|key| (key.as_str(), floats(key, 1))).collect();
    let storages: Vec<(&str, Bytes)> =
        keys.iter().enumerate().map(|(at, key)| (key.as_str(), f32s(&[at as f32]))).collect();
    for file in [archive(&named(&entries), &storages), legacy(&named(&entries), 4, &storages)] {
        let file = read(&file).unwrap();
        assert_eq!(file.tensors.len(), 1200);
        keys.iter().enumerate().for_each(|(at, key)| check_floats(&file, key, &[1], &[at as f32]));
    }
}

#[test]
fn a_file_larger_than_memory_is_refused_before_its_numbers_are_read() {
    // The numbers of an expanded view are in the file once; integers become eight bytes each.
    let expanded = view(storage("FloatStorage", "0", 1), 0, &[1000, 100], &[0, 0]);
    let bools = view(storage("BoolStorage", "1", 1), 0, &[100], &[0]);
    let object = named(&[("x", expanded), ("y", bools)]);
    let members = [("m/data.pkl", pickle(&object)), ("m/data/0", f32s(&[1.0])), ("m/data/1", vec![1])];
    // Those of compressed storages are inflated, one at a time.
    for (method, inflated) in [(Stored, 0), (Deflated, 4)] {
        let path = file_of(&zipped(&members, method));
        let needed = std::fs::metadata(&path).unwrap().len() + 400_000 + 800 + inflated;
        assert!(TensorFile::read_within(&path, Wanted::Network, needed).is_ok());
        let error = TensorFile::read_within(&path, Wanted::Network, needed - 1).unwrap_err();
        assert!(error.to_string().contains("reading it takes 1 MiB of memory, of which 0 MiB are free"), "{error}");
    }
    let path = file_of(&[0x80; 1000]);
    let error = TensorFile::read_within(&path, Wanted::Network, 999).unwrap_err();
    assert!(error.to_string().contains("reading it takes"), "{error}");
}

#[test]
fn archives_that_are_odd_are_refused_or_read() {
    let object = pickle(&named(&[("x", floats("0", 1)), ("y", floats("1", 1))]));
    let members = [("../../m/data.pkl", object), ("../../m/data/0", f32s(&[1.0])), ("../../m/data/1", f32s(&[2.0]))];
    let file = zipped(&members, Stored);
    check_floats(&read(&file).unwrap(), "y", &[1], &[2.0]);
    check_floats(&read(&zipped(&members, Deflated)).unwrap(), "y", &[1], &[2.0]);
    let replaced = |from: &[u8], to: &[u8]| {
        let mut file = file.clone();
        while let Some(at) = file.windows(from.len()).position(|window| window == from) {
            file[at..at + to.len()].copy_from_slice(to);
        }
        file
    };
    assert!(refused(&replaced(b"m/data/1", b"m/data/0")).contains("two members of one name"));
    assert!(refused(&replaced(b"m/data.pkl", b"m/data.txt")).contains("does not have one data.pkl"));
    // The last member of the list, said to lie where the first does.
    let mut overlapping = file.clone();
    let last = file.windows(4).rposition(|window| window == b"PK\x01\x02").unwrap();
    overlapping[last + 42..last + 46].fill(0);
    assert!(refused(&overlapping).contains("members that overlap"));
    let mut changed = file.clone();
    let number = file.windows(4).position(|window| window == 2.0f32.to_le_bytes()).unwrap();
    changed[number] ^= 1;
    assert!(refused(&changed).contains("its ../../m/data/1 is damaged or cut off (Invalid checksum)"));
    let mut encrypted = file.clone();
    encrypted[last + 8] |= 1;
    assert!(refused(&encrypted).contains("is encrypted"));
    let script = [("m/data.pkl", pickle(b"}")), ("m/constants.pkl", pickle(b")"))];
    assert!(refused(&zipped(&script, Stored)).contains("TorchScript"));
    let two = [("a/data.pkl", pickle(b"}")), ("b/data.pkl", pickle(b"}"))];
    assert!(refused(&zipped(&two, Stored)).contains("does not have one data.pkl"));
}

#[test]
fn what_is_no_file_of_torch_save_is_refused() {
    assert!(refused(b"").contains("the file is empty"));
    assert!(refused(b"\0\x01\x02").contains("by its name it is a PyTorch file"));
    assert!(refused(&pickle(b"}")).contains("it is a Python pickle, and not what torch.save writes"));
    let file = legacy(&named(&[("x", floats("0", 1))]), 4, &[("0", f32s(&[1.0]))]);
    let mut later = file.clone();
    let at = file.windows(8).position(|window| window == 1001u64.to_le_bytes()).unwrap();
    later[at] += 1;
    assert!(refused(&later).contains("its version of the format is not 1001"));
}

/// Damage gives an error, or another file; never a panic.
#[test]
fn damaged_files_are_refused_or_read() {
    let object = named(&[
        ("x", view(storage("FloatStorage", "0", 4), 1, &[3, 1], &[1, 1])),
        ("y", view(storage("HalfStorage", "1", 2), 0, &[2], &[0])),
        ("z", list(&[float(1.0), call("m", "C", &[int(1)])])),
    ]);
    let storages = [("0", f32s(&[0.0, 1.0, 2.0, 3.0])), ("1", vec![0; 4])];
    let halves = named(&[("y", view(storage("HalfStorage", "1", 2), 0, &[2], &[0]))]);
    for file in [archive(&object, &storages), legacy(&halves, 2, &storages[1..])] {
        let path = file_of(&file);
        assert!(TensorFile::read(&path).is_ok());
        let readable = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            TensorFile::read_within(&path, Wanted::Network, MEMORY).is_ok()
        };
        for length in 0..file.len() {
            assert!(!readable(&file[..length]), "{length} bytes of {}", file.len());
        }
        for at in 0..file.len() {
            for change in [0x01, 0x80, 0xff] {
                let mut damaged = file.clone();
                damaged[at] ^= change;
                readable(&damaged);
            }
        }
    }
}

/// Files of PyTorch itself: the README beside them says how they were made.
#[test]
fn files_of_pytorch_are_read_as_pytorch_reads_them() {
    let folder = Path::new("tests/files/pytorch");
    let mut count = 0;
    for entry in folder.read_dir().unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "pth") {
            continue;
        }
        let expected = TensorFile::read(&path.with_extension("safetensors"));
        let expected = expected.or_else(|_| TensorFile::read(&folder.join("expected.safetensors"))).unwrap();
        let file = TensorFile::read(&path).unwrap();
        assert_eq!(file.tensors.keys().collect::<Vec<_>>(), expected.tensors.keys().collect::<Vec<_>>(), "{path:?}");
        for (name, tensor) in &file.tensors {
            let other = &expected.tensors[name];
            assert_eq!((&tensor.shape, &tensor.dtype), (&other.shape, &other.dtype), "{path:?}: {name}");
            assert_eq!(tensor.numbers, other.numbers, "{path:?}: {name}");
        }
        assert_eq!(file.metadata["pickle.best_prec1"], "91.78");
        count += 1;
    }
    assert!(count >= 5, "{count} files");
}
