//! The kind of a file, by its content and then by its name, so that one which is something else than was asked for is
//! called by its name, with a hint of what to do with it. Every reader opens its files here.
//!
//! Only the beginning of a file is looked at, and of a zip archive the list of its members.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek};
use std::path::Path;

use zip::ZipArchive;

use crate::error::{Error, Result};

/// The kind of file that a reader reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    Network,
    MergeWeights,
    DataSet,
    /// Any of these.
    Anything,
}

impl Wanted {
    fn name(self) -> &'static str {
        match self {
            Wanted::Network => "not a network",
            Wanted::MergeWeights => "not a file of merge weights",
            Wanted::DataSet => "not a data set",
            Wanted::Anything => "and no network, merge weights or data set",
        }
    }

    /// A hint of what to give instead, whatever was given.
    fn hint(self) -> &'static str {
        match self {
            Wanted::Network => "a network is a .safetensors file or what torch.save wrote, with torchvision's names",
            Wanted::MergeWeights => "give the .safetensors file that `medmerge learn --weights` wrote",
            Wanted::DataSet => {
                "a data set is one .npz file in MedMNIST's format, a folder or archive of images, or a table that names them"
            }
            Wanted::Anything => {
                "networks are .safetensors or PyTorch files, merge weights .safetensors files, data sets .npz files"
            }
        }
    }

    fn is(self, kind: FileKind) -> bool {
        match self {
            Wanted::Network => [SAFETENSORS, PYTORCH, INDEX].contains(&kind),
            Wanted::MergeWeights => kind == SAFETENSORS,
            Wanted::DataSet => kind == NPZ,
            Wanted::Anything => [SAFETENSORS, PYTORCH, INDEX, NPZ].contains(&kind),
        }
    }
}

/// A row of the table: how a kind of file is known, and what to do with one that was not asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileKind {
    /// After "this is".
    name: &'static str,
    /// Where which bytes stand; any of these will do.
    magic: &'static [(usize, &'static [u8])],
    /// In lower case; they decide where the content does not.
    extensions: &'static [&'static str],
    /// Hints for where a network is wanted, and where a data set is; empty where there is only [`Wanted::hint`].
    as_network: &'static str,
    as_data: &'static str,
}

const fn kind(
    name: &'static str,
    magic: &'static [(usize, &'static [u8])],
    extensions: &'static [&'static str],
    [as_network, as_data]: [&'static str; 2],
) -> FileKind {
    FileKind { name, magic, extensions, as_network, as_data }
}

const CONVERT: &str =
    "load it in PyTorch and convert it: safetensors.torch.save_file(model.state_dict(), \"model.safetensors\")";
const FROM_ANOTHER: &str = "load its weights into torchvision's network and save that with safetensors.torch.save_file";
const COLLECT: &str =
    "collect the images in one .npz file: numpy.savez_compressed(\"data.npz\", train_images=…, train_labels=…, …)";
const UNPACK: [&str; 2] = ["unpack it, and give what is inside"; 2];
const AS_MODEL: &str = "give it as --model, --models or --from; --data takes a .npz file";
const NEITHER: [&str; 2] = [""; 2];

