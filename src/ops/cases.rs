//! The sizes that every check and every measurement of the primitives runs: one table per op, as data.
//!
//! A case is there for the edge its name states. The comments that count slabs, blocks and runs refer to the constants
//! of the CPU implementations: a case that is meant to use several must, so look here when those constants change.

use super::conv2d::{Conv2d, Geometry};
use super::merge::constraint::{Constraint, Mean, Parametrization};
use super::merge::{Choice, Segment, Table};
use super::optimizer::{AdamW, Sgd};
use super::pool::Pool;
use super::softmax_cross_entropy::{CrossEntropy, Form};

/// A convolution. Built as `conv(name, [N, H, W, C], [K, R, S])`, with the rest of its geometry behind.
#[derive(Clone, Copy, Debug)]
pub struct ConvCase {
    pub name: &'static str,
    /// N, H, W, C.
    pub x: [usize; 4],
    /// K, R, S.
    pub filters: [usize; 3],
    pub conv: Conv2d,
    /// Elements behind each filter's row that belong to nobody.
    pub row_padding: usize,
}

const fn conv(name: &'static str, x: [usize; 4], filters: [usize; 3]) -> ConvCase {
    ConvCase { name, x, filters, conv: Conv2d::new(1, 0), row_padding: 0 }
}

impl ConvCase {
    const fn stride(mut self, h: usize, w: usize) -> ConvCase {
        self.conv.stride = [h, w];
        self
    }

    const fn padding(mut self, h: usize, w: usize) -> ConvCase {
        self.conv.padding = [h, w];
        self
    }

    const fn dilation(mut self, h: usize, w: usize) -> ConvCase {
        self.conv.dilation = [h, w];
        self
    }

    const fn groups(mut self, groups: usize) -> ConvCase {
        self.conv.groups = groups;
        self
    }

    const fn row_padding(mut self, elements: usize) -> ConvCase {
        self.row_padding = elements;
        self
    }

    pub fn geometry(&self) -> Geometry {
        let ([_, _, _, c], [k, r, s]) = (self.x, self.filters);
        let channels = c / self.conv.groups;
        Geometry::new(self.conv, self.x.into(), [k, r, s, channels].into(), r * s * channels + self.row_padding)
    }
}

