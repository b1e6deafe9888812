//! The few functions that tensors are pickled with, each done here by hand; whatever else a pickle would call is not called,
//! and stays an object that says what it would have been.

use super::values::{Id, Storage, Value, Values};
use super::views::{self, View};
use super::{Fault, RESAVE, Result, broken};

/// Modules whose functions run something or reach beyond the file. To refuse them guards nobody, since nothing is called
/// here, but says what kind of file it is.
const DANGEROUS: [&str; 19] = [
    "os",
    "posix",
    "nt",
    "sys",
    "subprocess",
    "commands",
    "pty",
    "shutil",
    "socket",
    "runpy",
    "importlib",
    "imp",
    "ctypes",
    "code",
    "codeop",
    "pickle",
    "_pickle",
    "webbrowser",
    "multiprocessing",
];
const DANGEROUS_BUILTINS: [&str; 9] =
    ["eval", "exec", "execfile", "compile", "open", "__import__", "input", "breakpoint", "apply"];

/// What a call made, and what is set on it beside.
pub struct Made {
    pub value: Outcome,
    pub state: Option<Id>,
}

pub enum Outcome {
    New(Value),
    /// A value that is there already.
    Same(Id),
}

impl From<Outcome> for Made {
    fn from(value: Outcome) -> Made {
        Made { value, state: None }
    }
}

/// A class or a function that a pickle names. None is looked up.
pub fn class(module: String, name: String) -> Result<Value> {
    let first = module.split('.').next().unwrap_or_default();
    let is_builtin = ["builtins", "__builtin__", "__builtins__"].contains(&first);
    // `a.b` names `b` within `a`: a way round a look at the module.
    let hidden = name.contains('.') && name.split('.').any(|part| DANGEROUS.contains(&part));
    let calls = is_builtin && name.split('.').any(|part| DANGEROUS_BUILTINS.contains(&part));
    if DANGEROUS.contains(&first) || hidden || calls {
        let message = format!("it asks for {}.{}, as no checkpoint does", module.escape_debug(), name.escape_debug());
        let hint = "it may be made to run something where PyTorch loads it; nothing was run here; do not use it";
        return Err(Fault::refused(message, hint));
    }
    Ok(Value::Class { module, name })
}

/// What a function makes of a tuple of arguments.
pub fn call(values: &Values, function: Id, arguments: Id) -> Result<Made> {
    let Some(list) = values.tuple(arguments) else {
        return Err(broken("its pickle has a call without a tuple of arguments"));
    };
    let object = Outcome::New(Value::Object { class: function, parts: vec![arguments] });
    let Some((module, name)) = values.class(function) else { return Ok(object.into()) };
    match (module, name) {
        ("collections", "OrderedDict") => Ok(Outcome::New(Value::Dict(ordered(values, list)?)).into()),
        ("collections", "defaultdict") => Ok(Outcome::New(Value::Dict(Vec::new())).into()),
        ("torch", "Size") => match list {
            &[size] if values.tuple(size).is_some() => Ok(Outcome::Same(size).into()),
            _ => Ok(object.into()),
        },
        ("torch._utils", rebuild) if rebuild.starts_with("_rebuild") => rebuilt(values, rebuild, list),
        ("torch._tensor", "_rebuild_from_type_v2") => from_type(values, list),
        ("torch.storage", "_load_from_bytes") => {
            Err(Fault::refused("it holds tensors that were pickled without torch.save", RESAVE))
        }
        _ => Ok(object.into()),
    }
}

/// The entries of an `OrderedDict`: none, or as Python 2 wrote it, a list of pairs.
fn ordered(values: &Values, arguments: &[Id]) -> Result<Vec<(Id, Id)>> {
    let wrong = || broken("its pickle has an OrderedDict that is not made of pairs");
    let list = match arguments {
        [] => return Ok(Vec::new()),
        [list] => values.get(*list),
        _ => return Err(wrong()),
    };
    let Value::List(pairs) = list else { return Err(wrong()) };
    let pair = |id: &Id| match values.get(*id) {
        Value::List(pair) | Value::Tuple(pair) if pair.len() == 2 => Ok((pair[0], pair[1])),
        _ => Err(wrong()),
    };
    pairs.iter().map(pair).collect()
}

