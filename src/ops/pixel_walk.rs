//! How a block of a GPU kernel walks over a matrix of pixels × C: the host's side of `kernels/pixel_walk.cuh`.

use crate::gpu::Address;
use crate::tensor::DType;

/// Threads of a block.
pub const THREADS: u32 = 256;

/// Part of the parameters of a kernel.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub struct PixelWalk {
    pixels: u32,
    channels: u32,
    /// Threads side by side, each with a unit of channels.
    columns: u32,
    /// Pixels per block.
    pub span: u32,
    /// Whether a unit is 16 bytes of storage instead of one element.
    vectorised: u32,
    padding: u32,
}
const _: () = assert!(size_of::<PixelWalk>() == 24);

/// How the work is divided between the blocks and within them.
#[derive(Clone, Copy)]
pub struct Division {
    /// As many as fill a GPU: before there are so many, no thread has more than one pixel.
    pub blocks: usize,
    /// The most pixels of one thread.
    pub pixels: usize,
}

impl PixelWalk {
    /// For activations of `dtype` at `activations`, whose channels lie in runs of these lengths, and `f32` per channel at
    /// `per_channel`. No unit lies in two runs.
    pub fn new(
        [pixels, channels]: [usize; 2],
        runs: &[usize],
        dtype: DType,
        activations: &[Address],
        per_channel: &[Address],
        division: Division,
    ) -> PixelWalk {
        let vectorises = runs.iter().all(|run| run.is_multiple_of(16 / dtype.size()));
        let mut walk = PixelWalk::whole([pixels, channels], pixels, dtype, vectorises, &[activations, per_channel]);
        let rows = (THREADS / walk.columns) as usize;
        let [_, chunks, _] = walk.grid(dtype);
        let blocks = pixels.div_ceil(rows) * chunks as usize;
        let pixels_each = (blocks / division.blocks).clamp(1, division.pixels);
        walk.span = dim(rows * pixels_each);
        walk
    }

    /// A block for every `span` pixels, an image, in each chunk of the channels.
    pub fn of_image(
        [pixels, channels]: [usize; 2],
        span: usize,
        dtype: DType,
        activations: &[Address],
        per_channel: &[Address],
    ) -> PixelWalk {
        PixelWalk::whole([pixels, channels], span, dtype, true, &[activations, per_channel])
    }

    fn whole(
        [pixels, channels]: [usize; 2],
        span: usize,
        dtype: DType,
        vectorises: bool,
        addresses: &[&[Address]; 2],
    ) -> PixelWalk {
        let aligned = addresses.iter().copied().flatten().all(|address| address.0.is_multiple_of(16));
        let vectorised = vectorises && aligned && channels.is_multiple_of(16 / dtype.size());
        let unit = if vectorised { 16 / dtype.size() } else { 1 };
        let columns = (channels / unit).next_power_of_two().min(32);
        // Kernels add a span to a pixel in 32 bits.
        assert!(pixels < 1 << 31, "{pixels} pixels in a batch");
        PixelWalk {
            pixels: dim(pixels),
            channels: dim(channels),
            columns: dim(columns),
            span: dim(span),
            vectorised: vectorised.into(),
            padding: 0,
        }
    }

    /// Whether units are 16 bytes of storage.
    pub fn is_vectorised(&self) -> bool {
        self.vectorised == 1
    }

    /// Splits of the pixels.
    pub fn splits(&self) -> u32 {
        self.pixels.div_ceil(self.span)
    }

    /// Splits of the pixels × chunks of the channels.
    pub fn grid(&self, dtype: DType) -> [u32; 3] {
        let unit = if self.vectorised == 1 { 16 / dtype.size() as u32 } else { 1 };
        [self.splits(), (self.channels / unit).div_ceil(self.columns), 1]
    }
}

fn dim(size: usize) -> u32 {
    u32::try_from(size).expect("sizes below 2³²")
}