pub const CONV2D: &[ConvCase] = &[
    conv("1×1", [2, 5, 7, 8], [16, 1, 1]),
    conv("1×1, odd channels", [3, 4, 5, 5], [7, 1, 1]),
    conv("1×1, stride 2, last row and column not reached", [2, 6, 8, 6], [10, 1, 1]).stride(2, 2),
    conv("1×1, padded", [1, 3, 4, 3], [4, 1, 1]).padding(1, 1),
    conv("3×3", [2, 7, 9, 8], [16, 3, 3]).padding(1, 1),
    conv("3×3, odd everything, no padding", [1, 5, 5, 3], [5, 3, 3]),
    conv("3×1", [2, 6, 7, 4], [6, 3, 1]).padding(1, 0),
    conv("1×5", [2, 6, 7, 4], [6, 1, 5]).padding(0, 2),
    conv("2×2, even window", [2, 5, 6, 3], [4, 2, 2]).padding(1, 1),
    conv("5×5", [2, 8, 8, 3], [9, 5, 5]).padding(2, 2),
    conv("5×5 over less than its reach", [2, 2, 3, 4], [5, 5, 5]).padding(2, 2),
    conv("7×7 stem, rows 147 → 148", [2, 30, 33, 3], [8, 7, 7]).stride(2, 2).padding(3, 3).row_padding(1),
    conv("7×7 stem of one channel, rows 49 → 52", [1, 17, 20, 1], [8, 7, 7]).stride(2, 2).padding(3, 3).row_padding(3),
    conv("3×3, stride 2", [2, 9, 9, 8], [12, 3, 3]).stride(2, 2).padding(1, 1),
    conv("3×3, stride 2, last row and column not reached", [2, 8, 10, 4], [5, 3, 3]).stride(2, 2),
    conv("3×3, stride 3, two last rows not reached", [2, 11, 10, 4], [6, 3, 3]).stride(3, 3),
    conv("2×2, stride 3, rows between taps not reached", [1, 9, 10, 3], [4, 2, 2]).stride(3, 3),
    conv("stride 1, 2 and padding 0, 1", [2, 7, 8, 3], [5, 3, 3]).stride(1, 2).padding(0, 1),
    conv("stride 3, 1 and padding 2, 0", [2, 8, 7, 3], [5, 3, 3]).stride(3, 1).padding(2, 0),
    conv("dilation 2", [2, 9, 8, 4], [6, 3, 3]).padding(2, 2).dilation(2, 2),
    conv("dilation 3, no padding", [1, 9, 10, 5], [4, 3, 3]).dilation(3, 3),
    conv("dilation 1, 3", [2, 6, 11, 3], [5, 3, 3]).padding(1, 3).dilation(1, 3),
    conv("dilation 2, stride 2", [2, 11, 12, 3], [4, 3, 3]).stride(2, 2).padding(2, 1).dilation(2, 2),
    conv("2 groups", [2, 6, 7, 8], [12, 3, 3]).padding(1, 1).groups(2),
    conv("3 groups, rows 27 → 28", [1, 5, 7, 9], [6, 3, 3]).padding(1, 1).groups(3).row_padding(1),
    conv("4 groups, stride 2, dilation 2", [2, 9, 9, 12], [8, 3, 3])
        .stride(2, 2)
        .padding(2, 2)
        .dilation(2, 2)
        .groups(4),
    conv("4 groups, 1×1", [2, 5, 5, 12], [20, 1, 1]).groups(4),
    conv("depthwise", [2, 7, 8, 10], [10, 3, 3]).padding(1, 1).groups(10),
    conv("depthwise, rows 9 → 12, stride 2", [3, 8, 9, 7], [7, 3, 3])
        .stride(2, 2)
        .padding(1, 1)
        .groups(7)
        .row_padding(3),
    conv("depthwise, dilation 2", [2, 9, 9, 5], [5, 3, 3]).padding(2, 2).dilation(2, 2).groups(5),
    conv("depthwise, 1×5, stride 1, 3", [2, 4, 11, 17], [17, 1, 5]).stride(1, 3).padding(0, 2).groups(17),
    conv("two filters per channel", [2, 6, 6, 5], [10, 3, 3]).padding(1, 1).groups(5),
    conv("three filters per channel, stride 2", [2, 7, 7, 4], [12, 3, 3]).stride(2, 2).padding(1, 1).groups(4),
    conv("one filter", [2, 6, 5, 8], [1, 3, 3]).padding(1, 1),
    conv("one channel, rows 9 → 12", [2, 6, 5, 1], [8, 3, 3]).padding(1, 1).row_padding(3),
    conv("one channel, one filter", [2, 6, 5, 1], [1, 3, 3]).padding(1, 1),
    conv("padding beyond the filter's reach", [2, 4, 5, 3], [4, 3, 3]).padding(3, 3),
    conv("padding beyond the filter's reach in one axis", [1, 5, 4, 3], [4, 3, 3]).padding(1, 4),
    conv("padding beyond the filter's reach, 2 groups, dilation 2", [1, 5, 5, 4], [6, 2, 2])
        .padding(3, 2)
        .dilation(2, 2)
        .groups(2),
    // Channels and filters in eights, which 16-bit storage takes to tensor cores: several tiles of 64 and of 32 summands.
    conv("in eights, 3×3", [3, 9, 8, 24], [72, 3, 3]).padding(1, 1),
    conv("in eights, 3×3, stride 2", [2, 13, 11, 40], [24, 3, 3]).stride(2, 2).padding(1, 1),
    conv("in eights, 1×1, many channels", [2, 6, 7, 136], [80, 1, 1]),
    conv("in eights, 1×1, stride 2", [2, 9, 8, 16], [72, 1, 1]).stride(2, 2),
    conv("in eights, dilation 2, stride 3, 1", [1, 14, 10, 16], [40, 3, 3]).stride(3, 1).padding(2, 1).dilation(2, 2),
    conv("in eights, dilation 2, stride 2", [1, 11, 12, 8], [16, 3, 3]).stride(2, 2).padding(2, 1).dilation(2, 2),
    conv("in eights, 1×1, padded", [1, 4, 5, 8], [24, 1, 1]).padding(1, 1),
    conv("in eights, stride 3 over two rows", [3, 2, 7, 8], [8, 2, 2]).stride(3, 3).padding(1, 1),
    conv("stem of 3 channels, 3×3, three splits", [2, 30, 31, 3], [16, 3, 3]).padding(1, 1),
    conv("stem of 5 channels", [2, 7, 6, 5], [24, 3, 3]).stride(2, 1).padding(1, 1),
    conv("in eights, rows 72 → 80", [2, 7, 7, 8], [16, 3, 3]).padding(1, 1).row_padding(8),
    conv("in eights, two splits", [2, 24, 24, 8], [8, 3, 3]).padding(1, 1),
    // Channels in 64s, which sm_90a takes to products of warpgroups where storage has 16 bits; those whose filters come in 64s in dgrad
    // too: tiles of 128 and of 256 rows that are not full, and filters that end within one.
    conv("in 64s, 1×1", [2, 9, 11, 64], [72, 1, 1]),
    conv("in 64s, 1×1, two tiles of filters", [1, 5, 6, 64], [320, 1, 1]),
    conv("in 64s, 3×3, 130 pixels", [1, 13, 10, 64], [64, 3, 3]).padding(1, 1),
    conv("in 64s, 3×3, rows 1152 → 1160", [3, 5, 4, 128], [128, 3, 3]).padding(1, 1).row_padding(8),
    conv("in 64s, 3×3, stride 2", [3, 15, 13, 64], [40, 3, 3]).stride(2, 2).padding(1, 1),
    conv("in 64s, 1×1, stride 2, last row and column not reached", [2, 8, 10, 64], [64, 1, 1]).stride(2, 2),
    conv("in 64s, 3×3, no padding", [1, 6, 7, 128], [192, 3, 3]),
    conv("in 64s, 2×3, dilation 3, 2, no padding", [2, 8, 9, 64], [64, 2, 3]).dilation(3, 2),
    conv("in 64s, stride 1, 2, padding 3, 1, dilation 2, 1", [2, 6, 9, 64], [24, 3, 2])
        .stride(1, 2)
        .padding(3, 1)
        .dilation(2, 1),
    conv("in 64s, padding beyond the filter's reach", [1, 4, 5, 64], [64, 2, 2]).padding(2, 3),
    conv("single pixels", [4, 1, 1, 16], [8, 3, 3]).padding(1, 1),
    conv("single pixels, 1×1", [2, 1, 1, 5], [3, 1, 1]),
    conv("a single product", [1, 1, 1, 1], [1, 1, 1]),
    conv("one row", [2, 1, 9, 3], [4, 3, 3]).padding(1, 1),
    conv("one column, stride 2", [2, 9, 1, 3], [4, 3, 3]).stride(2, 2).padding(1, 1),
    // 17 slabs of 1024 pixels: wgrad has 16 partial sums of two slabs each, of which seven stay empty.
    conv("17 slabs, 16 partial sums", [17, 32, 32, 3], [5, 3, 3]).padding(1, 1).row_padding(1),
    // 1260 output pixels per image: two slabs in the strided dgrad, and slabs of fprop that cross images.
    conv("two slabs per image, stride 2, 2 groups", [3, 70, 72, 6], [8, 3, 3]).stride(2, 2).padding(1, 1).groups(2),
    // 2736 weights per filter: slabs of the least size, 96 pixels, the last of four pixels.
    conv("many channels", [1, 14, 14, 304], [12, 3, 3]).padding(1, 1),
    // The same for dgrad.
    conv("many filters", [1, 14, 14, 12], [304, 3, 3]).padding(1, 1),
    conv("whole vectors, wide tiles", [5, 24, 23, 80], [96, 1, 2]).stride(2, 2).padding(0, 1).groups(2),
    conv("two narrow tiles side by side", [2, 5, 6, 20], [28, 3, 3]).padding(1, 1),
    conv("depthwise, several images", [5, 12, 12, 20], [20, 3, 3]).padding(1, 1).groups(20),
];