pub const SAFETENSORS: FileKind = kind(
    "a safetensors file, as networks are",
    &[], // Its header's length, and then JSON: see `is_safetensors`.
    &["safetensors"],
    ["", AS_MODEL],
);
pub const NPZ: FileKind = kind(
    "a data set (.npz)",
    &[], // A zip archive: see `of_archive`.
    &["npz"],
    ["give it as --data; a network is a .safetensors or PyTorch file", ""],
);
pub const PYTORCH: FileKind = kind(
    "a PyTorch file",
    // `torch.save` before 1.6: a pickled magic number first, behind the length of a frame since protocol 4. Later ones are
    // zip archives.
    &[
        (0, b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"),
        (0, b"\x80\x03\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"),
        (11, b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"),
    ],
    &["pth", "pt", "th", "bin", "ckpt", "pytorch"],
    ["", AS_MODEL],
);
const PICKLE: FileKind = kind(
    "a Python pickle",
    &[(0, b"\x80\x02"), (0, b"\x80\x03"), (0, b"\x80\x04"), (0, b"\x80\x05")],
    &["pkl", "pickle"],
    [CONVERT, COLLECT],
);
const KERAS: FileKind = kind(
    "a Keras model",
    &[], // A zip archive since version 3; HDF5 before.
    &["keras"],
    [FROM_ANOTHER, ""],
);
pub const ZIP: FileKind =
    kind("a zip archive", &[(0, b"PK\x03\x04"), (0, b"PK\x05\x06"), (0, b"PK\x07\x08")], &["zip"], UNPACK);
const CUT_ZIP: FileKind = kind("a zip archive that is damaged or cut off", &[], &[], ["download or write it again"; 2]);
const ONNX: FileKind = kind(
    "an ONNX model",
    &[], // Protocol buffers have no magic: see `is_onnx`.
    &["onnx"],
    [FROM_ANOTHER, ""],
);
/// The index of a network in several files.
pub const INDEX: FileKind = kind(
    "an index of shards",
    &[], // JSON with a map of weights: see `of_text`.
    &[],
    ["", AS_MODEL],
);
const LFS: FileKind = kind(
    "a Git LFS pointer to a file",
    &[(0, b"version https://git-lfs.github.com/spec/")],
    &[],
    ["fetch the file itself: git lfs pull"; 2],
);
const WEB_PAGE: FileKind = kind(
    "a web page",
    &[(0, b"<!DOCTYPE html"), (0, b"<!doctype html"), (0, b"<html")],
    &["html", "htm"],
    ["the download gave a page and not the file; open it in a browser to see why"; 2],
);
const JSON: FileKind = kind("a JSON file", &[], &["json"], NEITHER);
pub const CSV: FileKind = kind("a table (CSV)", &[], &["csv", "tsv"], NEITHER);
pub const TAR: FileKind = kind("a tar archive", &[(257, b"ustar")], &["tar"], UNPACK);
pub const TEXT: FileKind = kind("a text file", &[], &["txt", "md", "yaml", "yml"], NEITHER);

/// The kinds that their first bytes give away, and those that a name does. The first that fits counts.
const TABLE: &[FileKind] = &[
    SAFETENSORS,
    NPZ,
    PYTORCH,
    PICKLE,
    KERAS,
    ZIP,
    ONNX,
    kind(
        "a single .npy array",
        &[(0, b"\x93NUMPY")],
        &["npy"],
        [
            "",
            "put six arrays into one .npz file: numpy.savez_compressed(\"data.npz\", train_images=…, train_labels=…, …)",
        ],
    ),
    kind("a JPEG image", &[(0, b"\xff\xd8\xff")], &["jpg", "jpeg"], ["", COLLECT]),
    kind("a PNG image", &[(0, b"\x89PNG\r\n\x1a\n")], &["png"], ["", COLLECT]),
    kind("a TIFF image", &[(0, b"II*\0"), (0, b"MM\0*")], &["tif", "tiff"], ["", COLLECT]),
    kind("a GIF image", &[(0, b"GIF87a"), (0, b"GIF89a")], &["gif"], ["", COLLECT]),
    kind("a WebP image", &[(8, b"WEBPVP8")], &["webp"], ["", COLLECT]),
    kind("a BMP image", &[(6, b"\0\0\0\0\x36\0\0\0\x28"), (6, b"\0\0\0\0\x8a\0\0\0\x7c")], &["bmp"], ["", COLLECT]),
    kind("a JPEG 2000 image", &[(0, b"\0\0\0\x0cjP  \r\n\x87\n")], &["jp2"], ["", COLLECT]),
    kind("a DICOM image", &[(128, b"DICM")], &["dcm", "dicom"], ["", COLLECT]),
    kind("a NIfTI volume", &[(344, b"n+1\0"), (344, b"ni1\0")], &["nii"], ["", COLLECT]),
    kind("an HDF5 file, as Keras writes them", &[(0, b"\x89HDF\r\n\x1a\n")], &["h5", "hdf5"], [FROM_ANOTHER, COLLECT]),
    kind("a GGUF file", &[(0, b"GGUF")], &["gguf"], NEITHER),
    kind("a gzip file", &[(0, b"\x1f\x8b")], &["gz", "tgz"], UNPACK),
    kind("an xz file", &[(0, b"\xfd7zXZ\0")], &["xz"], UNPACK),
    kind("a bzip2 file", &[(0, b"BZh")], &["bz2"], UNPACK),
    kind("a Zstandard file", &[(0, b"\x28\xb5\x2f\xfd")], &["zst"], UNPACK),
    kind("a 7z archive", &[(0, b"7z\xbc\xaf\x27\x1c")], &["7z"], UNPACK),
    kind("a RAR archive", &[(0, b"Rar!\x1a\x07")], &["rar"], UNPACK),
    TAR,
    kind("a PDF document", &[(0, b"%PDF-")], &["pdf"], NEITHER),
    LFS,
    WEB_PAGE,
    JSON,
    CSV,
    TEXT,
];

/// Members of a data set; a `.npz` file may lack their `.npy`.
const MEMBERS: [&str; 6] = ["train_images", "train_labels", "val_images", "val_labels", "test_images", "test_labels"];

/// The most that the header of a safetensors file may take, as everywhere for this format.
pub(crate) const MAX_HEADER: u64 = 100_000_000;

/// How many bytes are read to know a file: the magic of NIfTI ends last.
const START: u64 = 348;

/// The most that the index of a network's shards takes.
pub(crate) const MAX_INDEX: u64 = 64 << 20;

/// An ordinary file, open at its beginning.
#[derive(Debug)]
pub struct Opened {
    pub file: File,
    /// In bytes.
    pub length: u64,
    /// Its first bytes.
    pub start: Vec<u8>,
    /// None if neither content nor name tell.
    pub kind: Option<FileKind>,
    /// The description that an error gives of it.
    description: String,
}

/// Opens a file and finds out what it is. What is no ordinary file is refused, before it is opened: a pipe would wait for
/// its writer. `action` is what an error says could not be done.
pub fn open(path: &Path, action: &'static str, wanted: Wanted) -> Result<Opened> {
    let failed = || Error::io(action, path);
    let details = fs::metadata(path).map_err(failed())?;
    if details.is_dir() {
        return Err(failed()(io::ErrorKind::IsADirectory.into()));
    }
    if !details.is_file() {
        let message = format!("this is {}, {}", special(details.file_type()), wanted.name());
        return Err(refusal(path, wanted, message, "write what it gives to an ordinary file, and give that"));
    }
    let mut file = File::open(path).map_err(failed())?;
    let mut start = Vec::new();
    (&mut file).take(START).read_to_end(&mut start).map_err(failed())?;
    let (kind, description) = recognize(path, &mut file, &start);
    file.rewind().map_err(failed())?;
    Ok(Opened { file, length: details.len(), start, kind, description })
}

impl Opened {
    /// Refuses what is known to be something else. An empty file is left to the reader, as is one that nothing tells
    /// anything about.
    pub fn expect(self, path: &Path, wanted: Wanted) -> Result<Opened> {
        match self.kind {
            Some(kind) if !wanted.is(kind) && self.length > 0 => {
                let message = format!("this is {}, {}", self.description, wanted.name());
                Err(refusal(path, wanted, message, kind.hint(wanted)))
            }
            _ => Ok(self),
        }
    }
}

impl FileKind {
    fn hint(self, wanted: Wanted) -> &'static str {
        let of_kind = match wanted {
            Wanted::Network => self.as_network,
            Wanted::DataSet => self.as_data,
            // What can be done with a file is the same for both where both know something.
            Wanted::Anything if self.as_network.is_empty() => self.as_data,
            Wanted::Anything => self.as_network,
            Wanted::MergeWeights => "",
        };
        if of_kind.is_empty() { wanted.hint() } else { of_kind }
    }

    fn begins(self, start: &[u8]) -> bool {
        self.magic.iter().any(|&(at, bytes)| start.get(at..).is_some_and(|rest| rest.starts_with(bytes)))
    }
}

fn refusal(path: &Path, wanted: Wanted, message: String, hint: &str) -> Error {
    match wanted {
        Wanted::DataSet => Error::data(path, message, hint),
        _ => Error::checkpoint(path, message, hint),
    }
}

#[cfg(unix)]
fn special(kind: fs::FileType) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    match () {
        () if kind.is_fifo() => "a pipe (FIFO)",
        () if kind.is_socket() => "a socket",
        () => "a device",
    }
}

