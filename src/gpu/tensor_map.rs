//! Tensor maps: what a bulk copy on sm_90a (TMA) is told of the tensor that it copies from, 128 bytes of the driver's own making.
//!
//! Two kinds, both copied in lines of 128 bytes, 64 numbers of 16 bits or 32 of f32, which are rounded to tf32 on the way. Shared memory
//! holds them in the 128-byte swizzle; what lies outside of the tensor is copied as zeros.
//!
//! * A [`Matrix`]: a copy takes a box of `box_rows` rows, a line's columns of each, from any row and column on (tiled mode).
//! * [`Images`] N, H, W, C: a copy takes a line's channels of `pixels` pixels, which it meets walking through the *box of pixels* by `strides`:
//!   along W, then H, then N (im2col mode). The box begins at `lower` and ends with the pixel at `upper`, counted from the last pixel of
//!   an image; both may lie outside. For a convolution these are the places where tap (0, 0) is put: `lower` is −padding, `upper`
//!   padding − dilation · (taps − 1). The copy moves all that it meets by its own offset, a tap's.
//!
//! The limits are those of the CUDA driver's `cuTensorMapEncodeTiled` and `cuTensorMapEncodeIm2col` (version 13.0). [`Mapped::check`] knows
//! them, so that every device refuses the same.

use std::ops::RangeInclusive;

use super::driver::Address;
use crate::dtype::DType;

/// Numbers of a line in shared memory, 128 bytes: columns of a box, and channels of a pixel.
pub fn line(dtype: DType) -> usize {
    128 / dtype.size()
}

/// The limits of copies in im2col mode: the corners of the box of pixels, the step of the walk, and a tap's offset.
pub const CORNERS: RangeInclusive<i64> = -128..=127;
pub const MOST_STRIDE: u32 = 8;
pub const MOST_OFFSET: usize = 255;

/// An encoded tensor map, as it stands in a kernel's parameters: at a multiple of 64 bytes.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct TensorMap(pub [u64; 16]);

/// A matrix that boxes are copied from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix {
    pub address: Address,
    pub dtype: DType,
    pub rows: u64,
    pub columns: u64,
    /// Bytes from row to row.
    pub pitch: u64,
    pub box_rows: u32,
}

/// Images that patches are copied from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Images {
    pub address: Address,
    pub dtype: DType,
    /// N, H, W, C.
    pub shape: [u64; 4],
    /// Bytes from image to image, row to row, pixel to pixel.
    pub pitches: [u64; 3],
    /// H, W: the first pixel of the box.
    pub lower: [i32; 2],
    /// H, W: the last pixel of the box, from that of the image.
    pub upper: [i32; 2],
    /// H, W: from pixel to pixel of the walk.
    pub strides: [u32; 2],
    /// Pixels of a copy.
    pub pixels: u32,
}

/// A convolution's taps, H and W, and how they are put on an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub taps: [usize; 2],
    pub strides: [usize; 2],
    pub padding: [usize; 2],
    pub dilation: [usize; 2],
}

/// What a tensor map is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapped {
    Matrix(Matrix),
    Images(Images),
}

impl Matrix {
    /// Rows without gaps.
    pub fn dense(address: Address, dtype: DType, [rows, columns]: [usize; 2], box_rows: u32) -> Matrix {
        let (rows, columns) = (rows as u64, columns as u64);
        Matrix { address, dtype, rows, columns, pitch: columns * dtype.size() as u64, box_rows }
    }
}

impl Images {
    /// Images without gaps, N, H, W, C, of which copies take `pixels` pixels as they lie.
    pub fn dense(address: Address, dtype: DType, shape: [usize; 4], pixels: u32) -> Images {
        let [n, h, w, c] = shape.map(|size| size as u64);
        let pixel = c * dtype.size() as u64;
        Images {
            address,
            dtype,
            shape: [n, h, w, c],
            pitches: [h * w * pixel, w * pixel, pixel],
            lower: [0; 2],
            upper: [0; 2],
            strides: [1; 2],
            pixels,
        }
    }

    /// Images without gaps, N, H, W, C, as a convolution reads them, `pixels` of its outputs at a time.
    pub fn of_convolution(address: Address, dtype: DType, shape: [usize; 4], window: Window, pixels: u32) -> Images {
        let Window { taps, strides, padding, dilation } = window;
        let upper = |i: usize| padding[i] as i32 - (dilation[i] * (taps[i] - 1)) as i32;
        Images {
            lower: padding.map(|padding| -(padding as i32)),
            upper: [upper(0), upper(1)],
            strides: strides.map(|stride| stride as u32),
            ..Images::dense(address, dtype, shape, pixels)
        }
    }
}