/// A merge of `sources` arenas.
#[derive(Clone, Copy, Debug)]
pub struct MergeCase {
    pub name: &'static str,
    pub sources: usize,
    pub segments: &'static [Segment],
    pub alphas: usize,
    /// Length of the part of the arena that holds filters.
    pub filters_len: usize,
    pub arena_len: usize,
}

impl MergeCase {
    pub fn table(&self) -> Table {
        Table::new(self.segments.to_vec(), self.alphas, self.arena_len).with_filters(self.filters_len)
    }
}

/// Rows × weights per row, `pitch` apart, that take `α[first + row·row_step + column mod period]`.
const fn blended(offset: usize, [rows, row_len, pitch]: [usize; 3], [first, row_step, period]: [usize; 3]) -> Segment {
    Segment { offset, rows, row_len, pitch, choice: Choice::Alpha { first, row_step, period } }
}

/// The same, all of it from one source.
const fn fixed(offset: usize, [rows, row_len, pitch]: [usize; 3], source: usize) -> Segment {
    Segment { offset, rows, row_len, pitch, choice: Choice::Source(source) }
}

/// A network of so many layers that the partial sums of an α are more than the threads of a block.
static VECTORS: [Segment; 600] = {
    let mut segments = [blended(0, [1, 3, 3], [0, 0, 1]); 600];
    let mut i = 0;
    while i < segments.len() {
        // The α between stays unused.
        segments[i] = blended(4 * i, [1, 3, 3], [if i < 560 { 0 } else { 2 }, 0, 1]);
        i += 1;
    }
    segments
};

