//! Reverse-mode differentiation: a list of what was done, walked backwards.
//!
//! Each op that runs on [`Var`]s appends one closure that turns the gradient of its output into contributions to the
//! gradients of its inputs. [`Tape::backward`] pops the closures in reverse order, so what a closure holds is freed as
//! soon as it has run. A variable that leads to no leaf whose gradient is wanted carries no [`Id`]; ops record nothing
//! for it, hold nothing for it and compute no gradient of it.
//!
//! Parameters of a network are windows into one arena ([`Tape::window`]). Their gradients are written straight into
//! windows of the arena's gradient, which is therefore complete, and in one piece, when the arena's own record runs:
//! merging and the optimiser see one buffer, never a list of layers.
//!
//! Of the first numbers of an arena its record may want something else than the gradient: a [`Projection`] of it, which takes
//! what ops contribute to windows there. Whoever can compute the projection alone contributes that.
//!
//! The tape knows tensors, not ops: each op's record stands beside its formula, in `ops`, and so does the sum of two gradients,
//! which a tape is given when it is made.

use std::any::Any;
use std::collections::BTreeMap;

use crate::tensor::{DType, Device, Shape, Tensor, TensorMut};

/// Which gradient on its tape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id(usize);

/// A value, and where its gradient goes if anybody asked for it.
#[derive(Clone, Debug)]
pub struct Var {
    value: Tensor,
    /// The first numbers of an arena, if they are also, or only, stored in another dtype.
    prefix: Option<Prefix>,
    id: Option<Id>,
}

/// The first numbers of an arena, as ops read them.
#[derive(Clone, Debug)]
struct Prefix {
    values: Tensor,
    /// Where the variable's value begins in the arena: 0, or behind the prefix.
    value_begin: usize,
}

/// The numbers of an arena: in one tensor, or the first apart from the rest.
pub struct Arena {
    value: Tensor,
    prefix: Option<Prefix>,
}

impl Arena {
    pub fn whole(arena: Tensor) -> Arena {
        Arena { value: arena, prefix: None }
    }

    /// `rest` begins at `begin` in the arena.
    pub fn at(begin: usize, first: Tensor, rest: Tensor) -> Arena {
        Arena { value: rest, prefix: Some(Prefix { values: first, value_begin: begin }) }
    }
}

impl Var {
    /// A value whose gradient nobody wants.
    pub fn constant(value: Tensor) -> Var {
        Var { value, prefix: None, id: None }
    }

    /// The value; of an arena whose first numbers are stored apart, all but those.
    pub fn value(&self) -> &Tensor {
        &self.value
    }

    /// The arena with its first `count` numbers stored as `dtype`: itself if they are. Windows into them have
    /// that dtype; their gradients keep the arena's.
    pub fn with_prefix_in(&self, dtype: DType, count: usize) -> Var {
        let stored = self.prefix.as_ref().map_or(self.value.dtype(), |prefix| prefix.values.dtype());
        if stored == dtype {
            return self.clone();
        }
        assert!(self.prefix.is_none(), "the first numbers are stored as {stored}, and {dtype} is asked for");
        let values = self.value.window(0, [count], 1).cast(dtype);
        Var { prefix: Some(Prefix { values, value_begin: 0 }), ..self.clone() }
    }

    /// The same numbers as `dtype`: itself if they are. Its gradient keeps the variable's.
    pub fn read_as(self, dtype: DType) -> Var {
        if self.value.dtype() == dtype { self } else { Var { value: self.value.cast(dtype), ..self } }
    }

    /// The numbers of a window.
    fn cut(&self, offset: usize, shape: Shape, pitch: usize) -> Tensor {
        match &self.prefix {
            Some(prefix) if offset < prefix.values.shape().len() => prefix.values.window(offset, shape, pitch),
            Some(prefix) => self.value.window(offset - prefix.value_begin, shape, pitch),
            None => self.value.window(offset, shape, pitch),
        }
    }

    pub fn into_value(self) -> Tensor {
        self.value
    }

