//! Activations whose channels lie in one tensor or in several: a concatenation that nobody wrote.

use crate::ops::concat;
use crate::tensor::{DType, Device, Element, Implementation, Shape, Tensor, TensorMut};

/// N×H×W×C₁, N×H×W×C₂, …, read as their concatenation along the channels. Several lie as [`Tensor::parts`] makes them, and
/// those behind the first have equally many channels.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    tensors: &'a [Tensor],
}

/// Where the gradient of [`Parts`] goes: to one tensor for each of them.
pub struct PartsMut<'a> {
    pub tensors: Vec<TensorMut<'a>>,
    /// Whether it is added to what is there.
    pub is_added: bool,
}

impl<'a> From<&'a Tensor> for Parts<'a> {
    fn from(whole: &'a Tensor) -> Parts<'a> {
        Parts { tensors: std::slice::from_ref(whole) }
    }
}

impl<'a> From<&'a [Tensor]> for Parts<'a> {
    /// # Panics
    /// If they are none, or no parts of one whole.
    fn from(tensors: &'a [Tensor]) -> Parts<'a> {
        let parts = Parts { tensors };
        assert!(tensors.len() == 1 || parts.is_regular(), "parts of a concatenation: {:?}", parts.shapes());
        parts
    }
}

impl<'a> From<TensorMut<'a>> for PartsMut<'a> {
    fn from(whole: TensorMut<'a>) -> PartsMut<'a> {
        PartsMut { tensors: vec![whole], is_added: false }
    }
}

impl<'a> Parts<'a> {
    fn is_regular(self) -> bool {
        let [first, rest @ ..] = self.tensors else { return false };
        let of_pixels = rest.iter().all(|part| part.shape().pixels() == first.shape().pixels());
        let alike = rest.windows(2).all(|pair| pair[0].shape() == pair[1].shape());
        of_pixels && alike && Tensor::are_parts(self.tensors)
    }

    pub fn tensors(self) -> &'a [Tensor] {
        self.tensors
    }

    pub fn shapes(self) -> Vec<Shape> {
        self.tensors.iter().map(Tensor::shape).collect()
    }

    /// The whole's.
    pub fn shape(self) -> Shape {
        match self.tensors {
            [whole] => whole.shape(),
            _ => concat::output(&self.shapes()),
        }
    }

    pub fn dtype(self) -> DType {
        self.tensors[0].dtype()
    }

    pub fn device(self) -> Device {
        self.tensors[0].device()
    }

    pub fn implementation(self) -> Implementation {
        self.tensors[0].implementation()
    }

    pub fn bytes(self) -> usize {
        self.tensors.iter().map(Tensor::bytes).sum()
    }

    /// The numbers of the whole.
    pub fn gather<T: Element>(self) -> Vec<T> {
        let shape = self.shape();
        let mut whole = vec![T::default(); shape.len()];
        let mut first = 0;
        for part in self.tensors {
            let channels = part.shape().channels();
            concat::reference::insert(part.data(), channels, &mut whole, shape.channels(), first);
            first += channels;
        }
        whole
    }
}

impl PartsMut<'_> {
    pub fn shapes(&self) -> Vec<Shape> {
        self.tensors.iter().map(TensorMut::shape).collect()
    }

    /// Takes the numbers of a whole of so many channels.
    pub fn scatter<T: Element>(self, whole: &[T], total: usize) {
        let mut first = 0;
        for part in self.tensors {
            let channels = part.shape().channels();
            let part = part.data::<T>();
            let mut own = vec![T::default(); part.len()];
            concat::reference::extract(whole, total, first, &mut own, channels);
            for (part, own) in part.iter_mut().zip(own) {
                *part = if self.is_added { *part + own } else { own };
            }
            first += channels;
        }
    }
}
