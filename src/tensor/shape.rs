//! Up to four dimensions, outermost first.

use std::fmt;

/// A list of at most four sizes. Activations are N, H, W, C; filters K, R, S, C.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    dims: [usize; 4],
    rank: u8,
}

impl Shape {
    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.rank as usize]
    }

    pub fn rank(&self) -> usize {
        self.rank as usize
    }

    /// How many elements.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.dims().iter().product()
    }

    /// Size of the first dimension.
    pub fn rows(&self) -> usize {
        self.dims().first().copied().unwrap_or(1)
    }

    /// Elements behind one index of the first dimension.
    pub fn row_len(&self) -> usize {
        self.dims().iter().skip(1).product()
    }

    /// The four sizes of an activation or a filter bank.
    ///
    /// # Panics
    /// If there are not four.
    pub fn four(&self) -> [usize; 4] {
        assert_eq!(self.rank, 4, "{self} does not have four dimensions");
        self.dims
    }

    /// Elements in all dimensions but the last: the rows of a matrix whose columns are the channels.
    pub fn pixels(&self) -> usize {
        self.dims()[..self.rank() - 1].iter().product()
    }

    /// Size of the last dimension.
    pub fn channels(&self) -> usize {
        *self.dims().last().expect("a scalar has no channels")
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(sizes: [usize; N]) -> Shape {
        Shape::from(&sizes[..])
    }
}

impl From<&[usize]> for Shape {
    fn from(sizes: &[usize]) -> Shape {
        assert!(sizes.len() <= 4, "a shape has at most four dimensions, not {sizes:?}");
        let mut dims = [1; 4];
        dims[..sizes.len()].copy_from_slice(sizes);
        Shape { dims, rank: sizes.len() as u8 }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sizes: Vec<String> = self.dims().iter().map(usize::to_string).collect();
        write!(f, "[{}]", sizes.join(", "))
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
