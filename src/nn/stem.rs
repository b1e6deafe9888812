//! The stem, which stands before the first stage of a network.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::ops::conv2d::Conv2d;

/// A convolution, and max pooling or none. Tensors in a file tell the window alone: of the stems with one window, the first
/// is the usual one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Stem {
    /// 3×3, stride 1.
    #[serde(rename = "3x3")]
    Small,
    /// 3×3, stride 1, then 3×3 max pooling of stride 2.
    #[serde(rename = "3x3-pool")]
    SmallPooled,
    /// 3×3, stride 2.
    #[serde(rename = "3x3-stride2")]
    SmallStrided,
    /// 3×3, stride 2, then 3×3 max pooling of stride 2.
    #[serde(rename = "3x3-stride2-pool")]
    SmallStridedPooled,
    /// 7×7, stride 2, then 3×3 max pooling of stride 2.
    #[serde(rename = "7x7")]
    Large,
}

impl Stem {
    /// With their names in the header of a file and on the command line.
    pub const ALL: [(Stem, &'static str); 5] = [
        (Stem::Small, "3x3"),
        (Stem::SmallPooled, "3x3-pool"),
        (Stem::SmallStrided, "3x3-stride2"),
        (Stem::SmallStridedPooled, "3x3-stride2-pool"),
        (Stem::Large, "7x7"),
    ];

    /// The usual stem of a window, height and width.
    pub fn usual(window: [usize; 2]) -> Option<Stem> {
        Stem::ALL.into_iter().map(|(stem, _)| stem).find(|stem| [stem.window(); 2] == window)
    }

    /// Height and width of the convolution's filters.
    pub fn window(self) -> usize {
        if self == Stem::Large { 7 } else { 3 }
    }

    /// Whether a file's tensors leave it open which of several stems in use is meant. Stems of 7×7 are all of one kind.
    pub fn is_ambiguous(self) -> bool {
        self.window() == 3
    }

    pub(crate) fn convolution(self) -> Conv2d {
        let stride = if matches!(self, Stem::Small | Stem::SmallPooled) { 1 } else { 2 };
        Conv2d::new(stride, self.window() / 2)
    }

    pub(crate) fn is_pooled(self) -> bool {
        !matches!(self, Stem::Small | Stem::SmallStrided)
    }
}

impl fmt::Display for Stem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Stem::ALL.iter().find(|(stem, _)| stem == self).expect("all are listed").1)
    }
}

impl FromStr for Stem {
    type Err = Error;
    fn from_str(name: &str) -> Result<Stem> {
        let found = Stem::ALL.into_iter().find(|(stem, known)| *known == name || stem.window().to_string() == name);
        found.map(|(stem, _)| stem).ok_or_else(|| Error::unknown("stem", name, Stem::ALL.map(|(_, name)| name)))
    }
}