#[cfg(not(unix))]
fn special(_: fs::FileType) -> &'static str {
    "no ordinary file"
}

/// The kind of a file that begins with `start`, and what to call it.
fn recognize(path: &Path, file: &mut File, start: &[u8]) -> (Option<FileKind>, String) {
    let named = of_name(path);
    let plain = |kind: FileKind| (Some(kind), kind.name.to_string());
    if is_safetensors(start) {
        return plain(SAFETENSORS);
    }
    match TABLE.iter().find(|kind| kind.begins(start)) {
        Some(&ZIP) => return of_archive(file, start, named),
        Some(&PICKLE) if named == Some(PYTORCH) => return plain(PYTORCH),
        Some(&kind) => return plain(kind),
        None => {}
    }
    match named {
        _ if is_onnx(start) => plain(ONNX),
        _ if is_text(start) => of_text(file, start, named),
        Some(kind) => (Some(kind), format!("by its name {}", kind.name)),
        None => (None, String::new()),
    }
}

/// The kind that the extension says, in upper or lower case.
fn of_name(path: &Path) -> Option<FileKind> {
    let extension = path.extension()?.to_str()?.to_ascii_lowercase();
    TABLE.iter().find(|kind| kind.extensions.contains(&extension.as_str())).copied()
}

/// Whether this is the length of a header of at most 100 MB and JSON's first byte.
fn is_safetensors(start: &[u8]) -> bool {
    start
        .split_first_chunk()
        .is_some_and(|(length, json)| u64::from_le_bytes(*length) <= MAX_HEADER && json.starts_with(b"{"))
}

