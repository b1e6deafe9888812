//! The machine that a pickle is a program for, with the opcodes of protocols 2 to 5 that data needs.
//!
//! Nothing is run: where Python would call a function or make an object, [`calls`] makes a tensor of what PyTorch makes
//! tensors of, and an object without behaviour of all else. Every step takes a bounded amount of memory beside the bytes
//! that it reads, and steps are counted.
//!
//! [`calls`]: super::calls

use std::collections::HashMap;
use std::io::{self, BufRead, Read};

use super::values::{Id, Value, Values};
use super::{Fault, Result, broken, calls};

// The crate serde-pickle is not used: it has no persistent ids, which storages are named by.

/// Bytes that a step may take in memory.
const STEP: u64 = 128;
/// Steps that the largest networks do not need, and those that are taken with however little memory.
const MAX_STEPS: u64 = 10_000_000;
const FREE_STEPS: u64 = 100_000;
/// The longest name of a module or a class, or digits of a number.
const MAX_LINE: u64 = 1000;

mod opcode {
    pub const PROTO: u8 = 0x80;
    pub const FRAME: u8 = 0x95;
    pub const STOP: u8 = b'.';

    pub const MARK: u8 = b'(';
    pub const POP: u8 = b'0';
    pub const POP_MARK: u8 = b'1';
    pub const DUP: u8 = b'2';
    pub const BINGET: u8 = b'h';
    pub const LONG_BINGET: u8 = b'j';
    pub const BINPUT: u8 = b'q';
    pub const LONG_BINPUT: u8 = b'r';
    pub const MEMOIZE: u8 = 0x94;

    pub const NONE: u8 = b'N';
    pub const NEWTRUE: u8 = 0x88;
    pub const NEWFALSE: u8 = 0x89;
    pub const INT: u8 = b'I';
    pub const BININT: u8 = b'J';
    pub const BININT1: u8 = b'K';
    pub const BININT2: u8 = b'M';
    pub const LONG1: u8 = 0x8a;
    pub const LONG4: u8 = 0x8b;
    pub const BINFLOAT: u8 = b'G';
    pub const BINSTRING: u8 = b'T';
    pub const SHORT_BINSTRING: u8 = b'U';
    pub const BINUNICODE: u8 = b'X';
    pub const SHORT_BINUNICODE: u8 = 0x8c;
    pub const BINUNICODE8: u8 = 0x8d;
    pub const BINBYTES: u8 = b'B';
    pub const SHORT_BINBYTES: u8 = b'C';
    pub const BINBYTES8: u8 = 0x8e;
    pub const BYTEARRAY8: u8 = 0x96;

    pub const EMPTY_LIST: u8 = b']';
    pub const LIST: u8 = b'l';
    pub const APPEND: u8 = b'a';
    pub const APPENDS: u8 = b'e';
    pub const EMPTY_TUPLE: u8 = b')';
    pub const TUPLE: u8 = b't';
    pub const TUPLE1: u8 = 0x85;
    pub const TUPLE2: u8 = 0x86;
    pub const TUPLE3: u8 = 0x87;
    pub const EMPTY_DICT: u8 = b'}';
    pub const DICT: u8 = b'd';
    pub const SETITEM: u8 = b's';
    pub const SETITEMS: u8 = b'u';
    pub const EMPTY_SET: u8 = 0x8f;
    pub const FROZENSET: u8 = 0x91;
    pub const ADDITEMS: u8 = 0x90;

    pub const GLOBAL: u8 = b'c';
    pub const STACK_GLOBAL: u8 = 0x93;
    pub const REDUCE: u8 = b'R';
    pub const NEWOBJ: u8 = 0x81;
    pub const NEWOBJ_EX: u8 = 0x92;
    pub const BUILD: u8 = b'b';
    pub const BINPERSID: u8 = b'Q';

    /// Opcodes that exist, and that no checkpoint of these protocols needs.
    pub const REFUSED: &[(u8, &str)] = &[
        (b'P', "PERSID"),
        (b'i', "INST"),
        (b'o', "OBJ"),
        (0x82, "EXT1"),
        (0x83, "EXT2"),
        (0x84, "EXT4"),
        (0x97, "NEXT_BUFFER"),
        (0x98, "READONLY_BUFFER"),
        (b'L', "LONG"),
        (b'F', "FLOAT"),
        (b'S', "STRING"),
        (b'V', "UNICODE"),
        (b'g', "GET"),
        (b'p', "PUT"),
    ];
}

