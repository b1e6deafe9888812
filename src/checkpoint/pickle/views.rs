//! Tensors as views of storages: number (i₀, i₁, …) stands `start + i₀·s₀ + i₁·s₁ + …` numbers into its part of a storage.
//!
//! Whatever a file says of a view is checked when the view is made, so that reading it needs no checks.

use safetensors::Dtype;

use super::values::{Id, Storage};
use crate::checkpoint::tensors::{Elements, decoded_size};

/// The most dimensions that a tensor may have.
const MAX_DIMENSIONS: usize = 32;

/// A type of numbers that is read, and what PyTorch calls it.
const TYPES: &[(Dtype, &str, &[&str])] = &[
    (Dtype::F32, "FloatStorage", &["float32", "float"]),
    (Dtype::F64, "DoubleStorage", &["float64", "double"]),
    (Dtype::F16, "HalfStorage", &["float16", "half"]),
    (Dtype::BF16, "BFloat16Storage", &["bfloat16"]),
    (Dtype::I64, "LongStorage", &["int64", "long"]),
    (Dtype::I32, "IntStorage", &["int32", "int"]),
    (Dtype::I16, "ShortStorage", &["int16", "short"]),
    (Dtype::I8, "CharStorage", &["int8"]),
    (Dtype::U8, "ByteStorage", &["uint8"]),
    (Dtype::BOOL, "BoolStorage", &["bool"]),
    // Those without a storage of their own.
    (Dtype::U16, "", &["uint16"]),
    (Dtype::U32, "", &["uint32"]),
    (Dtype::U64, "", &["uint64"]),
    (Dtype::U8, "UntypedStorage", &[]),
];

/// The type of the numbers in a storage of this class.
pub fn of_storage(name: &str) -> Option<Dtype> {
    TYPES.iter().find(|(_, storage, _)| !storage.is_empty() && *storage == name).map(|(dtype, ..)| *dtype)
}

/// The type of this name in `torch`.
pub fn of_name(name: &str) -> Option<Dtype> {
    TYPES.iter().find(|(.., names)| names.contains(&name)).map(|(dtype, ..)| *dtype)
}

/// Bytes of a number.
pub fn size(dtype: Dtype) -> usize {
    dtype.bitsize() / 8
}

/// A tensor whose numbers are known to lie within its storage.
#[derive(Debug, PartialEq)]
pub struct View {
    /// The storage's name, and its length in bytes.
    pub key: Id,
    pub storage: u64,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    strides: Vec<usize>,
    /// Where the first number stands in the storage, in bytes.
    start: usize,
    count: usize,
}

impl View {
    /// A view of `storage` that begins `offset` numbers into it; as an error, what is wrong with it.
    pub fn new(
        storage: Storage,
        dtype: Dtype,
        offset: i64,
        shape: &[i64],
        strides: &[i64],
    ) -> Result<View, &'static str> {
        if shape.len() != strides.len() {
            return Err("it has not as many strides as dimensions");
        }
        if shape.len() > MAX_DIMENSIONS {
            return Err("it has more than 32 dimensions");
        }
        let positive = |numbers: &[i64]| {
            let numbers: Result<Vec<usize>, _> = numbers.iter().map(|&number| usize::try_from(number)).collect();
            numbers.map_err(|_| "it has a negative size, stride or offset")
        };
        let (shape, strides, offset) = (positive(shape)?, positive(strides)?, positive(&[offset])?[0]);
        let mut view = View { key: storage.key, storage: storage.bytes, dtype, shape, strides, start: 0, count: 0 };
        // Dimensions of 0 count as 1, so that the product of any of them is a number.
        let product = |product: usize, &size: &usize| product.checked_mul(size.max(1));
        let bytes = view.shape.iter().try_fold(size(dtype), product).filter(|&bytes| isize::try_from(bytes).is_ok());
        let bytes = bytes.ok_or("its shape is larger than any memory")?;
        if !view.shape.contains(&0) {
            const BEYOND: &str = "it reaches beyond its storage";
            let end = view.end(offset).ok_or(BEYOND)?;
            if end as u64 > storage.part.1 - storage.part.0 {
                return Err(BEYOND);
            }
            view.count = bytes / size(dtype);
            view.start = usize::try_from(storage.part.0).map_err(|_| BEYOND)? + offset * size(dtype);
        }
        Ok(view)
    }

    /// Where the last number ends if the first is number `offset`, in bytes. No dimension is 0.
    fn end(&self, offset: usize) -> Option<usize> {
        let mut last = offset;
        for (size, stride) in self.shape.iter().zip(&self.strides) {
            last = last.checked_add((size - 1).checked_mul(*stride)?)?;
        }
        last.checked_add(1)?.checked_mul(size(self.dtype))
    }

    /// Bytes that the numbers take once they are decoded: those of an expanded view are more than the file holds.
    pub fn decoded(&self) -> u64 {
        let size = decoded_size(self.dtype).expect("types in the table are understood");
        (self.count as u64).saturating_mul(size)
    }

    /// Where the numbers stand in the storage, in bytes, in the order of the shape.
    fn places(&self) -> impl Iterator<Item = usize> {
        let (mut index, mut at) = (vec![0; self.shape.len()], 0);
        (0..self.count).map(move |_| {
            let place = self.start + at * size(self.dtype);
            for (dimension, here) in index.iter_mut().enumerate().rev() {
                *here += 1;
                if *here < self.shape[dimension] {
                    at += self.strides[dimension];
                    break;
                }
                *here = 0;
                at -= self.strides[dimension] * (self.shape[dimension] - 1);
            }
            place
        })
    }
}

/// A view and the bytes of its storage.
pub struct Filled<'a> {
    pub view: &'a View,
    pub storage: &'a [u8],
    pub big_endian: bool,
}

impl Elements for Filled<'_> {
    fn each<const N: usize>(&self) -> impl Iterator<Item = [u8; N]> {
        self.view.places().map(|place| {
            let mut bytes: [u8; N] = *self.storage[place..].first_chunk().expect("a view lies within its storage");
            if self.big_endian {
                bytes.reverse();
            }
            bytes
        })
    }
}
