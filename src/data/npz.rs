//! Reading and writing of `.npz` files: zip archives whose entries are numpy arrays (`.npy`).
//!
//! A file comes from anywhere, so nothing it declares is believed before it is checked: an array's header has to agree
//! with the size that the archive declares for it, that size has to be within what deflate can expand the stored bytes
//! to, and a read ends at the declared size. This module knows arrays of integers and of text; what they mean is not its
//! concern.

use std::{
    borrow::Cow,
    fs::File,
    io::{self, BufReader, Cursor, Read, Write},
    path::{Path, PathBuf},
};

use zip::{CompressionMethod, DateTime, ZipArchive, ZipWriter, result::ZipError, write::SimpleFileOptions};

use crate::error::{Error, Result};
use crate::file_kind::{self, Wanted};
use crate::output::OutputPath;

const MAGIC: &[u8] = b"\x93NUMPY";

/// Deflate codes at most 258 bytes in two bits, a ratio of 1032; the rest is room for its framing.
const MAX_RATIO: u64 = 1100;
const RATIO_SLACK: u64 = 64 << 10;

/// numpy itself writes 128 bytes here and refuses to read more than 10,000.
const MAX_HEADER: usize = 10_000;

const DAMAGED: &str = "the file is damaged; download or write it again";
const REWRITE: &str = "write the file with numpy.savez_compressed";

/// A kind of elements that an array may have.
pub trait Element: Copy {
    /// The kind in words, and a hint of what to do about others.
    const NAME: &str;
    const HINT: &str;

    /// None for every type that is not of this kind.
    fn parse(descr: &str) -> Option<Self>;

    /// The size of one element, in bytes.
    fn size(self) -> usize;
}

/// The type of an integer array's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Integer {
    pub bytes: usize,
    pub signed: bool,
    pub big_endian: bool,
}

impl Element for Integer {
    const NAME: &str = "integers";
    const HINT: &str = "store images as uint8 (0 to 255) and labels as integers";

    /// Integers and bools.
    fn parse(descr: &str) -> Option<Integer> {
        let (order, rest) = descr.split_at_checked(1)?;
        let (kind, bytes) = rest.split_at_checked(1)?;
        let bytes = match (kind, bytes) {
            ("b" | "u" | "i", "1") => 1,
            ("u" | "i", "2") => 2,
            ("u" | "i", "4") => 4,
            ("u" | "i", "8") => 8,
            _ => return None,
        };
        let big_endian = match order {
            "<" => false,
            ">" => true,
            // A single byte has no order.
            "|" if bytes == 1 => false,
            _ => return None,
        };
        Some(Integer { bytes, signed: kind == "i", big_endian })
    }

    fn size(self) -> usize {
        self.bytes
    }
}

impl Integer {
    /// The values of an array's bytes, widened to hold any of the types.
    pub fn values(self, bytes: &[u8]) -> impl Iterator<Item = i128> {
        bytes.chunks_exact(self.bytes).map(move |element| {
            let mut wide = [0; 8];
            wide[..self.bytes].copy_from_slice(element);
            if self.big_endian {
                wide[..self.bytes].reverse();
            }
            let value = u64::from_le_bytes(wide);
            if self.signed {
                let unused = 64 - 8 * self.bytes as u32;
                i128::from((value << unused) as i64 >> unused)
            } else {
                i128::from(value)
            }
        })
    }
}

/// The type of an image array's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sampled {
    Integer(Integer),
    Float { bytes: usize, big_endian: bool },
}

impl Element for Sampled {
    const NAME: &str = "numbers";
    const HINT: &str = "store images as uint8 (0 to 255), as uint16 or as float32 from 0 to 1";

    fn parse(descr: &str) -> Option<Sampled> {
        if let Some(integer) = Integer::parse(descr) {
            return Some(Sampled::Integer(integer));
        }
        let (order, rest) = descr.split_at_checked(1)?;
        let bytes = match rest {
            "f2" => 2,
            "f4" => 4,
            "f8" => 8,
            _ => return None,
        };
        ["<", ">"].contains(&order).then_some(Sampled::Float { bytes, big_endian: order == ">" })
    }