    /// Where the gradient goes; `None` where nobody wants it.
    pub fn id(&self) -> Option<Id> {
        self.id
    }

    pub fn shape(&self) -> Shape {
        self.value.shape()
    }
}

type Backward = Box<dyn FnOnce(Tensor, &mut Gradients)>;

/// Where a window lies in its arena.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub offset: usize,
    pub shape: Shape,
    /// Numbers from row to row.
    pub pitch: usize,
}

/// A projection that is wanted of the gradient of the first numbers of an arena.
pub trait Projection: Any {
    /// How many numbers these are.
    fn covered(&self) -> usize;

    /// A window into them is in use: its gradient may be contributed.
    fn expect(&mut self, window: &Window);

    /// Takes the gradient of a window, which lies as the window does; once or several times.
    fn contribute(&mut self, window: &Window, gradient: &Tensor);

    /// Whether nothing has been contributed.
    fn is_untouched(&self) -> bool;
}

/// Adds a tensor to numbers, whose rows may be padded.
pub type AddAssign = fn(TensorMut, &Tensor);

pub struct Tape {
    slots: Vec<Slot>,
    records: Vec<(Id, Backward)>,
    windows: BTreeMap<(usize, usize), Var>,
    /// Where the next op puts what it computes.
    place: Option<Tensor>,
    add_assign: AddAssign,
}

/// Gradients gathered so far, one slot per [`Id`].
pub struct Gradients {
    slots: Vec<Slot>,
    add_assign: AddAssign,
}

/// A gradient, as far as it is known.
struct Slot {
    shape: Shape,
    dtype: DType,
    device: Device,
    state: State,
}

enum State {
    /// Nothing has been contributed yet.
    Empty,
    Ready(Tensor),
    /// The gradient of an arena, and which stretches of it have been written.
    Arena {
        gradient: Option<Tensor>,
        written: BTreeMap<usize, usize>,
        /// With one, the gradient is that of the arena behind what it covers.
        projection: Option<Box<dyn Projection>>,
    },
    /// A projection, when the gradient of its arena has been taken.
    Projected(Box<dyn Projection>),
    /// A window into an arena's gradient, or into what a projection covers.
    Window {
        arena: Id,
        window: Window,
        is_projected: bool,
    },
}

impl Tape {
    /// An empty one, whose gradients are summed by `add_assign`.
    pub fn summing_by(add_assign: AddAssign) -> Tape {
        Tape { slots: Vec::new(), records: Vec::new(), windows: BTreeMap::new(), place: None, add_assign }
    }

    /// A value whose gradient [`Gradients::take`] will be asked for.
    pub fn leaf(&mut self, value: Tensor) -> Var {
        let id = self.slot(&value, State::Empty);
        Var { value, prefix: None, id: Some(id) }
    }

    /// Lets the next op put its output into `place`, a tensor to be overwritten: an op that asks for its output by
    /// [`Tape::uninit`].
    pub fn place_next(&mut self, place: Tensor) {
        assert!(self.place.is_none(), "the last place was not taken");
        self.place = Some(place);
    }

    /// For the output of an op, to be overwritten: the place that was set aside for it, or a tensor of its own.
    ///
    /// # Panics
    /// If the place is not of this shape and dtype.
    pub fn uninit(&mut self, shape: impl Into<Shape>, dtype: DType, device: Device) -> Tensor {
        let shape = shape.into();
        let Some(place) = self.place.take() else { return Tensor::uninit(shape, dtype, device) };
        let is_for = (place.shape(), place.dtype(), place.device());
        assert_eq!(is_for, (shape, dtype, device), "the place of an output");
        place
    }

    /// The output of an op on `inputs`. `backward` is made, and kept, only if one of the inputs wants a gradient.
    pub fn record(&mut self, value: Tensor, inputs: &[Option<Id>], backward: impl FnOnce() -> Backward) -> Var {
        if inputs.iter().all(Option::is_none) {
            return Var::constant(value);
        }
        let id = self.slot(&value, State::Empty);
        self.records.push((id, backward()));
        Var { value, prefix: None, id: Some(id) }
    }