impl From<Matrix> for Mapped {
    fn from(matrix: Matrix) -> Mapped {
        Mapped::Matrix(matrix)
    }
}

impl From<Images> for Mapped {
    fn from(images: Images) -> Mapped {
        Mapped::Images(images)
    }
}

impl Mapped {
    pub(super) fn call(&self) -> &'static str {
        match self {
            Mapped::Matrix(_) => "cuTensorMapEncodeTiled",
            Mapped::Images(_) => "cuTensorMapEncodeIm2col",
        }
    }

    pub(super) fn dtype(&self) -> DType {
        match self {
            Mapped::Matrix(matrix) => matrix.dtype,
            Mapped::Images(images) => images.dtype,
        }
    }

    pub(super) fn address(&self) -> Address {
        match self {
            Mapped::Matrix(matrix) => matrix.address,
            Mapped::Images(images) => images.address,
        }
    }

    /// Sizes from the innermost on, as the driver wants them: columns and rows, or C, W, H, N.
    pub(super) fn sizes(&self) -> Vec<u64> {
        match self {
            Mapped::Matrix(matrix) => vec![matrix.columns, matrix.rows],
            Mapped::Images(Images { shape: [n, h, w, c], .. }) => vec![*c, *w, *h, *n],
        }
    }

    /// Bytes from one to the next in each dimension but the innermost.
    pub(super) fn pitches(&self) -> Vec<u64> {
        match self {
            Mapped::Matrix(matrix) => vec![matrix.pitch],
            Mapped::Images(Images { pitches: [image, row, pixel], .. }) => vec![*pixel, *row, *image],
        }
    }

    /// Numbers of a line.
    pub(super) fn line(&self) -> u32 {
        line(self.dtype()) as u32
    }

    /// Lines of a copy.
    pub(super) fn lines(&self) -> u32 {
        match self {
            Mapped::Matrix(matrix) => matrix.box_rows,
            Mapped::Images(images) => images.pixels,
        }
    }

    /// Says what a GPU would not take.
    pub fn check(&self) -> Result<(), String> {
        let refuse = |what: String| Err(what);
        if !matches!(self.dtype(), DType::BF16 | DType::F16 | DType::TF32) {
            return refuse(format!("numbers of {}; only those of 16 bits and of tf32 are copied", self.dtype()));
        }
        if !self.address().0.is_multiple_of(16) || self.address() == Address::NULL {
            return refuse(format!("the address {:#x} is no multiple of 16 bytes", self.address().0));
        }
        let (sizes, pitches) = (self.sizes(), self.pitches());
        if let Some(size) = sizes.iter().find(|&&size| size == 0 || size > 1 << 32) {
            return refuse(format!("a size of {size}; it is from 1 to 2^32"));
        }
        if let Some(pitch) = pitches.iter().find(|&&pitch| !pitch.is_multiple_of(16) || pitch >= 1 << 40) {
            return refuse(format!("a pitch of {pitch} bytes; it is a multiple of 16 below 2^40"));
        }
        // Each holds the dimension below it; the innermost is dense.
        let mut below = self.dtype().size() as u64;
        for (size, &pitch) in sizes.iter().zip(&pitches) {
            if pitch < size * below {
                return refuse(format!("a pitch of {pitch} bytes, and {} below it", size * below));
            }
            below = pitch;
        }
        match self {
            Mapped::Matrix(matrix) if matrix.box_rows == 0 || matrix.box_rows > 256 => {
                refuse(format!("a box of {} rows; it has from 1 to 256", matrix.box_rows))
            }
            Mapped::Matrix(_) => Ok(()),
            Mapped::Images(images) => images.check(),
        }
    }
}