/// Bytes to read, and how many there are.
pub struct Input<'a> {
    source: &'a mut dyn BufRead,
    left: u64,
}

impl<'a> Input<'a> {
    pub fn new(source: &'a mut dyn BufRead, left: u64) -> Input<'a> {
        Input { source, left }
    }

    /// Counts bytes as read, before memory is taken for them.
    fn count(&mut self, bytes: u64) -> Result<()> {
        self.left = self.left.checked_sub(bytes).ok_or_else(|| broken("it is cut off within its pickle"))?;
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.count(N as u64)?;
        let mut bytes = [0; N];
        self.source.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn byte(&mut self) -> Result<u8> {
        self.array().map(|[byte]| byte)
    }

    /// A length of `width` bytes.
    fn length(&mut self, width: usize) -> Result<u64> {
        let mut bytes = [0; 8];
        for byte in &mut bytes[..width] {
            *byte = self.byte()?;
        }
        Ok(u64::from_le_bytes(bytes))
    }

    fn bytes(&mut self, length: u64) -> Result<Vec<u8>> {
        self.count(length)?;
        let mut bytes = vec![0; length as usize];
        self.source.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn skip(&mut self, length: u64) -> Result<()> {
        self.count(length)?;
        match io::copy(&mut (&mut *self.source).take(length), &mut io::sink())? {
            copied if copied == length => Ok(()),
            _ => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        }
    }

    /// Text up to a line break, which is left out.
    fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        (&mut *self.source).take(self.left.min(MAX_LINE)).read_until(b'\n', &mut line)?;
        self.count(line.len() as u64)?;
        match line.pop() {
            Some(b'\n') => text(line),
            _ => Err(broken("its pickle has a name without an end")),
        }
    }
}

fn text(bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|_| broken("its pickle has text that is not UTF-8"))
}

/// What a pickle builds, and the value that it gives.
pub struct Pickled {
    pub values: Values,
    pub root: Id,
}

/// Follows a pickle to its end, and no further. What it makes takes half of `memory`, beside its texts.
pub fn load(input: Input, memory: u64) -> Result<Pickled> {
    let mut machine = Machine {
        input,
        values: Values::default(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        steps: (memory / 2 / STEP).clamp(FREE_STEPS, MAX_STEPS),
    };
    if machine.input.byte()? != opcode::PROTO {
        return Err(broken("it has no pickle of protocol 2 to 5 where one belongs"));
    }
    machine.protocol()?;
    loop {
        machine.spend(1)?;
        match machine.input.byte()? {
            opcode::STOP => break,
            opcode => machine.step(opcode)?,
        }
    }
    let root = machine.pop()?;
    Ok(Pickled { values: machine.values, root })
}

struct Machine<'a> {
    input: Input<'a>,
    values: Values,
    stack: Vec<Id>,
    /// How high the stack was at each mark.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    /// Steps that are left to take.
    steps: u64,
}

impl Machine<'_> {
    fn step(&mut self, opcode: u8) -> Result<()> {
        use opcode::*;
        match opcode {
            PROTO => self.protocol()?,
            FRAME => {
                if self.input.length(8)? > self.input.left {
                    return Err(broken("it is cut off within its pickle"));
                }
            }
            MARK => self.marks.push(self.stack.len()),
            POP => drop(self.pop()?),
            POP_MARK => drop(self.pop_to_mark()?),
            DUP => {
                let top = self.top()?;
                self.stack.push(top);
            }
            BINGET | LONG_BINGET => {
                let at = self.input.length(if opcode == BINGET { 1 } else { 4 })?;
                self.recall(at)?;
            }
            BINPUT | LONG_BINPUT => {
                let at = self.input.length(if opcode == BINPUT { 1 } else { 4 })?;
                self.memoize(at)?;
            }
            MEMOIZE => self.memoize(self.memo.len() as u64)?,
            APPEND | APPENDS | ADDITEMS | SETITEM | SETITEMS => self.extend(opcode)?,
            GLOBAL | STACK_GLOBAL | REDUCE | NEWOBJ | NEWOBJ_EX | BUILD | BINPERSID => self.object(opcode)?,
            _ => {
                let value = self.value(opcode)?;
                self.push(value);
            }
        }
        Ok(())
    }