pub const MERGE: &[MergeCase] = &[
    MergeCase {
        name: "one α for all",
        sources: 2,
        segments: &[blended(0, [8, 27, 28], [0, 0, 1]), blended(224, [1, 8, 8], [0, 0, 1])],
        alphas: 1,
        filters_len: 224,
        arena_len: 232,
    },
    MergeCase {
        name: "one α per layer, gaps before, between and behind",
        sources: 3,
        segments: &[
            blended(5, [4, 9, 12], [0, 0, 1]),
            blended(60, [3, 8, 8], [1, 0, 1]),
            blended(91, [1, 3, 3], [1, 0, 1]),
        ],
        alphas: 2,
        filters_len: 88,
        arena_len: 100,
    },
    MergeCase {
        name: "one α per filter, vectors that share them",
        sources: 2,
        segments: &[
            blended(0, [6, 9, 12], [0, 1, 1]),
            blended(72, [5, 54, 56], [6, 1, 1]),
            blended(352, [1, 6, 6], [0, 0, 6]),
            blended(360, [1, 6, 6], [0, 0, 6]),
        ],
        alphas: 11,
        filters_len: 352,
        arena_len: 368,
    },
    MergeCase {
        name: "one α per kernel, vectors of further α, a single filter",
        sources: 2,
        segments: &[
            blended(0, [5, 18, 20], [0, 2, 2]),
            blended(100, [1, 5, 5], [16, 0, 5]),
            blended(108, [1, 27, 28], [10, 3, 3]),
            blended(136, [3, 1, 4], [13, 1, 1]),
        ],
        alphas: 21,
        filters_len: 100,
        arena_len: 148,
    },
    MergeCase {
        name: "a vector that shares the α of kernels",
        sources: 3,
        segments: &[blended(0, [4, 12, 12], [1, 3, 3]), blended(48, [1, 12, 12], [1, 0, 12])],
        alphas: 14,
        filters_len: 48,
        arena_len: 60,
    },
    MergeCase {
        name: "fixed sources between, unused α",
        sources: 8,
        segments: &[
            fixed(0, [3, 7, 8], 7),
            blended(24, [3, 7, 8], [2, 1, 1]),
            fixed(48, [1, 5, 5], 0),
            blended(56, [2, 4, 4], [6, 2, 2]),
        ],
        alphas: 12,
        filters_len: 48,
        arena_len: 70,
    },
    MergeCase {
        name: "one weight",
        sources: 2,
        segments: &[blended(0, [1, 1, 1], [0, 0, 1])],
        alphas: 1,
        filters_len: 1,
        arena_len: 1,
    },
    MergeCase {
        name: "nothing is learned",
        sources: 2,
        segments: &[fixed(2, [2, 3, 4], 1)],
        alphas: 0,
        filters_len: 0,
        arena_len: 12,
    },
    MergeCase {
        name: "rows that begin anywhere",
        sources: 3,
        segments: &[
            // More of a first group of four is padding than weight.
            blended(1, [3, 1, 4], [0, 1, 1]),
            // Groups of four from the end of one row into the next.
            blended(13, [5, 9, 12], [3, 1, 1]),
            blended(71, [3, 16, 16], [8, 4, 4]),
            blended(120, [3, 12, 13], [20, 4, 4]),
        ],
        alphas: 32,
        filters_len: 71,
        arena_len: 160,
    },
    MergeCase {
        name: "vectors that share two α",
        sources: 2,
        segments: &VECTORS,
        alphas: 3,
        filters_len: 1_200,
        arena_len: 2_401,
    },
    // Three vectors share the α of 300 filters, one more than a block takes along; rows too long for one block.
    MergeCase {
        name: "filters and vectors in several blocks",
        sources: 5,
        segments: &[
            blended(0, [300, 147, 148], [0, 1, 1]),
            blended(44_400, [2, 20_001, 20_004], [300, 0, 1]),
            blended(84_408, [70, 8, 8], [301, 1, 1]),
            blended(84_968, [1, 300, 300], [0, 0, 300]),
            blended(85_268, [1, 300, 300], [0, 0, 300]),
            blended(85_568, [1, 300, 300], [0, 0, 300]),
            blended(85_868, [1, 2, 2], [300, 0, 1]),
            fixed(85_872, [1, 70, 70], 3),
        ],
        alphas: 371,
        filters_len: 84_968,
        arena_len: 85_944,
    },
    MergeCase {
        name: "a single source, at every granularity",
        sources: 1,
        segments: &[
            blended(0, [6, 9, 12], [0, 1, 1]),
            blended(72, [5, 18, 20], [6, 2, 2]),
            blended(172, [4, 27, 28], [16, 0, 1]),
            blended(284, [1, 6, 6], [0, 0, 6]),
            blended(292, [1, 5, 5], [17, 0, 5]),
        ],
        alphas: 22,
        filters_len: 284,
        arena_len: 300,
    },
    // More of them than blocks take along in company, and some that have part of the α.
    MergeCase {
        name: "filters that feed many vectors, as a DenseNet's do",
        sources: 2,
        segments: &[
            blended(0, [6, 9, 12], [0, 1, 1]),
            blended(72, [4, 6, 8], [6, 1, 1]),
            blended(104, [1, 6, 6], [0, 0, 6]),
            blended(112, [1, 6, 6], [0, 0, 6]),
            blended(120, [1, 6, 6], [0, 0, 6]),
            blended(126, [1, 4, 4], [6, 0, 4]),
            blended(132, [1, 6, 6], [0, 0, 6]),
            blended(138, [1, 4, 4], [6, 0, 4]),
            blended(144, [1, 6, 6], [0, 0, 6]),
            blended(152, [1, 6, 6], [0, 0, 6]),
            blended(160, [1, 6, 6], [0, 0, 6]),
            blended(168, [1, 3, 3], [1, 0, 3]),
            blended(172, [1, 3, 3], [1, 0, 3]),
        ],
        alphas: 10,
        filters_len: 104,
        arena_len: 176,
    },
    // Runs of 110 rows, of one row, and of 102 rows.
    MergeCase {
        name: "several runs at every granularity",
        sources: 4,
        segments: &[
            blended(0, [300, 147, 148], [0, 1, 1]),
            blended(44_400, [2, 20_001, 20_004], [300, 0, 1]),
            blended(84_408, [250, 144, 160], [301, 16, 16]),
            blended(124_408, [1, 250, 250], [4_301, 0, 250]),
        ],
        alphas: 4_551,
        filters_len: 84_408,
        arena_len: 124_660,
    },
];

/// Merge weights of `sources` networks from `learned` numbers per row.
#[derive(Clone, Copy, Debug)]
pub struct ConstraintCase {
    pub name: &'static str,
    pub constraint: Constraint,
    pub sources: usize,
    pub anchor: usize,
    pub learned: usize,
    pub means: &'static [Mean],
}

impl ConstraintCase {
    pub fn parametrization(&self) -> Parametrization {
        let ConstraintCase { constraint, sources, anchor, learned, means, .. } = *self;
        Parametrization::new(constraint, sources, anchor, learned, means.to_vec())
    }

    /// Whether integers stay exact: an exponential is not, nor a mean of anything but 2ⁿ numbers.
    pub fn is_exact(&self) -> bool {
        self.constraint != Constraint::Simplex && self.means.iter().all(|mean| mean.period.is_power_of_two())
    }
}

const fn constraint(
    name: &'static str,
    constraint: Constraint,
    [sources, anchor, learned]: [usize; 3],
) -> ConstraintCase {
    ConstraintCase { name, constraint, sources, anchor, learned, means: &[] }
}

impl ConstraintCase {
    const fn means(mut self, means: &'static [Mean]) -> ConstraintCase {
        self.means = means;
        self
    }
}

/// The last α take part in no mean.
const MEANS: &[Mean] = &[Mean { first: 0, rows: 5, period: 4 }, Mean { first: 20, rows: 3, period: 8 }];
/// Periods that divide to no finite binary fraction, a gap between them, α that two means share, and single α.
const ODD_MEANS: &[Mean] = &[
    Mean { first: 1, rows: 4, period: 3 },
    Mean { first: 15, rows: 7, period: 9 },
    Mean { first: 1, rows: 4, period: 3 },
    Mean { first: 80, rows: 6, period: 1 },
];

/// Periods longer than a warp; α in several blocks, one of the means across two of them.
const LONG_MEANS: &[Mean] = &[
    Mean { first: 3, rows: 2, period: 50 },
    Mean { first: 200, rows: 4, period: 64 },
    Mean { first: 600, rows: 5, period: 33 },
];

