//! Events as TensorBoard reads them: what each epoch came to, in a file that grows by one record an epoch.
//!
//! A record is that of a TFRecord file, whose numbers are little-endian, and its content an `Event` of TensorFlow's `event.proto`:
//!
//! ```text
//! u64 length · u32 masked CRC of the length · content · u32 masked CRC of the content
//! masked(c) = ((c >> 15) | (c << 17)) + 0xA282EAD8, where c is CRC-32C (Castagnoli)
//! ```
//!
//! TensorBoard keeps such a file open and looks for more at its end, so it is never replaced. A run that is continued cuts off what
//! its state does not know, and goes on.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use prost::Message;

use crate::error::{Error, Result};
use crate::output::OutputPath;
use crate::train::EpochRecord;

/// The messages that are needed, with their field numbers.
#[derive(Clone, PartialEq, Message)]
struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    /// Of the first event alone.
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Scalar>,
}

#[derive(Clone, PartialEq, Message)]
struct Scalar {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

/// The file of a run in a folder of such files.
pub(super) struct Events {
    path: PathBuf,
    force: bool,
    /// Epochs that an earlier process has done.
    before: Vec<EpochRecord>,
    open: Option<(File, OutputPath)>,
}

impl Events {
    /// `folder/events.out.tfevents.NAME`, where `NAME` is that of `out` without its ending.
    pub fn path(folder: &Path, out: &Path) -> PathBuf {
        let name = out.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        folder.join(format!("events.out.tfevents.{name}"))
    }

    /// Checks that the file may be written: over another one with `force` alone, but a run that continues over events. The folder
    /// is made with it, if its own folder is there.
    pub fn new(folder: &Path, out: &Path, force: bool, continues: bool) -> Result<Events> {
        let path = Events::path(folder, out);
        let are_events = || std::fs::read(&path).is_ok_and(|bytes| kept(&bytes, 0).0 > 0);
        let force = force || (continues && are_events());
        let within = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if folder.is_dir() {
            OutputPath::check(&path, force, 0)?;
        } else if folder.exists() || !within.is_dir() {
            let message = format!("{} is no folder, nor can it become one", folder.display());
            return Err(Error::usage(message, "give a folder for --tensorboard, in a folder that is there"));
        }
        Ok(Events { path, force, before: Vec::new(), open: None })
    }

    /// Continues behind these epochs.
    pub fn resumed(&mut self, history: &[EpochRecord]) {
        self.before = history.to_vec();
    }

    pub fn add(&mut self, record: &EpochRecord) -> Result<()> {
        if self.open.is_none() {
            self.open = Some(self.open()?);
        }
        let (file, _) = self.open.as_mut().expect("opened just now");
        write(file, &of_epoch(record)).map_err(Error::io("write", &self.path))
    }

    /// The file with all that belongs before the next epoch.
    fn open(&self) -> Result<(File, OutputPath)> {
        let failed = || Error::io("write", &self.path);
        let folder = self.path.parent().expect("a file in a folder");
        if !folder.is_dir() {
            std::fs::create_dir(folder).map_err(Error::io("create", folder))?;
        }
        let claim = OutputPath::check(&self.path, self.force, 0)?;
        let file = File::options().write(true).create(true).truncate(false).open(&self.path);
        let mut file = file.map_err(failed())?;
        let known = if self.before.is_empty() { Vec::new() } else { std::fs::read(&self.path).map_err(failed())? };
        let (end, epochs) = kept(&known, self.before.len());
        self.begin(&mut file, end, epochs).map_err(failed())?;
        Ok((file, claim))
    }

    /// Cuts off what lies behind `end`, and writes what is missing before the next epoch, of which `epochs` are there.
    fn begin(&self, file: &mut File, end: usize, epochs: usize) -> std::io::Result<()> {
        file.set_len(end as u64)?;
        file.seek(SeekFrom::Start(end as u64))?;
        if end == 0 {
            let file_version = Some("brain.Event:2".to_string());
            write(file, &Event { wall_time: now(), step: 0, file_version, summary: None })?;
        }
        self.before[epochs..].iter().try_for_each(|record| write(file, &of_epoch(record)))
    }
}

/// How many bytes hold whole records of the first epochs, up to `most` of them, and of how many.
fn kept(bytes: &[u8], most: usize) -> (usize, usize) {
    let (mut end, mut epochs) = (0, 0);
    for (index, (content, behind)) in records(bytes).enumerate() {
        let is_next = match Event::decode(content) {
            Ok(event) if index == 0 => event.file_version.is_some(),
            Ok(event) => event.step == epochs as i64 + 1 && epochs < most,
            Err(_) => false,
        };
        if !is_next {
            break;
        }
        (end, epochs) = (behind, epochs + usize::from(index > 0));
    }
    (end, epochs)
}

/// The content of each whole record, and where it ends.
fn records(bytes: &[u8]) -> impl Iterator<Item = (&[u8], usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = &bytes[at..];
        let (length, rest) = (rest.get(..8)?, rest.get(8..)?);
        let (of_length, rest) = (rest.get(..4)?, rest.get(4..)?);
        let count = usize::try_from(u64::from_le_bytes(length.try_into().ok()?)).ok()?;
        let (content, of_content) = (rest.get(..count)?, rest.get(count..count.checked_add(4)?)?);
        let is_right =
            masked(crc(length)).to_le_bytes() == of_length && masked(crc(content)).to_le_bytes() == of_content;
        at += 16 + count;
        is_right.then_some((content, at))
    })
}