    fn size(self) -> usize {
        match self {
            Sampled::Integer(integer) => integer.bytes,
            Sampled::Float { bytes, .. } => bytes,
        }
    }
}

impl Sampled {
    /// The values of an array of floats.
    ///
    /// # Panics
    /// If it is none.
    pub fn floats(self, bytes: &[u8]) -> impl Iterator<Item = f64> {
        let Sampled::Float { bytes: size, big_endian } = self else { panic!("integers as floats") };
        bytes.chunks_exact(size).map(move |element| {
            let mut little = [0; 8];
            little[..size].copy_from_slice(element);
            if big_endian {
                little[..size].reverse();
            }
            match size {
                2 => f64::from(half::f16::from_le_bytes([little[0], little[1]])),
                4 => f64::from(f32::from_le_bytes([little[0], little[1], little[2], little[3]])),
                _ => f64::from_le_bytes(little),
            }
        })
    }
}

/// The type of a text array's elements: as long as the longest one, the others filled up with zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Text {
    /// numpy's `str`: four bytes a character.
    Utf32 { bytes: usize, big_endian: bool },
    /// numpy's `bytes`, read as UTF-8.
    Utf8 { bytes: usize },
}

impl Element for Text {
    const NAME: &str = "text";
    const HINT: &str = "store them as an array of str: numpy.array([\"benign\", \"malignant\"])";

    fn parse(descr: &str) -> Option<Text> {
        let (order, rest) = descr.split_at_checked(1)?;
        let (kind, length) = rest.split_at_checked(1)?;
        let length: usize = length.parse().ok().filter(|&length| length > 0)?;
        match (order, kind) {
            ("<" | ">", "U") => Some(Text::Utf32 { bytes: length.checked_mul(4)?, big_endian: order == ">" }),
            ("|", "S") => Some(Text::Utf8 { bytes: length }),
            _ => None,
        }
    }

    fn size(self) -> usize {
        match self {
            Text::Utf32 { bytes, .. } | Text::Utf8 { bytes } => bytes,
        }
    }
}

impl Text {
    /// The texts of an array's bytes; None for one that is no text.
    pub fn values(self, bytes: &[u8]) -> impl Iterator<Item = Option<String>> {
        bytes.chunks_exact(self.size()).map(move |element| {
            let text = match self {
                Text::Utf8 { .. } => str::from_utf8(element).ok()?.to_string(),
                Text::Utf32 { big_endian, .. } => {
                    let code = if big_endian { u32::from_be_bytes } else { u32::from_le_bytes };
                    element
                        .as_chunks()
                        .0
                        .iter()
                        .map(|&bytes| char::from_u32(code(bytes)))
                        .collect::<Option<String>>()?
                }
            };
            Some(text.trim_end_matches('\0').to_string())
        })
    }
}

/// The dictionary at the start of a `.npy` file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub descr: String,
    pub fortran_order: bool,
    pub shape: Vec<usize>,
}

impl Header {
    /// Parses the Python literal that numpy writes, and nothing else that Python would accept.
    fn parse(text: &str) -> Result<Header, String> {
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        let mut literal = Literal { rest: text };
        literal.expect('{')?;
        while !literal.take('}') {
            let key = literal.string()?;
            literal.expect(':')?;
            let repeated = match key {
                "descr" => descr.replace(literal.string()?.to_string()).is_some(),
                "fortran_order" => fortran_order.replace(literal.boolean()?).is_some(),
                "shape" => shape.replace(literal.tuple()?).is_some(),
                _ => return Err(format!("unknown key '{}'", key.escape_debug())),
            };
            if repeated {
                return Err(format!("key '{key}' occurs twice"));
            }
            if !literal.take(',') {
                literal.expect('}')?;
                break;
            }
        }
        if !literal.rest.trim_ascii().is_empty() {
            return Err("text after the closing brace".into());
        }
        Ok(Header {
            descr: descr.ok_or("no 'descr'")?,
            fortran_order: fortran_order.ok_or("no 'fortran_order'")?,
            shape: shape.ok_or("no 'shape'")?,
        })
    }
}