pub const CONSTRAINT: &[ConstraintCase] = &[
    constraint("affine, 2 sources", Constraint::Affine, [2, 0, 37]),
    constraint("affine, 3 sources, the last one the anchor", Constraint::Affine, [3, 2, 300]),
    constraint("affine, 8 sources, the fourth the anchor", Constraint::Affine, [8, 3, 65]),
    constraint("affine, 2 sources, the second the anchor, means", Constraint::Affine, [2, 1, 50]).means(MEANS),
    constraint("affine, 8 sources, odd means", Constraint::Affine, [8, 5, 90]).means(ODD_MEANS),
    constraint("affine, one α", Constraint::Affine, [2, 0, 1]),
    constraint("affine, several blocks", Constraint::Affine, [3, 1, 20_001]),
    constraint("affine, 3 sources, long means", Constraint::Affine, [3, 1, 800]).means(LONG_MEANS),
    constraint("clamp, 2 sources", Constraint::Clamp, [2, 1, 33]),
    constraint("clamp, 3 sources, means", Constraint::Clamp, [3, 1, 50]).means(MEANS),
    constraint("clamp, 8 sources", Constraint::Clamp, [8, 7, 12]),
    constraint("free, a single source, means", Constraint::Free, [1, 0, 50]).means(MEANS),
    constraint("simplex, 2 sources", Constraint::Simplex, [2, 0, 37]),
    constraint("simplex, 3 sources, means", Constraint::Simplex, [3, 1, 50]).means(MEANS),
    constraint("simplex, 8 sources, odd means", Constraint::Simplex, [8, 6, 90]).means(ODD_MEANS),
    constraint("simplex, several blocks", Constraint::Simplex, [3, 0, 20_001]),
    constraint("simplex, 2 sources, long means", Constraint::Simplex, [2, 0, 800]).means(LONG_MEANS),
    constraint("free, 2 sources", Constraint::Free, [2, 1, 37]),
    constraint("free, 3 sources, odd means", Constraint::Free, [3, 0, 90]).means(ODD_MEANS),
    constraint("free, 8 sources, means", Constraint::Free, [8, 4, 50]).means(MEANS),
];

/// A batch norm of numbers around `mean`, `deviation` wide.
#[derive(Clone, Copy, Debug)]
pub struct BatchNormCase {
    pub name: &'static str,
    /// N, H, W, C.
    pub x: [usize; 4],
    pub mean: f64,
    pub deviation: f64,
    /// How many deviations the very first pixel lies off.
    pub first_pixel: f64,
    /// Whether this is an edge of how the CPU divides the work, and of no other device.
    pub is_of_cpu: bool,
}

const fn norm(name: &'static str, x: [usize; 4]) -> BatchNormCase {
    BatchNormCase { name, x, mean: 0.5, deviation: 1.0, first_pixel: 0.0, is_of_cpu: false }
}

impl BatchNormCase {
    const fn around(mut self, mean: f64, deviation: f64) -> BatchNormCase {
        (self.mean, self.deviation) = (mean, deviation);
        self
    }

    const fn first_pixel(mut self, deviations: f64) -> BatchNormCase {
        self.first_pixel = deviations;
        self
    }

    const fn of_cpu(mut self) -> BatchNormCase {
        self.is_of_cpu = true;
        self
    }
}

pub const BATCH_NORM: &[BatchNormCase] = &[
    norm("one pixel", [1, 1, 1, 4]),
    norm("two pixels, one channel", [2, 1, 1, 1]),
    norm("odd channels", [2, 3, 5, 7]),
    norm("vectors of eight", [3, 6, 6, 32]),
    // Blocks of 16,384 elements.
    norm("three blocks, one channel", [3, 100, 120, 1]).of_cpu(),
    norm("six blocks, the last one short", [5, 33, 31, 19]).of_cpu(),
    norm("more channels than a block has elements", [3, 1, 1, 16_400]).of_cpu(),
    // 256 pixels, or 8 of them; more sums than a small block finishes.
    norm("blocks of one channel, the last one short", [3, 20, 31, 1]),
    norm("many blocks, the last one short", [3, 13, 17, 19]),
    // A block of a GPU takes 32 channels, or 32 vectors of four or eight.
    norm("channels for several blocks, the last one narrow", [3, 1, 2, 520]),
    norm("odd channels for several blocks", [3, 2, 1, 131]),
    // The square of the mean is 10⁶ times the variance: E[x²] − μ² keeps no digit of it.
    norm("mean far from zero", [4, 20, 20, 6]).around(1000.0, 1.0),
    norm("tiny deviation", [4, 20, 20, 6]).around(-3.0, 1e-3),
    norm("first pixel far off", [4, 32, 32, 5]).around(2.0, 0.5).first_pixel(100.0),
];

/// N, H, W, and the channels of each part of a concatenation that a batch norm reads in parts.
pub const PARTS: &[([usize; 3], &[usize])] = &[
    ([2, 1, 1], &[1, 1]),
    // Parts that begin at no multiple of 16 bytes unless there is room between them.
    ([3, 13, 17], &[5, 3, 3, 3]),
    // Vectors of four, and not of eight.
    ([2, 9, 7], &[12, 4, 4]),
    ([2, 5, 6], &[64, 32, 32, 32]),
    ([2, 5, 6], &[8, 16]),
    // Four blocks of 16,384 elements, and several of a GPU.
    ([3, 50, 60], &[4, 2, 2]),
];

/// Sliding windows over N×H×W×C, for max and for average pooling.
#[derive(Clone, Copy, Debug)]
pub struct PoolCase {
    pub name: &'static str,
    pub x: [usize; 4],
    pub pool: Pool,
}

const fn pool(name: &'static str, x: [usize; 4], pool: Pool) -> PoolCase {
    PoolCase { name, x, pool }
}

const fn oblong(window: [usize; 2], stride: [usize; 2], padding: [usize; 2]) -> Pool {
    Pool { window, stride, padding, count_padding: false }
}

