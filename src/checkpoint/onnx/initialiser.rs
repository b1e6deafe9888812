//! Constants of the graph: parameters, running statistics, and the few numbers that layers need besides. A parameter's numbers
//! are copied when it is written and not before, so that a network does not lie in memory twice.

use std::io::{self, Write};

use prost::Message;

use super::proto::{self, within, write_key};
use crate::checkpoint::to_file_order;
use crate::nn::Model;

#[derive(Clone, Debug, PartialEq)]
pub struct Initialiser {
    pub name: String,
    pub dims: Vec<usize>,
    pub numbers: Numbers,
}

/// Where numbers come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Numbers {
    /// The network's parameter of that index, in the order of files.
    Parameter(usize),
    /// The running mean, or variance, of the batch norm of that index.
    Mean(usize),
    Variance(usize),
    Floats(Vec<f32>),
    Integers(Vec<i64>),
}

/// The key of a tensor's numbers: the field's number, and that a length follows. They are its last field.
const RAW_DATA: u8 = 9 << 3 | 2;

impl Initialiser {
    /// Writes the tensor's message.
    pub fn write(&self, model: &Model, to: &mut dyn Write) -> io::Result<()> {
        to.write_all(&self.without_numbers().encode_to_vec())?;
        write_key(to, RAW_DATA, self.bytes())?;
        let write_floats = |values: &[f32], to: &mut dyn Write| {
            assert_eq!(size_of_val(values), self.bytes(), "the size of {}", self.name);
            to.write_all(bytemuck::cast_slice(values))
        };
        match &self.numbers {
            Numbers::Parameter(index) => {
                let parameter = &model.network.parameters[*index];
                write_floats(&to_file_order(parameter, &model.parameter(parameter).to_vec::<f32>()), to)
            }
            Numbers::Mean(index) => write_floats(&model.running(*index).0.to_vec::<f32>(), to),
            Numbers::Variance(index) => write_floats(&model.running(*index).1.to_vec::<f32>(), to),
            Numbers::Floats(values) => write_floats(values, to),
            Numbers::Integers(values) => to.write_all(bytemuck::cast_slice(values)),
        }
    }

    /// Bytes of the tensor's message.
    pub fn encoded_len(&self) -> usize {
        self.without_numbers().encoded_len() + within(self.bytes())
    }

    /// Bytes of the numbers.
    fn bytes(&self) -> usize {
        let size = if matches!(self.numbers, Numbers::Integers(_)) { size_of::<i64>() } else { size_of::<f32>() };
        size * self.dims.iter().product::<usize>()
    }

    fn without_numbers(&self) -> proto::Tensor {
        let data_type = if matches!(self.numbers, Numbers::Integers(_)) { proto::I64 } else { proto::F32 };
        let dims = self.dims.iter().map(|&size| size as i64).collect();
        proto::Tensor { dims, data_type, name: self.name.clone(), raw_data: Vec::new() }
    }
}
