//! Data elements of a DICOM file (PS3.5, sections 7.1, 7.5 and A.4; PS3.10, section 7.1), as parts of the file's bytes.
//!
//! Nothing is copied, and no length is believed before so many bytes are seen to be there: a damaged file takes no memory.

/// Group and element, sixteen bits each.
pub(super) type Tag = u32;

const ITEM: Tag = 0xfffe_e000;
const ITEM_END: Tag = 0xfffe_e00d;
const SEQUENCE_END: Tag = 0xfffe_e0dd;
const TRANSFER_SYNTAX: Tag = 0x0002_0010;
pub(super) const PIXEL_DATA: Tag = 0x7fe0_0010;

/// Sequences that are looked into. Where types of values are not written, nothing else tells that they are some.
pub(super) const MODALITY_TABLES: Tag = 0x0028_3000;
pub(super) const VOI_TABLES: Tag = 0x0028_3010;
pub(super) const VALUE_TRANSFORMATION: Tag = 0x0028_9145;
pub(super) const FRAME_VOI: Tag = 0x0028_9132;
pub(super) const SHARED_GROUPS: Tag = 0x5200_9229;
pub(super) const FRAME_GROUPS: Tag = 0x5200_9230;
const SEQUENCES: [Tag; 6] = [MODALITY_TABLES, VOI_TABLES, VALUE_TRANSFORMATION, FRAME_VOI, SHARED_GROUPS, FRAME_GROUPS];

/// Types of values (VR) whose length takes four bytes.
const LONG: [&[u8; 2]; 13] =
    [b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"];
/// Sequences in sequences, beyond which a file is damaged.
const DEEPEST: usize = 16;

pub(super) const CUT_OFF: &str = "a DICOM file that is cut off or damaged";

/// How elements are written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Coding {
    /// Whether each tells the type of its value.
    pub is_explicit: bool,
    pub is_big: bool,
}

impl Coding {
    pub const IMPLICIT: Coding = Coding { is_explicit: false, is_big: false };
    pub const EXPLICIT: Coding = Coding { is_explicit: true, is_big: false };
    pub const BIG: Coding = Coding { is_explicit: true, is_big: true };
}

/// Whether a file's content is DICOM's: by its magic; without the preamble, by a first element that is one of its header or of the
/// data set's first group.
pub(super) fn is_dicom(bytes: &[u8]) -> bool {
    let has_magic = bytes.get(128..132) == Some(b"DICM");
    has_magic || matches!(bytes, [2 | 8, 0, _, 0, ..] if bytes.len() > 8)
}

/// The UID of a file's transfer syntax, and where its data set begins. A file without a header is one without compression.
pub(super) fn open(bytes: &[u8]) -> Result<(String, usize), String> {
    let at = if bytes.get(128..132) == Some(b"DICM") { 132 } else { 0 };
    let mut reader = Reader { bytes, at, coding: Coding::EXPLICIT, depth: 0 };
    let mut syntax = None;
    while matches!(reader.rest(), [2, 0, ..]) {
        let element = reader.element()?;
        if element.tag == TRANSFER_SYNTAX {
            syntax = element.texts().into_iter().next();
        }
    }
    let is_explicit = reader.rest().get(4..6).is_some_and(|vr| vr.iter().all(u8::is_ascii_uppercase));
    let without = if is_explicit { "1.2.840.10008.1.2.1" } else { "1.2.840.10008.1.2" };
    Ok((syntax.unwrap_or_else(|| without.to_string()), reader.at))
}

/// Elements in the order of their tags.
#[derive(Debug, Default)]
pub(super) struct DataSet<'a> {
    elements: Vec<Element<'a>>,
}

#[derive(Debug)]
pub(super) struct Element<'a> {
    pub tag: Tag,
    pub vr: [u8; 2],
    pub coding: Coding,
    pub value: Value<'a>,
}