/// A function of `torch._utils` that makes a tensor.
fn rebuilt(values: &Values, function: &str, arguments: &[Id]) -> Result<Made> {
    let wrong = || broken(format!("its pickle calls torch._utils.{function} with arguments that do not fit"));
    match (function, arguments) {
        ("_rebuild_tensor", &[storage, offset, shape, strides]) => {
            view(values, storage, [offset, shape, strides], None)
        }
        ("_rebuild_tensor_v2", &[storage, offset, shape, strides, _, _]) => {
            view(values, storage, [offset, shape, strides], None)
        }
        ("_rebuild_tensor_v2", &[storage, offset, shape, strides, _, _, metadata]) => {
            refuse_lazy(values, metadata)?;
            view(values, storage, [offset, shape, strides], None)
        }
        ("_rebuild_tensor_v3", &[storage, offset, shape, strides, _, _, dtype, ref more @ ..]) => {
            more.iter().try_for_each(|metadata| refuse_lazy(values, *metadata))?;
            view(values, storage, [offset, shape, strides], Some(dtype))
        }
        ("_rebuild_parameter", &[tensor, _, _]) if matches!(values.get(tensor), Value::Tensor(_)) => {
            Ok(Outcome::Same(tensor).into())
        }
        ("_rebuild_parameter_with_state", &[tensor, _, _, state]) if matches!(values.get(tensor), Value::Tensor(_)) => {
            Ok(Made { value: Outcome::Same(tensor), state: Some(state) })
        }
        ("_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3", _) => Err(wrong()),
        ("_rebuild_parameter" | "_rebuild_parameter_with_state", _) => Err(wrong()),
        _ => {
            let kind = match () {
                () if function.starts_with("_rebuild_qtensor") => "quantised",
                () if function.starts_with("_rebuild_sparse") => "sparse",
                () if function.starts_with("_rebuild_nested") => "nested",
                () if function.starts_with("_rebuild_meta") => "meta",
                () => "other",
            };
            let message = format!("it holds {kind} tensors (torch._utils.{})", function.escape_debug());
            Err(Fault::refused(message, "only dense, strided tensors are read; convert them in PyTorch"))
        }
    }
}

/// A tensor of a class of its own, or one that carries attributes: those of PyTorch's classes are tensors like others.
fn from_type(values: &Values, arguments: &[Id]) -> Result<Made> {
    let &[function, class, inner, state] = arguments else {
        return Err(broken("its pickle calls _rebuild_from_type_v2 with arguments that do not fit"));
    };
    let is_plain = match values.class(class) {
        Some(("torch", "Tensor")) => true,
        Some(("torch.nn.parameter", name)) => ["Parameter", "Buffer"].contains(&name),
        _ => false,
    };
    match (values.class(function), values.tuple(inner)) {
        (Some(("torch._utils", function)), Some(inner)) if is_plain => {
            Ok(Made { state: Some(state), ..rebuilt(values, function, inner)? })
        }
        _ => {
            let message = format!("it holds tensors of class {}", values.class_name(class));
            Err(Fault::refused(message, "only tensors of PyTorch's own class are read; convert them in PyTorch"))
        }
    }
}

/// Refuses a tensor whose numbers are to be negated or conjugated when it is read.
fn refuse_lazy(values: &Values, metadata: Id) -> Result<()> {
    let Value::Dict(entries) = values.get(metadata) else { return Ok(()) };
    // A bound on the work, since the dict may be that of many tensors; there are two such keys.
    let is_lazy = |(key, value): &&(Id, Id)| {
        ["neg", "conj"].contains(&values.text(*key).unwrap_or_default())
            && !matches!(values.get(*value), Value::Bool(false))
    };
    match entries.len() > 8 || entries.iter().any(|entry| is_lazy(&entry)) {
        true => Err(Fault::refused("it holds tensors that are negated or conjugated when they are read", RESAVE)),
        false => Ok(()),
    }
}