/// The rest of a Python literal, which is left to read.
struct Literal<'a> {
    rest: &'a str,
}

impl<'a> Literal<'a> {
    fn take(&mut self, symbol: char) -> bool {
        self.rest = self.rest.trim_ascii_start();
        let rest = self.rest.strip_prefix(symbol);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn expect(&mut self, symbol: char) -> Result<(), String> {
        if self.take(symbol) {
            return Ok(());
        }
        Err(match self.rest.chars().next() {
            Some(found) => format!("'{}' where '{symbol}' belongs", found.escape_debug()),
            None => format!("the end where '{symbol}' belongs"),
        })
    }

    fn string(&mut self) -> Result<&'a str, String> {
        let quote = if self.take('"') { '"' } else { '\'' };
        if quote == '\'' {
            self.expect('\'')?;
        }
        let (text, rest) = self.rest.split_once(quote).ok_or("a string without an end")?;
        if text.contains('\\') {
            return Err("an escape in a string".into());
        }
        self.rest = rest;
        Ok(text)
    }

    fn boolean(&mut self) -> Result<bool, String> {
        for (word, value) in [("True", true), ("False", false)] {
            if let Some(rest) = self.rest.trim_ascii_start().strip_prefix(word) {
                self.rest = rest;
                return Ok(value);
            }
        }
        Err("neither True nor False".into())
    }

    fn tuple(&mut self) -> Result<Vec<usize>, String> {
        let mut numbers = Vec::new();
        self.expect('(')?;
        while !self.take(')') {
            self.rest = self.rest.trim_ascii_start();
            let end = self.rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest.len());
            let (digits, rest) = self.rest.split_at(end);
            numbers.push(digits.parse().map_err(|_| "a dimension that is no number")?);
            // Python 2 wrote long integers with a suffix.
            self.rest = rest.strip_prefix('L').unwrap_or(rest);
            if !self.take(',') {
                self.expect(')')?;
                // `(3)` is a number in parentheses, not a tuple.
                if numbers.len() == 1 {
                    return Err("a shape that is not a tuple".into());
                }
                break;
            }
        }
        Ok(numbers)
    }
}

/// An array whose header has been read and found to agree with the archive.
#[derive(Debug, Clone)]
pub struct Entry<E = Integer> {
    pub name: String,
    pub element: E,
    pub shape: Vec<usize>,
    fortran_order: bool,
    index: usize,
    /// Where the elements begin, and how many bytes they take.
    start: u64,
    pub bytes: u64,
}

impl<E> Entry<E> {
    /// Whether the elements are stored in another order than C's, in which they are read.
    fn is_reordered(&self) -> bool {
        self.fortran_order && self.shape.iter().filter(|&&dimension| dimension != 1).count() > 1
    }

    /// Bytes that reading takes for a moment beside the elements.
    pub fn second_copy(&self) -> u64 {
        if self.is_reordered() { self.bytes } else { 0 }
    }
}

pub struct Archive {
    path: PathBuf,
    /// The length of the file, in bytes: no entry can have stored more, whatever it claims.
    length: u64,
    zip: ZipArchive<BufReader<File>>,
}

impl Archive {
    pub fn open(path: &Path) -> Result<Archive> {
        let wanted = Wanted::DataSet;
        let file_kind::Opened { file, length, start, .. } =
            file_kind::open(path, "read", wanted)?.expect(path, wanted)?;
        if length == 0 {
            return Err(Error::data(path, "the file is empty", DAMAGED));
        }
        if !start.starts_with(b"PK") {
            return Err(Error::data(path, "not a .npz archive", "give a data set in the format of MedMNIST"));
        }
        match ZipArchive::new(BufReader::new(file)) {
            Ok(zip) => Ok(Archive { path: path.to_path_buf(), length, zip }),
            Err(error) => Err(zip_error(path, "the archive", error)),
        }
    }

    /// The arrays' names, in the file's order.
    pub fn names(&self) -> Vec<String> {
        let text = |raw| String::from_utf8_lossy(raw).trim_end_matches(".npy").to_string();
        self.zip.file_names_raw().map(text).collect()
    }

