//! Tensor maps of the emulator: what `kernels/emulator/hopper.h` reads of one, in the 128 bytes of the driver's.

use crate::gpu::tensor_map::{Images, Mapped, TensorMap};

/// The twin of `Map` in `hopper.h`, which says what the fields are; from the innermost dimension on.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Map {
    address: u64,
    pitch: [u64; 3],
    size: [u32; 4],
    lower: [i32; 2],
    upper: [i32; 2],
    lines: [u32; 2],
    stride: [u32; 2],
    kind: u32,
    element_bytes: u32,
    rest: [u64; 5],
}

/// `MAP_OF_BOX` and `MAP_OF_PATCHES`.
const KINDS: [u32; 2] = [0x62_6F78, 0x70_6978];

pub fn encode(mapped: &Mapped) -> TensorMap {
    let mut map = Map {
        address: mapped.address().0,
        pitch: [0; 3],
        size: [1; 4],
        lower: [0; 2],
        upper: [0; 2],
        lines: [mapped.line(), mapped.lines()],
        stride: [1; 2],
        kind: KINDS[0],
        element_bytes: mapped.dtype().size() as u32,
        rest: [0; 5],
    };
    // A size of 2³² is one that no copy's coordinates reach the end of.
    let sizes = mapped.sizes();
    map.size.iter_mut().zip(sizes).for_each(|(to, size)| *to = size.min(u64::from(u32::MAX)) as u32);
    map.pitch.iter_mut().zip(mapped.pitches()).for_each(|(to, pitch)| *to = pitch);
    if let Mapped::Images(Images { lower: [top, left], upper: [bottom, right], strides: [h, w], .. }) = *mapped {
        (map.lower, map.upper, map.stride, map.kind) = ([left, top], [right, bottom], [w, h], KINDS[1]);
    }
    bytemuck::cast(map)
}