    /// The same for an op whose output is an arena of `len` numbers. `backward`, which is told the arena's id, gets the
    /// gradient of all of it, or with a `projection` that of the rest: then it takes the projection too.
    pub fn record_arena(
        &mut self,
        arena: Arena,
        len: usize,
        inputs: &[Option<Id>],
        projection: Option<Box<dyn Projection>>,
        backward: impl FnOnce(Id) -> Backward,
    ) -> Var {
        let Arena { value, prefix } = arena;
        if inputs.iter().all(Option::is_none) {
            return Var { value, prefix, id: None };
        }
        let id = self.slot(&value, State::Empty);
        let slot = &mut self.slots[id.0];
        slot.shape = [len - projection.as_ref().map_or(0, |projection| projection.covered())].into();
        if projection.is_some() {
            slot.state = State::Arena { gradient: None, written: BTreeMap::new(), projection };
        }
        self.records.push((id, backward(id)));
        Var { value, prefix, id: Some(id) }
    }

    /// A parameter in an arena. The same window asked for twice is the same variable: its contributions add up.
    /// Windows of one arena must not overlap otherwise.
    pub fn window(&mut self, arena: &Var, offset: usize, shape: impl Into<Shape>, pitch: usize) -> Var {
        let value = arena.cut(offset, shape.into(), pitch);
        let Some(arena) = arena.id else { return Var::constant(value) };
        if let Some(known) = self.windows.get(&(arena.0, offset)) {
            assert_eq!(known.shape(), value.shape(), "two windows of different shape at one offset");
            return known.clone();
        }
        let slot = &mut self.slots[arena.0];
        if let State::Empty = slot.state {
            slot.state = State::Arena { gradient: None, written: BTreeMap::new(), projection: None };
        }
        let dtype = slot.dtype;
        let window = Window { offset, shape: value.shape(), pitch };
        let is_projected = match &mut slot.state {
            State::Arena { projection: Some(projection), .. } if offset < projection.covered() => {
                projection.expect(&window);
                true
            }
            _ => false,
        };
        let id = self.slot(&value, State::Window { arena, window, is_projected });
        self.slots[id.0].dtype = dtype;
        let window = Var { value, prefix: None, id: Some(id) };
        self.windows.insert((arena.0, offset), window.clone());
        window
    }

    /// The projection that takes the gradient of a window, with its arena and where the window lies; `None` where the gradient
    /// itself is wanted, or nothing.
    pub fn projection(&mut self, window: &Var) -> Option<(&mut dyn Projection, Id, Window)> {
        let State::Window { arena, window, is_projected: true } = self.slots[window.id?.0].state else { return None };
        let State::Arena { projection: Some(projection), .. } = &mut self.slots[arena.0].state else { return None };
        Some((projection.as_mut(), arena, window))
    }

    /// The gradients of every leaf with respect to `loss`, a single number.
    pub fn backward(mut self, loss: Var) -> Gradients {
        let mut gradients = Gradients { slots: std::mem::take(&mut self.slots), add_assign: self.add_assign };
        self.windows.clear();
        assert_eq!(loss.shape().len(), 1, "backward starts from a single number, not from {}", loss.shape());
        let Some(id) = loss.id else { return gradients };
        gradients.contribute(id, |seed| seed.fill(1.0));
        drop(loss);
        while let Some((id, backward)) = self.records.pop() {
            if let Some(gradient) = gradients.take_id(id) {
                backward(gradient, &mut gradients);
            }
        }
        gradients
    }

    fn slot(&mut self, value: &Tensor, state: State) -> Id {
        self.slots.push(Slot { shape: value.shape(), dtype: value.dtype(), device: value.device(), state });
        Id(self.slots.len() - 1)
    }
}

