//! Reading and writing of `.npz` files: zip archives whose entries are numpy arrays (`.npy`).
//!
//! A file comes from anywhere, so nothing it declares is believed before it is checked: an array's header has to agree
//! with the size that the archive declares for it, that size has to be within what deflate can expand the stored bytes
//! to, and a read ends at the declared size. This module knows arrays of integers; what they mean is not its concern.

use std::{
    fs::{self, File},
    io::{self, BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

use zip::{CompressionMethod, DateTime, ZipArchive, ZipWriter, result::ZipError, write::SimpleFileOptions};

use crate::error::{Error, Result};

const MAGIC: &[u8] = b"\x93NUMPY";

/// Deflate codes at most 258 bytes in two bits, a ratio of 1032; the rest is room for its framing.
const MAX_RATIO: u64 = 1100;
const RATIO_SLACK: u64 = 64 << 10;

/// numpy itself writes 128 bytes here and refuses to read more than 10,000.
const MAX_HEADER: usize = 10_000;

const DAMAGED: &str = "the file is damaged; download or write it again";
const REWRITE: &str = "write the file with numpy.savez_compressed";

/// What an integer array's elements are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Integer {
    pub bytes: usize,
    pub signed: bool,
    pub big_endian: bool,
}

impl Integer {
    /// None for everything that is not an integer or a bool.
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

/// What is left to read of a Python literal.
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
pub struct Entry {
    pub name: String,
    pub integer: Integer,
    pub shape: Vec<usize>,
    index: usize,
    /// Where the elements begin, and how many bytes they take.
    start: u64,
    pub bytes: u64,
}

pub struct Archive {
    path: PathBuf,
    zip: ZipArchive<BufReader<File>>,
}

impl Archive {
    pub fn open(path: &Path) -> Result<Archive> {
        let mut file = File::open(path).map_err(Error::io("open", path))?;
        if file.metadata().map_err(Error::io("open", path))?.is_dir() {
            return Err(Error::io("open", path)(io::ErrorKind::IsADirectory.into()));
        }
        let mut magic = Vec::new();
        (&mut file).take(6).read_to_end(&mut magic).map_err(Error::io("read", path))?;
        if magic.is_empty() {
            return Err(Error::data(path, "the file is empty", DAMAGED));
        }
        if magic == MAGIC {
            return Err(Error::data(path, "a single .npy array, not a .npz archive", REWRITE));
        }
        if !magic.starts_with(b"PK") {
            return Err(Error::data(path, "not a .npz archive", "give a data set in the format of MedMNIST"));
        }
        match ZipArchive::new(BufReader::new(file)) {
            Ok(zip) => Ok(Archive { path: path.to_path_buf(), zip }),
            Err(error) => Err(zip_error(path, "the archive", error)),
        }
    }

    /// The arrays' names, in the file's order and safe to print.
    pub fn names(&self) -> Vec<String> {
        let printable = |raw| String::from_utf8_lossy(raw).escape_debug().to_string();
        self.zip.file_names_raw().map(printable).map(|name| name.trim_end_matches(".npy").to_string()).collect()
    }

    /// Reads and checks the header of the array `name`, whose elements have to be integers in C order; None if the
    /// archive does not have it.
    pub fn entry(&mut self, name: &str) -> Result<Option<Entry>> {
        let path = self.path.clone();
        let Some(index) = self.zip.index_for_name(&format!("{name}.npy")) else { return Ok(None) };
        let mut file = self.zip.by_index(index).map_err(|error| zip_error(&path, name, error))?;
        if !matches!(file.compression(), CompressionMethod::Stored | CompressionMethod::Deflated) {
            return Err(Error::data(path, format!("{name} is compressed by {}", file.compression()), REWRITE));
        }
        let (declared, stored) = (file.size(), file.compressed_size());
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
        let Some(integer) = Integer::parse(&header.descr) else {
            return Err(Error::data(
                path,
                format!("{name} has elements of type '{}', not integers", header.descr.escape_debug()),
                "store images as uint8 (0 to 255) and labels as integers",
            ));
        };
        if header.fortran_order {
            return Err(Error::data(
                path,
                format!("{name} is in Fortran order"),
                "pass it through numpy.ascontiguousarray before saving",
            ));
        }
        let elements = header
            .shape
            .iter()
            .try_fold(integer.bytes as u64, |product, &dimension| product.checked_mul(dimension as u64));
        match elements {
            Some(bytes) if bytes.checked_add(start) == Some(declared) => {
                Ok(Some(Entry { name: name.to_string(), integer, shape: header.shape, index, start, bytes }))
            }
            _ => {
                let message = format!("{name} of shape {:?} does not take the {declared} bytes declared", header.shape);
                Err(Error::data(path, message, DAMAGED))
            }
        }
    }

    /// The elements of an entry of this archive. The caller has decided that `entry.bytes` fit into memory.
    pub fn read(&mut self, entry: &Entry) -> Result<Vec<u8>> {
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
        read().map_err(|error| read_error(path, name, error))
    }
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
    pub name: &'a str,
    /// numpy's name of the element type, such as `|u1`.
    pub descr: &'a str,
    pub shape: &'a [usize],
    pub elements: &'a [u8],
}

/// Writes an archive in one step: a reader finds the old file or the whole new one. The same arrays give the same bytes.
pub fn write(path: &Path, arrays: &[Array]) -> Result<()> {
    write_atomically(path, |file| {
        let mut zip = ZipWriter::new(BufWriter::new(file));
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
            zip.write_all(array.elements)?;
        }
        zip.finish()?.flush()
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

/// Hands `write` a temporary file in the folder of `path` and moves it there once it is whole and on the disk.
fn write_atomically(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".medmerge-");
    // Temporary files are private by default; this one becomes an ordinary file, under the umask.
    #[cfg(unix)]
    builder.permissions(<fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o666));
    let mut file = builder.tempfile_in(folder).map_err(Error::io("write", path))?;
    write(file.as_file_mut()).and_then(|()| file.as_file().sync_all()).map_err(Error::io("write", path))?;
    file.persist(path).map_err(|error| Error::io("write", path)(error.error))?;
    Ok(())
}