/// The version of the format (field 1), then the name of the program that wrote it (field 2), in ASCII.
fn is_onnx(start: &[u8]) -> bool {
    let &[0x08, 1..=32, 0x12, length @ 1..=64, ref name @ ..] = start else { return false };
    name.get(..length.into()).is_some_and(|name| name.iter().all(|byte| (b' '..=b'~').contains(byte)))
}

/// Whether the beginning is text in UTF-8, but for a last character that may be cut.
fn is_text(start: &[u8]) -> bool {
    let text = match str::from_utf8(start) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => {
            str::from_utf8(&start[..error.valid_up_to()]).expect("UTF-8 up to here")
        }
        Err(_) => return false,
    };
    !text.is_empty() && text.chars().all(|c| !c.is_control() || "\t\r\n\x0c".contains(c))
}

fn of_text(file: &mut File, start: &[u8], named: Option<FileKind>) -> (Option<FileKind>, String) {
    if start.trim_ascii_start().starts_with(b"{") {
        let shards = shards(file).unwrap_or_default();
        if !shards.is_empty() {
            return (Some(INDEX), format!("{} ({})", INDEX.name, listing(shards)));
        }
        return (Some(JSON), JSON.name.to_string());
    }
    let kind = named.filter(|kind| [CSV, JSON].contains(kind)).unwrap_or(TEXT);
    (Some(kind), kind.name.to_string())
}

/// The files that the index of a network in parts names.
fn shards(file: &mut File) -> Option<Vec<String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        /// The file of each tensor.
        weight_map: BTreeMap<String, String>,
    }
    file.rewind().ok()?;
    let index: Index = serde_json::from_reader(BufReader::new(file.take(MAX_INDEX))).ok()?;
    Some(index.weight_map.into_values().collect::<BTreeSet<_>>().into_iter().collect())
}

