//! What a pickle builds. Values lie in one list and name each other by their place in it, so that one which is named twice
//! is there once, one that holds itself is no matter, and none is dropped by recursion.

use safetensors::Dtype;

use super::views::View;

/// The place of a value in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(u32);

#[derive(Debug)]
pub enum Value {
    None,
    Bool(bool),
    Int(i64),
    /// An integer of more than eight bytes, the least significant one first.
    Long(Vec<u8>),
    Float(f64),
    Text(String),
    /// Bytes, which no tensor is made of.
    Bytes,
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A class or a function, by its name alone.
    Class {
        module: String,
        name: String,
    },
    /// What PyTorch would make by calling `class`, and all that it would make it of.
    Object {
        class: Id,
        parts: Vec<Id>,
    },
    Storage(Storage),
    Tensor(Box<View>),
}

/// A run of numbers that lies elsewhere in the file, or a part of one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Storage {
    /// The text that it is called by.
    pub key: Id,
    pub dtype: Dtype,
    /// Bytes of the whole run.
    pub bytes: u64,
    /// Where the part begins and ends, in bytes.
    pub part: (u64, u64),
}

/// All values of one pickle.
#[derive(Debug, Default)]
pub struct Values {
    list: Vec<Value>,
    /// Objects, and what is set on them beside what they hold: `__dict__`.
    pub attributes: Vec<(Id, Id)>,
}

impl Values {
    pub fn add(&mut self, value: Value) -> Id {
        let id = Id(u32::try_from(self.list.len()).expect("steps are counted"));
        self.list.push(value);
        id
    }

    pub fn len(&self) -> usize {
        self.list.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = (Id, &Value)> {
        self.list.iter().enumerate().map(|(at, value)| (Id(at as u32), value))
    }

    pub fn get(&self, id: Id) -> &Value {
        &self.list[id.place()]
    }

    pub fn get_mut(&mut self, id: Id) -> &mut Value {
        &mut self.list[id.place()]
    }

    pub fn text(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn int(&self, id: Id) -> Option<i64> {
        match self.get(id) {
            Value::Int(value) => Some(*value),
            _ => None,
        }
    }

    pub fn tuple(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::Tuple(items) => Some(items),
            _ => None,
        }
    }

    /// The module and the name of a class.
    pub fn class(&self, id: Id) -> Option<(&str, &str)> {
        match self.get(id) {
            Value::Class { module, name } => Some((module, name)),
            _ => None,
        }
    }

    /// A class as messages have it; for what an object made, the object's class.
    pub fn class_name(&self, mut id: Id) -> String {
        loop {
            match self.get(id) {
                Value::Class { module, name } => return format!("{module}.{name}").escape_debug().to_string(),
                // An object is made after its class.
                Value::Object { class, .. } if *class < id => id = *class,
                _ => return "without a name".into(),
            }
        }
    }
}

impl Id {
    pub fn place(self) -> usize {
        self.0 as usize
    }
}