    /// Reads and checks the header of the array `name`; None if the archive does not have it. As for numpy, the member may
    /// lack the `.npy`.
    pub fn entry<E: Element>(&mut self, name: &str) -> Result<Option<Entry<E>>> {
        let path = self.path.clone();
        let member = |name: &str| self.zip.index_for_name(name);
        let Some(index) = member(&format!("{name}.npy")).or_else(|| member(name)) else { return Ok(None) };
        let mut file = self.zip.by_index(index).map_err(|error| zip_error(&path, name, error))?;
        if !matches!(file.compression(), CompressionMethod::Stored | CompressionMethod::Deflated) {
            return Err(Error::data(path, format!("{name} is compressed by {}", file.compression()), REWRITE));
        }
        let (declared, stored) = (file.size(), file.compressed_size().min(self.length));
        if declared > stored.saturating_mul(MAX_RATIO).saturating_add(RATIO_SLACK) {
            let message = format!("{name} claims to expand from {stored} to {declared} bytes, which deflate cannot do");
            return Err(Error::data(path, message, DAMAGED));
        }

        let (header, start) = read_header(&mut file).map_err(|error| match error {
            HeaderError::Io(error) => read_error(&path, name, error),
            HeaderError::Invalid(reason) => {
                Error::data(&path, format!("{name} is not a numpy array: {reason}"), REWRITE)
            }
        })?;
        let Some(element) = E::parse(&header.descr) else {
            let message = format!("{name} has elements of type '{}', not {}", header.descr.escape_debug(), E::NAME);
            return Err(Error::data(path, message, E::HINT));
        };
        let elements = header
            .shape
            .iter()
            .try_fold(element.size() as u64, |product, &dimension| product.checked_mul(dimension as u64));
        match elements {
            Some(bytes) if bytes.checked_add(start) == Some(declared) => {
                let Header { shape, fortran_order, .. } = header;
                Ok(Some(Entry { name: name.to_string(), element, shape, fortran_order, index, start, bytes }))
            }
            _ => {
                let message = format!("{name} of shape {:?} does not take the {declared} bytes declared", header.shape);
                Err(Error::data(path, message, DAMAGED))
            }
        }
    }

    /// The elements of an entry of this archive, in C order. The caller has decided that `entry.bytes` and its
    /// [`Entry::second_copy`] fit into memory.
    pub fn read<E: Element>(&mut self, entry: &Entry<E>) -> Result<Vec<u8>> {
        let (path, name) = (&self.path, entry.name.as_str());
        let mut file = self.zip.by_index(entry.index).map_err(|error| zip_error(path, name, error))?;
        let mut read = || -> io::Result<Vec<u8>> {
            io::copy(&mut (&mut file).take(entry.start), &mut io::sink())?;
            let mut elements = Vec::new();
            elements.try_reserve_exact(usize::try_from(entry.bytes).map_err(io::Error::other)?)?;
            (&mut file).take(entry.bytes).read_to_end(&mut elements)?;
            if (elements.len() as u64) < entry.bytes {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            // The checksum is compared where the entry ends, and only a read there finds out.
            match file.read(&mut [0])? {
                0 => Ok(elements),
                _ => Err(io::Error::new(io::ErrorKind::InvalidData, "more data than declared")),
            }
        };
        let elements = read().map_err(|error| read_error(path, name, error))?;
        if entry.is_reordered() {
            Ok(from_fortran(&elements, &entry.shape, entry.element.size()))
        } else {
            Ok(elements)
        }
    }
}

/// Brings elements of `size` bytes from Fortran order, in which the first index runs fastest, to C order, in which the last
/// one does.
fn from_fortran(elements: &[u8], shape: &[usize], size: usize) -> Vec<u8> {
    /// First indices that are brought together: as many elements as are read from one cache line.
    const TILE: usize = 64;
    let (&count, rest) = shape.split_first().expect("an array of one dimension or more");
    let length: usize = rest.iter().product();
    let mut reordered = vec![0; elements.len()];
    for first in (0..count).step_by(TILE) {
        for at in 0..length {
            let place = c_place(at, rest);
            for index in first..count.min(first + TILE) {
                let (from, to) = ((at * count + index) * size, (index * length + place) * size);
                reordered[to..to + size].copy_from_slice(&elements[from..from + size]);
            }
        }
    }
    reordered
}

/// Where the element that is number `at` in Fortran order stands in C order.
fn c_place(mut at: usize, shape: &[usize]) -> usize {
    let mut stride: usize = shape.iter().product();
    let mut place = 0;
    for dimension in shape {
        stride /= dimension;
        place += at % dimension * stride;
        at /= dimension;
    }
    place
}

enum HeaderError {
    Io(io::Error),
    Invalid(String),
}

impl From<io::Error> for HeaderError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => HeaderError::Invalid("its header is cut off".into()),
            _ => HeaderError::Io(error),
        }
    }
}