pub const POOL: &[PoolCase] = &[
    pool("2×2, stride 2", [2, 8, 6, 8], Pool::new(2, 2, 0)),
    pool("2×2, stride 2, last row not reached", [2, 7, 9, 3], Pool::new(2, 2, 0)),
    pool("3×3, stride 2, padded: the stem's", [2, 13, 12, 5], Pool::new(3, 2, 1)),
    pool("2×2, stride 2, padded", [2, 6, 7, 4], Pool::new(2, 2, 1)),
    pool("2×2, stride 2, padding not counted", [2, 6, 7, 4], oblong([2, 2], [2, 2], [1, 1])),
    pool("4×4, stride 1, padding not counted", [1, 9, 8, 3], oblong([4, 4], [1, 1], [2, 2])),
    pool("overlapping 3×3, stride 1", [2, 6, 6, 7], Pool::new(3, 1, 1)),
    pool("1×4, stride 3, 2", [2, 7, 9, 6], oblong([1, 4], [3, 2], [0, 1])),
    pool("4×2, stride 1, 5", [2, 8, 13, 6], oblong([4, 2], [1, 5], [2, 0])),
    pool("windows apart", [1, 9, 9, 2], Pool::new(2, 4, 0)),
    pool("1×1", [2, 3, 4, 5], Pool::new(1, 1, 0)),
    pool("the whole image", [3, 4, 8, 9], oblong([4, 8], [1, 1], [0, 0])),
    pool("256 taps", [1, 17, 18, 3], Pool::new(16, 1, 8)),
    pool("single pixels", [3, 1, 1, 4], Pool::new(3, 2, 1)),
    pool("several images", [9, 16, 16, 24], Pool::new(3, 2, 1)),
];

/// N, H, W, C of adaptive average pooling, and the pixels it makes of H×W.
pub const ADAPTIVE_POOL: &[([usize; 4], [usize; 2])] = &[
    ([1, 1, 1, 1], [1, 1]),
    ([2, 8, 8, 8], [4, 2]),
    ([2, 7, 7, 5], [3, 4]),
    ([3, 10, 13, 16], [7, 7]),
    // To more pixels than there are.
    ([2, 1, 1, 24], [7, 7]),
    ([2, 2, 3, 6], [5, 4]),
    ([4, 14, 14, 33], [1, 2]),
];

/// N, H, W, C of global average pooling.
pub const GLOBAL_POOL: &[[usize; 4]] = &[[1, 1, 1, 1], [2, 4, 4, 8], [3, 7, 7, 5], [2, 8, 16, 33], [4, 64, 64, 3]];

/// Rows, elements per row, and elements that pad each row.
pub const POINTWISE: &[[usize; 3]] =
    &[[1, 1, 0], [1, 7, 0], [5, 9, 3], [3, 147, 1], [1, 32_768, 0], [1, 32_769, 0], [3, 40_001, 0]];

/// Numbers, the chance of dropping one, and a key.
pub const DROPOUT: &[(usize, f32, [u32; 2])] = &[
    (1, 0.5, [0, 0]),
    (7, 0.5, [1, 2]),
    (4096, 0.5, [u32::MAX, 3]),
    (10_003, 0.25, [5, 6]),
    (40_001, 0.875, [7, u32::MAX]),
    (4_100, 0.0, [8, 9]),
];

/// N, H, W and the channels of each input.
pub const CONCAT: &[([usize; 3], &[usize])] = &[
    ([1, 1, 1], &[1, 1]),
    ([2, 3, 5], &[4]),
    ([2, 3, 4], &[8, 16, 8]),
    ([2, 3, 5], &[3, 8, 1]),
    ([1, 4, 4], &[12, 5, 7, 2]),
    // Blocks of 1024 pixels.
    ([3, 25, 31], &[6, 3]),
];

/// Lengths of vectors: less than 16 bytes, whole ones, and several blocks with a rest.
pub const LENGTHS: &[usize] = &[1, 7, 8, 31, 4096, 10_003];

/// A fully connected layer.
#[derive(Clone, Copy, Debug)]
pub struct LinearCase {
    pub n: usize,
    pub c: usize,
    pub k: usize,
    /// Elements behind each row of the weights.
    pub row_padding: usize,
}

const fn linear(n: usize, c: usize, k: usize, row_padding: usize) -> LinearCase {
    LinearCase { n, c, k, row_padding }
}

pub const LINEAR: &[LinearCase] = &[
    linear(1, 1, 1, 0),
    linear(1, 5, 3, 3),
    linear(7, 16, 10, 0),
    linear(8, 33, 2, 3),
    linear(3, 9, 17, 7),
    linear(64, 512, 100, 0),
];

/// A sample matrix, and one with as many rows that it is multiplied by.
#[derive(Clone, Copy, Debug)]
pub struct GramCase {
    pub name: &'static str,
    /// N, H, W, C.
    pub x: [usize; 4],
    /// For patches: the convolution, and R, S of its filters.
    pub window: Option<(Conv2d, [usize; 2])>,
    pub other: Other,
    /// Whether this is an edge of how the CPU divides the work, and of no other device.
    pub is_of_cpu: bool,
}

/// What a sample matrix is multiplied by.
#[derive(Clone, Copy, Debug)]
pub enum Other {
    Itself,
    /// Pixels of so many channels.
    Pixels(usize),
    /// The pixels of the same image, as many as there are patches.
    ItsPixels,
    /// Patches by the same convolution, of an image of so many channels.
    Patches(usize),
}

const fn gram(name: &'static str, x: [usize; 4], other: Other) -> GramCase {
    GramCase { name, x, window: None, other, is_of_cpu: false }
}

impl GramCase {
    const fn window(mut self, taps: [usize; 2], conv: Conv2d) -> GramCase {
        self.window = Some((conv, taps));
        self
    }

