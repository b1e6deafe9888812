//! The products of a merged arena's filters with the sources', gathered in place of the filters' gradient.

use std::any::Any;
use std::collections::BTreeMap;

use crate::ops::pointwise;
use crate::tape::{self, Gradients, Id, Projection, Tape, Var, Window};
use crate::tensor::{Tensor, TensorMut};

/// Products that were contributed to the window at `offset`, whose sum over the parts counts: parts × M × filters numbers,
/// from `at` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Term {
    pub offset: usize,
    pub filters: usize,
    pub at: usize,
    pub parts: usize,
}

/// A place for the products of one op with a window's filters.
#[derive(Clone, Copy, Debug)]
pub struct Reservation {
    arena: Id,
    window: Window,
    term: Term,
}

/// A projection onto M frozen arenas of the same layout.
pub(super) struct OfSources {
    sources: Vec<Tensor>,
    filters_len: usize,
    /// Numbers that places have been reserved for.
    reserved: usize,
    /// Where the products go of what is contributed as a gradient, by the window's offset.
    places: BTreeMap<usize, usize>,
    sums: Option<Tensor>,
    terms: Vec<Term>,
}

impl OfSources {
    pub fn new(sources: Vec<Tensor>, filters_len: usize) -> OfSources {
        OfSources { sources, filters_len, reserved: 0, places: BTreeMap::new(), sums: None, terms: Vec::new() }
    }

    fn reserve(&mut self, count: usize) -> usize {
        self.reserved += count;
        self.reserved - count
    }

    /// The sums that came, and where they lie.
    pub fn into_sums(self) -> (Tensor, Vec<Term>) {
        let like = &self.sources[0];
        (self.sums.unwrap_or_else(|| Tensor::uninit([0], like.dtype(), like.device())), self.terms)
    }

    /// Hands `fill` the sources' filters, each as the window lies, and parts × M × K numbers, which it must overwrite whole.
    fn add(&mut self, window: &Window, term: Term, fill: impl FnOnce(&[Tensor], TensorMut)) {
        let (dtype, device) = (self.sources[0].dtype(), self.sources[0].device());
        let filters = |source: &Tensor| source.window(term.offset, window.shape, window.pitch);
        let sources: Vec<Tensor> = self.sources.iter().map(filters).collect();
        let sums = self.sums.get_or_insert_with(|| Tensor::uninit([self.reserved], dtype, device));
        let all = [term.parts, sources.len(), term.filters];
        let to = sums.view_mut().window(term.at, all, sources.len() * term.filters);
        if !self.terms.contains(&term) {
            self.terms.push(term);
            return fill(&sources, to);
        }
        let mut second = Tensor::uninit(all, dtype, device);
        fill(&sources, second.view_mut());
        pointwise::add_assign(to, &second);
    }
}

impl Projection for OfSources {
    fn covered(&self) -> usize {
        self.filters_len
    }

    fn expect(&mut self, window: &Window) {
        let at = self.reserve(self.sources.len() * window.shape.rows());
        self.places.insert(window.offset, at);
    }

    fn contribute(&mut self, window: &Window, gradient: &Tensor) {
        let filters = window.shape.rows();
        let term = Term { offset: window.offset, filters, at: self.places[&window.offset], parts: 1 };
        self.add(window, term, |sources, products| {
            super::products(gradient, sources, products.window(0, [sources.len(), filters], filters));
        });
    }

    fn is_untouched(&self) -> bool {
        self.sums.is_none()
    }
}

fn of_sources(projection: &mut dyn tape::Projection) -> &mut OfSources {
    (projection as &mut dyn Any).downcast_mut().expect("of an arena that was merged")
}

impl Tape {
    /// A place for products, where they are what is wanted of a window's gradient: for [`Gradients::contribute_products`],
    /// once, instead of [`Gradients::contribute`]. `parts` says into how many they come for so many sources.
    pub fn reserve_products(&mut self, window: &Var, parts: impl FnOnce(usize) -> usize) -> Option<Reservation> {
        let (projection, arena, window) = self.projection(window)?;
        let (projection, filters) = (of_sources(projection), window.shape.rows());
        let parts = parts(projection.sources.len());
        let at = projection.reserve(parts * projection.sources.len() * filters);
        Some(Reservation { arena, window, term: Term { offset: window.offset, filters, at, parts } })
    }
}

impl Gradients {
    /// Hands `fill` the sources' filters, each as the window's value is laid out, and parts × M × K numbers, which it must
    /// overwrite whole: their sum over the parts is added to the products of the window's gradient with the sources.
    pub fn contribute_products(&mut self, place: Reservation, fill: impl FnOnce(&[Tensor], TensorMut)) {
        let projection = self.projection(place.arena).expect("products of what is a merge");
        of_sources(projection).add(&place.window, place.term, fill);
    }

    /// The products of a merged arena's filters, and where they lie, in the record of that arena; `None` if it has no
    /// projection.
    pub(super) fn take_products(&mut self, arena: Id) -> Option<(Tensor, Vec<Term>)> {
        let projection: Box<dyn Any> = self.take_projection(arena)?;
        let of_sources: Box<OfSources> = projection.downcast().expect("of an arena that was merged");
        Some(of_sources.into_sums())
    }
}
