//! Alignment: a source's units brought into the order of the anchor's, so that what is merged has to do with each other.
//!
//! Filter k of one network has nothing to do with filter k of another that was initialised otherwise, and permuting its units
//! (see [`Units`](crate::nn::Units)) does not change what it computes. So each unit of the anchor gets the partner that is most
//! like it, by an assignment that makes the sum of similarities as large as it can be:
//!
//! | by | similarity of two units | how |
//! |---|---|---|
//! | `weights` | the inner product of everything that they own | [`by_weights`]: all groups in turn, until none gains |
//! | `activations` | the correlation of what they say to the same images | [`by_correlation`]: each group on its own |
//!
//! Units keep their signs: behind a ReLU, a unit and its negative are two different ones.

mod assignment;
mod matching;
mod weights;

pub use matching::{by_correlation, mean_similarity};
pub use weights::by_weights;
