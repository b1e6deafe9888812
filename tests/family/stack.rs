//! A family that the library does not know: a plain stack of convolutions with biases, and a hidden linear layer.

use std::fmt;

use medmerge::nn::{Family, NetworkBuilder, Operation};
use medmerge::ops::conv2d::Conv2d;
use medmerge::ops::pool::Pool;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stack {
    /// Filters of each convolution.
    pub widths: Vec<usize>,
    /// Outputs of the hidden layer.
    pub hidden: usize,
}

impl Family for Stack {
    const NAME: &'static str = "stack";

    fn check(&self, input_channels: usize) -> Result<(), String> {
        let mut sizes = self.widths.iter().chain([&self.hidden, &input_channels]);
        match sizes.find(|size| !(1..=4096).contains(*size)) {
            Some(size) => Err(format!("a layer of {size} channels")),
            None if self.widths.is_empty() => Err("a stack of no convolution".into()),
            None => Ok(()),
        }
    }

    fn build(&self, b: &mut NetworkBuilder, classes: usize) {
        let mut x = b.input();
        for (index, &filters) in self.widths.iter().enumerate() {
            x = b.conv2d_with_bias(&format!("features.{index}"), x, filters, 3, Conv2d::new(1, 1));
            x = b.plain(&format!("relu{index}"), Operation::Relu, &[x]);
            x = b.plain(&format!("pool{index}"), Operation::MaxPool(Pool::new(2, 2, 0)), &[x]);
        }
        x = b.plain("avgpool", Operation::GlobalAveragePool, &[x]);
        x = b.hidden_linear("hidden", x, self.hidden);
        x = b.plain("hidden.relu", Operation::Relu, &[x]);
        b.linear("classifier", x, classes);
    }
}

impl fmt::Display for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stack of {:?}, hidden {}", self.widths, self.hidden)
    }
}
