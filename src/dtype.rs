//! The types that numbers are stored as: the ground floor, which everything else knows.

use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DType {
    F32,
    F64,
    /// Stored as f32; tensor cores round what they multiply to 10 bits of fraction. On GPUs only.
    TF32,
    /// 8 bits of exponent, 7 of fraction; on GPUs only.
    BF16,
    /// IEEE half precision; on GPUs only.
    F16,
}

impl DType {
    /// Bytes of one number.
    pub const fn size(self) -> usize {
        match self {
            DType::F64 => 8,
            DType::F32 | DType::TF32 => 4,
            DType::BF16 | DType::F16 => 2,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::F64 => "f64",
            DType::TF32 => "tf32",
            DType::BF16 => "bf16",
            DType::F16 => "f16",
        })
    }
}
