//! The form of PyTorch 1.6 and later: a zip archive with the pickle in `NAME/data.pkl` and each storage in `NAME/data/KEY`.

use std::fs::File;
use std::io::{self, BufReader, Read};

use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive};

use super::machine::{self, Input, Pickled};
use super::{Fault, RESAVE, Result, Storages, broken};

/// Deflate codes at most 258 bytes in two bits, a ratio of 1032; the rest is room for its framing.
const MAX_RATIO: u64 = 1100;
const RATIO_SLACK: u64 = 64 << 10;

pub struct Archive {
    zip: ZipArchive<BufReader<File>>,
    /// What stands before `data.pkl` in the names of all members.
    prefix: String,
    big_endian: bool,
}

impl Archive {
    /// Opens an archive and follows its pickle, for which about `memory` bytes may be taken.
    pub fn open(file: File, memory: u64) -> Result<(Archive, Pickled)> {
        let mut zip = ZipArchive::new(BufReader::new(file)).map_err(|error| zip_error("its zip archive", error))?;
        if zip.has_duplicate_names() {
            return Err(broken("its zip archive has two members of one name"));
        }
        if zip.has_overlapping_entries().map_err(|error| zip_error("its zip archive", error))? {
            return Err(broken("its zip archive has members that overlap"));
        }
        let names: Vec<String> =
            zip.file_names_raw().filter_map(|name| str::from_utf8(name).ok()).map(Into::into).collect();
        let is_pickle = |name: &&String| *name == "data.pkl" || name.ends_with("/data.pkl");
        let mut pickles = names.iter().filter(is_pickle);
        let (Some(pickle), None) = (pickles.next(), pickles.next()) else {
            return Err(broken("its zip archive does not have one data.pkl, as torch.save writes it"));
        };
        let prefix = pickle.strip_suffix("data.pkl").expect("it ends so").to_string();
        if names.contains(&format!("{prefix}constants.pkl")) {
            let hint = "save its parameters alone: torch.save(torch.jit.load(FILE).state_dict(), \"model.pth\")";
            return Err(Fault::refused("it is a TorchScript program, not a state dict", hint));
        }
        let mut archive = Archive { zip, prefix, big_endian: false };
        if names.contains(&format!("{}byteorder", archive.prefix)) {
            archive.big_endian = match archive.read("byteorder", memory)?.as_slice() {
                b"little" => false,
                b"big" => true,
                _ => return Err(broken("its byteorder is neither little nor big")),
            };
        }
        // Texts are in memory twice, beside all else that is made of them.
        let pickle = archive.read("data.pkl", memory / 4)?;
        let pickled = machine::load(Input::new(&mut pickle.as_slice(), pickle.len() as u64), memory)?;
        Ok((archive, pickled))
    }

    /// How many bytes a member has, and whether they are compressed.
    fn look_at(&self, member: &str) -> Result<(u64, bool)> {
        let name = format!("{}{member}", self.prefix);
        let place = self.zip.index_for_name_raw(name.as_bytes());
        let Some(place) = place else {
            return Err(broken(format!("its zip archive has no {}", name.escape_debug())));
        };
        let file = self.zip.by_index_data(place).map_err(|error| zip_error(&name, error))?;
        let name = name.escape_debug();
        let (size, stored) = (file.size(), file.compressed_size());
        match file.compression() {
            _ if file.encrypted() => Err(Fault::refused(format!("its {name} is encrypted"), RESAVE)),
            CompressionMethod::Stored if size == stored => Ok((size, false)),
            CompressionMethod::Deflated if size <= stored.saturating_mul(MAX_RATIO).saturating_add(RATIO_SLACK) => {
                Ok((size, true))
            }
            CompressionMethod::Stored | CompressionMethod::Deflated => {
                Err(broken(format!("its {name} claims {size} bytes, and has {stored}")))
            }
            other => Err(Fault::refused(format!("its {name} is compressed by {other}"), RESAVE)),
        }
    }

    /// A member's bytes, if `memory` holds them.
    fn read(&mut self, member: &str, memory: u64) -> Result<Vec<u8>> {
        let (size, _) = self.look_at(member)?;
        if size > memory {
            return Err(broken(format!("its {member} claims {size} bytes, more than memory allows")));
        }
        let name = format!("{}{member}", self.prefix);
        let place = self.zip.index_for_name_raw(name.as_bytes()).expect("it was looked at");
        let mut file = self.zip.by_index(place).map_err(|error| zip_error(&name, error))?;
        let mut bytes = Vec::new();
        bytes.reserve_exact(size as usize);
        // One byte more than there are: the checksum is compared where the member ends.
        (&mut file).take(size + 1).read_to_end(&mut bytes).map_err(|error| damaged(&name, error))?;
        match bytes.len() as u64 == size {
            true => Ok(bytes),
            false => Err(broken(format!("its {} does not have the {size} bytes that it claims", name.escape_debug()))),
        }
    }
}

impl Storages for Archive {
    fn length(&self, key: &str) -> Result<u64> {
        self.look_at(&format!("data/{key}")).map(|(size, _)| size)
    }

    fn inflated(&self, key: &str) -> Result<u64> {
        self.look_at(&format!("data/{key}")).map(|(size, compressed)| if compressed { size } else { 0 })
    }

    fn read(&mut self, key: &str) -> Result<Vec<u8>> {
        Archive::read(self, &format!("data/{key}"), u64::MAX)
    }

    fn big_endian(&self) -> bool {
        self.big_endian
    }
}

/// Tells a member that is broken from a broken disk. PyTorch can be told not to count checksums, and then writes wrong ones.
fn damaged(name: &str, error: io::Error) -> Fault {
    let hint = "download it again, or save it with torch.serialization.set_crc32_options(True)";
    match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::UnexpectedEof => {
            Fault::refused(format!("its {} is damaged or cut off ({error})", name.escape_debug()), hint)
        }
        _ => error.into(),
    }
}

fn zip_error(what: &str, error: ZipError) -> Fault {
    let what = what.escape_debug();
    match error {
        ZipError::Io(error) => error.into(),
        ZipError::UnsupportedArchive(reason) => Fault::refused(format!("{what} cannot be read: {reason}"), RESAVE),
        error => broken(format!("{what} is damaged or cut off ({error})")),
    }
}