#[derive(Debug)]
pub(super) enum Value<'a> {
    Bytes(&'a [u8]),
    Items(Vec<DataSet<'a>>),
    /// Of compressed pixels; the first is a table of offsets, which may be empty.
    Fragments(Vec<&'a [u8]>),
}

impl<'a> DataSet<'a> {
    /// The elements up to and with `last`.
    pub fn read(bytes: &'a [u8], coding: Coding, last: Tag) -> Result<DataSet<'a>, String> {
        Reader { bytes, at: 0, coding, depth: 0 }.data_set(last)
    }

    pub fn get(&self, tag: Tag) -> Option<&Element<'a>> {
        self.elements.iter().find(|element| element.tag == tag)
    }

    /// The items of a sequence; none where there is no such.
    pub fn items(&self, tag: Tag) -> &[DataSet<'a>] {
        match self.get(tag).map(|element| &element.value) {
            Some(Value::Items(items)) => items,
            _ => &[],
        }
    }

    /// An unsigned number of sixteen bits.
    pub fn short(&self, tag: Tag) -> Option<u16> {
        self.get(tag).and_then(|element| element.shorts().next())
    }

    /// The first of numbers that are written as text.
    pub fn decimal(&self, tag: Tag) -> Option<f64> {
        self.text(tag)?.parse().ok().filter(|number: &f64| number.is_finite())
    }

    /// The first of texts, unless it is empty.
    pub fn text(&self, tag: Tag) -> Option<String> {
        self.get(tag)?.texts().into_iter().next().filter(|text| !text.is_empty())
    }
}

impl<'a> Element<'a> {
    pub fn bytes(&self) -> &'a [u8] {
        match &self.value {
            Value::Bytes(bytes) => bytes,
            _ => &[],
        }
    }

    /// Texts, without what fills them up. One byte a letter: other alphabets stay apart, if not readable.
    fn texts(&self) -> Vec<String> {
        let text: String = self.bytes().iter().map(|&byte| char::from(byte)).collect();
        text.split('\\').map(|text| text.trim_matches([' ', '\0']).to_string()).collect()
    }

    pub fn shorts(&self) -> impl Iterator<Item = u16> {
        let number = if self.coding.is_big { u16::from_be_bytes } else { u16::from_le_bytes };
        self.bytes().as_chunks().0.iter().map(move |&pair| number(pair))
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    coding: Coding,
    /// How many sequences it is in.
    depth: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a [u8] {
        &self.bytes[self.at..]
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let taken = self.rest().get(..count).ok_or(CUT_OFF)?;
        self.at += count;
        Ok(taken)
    }

    fn short(&mut self) -> Result<u16, String> {
        let bytes = self.take(2)?.try_into().expect("two");
        Ok(if self.coding.is_big { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
    }

    fn long(&mut self) -> Result<u32, String> {
        let bytes = self.take(4)?.try_into().expect("four");
        Ok(if self.coding.is_big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }

    fn tag(&mut self) -> Result<Tag, String> {
        Ok(u32::from(self.short()?) << 16 | u32::from(self.short()?))
    }

    /// A length, unless the value ends by a mark.
    fn length(&mut self) -> Result<Option<usize>, String> {
        let length = self.long()?;
        Ok((length != u32::MAX).then_some(length as usize))
    }

    /// What reads a part of the same bytes.
    fn within(&self, bytes: &'a [u8], coding: Coding) -> Result<Reader<'a>, String> {
        match self.depth < DEEPEST {
            true => Ok(Reader { bytes, at: 0, coding, depth: self.depth + 1 }),
            false => Err(CUT_OFF.into()),
        }
    }

    /// Elements up to and with `last`, or to the mark that ends an item.
    fn data_set(&mut self, last: Tag) -> Result<DataSet<'a>, String> {
        let mut elements = Vec::new();
        while !self.rest().is_empty() {
            let start = self.at;
            match self.tag()? {
                ITEM_END => {
                    self.take(4)?;
                    break;
                }
                tag if tag > last => break,
                tag => {
                    self.at = start;
                    elements.push(self.element()?);
                    if tag == last {
                        break;
                    }
                }
            }
        }
        Ok(DataSet { elements })
    }

    fn element(&mut self) -> Result<Element<'a>, String> {
        let tag = self.tag()?;
        let written = self.rest().get(..2).filter(|vr| vr.iter().all(u8::is_ascii_uppercase));
        // Some writers leave out the type of a value here and there.
        let vr: Option<[u8; 2]> = written.filter(|_| self.coding.is_explicit).map(|vr| [vr[0], vr[1]]);
        let length = match vr {
            None => self.length()?,
            Some(vr) => {
                self.take(2)?;
                if LONG.contains(&&vr) {
                    self.take(2)?;
                    self.length()?
                } else {
                    Some(usize::from(self.short()?))
                }
            }
        };
        let is_sequence = SEQUENCES.contains(&tag) || vr == Some(*b"SQ");
        let is_pixels = [Some(*b"OB"), Some(*b"OW")].contains(&vr) || tag == PIXEL_DATA;
        // Of unknown type, a sequence is written as if no types were (PS3.5, section 6.2.2).
        let coding = if vr == Some(*b"UN") { Coding::IMPLICIT } else { self.coding };
        let value = match length {
            None if is_pixels => Value::Fragments(self.fragments()?),
            None => {
                let mut inner = self.within(self.rest(), coding)?;
                let items = inner.items(false)?;
                self.at += inner.at;
                Value::Items(items)
            }
            // The others need not be whole.
            Some(length) if is_sequence && SEQUENCES.contains(&tag) => {
                let bytes = self.take(length)?;
                Value::Items(self.within(bytes, coding)?.items(true)?)
            }
            Some(length) => Value::Bytes(self.take(length)?),
        };
        Ok(Element { tag, vr: vr.unwrap_or_default(), coding: self.coding, value })
    }

    /// To the end of the bytes, or to the mark that ends a sequence.
    fn items(&mut self, is_to_end: bool) -> Result<Vec<DataSet<'a>>, String> {
        let mut items = Vec::new();
        while !(is_to_end && self.rest().is_empty()) {
            match (self.tag()?, self.length()?) {
                (SEQUENCE_END, _) => break,
                (ITEM, Some(length)) => {
                    let bytes = self.take(length)?;
                    items.push(self.within(bytes, self.coding)?.data_set(Tag::MAX)?);
                }
                (ITEM, None) => {
                    let mut inner = self.within(self.rest(), self.coding)?;
                    items.push(inner.data_set(Tag::MAX)?);
                    self.at += inner.at;
                }
                _ => return Err(CUT_OFF.into()),
            }
        }
        Ok(items)
    }

    fn fragments(&mut self) -> Result<Vec<&'a [u8]>, String> {
        let mut fragments = Vec::new();
        loop {
            match (self.tag()?, self.length()?) {
                (SEQUENCE_END, _) => return Ok(fragments),
                (ITEM, Some(length)) => fragments.push(self.take(length)?),
                _ => return Err(CUT_OFF.into()),
            }
            // The last mark is left out by some.
            if self.rest().is_empty() {
                return Ok(fragments);
            }
        }
    }
}