fn of_epoch(record: &EpochRecord) -> Event {
    let figures = [
        ("train/loss", Some(record.train_loss)),
        ("train/learning_rate", Some(record.learning_rate)),
        ("val/accuracy", record.val_accuracy),
        ("val/macro_f1", record.val_macro_f1),
        ("val/balanced_accuracy", record.val_balanced_accuracy),
        ("val/auc", record.val_auc),
        ("val/loss", record.val_loss),
    ];
    let scalar = |(tag, value): (&str, Option<f64>)| {
        value.map(|value| Scalar { tag: tag.to_string(), simple_value: Some(value as f32) })
    };
    let summary = Some(Summary { value: figures.into_iter().filter_map(scalar).collect() });
    Event { wall_time: now(), step: record.epoch as i64, file_version: None, summary }
}

fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// In one piece, so that whoever reads meanwhile finds no half of a record.
fn write(file: &mut File, event: &Event) -> std::io::Result<()> {
    file.write_all(&record(&event.encode_to_vec()))
}

fn record(content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u64).to_le_bytes();
    let [of_length, of_content] = [&length, content].map(|bytes| masked(crc(bytes)).to_le_bytes());
    [&length, &of_length[..], content, &of_content].concat()
}

/// CRC-32C: the polynomial of Castagnoli, reflected.
fn crc(bytes: &[u8]) -> u32 {
    let of_bit = |c: u32, _| if c & 1 == 1 { (c >> 1) ^ 0x82F6_3B78 } else { c >> 1 };
    !bytes.iter().fold(!0, |c, &byte| (0..8).fold(c ^ u32::from(byte), of_bit))
}

fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xA282_EAD8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check value of CRC-32C in every list of them, and those of RFC 3720, B.4.
    #[test]
    fn checksums_are_those_of_the_standard() {
        assert_eq!(crc(b"123456789"), 0xE306_9283);
        assert_eq!(crc(&[0; 32]), 0x8A91_36AA);
        assert_eq!(crc(&[0xFF; 32]), 0x62A8_AB43);
        // 0xE3069283 rotated by 15 is 0x2507C60D.
        assert_eq!(masked(0xE306_9283), 0x2507_C60Du32.wrapping_add(0xA282_EAD8));
    }

    fn epoch(epoch: usize) -> EpochRecord {
        let val_auc = (epoch != 2).then_some(0.75);
        EpochRecord { epoch, train_loss: 1.0 / epoch as f64, val_auc, val_loss: Some(0.5), ..EpochRecord::default() }
    }

    fn read(path: &Path) -> Vec<Event> {
        let bytes = std::fs::read(path).unwrap();
        let found: Vec<_> = records(&bytes).map(|(content, end)| (Event::decode(content).unwrap(), end)).collect();
        assert_eq!(found.last().unwrap().1, bytes.len(), "records up to the end");
        found.into_iter().map(|(event, _)| event).collect()
    }

    #[test]
    fn epochs_are_read_back_and_continued() {
        let folder = tempfile::tempdir().unwrap();
        let (runs, out) = (folder.path().join("runs"), Path::new("x/net.safetensors"));
        let path = Events::path(&runs, out);
        let mut events = Events::new(&runs, out, false, false).unwrap();
        assert!(!runs.exists(), "nothing is made before there is something to write");
        (1..=4).for_each(|number| events.add(&epoch(number)).unwrap());
        drop(events);
        let written = read(&path);
        assert_eq!(written.iter().map(|event| event.step).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert_eq!(written[0].file_version.as_deref(), Some("brain.Event:2"));
        let scalars = |event: &Event| -> Vec<(String, f32)> {
            let values = event.summary.clone().unwrap().value;
            values.into_iter().map(|scalar| (scalar.tag, scalar.simple_value.unwrap())).collect()
        };
        let named = |name: &str, value| (name.to_string(), value);
        let second = [named("train/loss", 0.5), named("train/learning_rate", 0.0), named("val/loss", 0.5)];
        assert_eq!(scalars(&written[2]), second);
        assert!(scalars(&written[3]).contains(&named("val/auc", 0.75)));
        assert!(Events::new(&runs, out, false, false).is_err(), "it is another run's");

        // Killed within a record, behind a state of two epochs.
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 3]).unwrap();
        let mut events = Events::new(&runs, out, false, true).unwrap();
        events.resumed(&[epoch(1), epoch(2)]);
        events.add(&epoch(3)).unwrap();
        drop(events);
        let continued = read(&path);
        assert_eq!(continued[..3], written[..3]);
        assert_eq!(continued.iter().map(|event| event.step).collect::<Vec<_>>(), [0, 1, 2, 3]);

        // Of which the second epoch is broken: what lies behind it is not believed either, and is told anew.
        let mut bytes = std::fs::read(&path).unwrap();
        let second = records(&bytes).nth(2).unwrap().1;
        bytes[second - 6] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let mut events = Events::new(&runs, out, false, true).unwrap();
        events.resumed(&[epoch(1), epoch(2), epoch(3)]);
        events.add(&epoch(4)).unwrap();
        drop(events);
        let mended = read(&path);
        assert_eq!(mended[..2], written[..2]);
        assert_eq!(
            mended.iter().map(scalars_or_none).collect::<Vec<_>>(),
            written.iter().map(scalars_or_none).collect::<Vec<_>>()
        );

        // Another run in its place.
        let mut events = Events::new(&runs, out, true, false).unwrap();
        events.add(&epoch(1)).unwrap();
        drop(events);
        assert_eq!(read(&path).len(), 2);
        std::fs::write(&path, "theirs").unwrap();
        assert!(Events::new(&runs, out, false, true).is_err(), "it is no file of events");
    }

    fn scalars_or_none(event: &Event) -> (i64, Option<Summary>) {
        (event.step, event.summary.clone())
    }
}