/// The header and its length in bytes. Format: magic, version, length (two bytes in version 1, four after), literal.
fn read_header(file: &mut impl Read) -> Result<(Header, u64), HeaderError> {
    let mut prefix = [0; 8];
    file.read_exact(&mut prefix)?;
    if !prefix.starts_with(MAGIC) {
        return Err(HeaderError::Invalid("it does not begin like one".into()));
    }
    let mut length = [0; 4];
    let width = match prefix[6] {
        1 => 2,
        2 | 3 => 4,
        version => return Err(HeaderError::Invalid(format!("version {version} of the format is unknown"))),
    };
    file.read_exact(&mut length[..width])?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_HEADER {
        return Err(HeaderError::Invalid(format!("its header claims {length} bytes")));
    }
    let mut text = vec![0; length];
    file.read_exact(&mut text)?;
    let text = str::from_utf8(&text).map_err(|_| HeaderError::Invalid("its header is not text".into()))?;
    let header = Header::parse(text).map_err(|reason| HeaderError::Invalid(format!("its header has {reason}")))?;
    Ok((header, (prefix.len() + width + length) as u64))
}

fn zip_error(path: &Path, what: &str, error: ZipError) -> Error {
    match error {
        ZipError::Io(error) => read_error(path, what, error),
        ZipError::UnsupportedArchive(reason) => Error::data(path, format!("{what} cannot be read: {reason}"), REWRITE),
        error => Error::data(path, format!("{what} is damaged or cut off ({error})"), DAMAGED),
    }
}

/// Tells a broken file from a broken disk.
fn read_error(path: &Path, what: &str, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::UnexpectedEof => {
            Error::data(path, format!("{what} is damaged or cut off ({error})"), DAMAGED)
        }
        _ => Error::io("read", path)(error),
    }
}

/// An array to write.
pub struct Array<'a> {
    pub name: String,
    /// numpy's name of the element type, such as `|u1`.
    pub descr: &'a str,
    pub shape: Vec<usize>,
    pub elements: Cow<'a, [u8]>,
}

/// Writes an archive in one step: a reader finds the old file or the whole new one. The same arrays give the same bytes.
pub fn write(path: &Path, arrays: &[Array]) -> Result<()> {
    OutputPath::check(path, true, 0)?.write(|file| {
        // In memory first: on a full disk the archive's own writer would complain to stderr when it is dropped.
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        for array in arrays {
            let header = header_bytes(array);
            let options = SimpleFileOptions::default()
                .compression_method(CompressionMethod::Deflated)
                .last_modified_time(DateTime::default())
                .unix_permissions(0o644)
                // A deflated entry may come out a little longer than it went in.
                .large_file(array.elements.len() as u64 >= u64::from(u32::MAX) / 2);
            zip.start_file(format!("{}.npy", array.name), options)?;
            zip.write_all(&header)?;
            zip.write_all(&array.elements)?;
        }
        file.write_all(zip.finish()?.get_ref())
    })
}

