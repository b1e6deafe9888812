//! Where the numbers of an input or an output lie, and which ones a check puts there.

use std::ops::Range;

use crate::ops::merge::Table;
use crate::tensor::{DType, Device, Shape};

/// Which implementation runs: the one for tensors on this device, with activations of this dtype.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Execution {
    pub device: Device,
    pub dtype: DType,
}

impl Execution {
    /// The definition of every op.
    pub const REFERENCE: Execution = Execution { device: Device::Cpu, dtype: DType::F64 };
    /// The fast forms on the CPU.
    pub const CPU: Execution = Execution { device: Device::Cpu, dtype: DType::F32 };

    pub(super) fn dtype_of(self, role: Role) -> DType {
        match (self.dtype, role) {
            (DType::F64, _) => DType::F64,
            (dtype, Role::Activation) => dtype,
            (_, Role::F32) => DType::F32,
        }
    }
}

/// The role by which an operand is stored, except in the reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// As activations are, and as the copy of a convolution's weights that it computes with.
    Activation,
    /// As `f32`, whatever activations are: parameters and their gradients, statistics, logits, merge weights.
    F32,
}

/// A tensor, and which of its elements count. The others of an input are NaN, so that reading one shows in the result;
/// the others of an output must stay as they are.
#[derive(Clone, Debug)]
pub struct Layout {
    pub(super) shape: Shape,
    pub(super) pitch: usize,
    pub(super) role: Role,
    /// Whether it begins anywhere in an arena, not at a buffer's start: at a multiple of four elements.
    pub(super) in_arena: bool,
    pub(super) covered: Vec<Range<usize>>,
}

impl Layout {
    pub fn dense(shape: impl Into<Shape>) -> Layout {
        let shape = shape.into();
        let covered = std::iter::once(0..shape.len()).collect();
        Layout { shape, pitch: shape.row_len(), role: Role::Activation, in_arena: false, covered }
    }

    /// Rows that lie `pitch` apart.
    pub fn padded(shape: impl Into<Shape>, pitch: usize) -> Layout {
        let shape = shape.into();
        let covered = (0..shape.rows()).map(|row| row * pitch..row * pitch + shape.row_len()).collect();
        Layout { pitch, covered, ..Layout::dense(shape) }
    }

    /// The channels from `first` on, `channels` of them, of every pixel.
    pub fn channels(shape: impl Into<Shape>, first: usize, channels: usize) -> Layout {
        let shape = shape.into();
        let pixel = |pixel| pixel * shape.channels() + first..pixel * shape.channels() + first + channels;
        Layout { covered: (0..shape.pixels()).map(pixel).collect(), ..Layout::dense(shape) }
    }

    /// The weights of an arena that a merge reads.
    pub fn of_table(table: &Table) -> Layout {
        let rows = table.segments().iter().flat_map(|segment| {
            (0..segment.rows).map(|row| {
                let start = segment.offset + row * segment.pitch;
                start..start + segment.row_len
            })
        });
        Layout { covered: rows.collect(), ..Layout::dense([table.arena_len()]) }.in_arena()
    }

    pub fn in_arena(self) -> Layout {
        Layout { in_arena: true, ..self }
    }

    pub fn in_f32(self) -> Layout {
        Layout { role: Role::F32, ..self }
    }

    /// Elements from the first to the last.
    pub(super) fn len(&self) -> usize {
        match self.shape.rows() {
            0 => 0,
            rows => (rows - 1) * self.pitch + self.shape.row_len(),
        }
    }

    /// Indices of the elements that count.
    pub(super) fn indices(&self) -> impl Iterator<Item = usize> {
        self.covered.iter().flat_map(Clone::clone)
    }
}

/// The distribution of random numbers. Integers take the place of all but whole numbers and zeros.
#[derive(Clone, Copy, Debug)]
pub enum Values {
    /// Uniform within `spread` of `centre`.
    Around {
        centre: f64,
        spread: f64,
    },
    /// The same, but for the first row of `row` elements, which lies `offset` off.
    FirstOff {
        centre: f64,
        spread: f64,
        row: usize,
        offset: f64,
    },
    /// Whole numbers below this one.
    Below(u64),
    Zero,
}

#[derive(Clone, Debug)]
pub struct Input {
    pub layout: Layout,
    pub values: Values,
}

impl Input {
    /// Numbers in [−1, 1).
    pub fn unit(layout: Layout) -> Input {
        Input::around(layout, 0.0, 1.0)
    }

    pub fn around(layout: Layout, centre: f64, spread: f64) -> Input {
        Input { layout, values: Values::Around { centre, spread } }
    }

    /// Whole numbers, which an op takes as integers.
    pub fn below(layout: Layout, end: u64) -> Input {
        Input { layout: layout.in_f32(), values: Values::Below(end) }
    }
}

#[derive(Clone, Debug)]
pub enum Output {
    /// Starts as NaN.
    Fresh(Layout),
    /// Starts as a copy of the input with this index.
    Over(usize),
}

impl From<Layout> for Output {
    fn from(layout: Layout) -> Output {
        Output::Fresh(layout)
    }
}