/// The kind of a zip archive, by the names of its members; where their list is cut off, by the name of the first.
fn of_archive(file: &mut File, start: &[u8], named: Option<FileKind>) -> (Option<FileKind>, String) {
    let archive = ZipArchive::new(BufReader::new(&mut *file));
    let text = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
    let members: Vec<String> = match &archive {
        Ok(archive) => archive.file_names_raw().map(text).collect(),
        Err(_) => first_member(start).map(text).into_iter().collect(),
    };
    let any = |is: &dyn Fn(&str) -> bool| members.iter().any(|name| is(name));
    let is_array = |name: &str| name.ends_with(".npy") || MEMBERS.contains(&name);
    let kind = match named {
        _ if any(&|name| name == "data.pkl" || name.ends_with("/data.pkl")) => PYTORCH,
        _ if any(&|name| name == "model.weights.h5") => KERAS,
        _ if any(&is_array) => NPZ,
        Some(kind) if [PYTORCH, KERAS, NPZ].contains(&kind) => kind,
        _ if archive.is_err() => CUT_ZIP,
        _ if members.is_empty() => return (Some(ZIP), format!("{} without members", ZIP.name)),
        _ => return (Some(ZIP), format!("{} (of {})", ZIP.name, listing(members))),
    };
    (Some(kind), kind.name.to_string())
}

/// The name in the header of an archive's first member: its length stands at 26, the name at 30.
fn first_member(start: &[u8]) -> Option<&[u8]> {
    let length = u16::from_le_bytes(start.get(26..28)?.try_into().ok()?);
    start.get(30..)?.get(..length.into())
}