fn header_bytes(array: &Array) -> Vec<u8> {
    let shape: Vec<String> = array.shape.iter().map(|dimension| format!("{dimension}, ")).collect();
    let shape = shape.concat();
    // A tuple of one needs its comma; numpy leaves it out of longer ones.
    let shape = if array.shape.len() == 1 { shape.trim_end() } else { shape.trim_end_matches(", ") };
    let literal = format!("{{'descr': '{}', 'fortran_order': False, 'shape': ({shape}), }}", array.descr);
    // numpy aligns the elements to 64 bytes and ends the header with a line break.
    let length = (10 + literal.len() + 1).next_multiple_of(64) - 10;
    let mut header = MAGIC.to_vec();
    header.extend([1, 0]);
    header.extend((length as u16).to_le_bytes());
    header.extend(format!("{literal:<width$}\n", width = length - 1).bytes());
    header
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;

    use super::*;

    /// An archive of raw entries, compressed or stored, with the extra fields of zip64 that numpy always writes.
    pub fn zip_of(entries: &[(&str, Vec<u8>)], method: CompressionMethod) -> Vec<u8> {
        let mut zip = ZipWriter::new(io::Cursor::new(Vec::new()));
        for (name, bytes) in entries {
            let options = SimpleFileOptions::default().compression_method(method).large_file(true);
            zip.start_file(*name, options).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap().into_inner()
    }

    /// A `.npy` file of this header literal.
    pub fn npy(literal: &str, elements: &[u8]) -> Vec<u8> {
        let length = (literal.len() as u16).to_le_bytes();
        [MAGIC, &[1, 0], &length, literal.as_bytes(), elements].concat()
    }

    /// Opens an archive of these bytes and reads its array `a`.
    fn read_a(bytes: &[u8]) -> Result<Vec<u8>> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        let mut archive = Archive::open(file.path())?;
        let entry = archive.entry::<Integer>("a")?.expect("an array called a");
        archive.read(&entry)
    }

    fn refusal(bytes: &[u8]) -> String {
        let error = read_a(bytes).unwrap_err();
        assert!(matches!(error, Error::Data { .. }), "{error:?}");
        error.to_string()
    }

    fn bytes_literal(length: usize) -> String {
        format!("{{'descr': '|u1', 'fortran_order': False, 'shape': ({length},), }}")
    }

    /// Overwrites the uncompressed size in the central directory of an archive of one entry.
    fn declare(mut archive: Vec<u8>, size: u32) -> Vec<u8> {
        let at = archive.windows(4).position(|window| window == b"PK\x01\x02").unwrap() + 24;
        archive[at..at + 4].copy_from_slice(&size.to_le_bytes());
        archive
    }

    #[test]
    fn headers_may_be_spaced_and_ordered_freely() {
        let expected = Header { descr: "<i8".into(), fortran_order: true, shape: vec![3, 4] };
        for text in [
            "{'descr': '<i8', 'fortran_order': True, 'shape': (3, 4), }   \n",
            "{'shape':(3,4),'fortran_order':True,'descr':'<i8'}",
            " { \"descr\" : \"<i8\" , 'shape' : ( 3L , 4L , ) , 'fortran_order' : True } ",
        ] {
            assert_eq!(Header::parse(text).as_ref(), Ok(&expected), "{text}");
        }
        let shape = |shape| {
            Header::parse(&format!("{{'descr': '', 'fortran_order': True, 'shape': {shape}}}")).map(|h| h.shape)
        };
        assert_eq!(shape("()"), Ok(vec![]));
        assert_eq!(shape("(7,)"), Ok(vec![7]));
    }

    #[test]
    fn malformed_headers_are_refused() {
        let good = "{'descr': '|u1', 'fortran_order': False, 'shape': (3,), }";
        assert!(Header::parse(good).is_ok());
        for (from, to) in [
            ("(3,)", "(3)"),
            ("(3,)", "(-3,)"),
            ("(3,)", "(3,,)"),
            ("(3,)", "(99999999999999999999,)"),
            ("(3,)", "3"),
            ("False", "0"),
            ("'|u1'", "[('x', '|u1')]"),
            ("'|u1'", "'|u1"),
            ("'descr'", "'shape'"),
            ("'descr'", "'other'"),
            ("'descr': '|u1',", ""),
            ("'descr': '|u1',", "'descr': '|u1'"),
            ("}", "} {"),
            ("}", ""),
            ("{", ""),
        ] {
            assert!(Header::parse(&good.replacen(from, to, 1)).is_err(), "{to} for {from}");
        }
    }

    #[test]
    fn later_header_versions_have_longer_lengths() {
        let literal = bytes_literal(2);
        for version in [2, 3] {
            let length = (literal.len() as u32).to_le_bytes();
            let entry = [MAGIC, &[version, 0], &length, literal.as_bytes(), &[5, 6]].concat();
            let archive = zip_of(&[("a.npy", entry)], CompressionMethod::Deflated);
            assert_eq!(read_a(&archive).unwrap(), [5, 6]);
        }
        let mut entry = npy(&literal, &[5, 6]);
        entry[6] = 9;
        assert!(refusal(&zip_of(&[("a.npy", entry)], CompressionMethod::Stored)).contains("version 9"));
    }

    #[test]
    fn integers_of_every_type_are_widened() {
        let values = |descr, bytes: &[u8]| Integer::parse(descr).unwrap().values(bytes).collect::<Vec<_>>();
        assert_eq!(values("|b1", &[0, 1]), [0, 1]);
        assert_eq!(values("|i1", &[0xff, 5]), [-1, 5]);
        assert_eq!(values("<u2", &[1, 2]), [0x201]);
        assert_eq!(values(">u2", &[1, 2]), [0x102]);
        assert_eq!(values("<i4", &(-7i32).to_le_bytes()), [-7]);
        assert_eq!(values(">i8", &(-7i64).to_be_bytes()), [-7]);
        assert_eq!(values("<u8", &u64::MAX.to_le_bytes()), [i128::from(u64::MAX)]);
        for descr in ["<f4", "|O", "<U3", "|u2", "u1", "", "<u3", "é1"] {
            assert_eq!(Integer::parse(descr), None, "{descr}");
        }
    }

    #[test]
    fn texts_of_either_kind_are_read() {
        let values = |descr, bytes: &[u8]| Text::parse(descr).unwrap().values(bytes).collect::<Vec<_>>();
        let text = |text: &str| Some(text.to_string());
        assert_eq!(values("|S3", b"ab\0\xc3\xa9\0"), [text("ab"), text("é")]);
        assert_eq!(values("<U2", b"a\0\0\0\0\0\0\0\xe9\0\0\0b\0\0\0"), [text("a"), text("éb")]);
        assert_eq!(values(">U1", b"\0\0\0a"), [text("a")]);
        assert_eq!(values("|S1", b"\xff"), [None]);
        assert_eq!(values("<U1", &0xd800u32.to_le_bytes()), [None]);
        for descr in ["|U3", "<S3", "<U0", "|S0", "<U", "<U-1", "|u1", "|O", "", "<U9223372036854775807"] {
            assert_eq!(Text::parse(descr), None, "{descr}");
        }
    }

    #[test]
    fn a_member_may_lack_its_extension() {
        let entry = npy(&bytes_literal(3), &[1, 2, 3]);
        let other = npy(&bytes_literal(1), &[9]);
        let mut file = tempfile::Builder::new().suffix(".NPZ").tempfile().unwrap();
        file.write_all(&zip_of(&[("a", entry.clone())], CompressionMethod::Deflated)).unwrap();
        let mut archive = Archive::open(file.path()).unwrap();
        let found = archive.entry::<Integer>("a").unwrap().unwrap();
        assert_eq!(archive.read(&found).unwrap(), [1, 2, 3]);
        assert_eq!(archive.names(), ["a"]);
        let both = zip_of(&[("a", other), ("a.npy", entry)], CompressionMethod::Stored);
        assert_eq!(read_a(&both).unwrap(), [1, 2, 3]);
    }

    #[test]
    fn arrays_in_fortran_order_are_brought_to_c_order() {
        // More than one tile, of two-byte elements that tell their indices.
        let (count, height, width, channels) = (130, 3, 2, 2);
        let value = |n: usize, h: usize, w: usize, c: usize| (((n * height + h) * width + w) * channels + c) as u16;
        let mut elements = Vec::new();
        for c in 0..channels {
            for w in 0..width {
                for h in 0..height {
                    elements.extend((0..count).flat_map(|n| value(n, h, w, c).to_le_bytes()));
                }
            }
        }
        let literal = |shape: &str| format!("{{'descr': '<u2', 'fortran_order': True, 'shape': {shape}, }}");
        let whole = zip_of(&[("a.npy", npy(&literal("(130, 3, 2, 2)"), &elements))], CompressionMethod::Deflated);
        let expected: Vec<u8> = (0..(count * height * width * channels) as u16).flat_map(u16::to_le_bytes).collect();
        assert_eq!(read_a(&whole).unwrap(), expected);
        for shape in ["(4,)", "(4, 1)", "(1, 4)", "(1, 1, 4)"] {
            let flat = zip_of(&[("a.npy", npy(&literal(shape), b"abcdefgh"))], CompressionMethod::Stored);
            assert_eq!(read_a(&flat).unwrap(), b"abcdefgh", "{shape}");
        }
        for shape in ["(0, 4)", "(4, 0)", "()"] {
            let bytes = if shape == "()" { &b"ab"[..] } else { b"" };
            let empty = zip_of(&[("a.npy", npy(&literal(shape), bytes))], CompressionMethod::Stored);
            assert_eq!(read_a(&empty).unwrap(), bytes, "{shape}");
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npz");
        let elements: Vec<u8> = (0..=255).cycle().take(30_000).collect();
        let array = || Array { name: "a".into(), descr: "|u1", shape: vec![300, 100], elements: (&elements).into() };
        write(&path, &[array()]).unwrap();
        let bytes = fs::read(&path).unwrap();
        assert_eq!(read_a(&bytes).unwrap(), elements);
        write(&path, &[array()]).unwrap();
        assert!(fs::read(&path).unwrap() == bytes, "the same data gave other bytes");
    }

    #[test]
    fn files_that_are_no_archives_are_told_apart() {
        let whole = zip_of(&[("a.npy", npy(&bytes_literal(3), &[1, 2, 3]))], CompressionMethod::Deflated);
        assert_eq!(read_a(&whole).unwrap(), [1, 2, 3]);
        assert!(refusal(&[]).contains("empty"));
        assert!(refusal(b"index,label").contains("a text file, not a data set"));
        assert!(refusal(b"\x01\x02\x03").contains("not a .npz"));
        assert!(refusal(&npy(&bytes_literal(3), &[1, 2, 3])).contains("single .npy"));
        for length in [10, whole.len() / 2, whole.len() - 1] {
            assert!(refusal(&whole[..length]).contains("cut off"), "{length}");
        }
        let missing = Archive::open(Path::new("/nonexistent/x.npz")).err().unwrap();
        assert!(matches!(missing, Error::Io { .. }));
        assert!(matches!(Archive::open(&std::env::temp_dir()).err().unwrap(), Error::Io { .. }));
    }

    #[test]
    fn a_flipped_bit_is_noticed() {
        let mut archive = zip_of(&[("a.npy", npy(&bytes_literal(4), b"wxyz"))], CompressionMethod::Stored);
        let at = archive.windows(4).position(|window| window == b"wxyz").unwrap();
        archive[at + 2] ^= 1;
        assert!(refusal(&archive).contains("checksum"), "{}", refusal(&archive));
    }

    #[test]
    fn sizes_that_disagree_are_refused() {
        let literal = bytes_literal(1000);
        let header = (10 + literal.len()) as u32;
        let entry =
            |elements: usize| zip_of(&[("a.npy", npy(&literal, &vec![7; elements]))], CompressionMethod::Deflated);
        assert!(read_a(&entry(1000)).is_ok());
        assert!(refusal(&entry(999)).contains("does not take"));
        assert!(refusal(&declare(entry(1000), u32::MAX - 1)).contains("which deflate cannot do"));
        // The header and the archive agree, and the stream holds less, or more.
        assert!(refusal(&declare(entry(400), header + 1000)).contains("damaged"));
        assert!(refusal(&declare(entry(200_000), header + 1000)).contains("damaged"));
        let huge = "{'descr': '<i8', 'fortran_order': False, 'shape': (4294967296, 4294967296), }";
        let overflow = zip_of(&[("a.npy", npy(huge, &[]))], CompressionMethod::Deflated);
        assert!(refusal(&overflow).contains("does not take"));
    }
}