    fn protocol(&mut self) -> Result<()> {
        match self.input.byte()? {
            2..=5 => Ok(()),
            other => Err(Fault::refused(format!("its pickle is of protocol {other}; 2 to 5 are read"), super::RESAVE)),
        }
    }

    fn spend(&mut self, steps: u64) -> Result<()> {
        self.steps = self.steps.checked_sub(steps).ok_or_else(|| {
            Fault::refused("its pickle has more steps than any network needs, or than memory allows", super::RESAVE)
        })?;
        Ok(())
    }

    fn push(&mut self, value: Value) {
        let id = self.values.add(value);
        self.stack.push(id);
    }

    /// Where the stack ends that may be touched: at the last mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<Id> {
        match self.stack.last() {
            Some(&top) if self.stack.len() > self.floor() => Ok(top),
            _ => Err(broken("its pickle takes a value that it did not make")),
        }
    }

    fn pop(&mut self) -> Result<Id> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>> {
        let mark = self.marks.pop().ok_or_else(|| broken("its pickle ends a list that it did not begin"))?;
        Ok(self.stack.split_off(mark))
    }

    fn memoize(&mut self, at: u64) -> Result<()> {
        let top = self.top()?;
        self.memo.insert(at as u32, top);
        Ok(())
    }

    fn recall(&mut self, at: u64) -> Result<()> {
        let id = self.memo.get(&(at as u32)).ok_or_else(|| broken("its pickle names a value that it did not make"))?;
        self.stack.push(*id);
        Ok(())
    }

    /// A number, text, bytes or None.
    fn leaf(&mut self, opcode: u8) -> Result<Value> {
        use opcode::*;
        let width = match opcode {
            SHORT_BINSTRING | SHORT_BINUNICODE | SHORT_BINBYTES | LONG1 => 1,
            BINSTRING | BINUNICODE | BINBYTES | LONG4 => 4,
            BINUNICODE8 | BINBYTES8 | BYTEARRAY8 => 8,
            _ => 0,
        };
        let length = self.input.length(width)?;
        Ok(match opcode {
            NONE => Value::None,
            NEWTRUE | NEWFALSE => Value::Bool(opcode == NEWTRUE),
            BININT => Value::Int(i32::from_le_bytes(self.input.array()?).into()),
            BININT1 => Value::Int(self.input.byte()?.into()),
            BININT2 => Value::Int(u16::from_le_bytes(self.input.array()?).into()),
            BINFLOAT => Value::Float(f64::from_be_bytes(self.input.array()?)),
            INT => {
                let line = self.input.line()?;
                Value::Int(line.parse().map_err(|_| broken("its pickle has a number that is none"))?)
            }
            LONG1 | LONG4 => integer(self.input.bytes(length)?),
            BINUNICODE | SHORT_BINUNICODE | BINUNICODE8 => Value::Text(text(self.input.bytes(length)?)?),
            // Python 2 wrote text so, and bytes.
            BINSTRING | SHORT_BINSTRING => {
                String::from_utf8(self.input.bytes(length)?).map_or(Value::Bytes, Value::Text)
            }
            BINBYTES | SHORT_BINBYTES | BINBYTES8 | BYTEARRAY8 => {
                self.input.skip(length)?;
                Value::Bytes
            }
            other => return Err(unknown(other)),
        })
    }

    /// A new list, tuple, dict or set, or what has no parts.
    fn value(&mut self, opcode: u8) -> Result<Value> {
        use opcode::*;
        Ok(match opcode {
            EMPTY_LIST => Value::List(Vec::new()),
            LIST => Value::List(self.pop_to_mark()?),
            EMPTY_TUPLE => Value::Tuple(Vec::new()),
            TUPLE => Value::Tuple(self.pop_to_mark()?),
            TUPLE1 | TUPLE2 | TUPLE3 => {
                let mut items = Vec::new();
                for _ in TUPLE1..=opcode {
                    items.push(self.pop()?);
                }
                items.reverse();
                Value::Tuple(items)
            }
            EMPTY_DICT => Value::Dict(Vec::new()),
            DICT => Value::Dict(pairs(&self.pop_to_mark()?)?),
            EMPTY_SET | FROZENSET => {
                let parts = if opcode == FROZENSET { self.pop_to_mark()? } else { Vec::new() };
                let class = Value::Class { module: "builtins".into(), name: "set".into() };
                Value::Object { class: self.values.add(class), parts }
            }
            _ => self.leaf(opcode)?,
        })
    }

    /// Adds items to the container below them.
    fn extend(&mut self, opcode: u8) -> Result<()> {
        let items = match opcode {
            opcode::APPEND => vec![self.pop()?],
            opcode::SETITEM => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.pop_to_mark()?,
        };
        let is_dict = [opcode::SETITEM, opcode::SETITEMS].contains(&opcode);
        let container = self.top()?;
        match self.values.get_mut(container) {
            Value::List(list) if !is_dict => list.extend(items),
            Value::Dict(entries) if is_dict => entries.extend(pairs(&items)?),
            Value::Object { parts, .. } => parts.extend(items),
            _ => return Err(broken("its pickle adds items to what holds none")),
        }
        Ok(())
    }

    /// Classes, and what is made of them.
    fn object(&mut self, opcode: u8) -> Result<()> {
        match opcode {
            opcode::GLOBAL => {
                let (module, name) = (self.input.line()?, self.input.line()?);
                self.push(calls::class(module, name)?);
            }
            opcode::STACK_GLOBAL => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Some(module), Some(name)) = (self.values.text(module), self.values.text(name)) else {
                    return Err(broken("its pickle has a class whose name is no text"));
                };
                let (module, name) = (module.to_string(), name.to_string());
                if module.len().max(name.len()) as u64 > MAX_LINE {
                    return Err(broken("its pickle has a class of too long a name"));
                }
                // The text may be that of many classes.
                self.spend((module.len() + name.len()) as u64 / STEP)?;
                self.push(calls::class(module, name)?);
            }
            opcode::REDUCE => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                let made = calls::call(&self.values, function, arguments)?;
                self.made(made)?;
            }
            opcode::NEWOBJ | opcode::NEWOBJ_EX => {
                let mut parts = vec![self.pop()?];
                if opcode == opcode::NEWOBJ_EX {
                    parts.push(self.pop()?);
                }
                let class = self.pop()?;
                self.push(Value::Object { class, parts });
            }
            opcode::BUILD => {
                let state = self.pop()?;
                self.values.attributes.push((self.top()?, state));
            }
            _ => {
                let id = self.pop()?;
                let value = calls::persistent(&self.values, id)?;
                self.push(value);
            }
        }
        Ok(())
    }

    fn made(&mut self, made: calls::Made) -> Result<()> {
        let id = match made.value {
            calls::Outcome::New(value) => {
                // Entries may be copied from a list that is named many times.
                if let Value::Dict(entries) = &value {
                    self.spend(entries.len() as u64)?;
                }
                self.values.add(value)
            }
            calls::Outcome::Same(id) => id,
        };
        self.values.attributes.extend(made.state.map(|state| (id, state)));
        self.stack.push(id);
        Ok(())
    }
}

/// An integer in two's complement, the least significant byte first.
fn integer(bytes: Vec<u8>) -> Value {
    if bytes.len() > size_of::<i64>() {
        return Value::Long(bytes);
    }
    let sign = if bytes.last().is_some_and(|byte| *byte >= 0x80) { 0xff } else { 0 };
    let mut wide = [sign; 8];
    wide[..bytes.len()].copy_from_slice(&bytes);
    Value::Int(i64::from_le_bytes(wide))
}

/// Keys and values, which follow each other.
fn pairs(items: &[Id]) -> Result<Vec<(Id, Id)>> {
    match items.as_chunks() {
        (pairs, []) => Ok(pairs.iter().map(|&[key, value]| (key, value)).collect()),
        _ => Err(broken("its pickle has a key without a value")),
    }
}

fn unknown(opcode: u8) -> Fault {
    match opcode::REFUSED.iter().find(|(refused, _)| *refused == opcode) {
        Some((_, name)) => {
            let message = format!("its pickle has the opcode {name}, which no checkpoint needs; nothing was run");
            Fault::refused(message, super::RESAVE)
        }
        None => broken(format!("its pickle has the byte {opcode:#04x} where an opcode belongs")),
    }
}