impl Gradients {
    /// Hands `fill` a buffer of the gradient's shape, which it must overwrite whole; adds it to what is there.
    pub fn contribute(&mut self, id: Id, fill: impl FnOnce(TensorMut)) {
        let slot = &self.slots[id.0];
        let (shape, dtype, device) = (slot.shape, slot.dtype, slot.device);
        if let State::Window { arena, window, is_projected: true } = slot.state {
            let Window { shape, pitch, .. } = window;
            let mut whole = Tensor::uninit([shape.rows() * pitch], dtype, device);
            fill(whole.view_mut().window(0, shape, pitch));
            let gradient = whole.window(0, shape, pitch);
            let projection = self.projection(arena).expect("a window that is projected");
            return projection.contribute(&window, &gradient);
        }
        if let State::Window { arena, window: Window { offset, pitch, .. }, .. } = slot.state {
            let add_assign = self.add_assign;
            let (gradient, written, begin) = self.arena(arena);
            let offset = offset - begin;
            let mut window = gradient.view_mut().window(offset, shape, pitch);
            let end = offset + (shape.rows() - 1) * pitch + shape.row_len();
            if written.insert(offset, end).is_none() {
                if pitch > shape.row_len() {
                    window.reborrow().fill(0.0);
                }
                return fill(window);
            }
            let mut second = Tensor::uninit(shape, dtype, device);
            fill(second.view_mut());
            return add_assign(window, &second);
        }
        let mut gradient = Tensor::uninit(shape, dtype, device);
        fill(gradient.view_mut());
        self.give(id, gradient);
    }

    /// [`Gradients::contribute`] for who can add to what is there: `fill` is told whether it must, instead of overwriting it.
    pub fn contribute_over(&mut self, id: Id, fill: impl FnOnce(TensorMut, bool)) {
        let state = &mut self.slots[id.0].state;
        match std::mem::replace(state, State::Empty) {
            State::Ready(mut sum) => {
                sum.make_unique();
                fill(sum.view_mut(), true);
                self.slots[id.0].state = State::Ready(sum);
            }
            other => {
                *state = other;
                self.contribute(id, |gradient| fill(gradient, false));
            }
        }
    }

    /// [`Gradients::contribute`] for two gradients that one pass makes; `None` where nobody wants one.
    pub fn contribute_both(&mut self, ids: [Option<Id>; 2], fill: impl FnOnce([Option<TensorMut>; 2])) {
        if let [Some(first), Some(second)] = ids
            && let Some(both) = self.fresh_windows(first, second)
        {
            return fill(both.map(Some));
        }
        let mut apart = ids.map(|id| {
            let Slot { shape, dtype, device, .. } = self.slots[id?.0];
            Some(Tensor::uninit(shape, dtype, device))
        });
        fill(apart.each_mut().map(|gradient| gradient.as_mut().map(Tensor::view_mut)));
        for (id, gradient) in ids.into_iter().flatten().zip(apart.into_iter().flatten()) {
            match self.slots[id.0].state {
                State::Window { .. } => self.contribute(id, |out| out.copy_from(&gradient)),
                _ => self.give(id, gradient),
            }
        }
    }

    /// [`Gradients::contribute`] for the parts of a concatenation: `fill` is told whether it must add to what is there instead
    /// of overwriting it. A buffer for a part whose gradient nobody wants is handed to it all the same.
    pub fn contribute_parts(&mut self, ids: &[Option<Id>], shapes: &[Shape], fill: impl FnOnce(Vec<TensorMut>, bool)) {
        let Some(like) = ids.iter().flatten().next() else { return };
        let Slot { dtype, device, .. } = self.slots[like.0];
        let mut parts = self.take_parts(ids);
        let is_added = parts.is_some();
        let parts = parts.get_or_insert_with(|| Tensor::parts(shapes, dtype, device));
        fill(parts.iter_mut().map(Tensor::view_mut).collect(), is_added);
        for (id, part) in ids.iter().zip(parts.drain(..)) {
            if let Some(id) = id {
                self.give(*id, part);
            }
        }
    }