/// A view of a storage; `dtype` is its own type where it has one.
fn view(values: &Values, storage: Id, place: [Id; 3], dtype: Option<Id>) -> Result<Made> {
    let Value::Storage(storage) = values.get(storage) else {
        return Err(broken("its pickle has a tensor without a storage"));
    };
    let dtype = match dtype {
        None => storage.dtype,
        Some(dtype) => {
            let known = values.class(dtype).filter(|(module, _)| *module == "torch");
            known.and_then(|(_, name)| views::of_name(name)).ok_or_else(|| unread_type(&values.class_name(dtype)))?
        }
    };
    let [offset, shape, strides] = place;
    let wrong = || broken("its pickle has a tensor whose place is not told in numbers");
    let numbers = |id: Id| -> Result<Vec<i64>> {
        let items = values.tuple(id).ok_or_else(wrong)?;
        // One more than there may be: the tuple may be that of many tensors.
        items.iter().take(33).map(|item| values.int(*item).ok_or_else(wrong)).collect()
    };
    let offset = values.int(offset).ok_or_else(wrong)?;
    let view = View::new(*storage, dtype, offset, &numbers(shape)?, &numbers(strides)?);
    let view = view.map_err(|reason| {
        let key = values.text(storage.key).unwrap_or_default();
        broken(format!("a tensor of its storage '{}' makes no sense: {reason}", key.escape_debug()))
    })?;
    Ok(Outcome::New(Value::Tensor(Box::new(view))).into())
}

/// What a persistent id names: a storage. Where it was, on which device, does not matter.
pub fn persistent(values: &Values, id: Id) -> Result<Value> {
    let wrong = || broken("its pickle names something outside of it that is no storage");
    let &[kind, ref rest @ ..] = values.tuple(id).ok_or_else(wrong)? else { return Err(wrong()) };
    match (values.text(kind), rest) {
        (Some("storage"), &[class, key, _, count]) => storage(values, [class, key, count], None),
        (Some("storage"), &[class, key, _, count, part]) => storage(values, [class, key, count], Some(part)),
        // The class of a module, with its source.
        (Some("module"), &[class, ..]) => Ok(Value::Object { class, parts: Vec::new() }),
        _ => Err(wrong()),
    }
}

fn storage(values: &Values, [class, key, count]: [Id; 3], part: Option<Id>) -> Result<Value> {
    let wrong = |what: &str| broken(format!("its pickle has a storage {what}"));
    let Some((module, name)) = values.class(class) else { return Err(wrong("without a type")) };
    let is_torch = ["torch", "torch.cuda", "torch.storage"].contains(&module);
    let dtype = is_torch.then(|| views::of_storage(name)).flatten();
    let dtype = dtype.ok_or_else(|| unread_type(&values.class_name(class)))?;
    if values.text(key).is_none() {
        return Err(wrong("without a name"));
    }
    let bytes = |count: Option<i64>| -> Result<u64> {
        let count = count.and_then(|count| u64::try_from(count).ok()).ok_or_else(|| wrong("of no length"))?;
        let bytes = count.checked_mul(views::size(dtype) as u64).filter(|bytes| i64::try_from(*bytes).is_ok());
        bytes.ok_or_else(|| wrong("that is larger than any memory"))
    };
    let whole = bytes(values.int(count))?;
    let part = match part.map(|part| values.get(part)) {
        None | Some(Value::None) => (0, whole),
        Some(Value::Tuple(part)) => {
            let &[_, offset, length] = part.as_slice() else { return Err(wrong("with an odd part")) };
            let from = bytes(values.int(offset))?;
            (from, from + bytes(values.int(length))?)
        }
        Some(_) => return Err(wrong("with an odd part")),
    };
    if part.1 > whole {
        return Err(wrong("with a part that reaches beyond it"));
    }
    Ok(Value::Storage(Storage { key, dtype, bytes: whole, part }))
}

/// The error about numbers that are not read.
fn unread_type(name: &str) -> Fault {
    let quantised = ["QInt", "QUInt", "qint", "quint"].iter().any(|kind| name.contains(kind));
    let kind = if quantised { "quantised numbers" } else { "numbers of a type that is not read" };
    let hint = "parameters are f32, f16, bf16 or f64; quantised networks cannot be merged";
    Fault::refused(format!("it holds {kind} ({name})"), hint)
}