impl Images {
    fn check(&self) -> Result<(), String> {
        if self.pixels == 0 || self.pixels > 1024 {
            return Err(format!("copies of {} pixels; they have from 1 to 1024", self.pixels));
        }
        let [_, h, w, _] = self.shape;
        for ((size, [lower, upper]), stride) in
            [h, w].into_iter().zip([0, 1].map(|i| [self.lower[i], self.upper[i]])).zip(self.strides)
        {
            if stride == 0 || stride > MOST_STRIDE {
                return Err(format!("a stride of {stride}; it is from 1 to {MOST_STRIDE}"));
            }
            if let Some(corner) = [lower, upper].into_iter().find(|&corner| !CORNERS.contains(&corner.into())) {
                return Err(format!("a corner of the box of pixels at {corner}; it is from -128 to 127"));
            }
            if size as i64 - 1 + i64::from(upper) < i64::from(lower) {
                return Err(format!("a box of pixels from {lower} to {upper} behind the last of {size} has none"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix() -> Matrix {
        Matrix::dense(Address(4096), DType::BF16, [100, 64], 128)
    }

    fn images() -> Images {
        let window = Window { taps: [3, 5], strides: [2, 1], padding: [1, 2], dilation: [1, 3] };
        Images::of_convolution(Address(4096), DType::F16, [2, 9, 10, 64], window, 128)
    }

    #[test]
    fn the_box_of_a_convolution_has_a_pixel_for_each_output() {
        for ([h, w], [r, s], strides, padding, dilation) in [
            ([9, 7], [3, 3], [1, 1], [1, 1], [1, 1]),
            ([9, 8], [3, 1], [2, 2], [1, 0], [1, 1]),
            ([10, 12], [3, 3], [1, 3], [2, 0], [2, 4]),
            ([7, 7], [7, 7], [2, 2], [3, 3], [1, 1]),
        ] {
            let window = Window { taps: [r, s], strides, padding, dilation };
            let images = Images::of_convolution(Address(64), DType::BF16, [1, h, w, 8], window, 8);
            Mapped::from(images).check().unwrap();
            for (i, (size, taps)) in [(h, r), (w, s)].into_iter().enumerate() {
                let outputs = (size + 2 * padding[i] - dilation[i] * (taps - 1) - 1) / strides[i] + 1;
                let last = size as i32 - 1 + images.upper[i];
                let met = (images.lower[i]..=last).step_by(strides[i]).count();
                assert_eq!(met, outputs, "{images:?}");
            }
        }
    }

    #[test]
    fn sizes_run_from_the_innermost() {
        let images = Mapped::from(images());
        assert_eq!(images.sizes(), [64, 10, 9, 2]);
        assert_eq!(images.pitches(), [128, 10 * 128, 9 * 10 * 128]);
        assert_eq!(Mapped::from(matrix()).sizes(), [64, 100]);
        assert_eq!(Mapped::from(matrix()).pitches(), [128]);
    }

    #[test]
    fn what_is_beyond_a_limit_is_refused_and_what_is_at_it_is_not() {
        let taken = |mapped: Mapped| assert_eq!(mapped.check(), Ok(()));
        let refused = |mapped: Mapped, says: &str| {
            let message = mapped.check().expect_err("beyond a limit");
            assert!(message.contains(says), "{message:?} does not say {says:?}");
        };
        taken(matrix().into());
        refused(Matrix { dtype: DType::F32, ..matrix() }.into(), "numbers of f32");
        refused(Matrix { address: Address(4104), ..matrix() }.into(), "the address 0x1008");
        refused(Matrix { address: Address::NULL, ..matrix() }.into(), "the address 0x0");
        refused(Matrix { rows: 0, ..matrix() }.into(), "a size of 0");
        taken(Matrix { rows: 1 << 32, ..matrix() }.into());
        refused(Matrix { rows: (1 << 32) + 1, ..matrix() }.into(), "a size of 4294967297");
        taken(Matrix { pitch: (1 << 40) - 16, ..matrix() }.into());
        refused(Matrix { pitch: 1 << 40, ..matrix() }.into(), "a pitch of 1099511627776");
        refused(Matrix { pitch: 136, ..matrix() }.into(), "a pitch of 136 bytes; it is a multiple of 16");
        refused(Matrix { pitch: 112, ..matrix() }.into(), "a pitch of 112 bytes, and 128 below it");
        taken(Matrix { box_rows: 256, ..matrix() }.into());
        refused(Matrix { box_rows: 257, ..matrix() }.into(), "a box of 257 rows");
        refused(Matrix { box_rows: 0, ..matrix() }.into(), "a box of 0 rows");
        taken(images().into());
        taken(Images { pixels: 1024, ..images() }.into());
        refused(Images { pixels: 1025, ..images() }.into(), "copies of 1025 pixels");
        refused(Images { pixels: 0, ..images() }.into(), "copies of 0 pixels");
        taken(Images { strides: [8, 1], ..images() }.into());
        refused(Images { strides: [9, 1], ..images() }.into(), "a stride of 9");
        refused(Images { strides: [1, 0], ..images() }.into(), "a stride of 0");
        taken(Images { lower: [-128, 2], upper: [127, 127], ..images() }.into());
        refused(Images { lower: [-129, 0], ..images() }.into(), "a corner of the box of pixels at -129");
        refused(Images { upper: [0, 128], ..images() }.into(), "a corner of the box of pixels at 128");
        taken(Images { upper: [-9, 0], ..images() }.into());
        refused(Images { upper: [-10, 0], ..images() }.into(), "a box of pixels from -1 to -10");
        refused(Images { pitches: [9 * 10 * 128 - 16, 10 * 128, 128], ..images() }.into(), "below it");
    }
}
