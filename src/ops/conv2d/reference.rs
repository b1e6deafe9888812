//! The definition of the three passes: one loop nest, three places to add.

use super::Geometry;
use crate::tensor::Element;

/// Calls `visit(y, x, w)` with the flat indices of every product that fprop sums.
fn for_each_product(g: &Geometry, mut visit: impl FnMut(usize, usize, usize)) {
    let (group_channels, group_filters) = (g.group_channels(), g.k / g.conv.groups);
    for n in 0..g.n {
        for p in 0..g.p {
            for q in 0..g.q {
                for k in 0..g.k {
                    let first_channel = k / group_filters * group_channels;
                    for r in 0..g.r {
                        let Some(h) = g.input_row(p, r) else { continue };
                        for s in 0..g.s {
                            let Some(w) = g.input_column(q, s) else { continue };
                            for c in 0..group_channels {
                                visit(
                                    ((n * g.p + p) * g.q + q) * g.k + k,
                                    ((n * g.h + h) * g.w + w) * g.c + first_channel + c,
                                    k * g.pitch + (r * g.s + s) * group_channels + c,
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}

/// `x` N×H×W×C, `w` K×R×S×C/G with rows `g.pitch` apart, `y` N×P×Q×K.
pub fn fprop<T: Element>(g: &Geometry, x: &[T], w: &[T], y: &mut [T]) {
    y.fill(T::default());
    for_each_product(g, |iy, ix, iw| y[iy] += x[ix] * w[iw]);
}

/// Adds `bias` to each pixel of `y`; a `relu` makes zero of what is below it then.
pub fn finish<T: Element>(bias: &[T], relu: bool, y: &mut [T]) {
    for (y, &bias) in y.iter_mut().zip(bias.iter().cycle()) {
        *y += bias;
        if relu && *y <= T::default() {
            *y = T::default();
        }
    }
}

pub fn dgrad<T: Element>(g: &Geometry, dy: &[T], w: &[T], dx: &mut [T]) {
    dx.fill(T::default());
    for_each_product(g, |iy, ix, iw| dx[ix] += dy[iy] * w[iw]);
}

pub fn wgrad<T: Element>(g: &Geometry, x: &[T], dy: &[T], dw: &mut [T]) {
    for filter in dw.chunks_mut(g.pitch) {
        filter[..g.filter_len()].fill(T::default());
    }
    for_each_product(g, |iy, ix, iw| dw[iw] += dy[iy] * x[ix]);
}