    const fn of_cpu(mut self) -> GramCase {
        self.is_of_cpu = true;
        self
    }
}

const fn by_steps(stride: [usize; 2], padding: [usize; 2], dilation: [usize; 2]) -> Conv2d {
    Conv2d { stride, padding, dilation, groups: 1 }
}

pub const GRAM: &[GramCase] = &[
    gram("one number", [1, 1, 1, 1], Other::Itself),
    gram("one row", [1, 1, 1, 5], Other::Pixels(3)),
    gram("one column", [2, 5, 7, 1], Other::Pixels(1)),
    gram("three columns", [2, 5, 7, 3], Other::Itself),
    gram("odd columns", [2, 5, 7, 13], Other::Pixels(9)),
    gram("in eights", [2, 6, 6, 16], Other::Pixels(24)),
    gram("in eights by odd ones", [2, 6, 6, 8], Other::Pixels(5)),
    // A block of a GPU takes 64 × 64 products.
    gram("several tiles, the last ones narrow", [1, 5, 5, 70], Other::Pixels(132)),
    gram("several tiles of itself", [1, 3, 5, 136], Other::Itself),
    // Of at least 512 rows.
    gram("four splits, the last one short", [3, 20, 31, 3], Other::Pixels(5)),
    gram("four splits, in eights", [3, 20, 31, 8], Other::Itself),
    // Eight warps add splits up: the first one takes two.
    gram("nine splits", [1, 64, 65, 2], Other::Itself),
    // Slabs of 1024 rows and less: 17 of them make 9 parts.
    gram("17 slabs, 9 parts", [17, 32, 31, 3], Other::Pixels(2)).of_cpu(),
    // Bands of 256 rows of the sum.
    gram("a sum in six bands", [1, 3, 2, 1_500], Other::Itself).of_cpu(),
    gram("3×3", [2, 5, 6, 4], Other::Itself).window([3, 3], Conv2d::new(1, 1)),
    gram("3×3 by the pixels it sees", [2, 5, 6, 4], Other::ItsPixels).window([3, 3], Conv2d::new(1, 1)),
    gram("3×3 by what it makes", [2, 7, 8, 3], Other::Pixels(5)).window([3, 3], Conv2d::new(1, 1)),
    gram("3×3 of two images", [2, 5, 6, 3], Other::Patches(5)).window([3, 3], Conv2d::new(1, 0)),
    gram("3×3, stride 2", [2, 9, 8, 5], Other::Itself).window([3, 3], Conv2d::new(2, 1)),
    gram("in eights, 3×3, stride 2", [2, 9, 8, 16], Other::Pixels(8)).window([3, 3], Conv2d::new(2, 1)),
    gram("in eights, 3×3", [1, 6, 5, 8], Other::Itself).window([3, 3], Conv2d::new(1, 1)),
    gram("1×1, stride 2", [2, 7, 8, 6], Other::Pixels(7)).window([1, 1], Conv2d::new(2, 0)),
    gram("1×1, padded", [1, 3, 4, 3], Other::Itself).window([1, 1], Conv2d::new(1, 1)),
    gram("2×3, stride 3, 1, padding 1, 0, dilation 1, 2", [2, 7, 9, 3], Other::Patches(2))
        .window([2, 3], by_steps([3, 1], [1, 0], [1, 2])),
    gram("padding beyond the window's reach", [1, 3, 4, 2], Other::Itself).window([2, 2], Conv2d::new(1, 3)),
    gram("7×7 stem", [1, 17, 20, 3], Other::Pixels(8)).window([7, 7], Conv2d::new(2, 3)),
    gram("3×3, two splits", [2, 24, 24, 2], Other::Pixels(3)).window([3, 3], Conv2d::new(1, 1)),
    gram("3×3 in two tiles and two splits", [1, 24, 24, 9], Other::Itself).window([3, 3], Conv2d::new(1, 1)),
    // 2736 columns: slabs of 96 rows, the last one of four. Parts of so many sums are added up in two blocks.
    gram("patches of many channels", [1, 14, 14, 304], Other::Pixels(7)).window([3, 3], Conv2d::new(1, 1)).of_cpu(),
];

/// A loss over logits that are `scale` wide.
#[derive(Clone, Copy, Debug)]
pub struct CrossEntropyCase {
    pub name: &'static str,
    pub n: usize,
    pub classes: usize,
    /// The weights repeat this list; empty for 1 each.
    pub class_weights: &'static [f64],
    pub label_smoothing: f64,
    pub scale: f64,
    pub form: Form,
}

const fn loss(name: &'static str, [n, classes]: [usize; 2], scale: f64) -> CrossEntropyCase {
    CrossEntropyCase { name, n, classes, class_weights: &[], label_smoothing: 0.0, scale, form: Form::Softmax }
}

impl CrossEntropyCase {
    const fn weights(mut self, class_weights: &'static [f64]) -> CrossEntropyCase {
        self.class_weights = class_weights;
        self
    }

    const fn sigmoid(mut self) -> CrossEntropyCase {
        self.form = Form::Sigmoid;
        self
    }

    const fn smoothing(mut self, label_smoothing: f64) -> CrossEntropyCase {
        self.label_smoothing = label_smoothing;
        self
    }

    pub fn loss(&self) -> CrossEntropy {
        let count = if self.class_weights.is_empty() { 0 } else { self.classes };
        CrossEntropy {
            class_weights: self.class_weights.iter().copied().cycle().take(count).collect(),
            label_smoothing: self.label_smoothing,
            form: self.form,
        }
    }
}