/// The first few of `items`, for a message, and safe to print.
pub(crate) fn listing(items: Vec<String>) -> String {
    const SHOWN: usize = 12;
    let shown: Vec<String> = items.iter().take(SHOWN).map(|item| item.escape_debug().to_string()).collect();
    match items.len() {
        0..=SHOWN => shown.join(", "),
        more => format!("{} and {} more", shown.join(", "), more - SHOWN),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// The description of a file of this name and content, wherever it is given.
    fn called(name: &str, content: &[u8]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        open(&path, "read", Wanted::Anything).unwrap().description
    }

    fn archive(members: &[&str]) -> Vec<u8> {
        let mut zip = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
        for member in members {
            zip.start_file(*member, zip::write::SimpleFileOptions::default()).unwrap();
            zip.write_all(b"content").unwrap();
        }
        zip.finish().unwrap().into_inner()
    }

    /// `bytes` after `at` zeros.
    fn at(at: usize, bytes: &[u8]) -> Vec<u8> {
        [&vec![0; at], bytes].concat()
    }

    #[test]
    fn a_file_is_known_by_its_content_whatever_its_name() {
        let header = b"{\"a\":{}}";
        let cases: &[(&str, Vec<u8>)] = &[
            ("a safetensors file", [&8u64.to_le_bytes()[..], header].concat()),
            ("a PyTorch file", b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.".into()),
            ("a PyTorch file", b"\x80\x03\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.".into()),
            (
                "a PyTorch file",
                b"\x80\x04\x95\x0d\0\0\0\0\0\0\0\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.".into(),
            ),
            ("a PyTorch file", archive(&["model/data.pkl", "model/data/0"])),
            ("a Python pickle", b"\x80\x04\x95".into()),
            ("a Keras model", archive(&["metadata.json", "config.json", "model.weights.h5"])),
            ("a data set", archive(&["arr_0.npy"])),
            ("a data set", archive(&["train_images", "train_labels"])),
            ("a zip archive (of readme.txt, \\n)", archive(&["readme.txt", "\n"])),
            ("a zip archive without members", archive(&[])),
            ("a zip archive that is damaged or cut off", b"PK\x03\x04\x14".into()),
            ("a single .npy array", b"\x93NUMPY\x01\0".into()),
            ("a JPEG image", b"\xff\xd8\xff\xe0".into()),
            ("a PNG image", b"\x89PNG\r\n\x1a\n".into()),
            ("a TIFF image", b"II*\0".into()),
            ("a GIF image", b"GIF89a".into()),
            ("a WebP image", b"RIFF\x10\0\0\0WEBPVP8 ".into()),
            ("a BMP image", b"BM\x46\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0".into()),
            ("a DICOM image", at(128, b"DICM")),
            ("a NIfTI volume", at(344, b"n+1\0")),
            ("an HDF5 file", b"\x89HDF\r\n\x1a\n".into()),
            ("an ONNX model", b"\x08\x07\x12\x07pytorch".into()),
            ("a gzip file", b"\x1f\x8b\x08\0\0\0\0\0\x02".into()),
            ("a tar archive", at(257, b"ustar\x0000")),
            ("a Git LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n".into()),
            ("a web page", b"<!DOCTYPE html>\n<html>".into()),
            ("a JSON file", b"{\"weights\": 1}".into()),
            ("a text file", "Grüße\n".into()),
        ];
        for (expected, content) in cases {
            for name in ["file", "file.npz.part"] {
                let called = called(name, content);
                assert!(called.starts_with(expected), "'{called}' for '{expected}'");
            }
        }
        assert_eq!(called("file", b"\x00\x01\x02"), "");
        assert_eq!(called("file", b""), "");
    }

    #[test]
    fn a_name_decides_where_the_content_does_not() {
        for (name, content, expected) in [
            ("x.th", &b"\x80\x02}q\0."[..], "a PyTorch file"),
            ("x.PTH", &archive(&["odd"]), "a PyTorch file"),
            ("x.pt", b"PK\x03\x04\x14", "a PyTorch file"),
            ("pytorch_model.bin", b"\x80\x02}q\0.", "a PyTorch file"),
            ("x.bin", b"\x00\x01\x02", "by its name a PyTorch file"),
            ("x.NPZ", &archive(&["odd"]), "a data set (.npz)"),
            ("x.csv", b"index,label\n0,1\n", "a table (CSV)"),
            ("x.Jpg", b"\x00\x01\x02", "by its name a JPEG image"),
            ("x.onnx", b"\x08\x01\x02", "by its name an ONNX model"),
            ("x.jpg", b"\x89PNG\r\n\x1a\n", "a PNG image"),
        ] {
            assert_eq!(called(name, content), expected, "{name}");
        }
    }

    #[test]
    fn an_index_names_its_shards() {
        let index = br#" {"metadata": {}, "weight_map": {"a": "model-2.safetensors", "b": "model-1.safetensors",
            "c": "model-2.safetensors"}}"#;
        let expected = "an index of shards (model-1.safetensors, model-2.safetensors)";
        assert_eq!(called("model.safetensors.index.json", index), expected);
    }

    /// A character may be cut where reading ends.
    #[test]
    fn long_text_is_text() {
        for shift in 0..3 {
            assert_eq!(called("file", format!("{}{}", "x".repeat(shift), "€".repeat(500)).as_bytes()), "a text file");
        }
    }

    #[test]
    fn what_was_wanted_is_let_through_and_all_else_has_a_hint() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        for kind in TABLE {
            for wanted in [Wanted::Network, Wanted::MergeWeights, Wanted::DataSet, Wanted::Anything] {
                fs::write(&path, "some bytes").unwrap();
                let opened = Opened { kind: Some(*kind), ..open(&path, "read", wanted).unwrap() };
                match opened.expect(&path, wanted) {
                    Ok(_) => assert!(wanted.is(*kind)),
                    Err(error) => assert!(!wanted.is(*kind) && !error.hint().unwrap().is_empty()),
                }
            }
        }
    }

    /// Two kinds of one extension would depend on the table's order.
    #[test]
    fn an_extension_belongs_to_one_kind() {
        let extensions: Vec<&str> = TABLE.iter().flat_map(|kind| kind.extensions).copied().collect();
        assert_eq!(extensions.iter().collect::<BTreeSet<_>>().len(), extensions.len());
        assert!(extensions.iter().all(|extension| extension.to_lowercase() == **extension));
    }
}