    /// What has been contributed to each of several tensors, if they lie as parts of one buffer and nobody else reads them.
    fn take_parts(&mut self, ids: &[Option<Id>]) -> Option<Vec<Tensor>> {
        let is_ready = |id: &Option<Id>| id.is_some_and(|id| matches!(self.slots[id.0].state, State::Ready(_)));
        if !ids.iter().all(is_ready) {
            return None;
        }
        let mut parts: Vec<Tensor> = ids.iter().map(|id| self.take_id((*id)?)).collect::<Option<_>>()?;
        if Tensor::are_parts(&parts) && parts.iter_mut().all(Tensor::is_unique) {
            return Some(parts);
        }
        for (id, part) in ids.iter().flatten().zip(parts) {
            self.give(*id, part);
        }
        None
    }

    /// The projection of an arena, for whoever contributes to it alone.
    pub fn projection(&mut self, arena: Id) -> Option<&mut dyn Projection> {
        match &mut self.slots[arena.0].state {
            State::Arena { projection: Some(projection), .. } => Some(projection.as_mut()),
            _ => None,
        }
    }

    /// The projection of an arena, in that arena's record; `None` if it has none.
    pub fn take_projection(&mut self, arena: Id) -> Option<Box<dyn Projection>> {
        let state = &mut self.slots[arena.0].state;
        match std::mem::replace(state, State::Empty) {
            State::Projected(projection) => Some(projection),
            other => {
                *state = other;
                None
            }
        }
    }

    /// Two vectors in one arena of which neither has been written; from now on they count as written.
    fn fresh_windows(&mut self, first: Id, second: Id) -> Option<[TensorMut<'_>; 2]> {
        let window = |id: Id| match self.slots[id.0] {
            Slot { shape, state: State::Window { arena, window: Window { offset, pitch: 1, .. }, .. }, .. } => {
                Some((arena, offset, shape))
            }
            _ => None,
        };
        let ((arena, offset, shape), (other_arena, other_offset, other_shape)) = (window(first)?, window(second)?);
        if arena != other_arena || offset + shape.len() > other_offset {
            return None;
        }
        let (gradient, written, begin) = self.arena(arena);
        let (offset, other_offset) = (offset - begin, other_offset - begin);
        if written.contains_key(&offset) || written.contains_key(&other_offset) {
            return None;
        }
        written.extend([(offset, offset + shape.len()), (other_offset, other_offset + other_shape.len())]);
        let (before, behind) = gradient.view_mut().split_at(other_offset);
        Some([before.window(offset, shape, 1), behind.window(0, other_shape, 1)])
    }

    /// Adds a gradient that is already there as a tensor; the first one is taken over without a copy.
    pub fn give(&mut self, id: Id, gradient: Tensor) {
        let slot = &mut self.slots[id.0];
        assert_eq!(slot.shape, gradient.shape(), "the gradient of a {} came as {}", slot.shape, gradient.shape());
        slot.state = match std::mem::replace(&mut slot.state, State::Empty) {
            State::Empty => State::Ready(gradient),
            State::Ready(mut sum) => {
                sum.make_unique();
                (self.add_assign)(sum.view_mut(), &gradient);
                State::Ready(sum)
            }
            State::Arena { .. } | State::Projected(_) | State::Window { .. } => {
                panic!("an arena's gradient is contributed window by window")
            }
        };
    }

    /// The gradient of a leaf; `None` if nothing depended on it.
    pub fn take(&mut self, var: &Var) -> Option<Tensor> {
        self.take_id(var.id?)
    }

    fn take_id(&mut self, id: Id) -> Option<Tensor> {
        let slot = &mut self.slots[id.0];
        match std::mem::replace(&mut slot.state, State::Empty) {
            State::Ready(gradient) => Some(gradient),
            State::Arena { gradient, written, projection } => {
                let is_projected = projection.as_ref().is_some_and(|projection| !projection.is_untouched());
                if gradient.is_none() && !is_projected {
                    return None;
                }
                let fresh = || Tensor::uninit(slot.shape, slot.dtype, slot.device);
                let mut gradient = gradient.unwrap_or_else(fresh);
                zero_gaps(gradient.view_mut(), slot.shape.len(), &written);
                slot.state = projection.map_or(State::Empty, State::Projected);
                Some(gradient)
            }
            State::Empty | State::Projected(_) | State::Window { .. } => None,
        }
    }