pub const CROSS_ENTROPY: &[CrossEntropyCase] = &[
    loss("one image, two classes", [1, 2], 1.0),
    loss("odd counts", [5, 3], 4.0),
    loss("class weights", [4, 7], 2.0).weights(&[0.5, 2.0, 1.25]),
    loss("smoothed labels", [6, 9], 3.0).smoothing(0.1),
    loss("class weights and smoothed labels", [8, 5], 3.0).weights(&[0.25, 1.0, 3.0]).smoothing(0.2),
    loss("more classes than a warp has threads", [3, 70], 2.0),
    loss("more images than a block has threads", [300, 4], 3.0),
    loss("a batch", [128, 100], 5.0).weights(&[1.0, 0.5]).smoothing(0.1),
    // exp(10⁴) is infinite, exp(−10⁴) zero.
    loss("huge logits", [6, 4], 1e4),
    loss("huge logits, class weights and smoothed labels", [6, 4], 1e4).weights(&[0.5, 2.0]).smoothing(0.1),
];

/// The same with shares as targets.
pub const SOFT_CROSS_ENTROPY: &[CrossEntropyCase] = &[
    loss("one image, two classes, shares", [1, 2], 1.0),
    loss("odd counts, shares", [5, 3], 4.0),
    loss("class weights and smoothed shares", [8, 5], 3.0).weights(&[0.25, 1.0, 3.0]).smoothing(0.2),
    loss("shares of more classes than a warp has threads", [3, 70], 2.0),
    loss("a batch of shares", [128, 100], 5.0).weights(&[1.0, 0.5]).smoothing(0.1),
    loss("huge logits, shares", [6, 4], 1e4).weights(&[0.5, 2.0]).smoothing(0.1),
    loss("one decision", [1, 1], 1.0).sigmoid(),
    loss("odd counts of decisions", [5, 3], 4.0).sigmoid(),
    loss("weights and smoothed decisions", [8, 14], 3.0).sigmoid().weights(&[0.25, 1.0, 3.0]).smoothing(0.2),
    loss("more decisions than a warp has threads", [3, 70], 2.0).sigmoid(),
    loss("a batch of decisions", [300, 14], 5.0).sigmoid().weights(&[1.0, 0.5]),
    loss("huge logits of decisions", [6, 4], 1e4).sigmoid().weights(&[0.5, 2.0]).smoothing(0.1),
];

/// Several updates of `len` parameters, each with a gradient of its own.
#[derive(Clone, Copy, Debug)]
pub struct OptimizerCase {
    pub name: &'static str,
    pub len: usize,
    pub steps: u64,
    pub rule: Rule,
}

#[derive(Clone, Copy, Debug)]
pub enum Rule {
    Sgd(Sgd),
    /// Its step is counted while the case runs.
    AdamW(AdamW),
}

const fn sgd(learning_rate: f64, momentum: f64, weight_decay: f64) -> Rule {
    Rule::Sgd(Sgd { learning_rate, momentum, weight_decay, nesterov: false })
}

const fn adamw(learning_rate: f64, weight_decay: f64) -> Rule {
    Rule::AdamW(AdamW { learning_rate, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay, step: 1 })
}

const NESTEROV: Sgd = Sgd { learning_rate: 0.05, momentum: 0.9, weight_decay: 5e-4, nesterov: true };

/// Beside gradients of order 1, PyTorch's ε of 10⁻⁸ is less than a rounding error.
const LARGE_EPSILON: AdamW =
    AdamW { learning_rate: 1e-2, beta1: 0.8, beta2: 0.95, epsilon: 0.3, weight_decay: 0.05, step: 1 };

pub const OPTIMIZER: &[OptimizerCase] = &[
    OptimizerCase { name: "SGD alone", len: 33, steps: 3, rule: sgd(0.1, 0.0, 0.0) },
    OptimizerCase { name: "SGD", len: 1, steps: 5, rule: sgd(0.05, 0.9, 5e-4) },
    // Blocks of 16,384 elements.
    OptimizerCase { name: "SGD, three blocks", len: 40_001, steps: 4, rule: sgd(0.05, 0.9, 5e-4) },
    OptimizerCase { name: "SGD, Nesterov's", len: 33, steps: 4, rule: Rule::Sgd(NESTEROV) },
    OptimizerCase { name: "AdamW without decay", len: 33, steps: 3, rule: adamw(1e-2, 0.0) },
    OptimizerCase { name: "AdamW", len: 1, steps: 5, rule: adamw(1e-2, 0.05) },
    OptimizerCase { name: "AdamW, large ε", len: 33, steps: 5, rule: Rule::AdamW(LARGE_EPSILON) },
    OptimizerCase { name: "AdamW, three blocks", len: 40_001, steps: 4, rule: adamw(1e-2, 0.05) },
];

#[cfg(test)]
mod tests {
    use super::*;

    /// A case that cannot be built would otherwise show first in whoever runs the table.
    #[test]
    fn cases_can_be_built_and_are_named_once() {
        CONV2D.iter().for_each(|case| assert!(case.geometry().flops() > 0));
        MERGE.iter().for_each(|case| assert!(case.table().arena_len() == case.arena_len));
        let names = |names: Vec<&str>| {
            let unique: std::collections::BTreeSet<&str> = names.iter().copied().collect();
            assert_eq!(unique.len(), names.len(), "two cases of one name");
        };
        names(CONV2D.iter().map(|case| case.name).collect());
        names(MERGE.iter().map(|case| case.name).collect());
        names(CONSTRAINT.iter().map(|case| case.name).collect());
        names(BATCH_NORM.iter().map(|case| case.name).collect());
        names(POOL.iter().map(|case| case.name).collect());
        names(GRAM.iter().map(|case| case.name).collect());
        names(CROSS_ENTROPY.iter().map(|case| case.name).collect());
        names(SOFT_CROSS_ENTROPY.iter().map(|case| case.name).collect());
        names(OPTIMIZER.iter().map(|case| case.name).collect());
    }
}
