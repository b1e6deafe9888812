//! The bridge from a [`DType`] to Rust's types.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

use super::{Buffer, DType, DataMut, Storage};

/// A number that the reference implementations compute with.
pub trait Element:
    Copy
    + Default
    + PartialOrd
    + Send
    + Sync
    + fmt::Debug
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + Sum
    + super::buffer::Number
    + sealed::Stored
    + 'static
{
    const DTYPE: DType;
    fn from_f64(value: f64) -> Self;
    fn to_f64(self) -> f64;
    fn sqrt(self) -> Self;
    fn exp(self) -> Self;
    fn ln(self) -> Self;
}

mod sealed {
    use super::*;

    pub trait Stored: Sized {
        #[allow(private_interfaces)]
        fn into_storage(data: Vec<Self>) -> Storage;
        #[allow(private_interfaces)]
        fn slice(storage: &Storage) -> &[Self];
        #[allow(private_interfaces)]
        fn slice_mut(data: DataMut<'_>) -> &mut [Self];
    }
}

macro_rules! element {
    ($type:ty, $variant:ident) => {
        impl Element for $type {
            const DTYPE: DType = DType::$variant;
            fn from_f64(value: f64) -> Self {
                value as $type
            }
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            fn sqrt(self) -> Self {
                self.sqrt()
            }
            fn exp(self) -> Self {
                self.exp()
            }
            fn ln(self) -> Self {
                self.ln()
            }
        }

        impl sealed::Stored for $type {
            #[allow(private_interfaces)]
            fn into_storage(data: Vec<Self>) -> Storage {
                Storage::$variant(Buffer::from(data))
            }
            #[allow(private_interfaces)]
            fn slice(storage: &Storage) -> &[Self] {
                match storage {
                    Storage::$variant(buffer) => buffer,
                    Storage::Gpu(_) => panic!("a tensor on a GPU is read as if it were on the CPU"),
                    _ => panic!("a tensor of another dtype is read as {}", Self::DTYPE),
                }
            }
            #[allow(private_interfaces)]
            fn slice_mut(data: DataMut<'_>) -> &mut [Self] {
                match data {
                    DataMut::$variant(data) => data,
                    DataMut::Gpu { .. } => panic!("a tensor on a GPU is written as if it were on the CPU"),
                    _ => panic!("a tensor of another dtype is written as {}", Self::DTYPE),
                }
            }
        }
    };
}

element!(f32, F32);
element!(f64, F64);