    /// The gradient of an arena, which stretches of it have been written, and where it begins in the arena.
    fn arena(&mut self, id: Id) -> (&mut Tensor, &mut BTreeMap<usize, usize>, usize) {
        let Slot { shape, dtype, device, state } = &mut self.slots[id.0];
        let State::Arena { gradient, written, projection } = state else { panic!("a window into what is no arena") };
        let begin = projection.as_ref().map_or(0, |projection| projection.covered());
        (gradient.get_or_insert_with(|| Tensor::uninit(*shape, *dtype, *device)), written, begin)
    }
}

/// Zeroes what no window covers: padding behind a last row, and parameters that nothing depended on.
fn zero_gaps(mut gradient: TensorMut, len: usize, written: &BTreeMap<usize, usize>) {
    let mut end = 0;
    for (&start, &stop) in written.iter().chain([(&len, &len)]) {
        if start > end {
            gradient.reborrow().window(end, [start - end], 1).fill(0.0);
        }
        end = stop.min(len).max(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(values: &[f64]) -> Tensor {
        Tensor::from_vec(values.to_vec(), [values.len()])
    }

    /// An op for these tests: the sum of `factor · x`.
    fn weighted_sum(tape: &mut Tape, x: &Var, factor: f64) -> Var {
        let value = Tensor::scalar(x.value().to_f64().iter().sum::<f64>() * factor);
        let id = x.id();
        tape.record(value, &[id], || {
            Box::new(move |dy, gradients| {
                gradients.contribute(id.unwrap(), |dx| dx.fill(factor * dy.to_f64()[0]));
            })
        })
    }

    fn sum(tape: &mut Tape, a: &Var, b: &Var) -> Var {
        let value = Tensor::scalar(a.value().to_f64()[0] + b.value().to_f64()[0]);
        let ids = [a.id(), b.id()];
        tape.record(value, &ids, || {
            Box::new(move |dy, gradients| ids.into_iter().flatten().for_each(|id| gradients.give(id, dy.clone())))
        })
    }

    #[test]
    fn contributions_add_up() {
        let mut tape = Tape::new();
        let x = tape.leaf(numbers(&[1.0, 2.0]));
        let (a, b) = (weighted_sum(&mut tape, &x, 3.0), weighted_sum(&mut tape, &x, 4.0));
        let loss = sum(&mut tape, &a, &b);
        let mut gradients = tape.backward(loss);
        assert_eq!(gradients.take(&x).unwrap().to_f64(), [7.0, 7.0]);
    }

    /// Whoever can add is told whether anything is there, and adds to no tensor that somebody else reads.
    #[test]
    fn contributions_over_what_is_there() {
        let mut tape = Tape::new();
        let (x, window) = (tape.leaf(numbers(&[1.0, 2.0])), tape.leaf(numbers(&[0.0; 3])));
        let window = tape.window(&window, 1, [2], 1);
        let mut gradients = tape.backward(Var::constant(Tensor::scalar(0.0)));
        let mut told = Vec::new();
        let mut add = |gradients: &mut Gradients, var: &Var| {
            gradients.contribute_over(var.id().unwrap(), |dx, is_added| {
                told.push(is_added);
                dx.data::<f64>().iter_mut().for_each(|v| *v = if is_added { *v } else { 0.0 } + 1.0);
            });
        };
        add(&mut gradients, &x);
        let first = gradients.take(&x).unwrap();
        gradients.give(x.id().unwrap(), first.clone());
        add(&mut gradients, &x);
        add(&mut gradients, &window);
        add(&mut gradients, &window);
        assert_eq!((first.to_f64(), gradients.take(&x).unwrap().to_f64()), (vec![1.0; 2], vec![2.0; 2]));
        assert_eq!(told, [false, true, false, false]);
    }

    #[test]
    fn nothing_is_recorded_for_constants() {
        let mut tape = Tape::new();
        let x = Var::constant(numbers(&[1.0]));
        let loss = weighted_sum(&mut tape, &x, 3.0);
        assert!(loss.id().is_none() && tape.records.is_empty());
    }

    #[test]
    fn windows_meet_in_the_arena_and_gaps_are_zero() {
        let mut tape = Tape::new();
        let arena = tape.leaf(numbers(&[0.0; 8]));
        let first = tape.window(&arena, 1, [2], 1);
        let second = tape.window(&arena, 4, [3], 1);
        let again = tape.window(&arena, 4, [3], 1);
        let (a, b) = (weighted_sum(&mut tape, &first, 1.0), weighted_sum(&mut tape, &second, 2.0));
        let c = weighted_sum(&mut tape, &again, 3.0);
        let ab = sum(&mut tape, &a, &b);
        let loss = sum(&mut tape, &ab, &c);
        let mut gradients = tape.backward(loss);
        assert_eq!(gradients.take(&arena).unwrap().to_f64(), [0.0, 1.0, 1.0, 0.0, 5.0, 5.0, 5.0, 0.0]);
    }

    #[test]
    fn an_output_goes_where_the_next_op_is_told_to_put_it() {
        let mut tape = Tape::new();
        let place = numbers(&[7.0, 8.0]);
        let address = place.data::<f64>().as_ptr();
        tape.place_next(place);
        let [first, second] = [0; 2].map(|_| tape.uninit([2], DType::F64, Device::Cpu));
        assert_eq!([first, second].map(|output| output.data::<f64>().as_ptr() == address), [true, false]);
    }

    #[test]
    #[should_panic(expected = "the place of an output")]
    fn a_place_of_another_shape_is_no_place() {
        let mut tape = Tape::new();
        tape.place_next(numbers(&[7.0, 8.0]));
        tape.uninit([3], DType::F64, Device::Cpu);
    }

    /// The gradients of two parts, the first of which may be read by somebody else as well: whether each of three contributions
    /// was added where it stood, and what they come to.
    fn parts(is_read: bool) -> ([bool; 3], [Vec<f64>; 2]) {
        let mut tape = Tape::new();
        let parts = [[1.0, 2.0], [3.0, 4.0]].map(|values| tape.leaf(numbers(&values)));
        let mut gradients = tape.backward(Var::constant(Tensor::scalar(0.0)));
        let (ids, shapes) = (parts.each_ref().map(Var::id), [Shape::from([2]); 2]);
        let mut readers = Vec::new();
        // Of both, of the first alone, and of both again.
        let added = [2, 1, 2].map(|count| {
            let mut was_added = false;
            gradients.contribute_parts(&ids[..count], &shapes[..count], |parts, is_added| {
                was_added = is_added;
                for (i, part) in parts.into_iter().enumerate() {
                    part.data::<f64>().iter_mut().for_each(|v| *v = if is_added { *v } else { 0.0 } + (i + 1) as f64);
                }
            });
            if is_read {
                let gradient = gradients.take(&parts[0]).expect("a gradient");
                gradients.give(ids[0].expect("a leaf"), gradient.clone());
                readers.push(gradient);
            }
            was_added
        });
        (added, parts.map(|part| gradients.take(&part).expect("a gradient").to_f64()))
    }

    #[test]
    fn contributions_to_parts_are_added_where_they_stand() {
        let sums = [vec![3.0; 2], vec![4.0; 2]];
        assert_eq!(parts(false), ([false, true, true], sums.clone()));
        assert_eq!(parts(true), ([false; 3], sums));
    }

    #[test]
    fn what_a_record_holds_is_freed_when_it_has_run() {
        let mut tape = Tape::new();
        let x = tape.leaf(numbers(&[1.0]));
        let mut held = numbers(&[5.0]);
        let inner = held.clone();
        let y = weighted_sum(&mut tape, &x, 1.0);
        let id = y.id().unwrap();
        let z = tape.record(numbers(&[0.0]), &[y.id()], || {
            Box::new(move |dy, gradients| {
                let _held = inner;
                gradients.give(id, dy);
            })
        });
        assert!(!held.is_unique());
        tape.backward(z);
        assert!(held.is_unique());
    }
}
