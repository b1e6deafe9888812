//! Networks as ONNX models, for programs that run those. Nothing here is read back.
//!
//! | | |
//! |---|---|
//! | input `images` | N×C×H×W in f32: normalised, or from 0 to 255 where the graph normalises them |
//! | output `logits` | N×classes in f32 |
//! | nodes, constants | have the names of layers and of parameters |
//! | metadata | the header's entries, under their keys |
//!
//! N is open; H and W are fixed where the images' size is given. The same network gives the same bytes. A file is written
//! tensor by tensor: all of it in memory would be the network two times more.

mod graph;
mod initialiser;
mod proto;

use std::io::{self, Write};

use prost::Message;

use super::{ARCHITECTURE, Checkpoint, Metadata, refuse_to_write};
use crate::checkpoint::Provenance;
use crate::data::Normalisation;
use crate::error::{Error, Result};
use crate::nn::{Model, Network};
use crate::output::OutputPath;
use graph::{Graph, IMAGES, LOGITS};
use proto::{within, write_key};

/// The form of a graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// The version of ONNX's operators.
    pub opset: u32,
    /// Height and width of the images; `None` leaves them open, which adaptive pooling does not allow.
    pub image_size: Option<[usize; 2]>,
    /// How the graph normalises images, which then are numbers from 0 to 255; `None` where they come normalised.
    pub normalisation: Option<Normalisation>,
}

/// The oldest version of ONNX's operators that is written, and the newest.
pub const OPSETS: [u32; 2] = [17, 23];

impl Default for Options {
    fn default() -> Options {
        Options { opset: OPSETS[0], image_size: None, normalisation: None }
    }
}

/// Protocol buffers hold no more.
const MOST_BYTES: usize = i32::MAX as usize;

/// What a file's header says, as it is told to whoever runs the graph: where the network comes from, what its classes are
/// called, and how images are normalised.
pub fn metadata(checkpoint: &Checkpoint, options: &Options) -> Metadata {
    let mut metadata = checkpoint.metadata.clone();
    // PyTorch's order of the tensors in that file.
    metadata.remove("format");
    metadata.insert(ARCHITECTURE.into(), checkpoint.architecture.to_json());
    metadata.insert("medmerge.exported_from".into(), checkpoint.sha256.clone());
    if let Some(normalisation) = options.normalisation.clone() {
        let provenance = Provenance { normalisation: Some(normalisation), ..checkpoint.provenance.clone() };
        provenance.write(&mut metadata);
    }
    metadata
}

/// Writes a network with its classifier, and returns how many bytes.
///
/// # Errors
/// If a size is not known that the graph needs, or the file would be larger than such files can be.
pub fn write(output: &mut OutputPath, model: &Model, options: &Options, metadata: &Metadata) -> Result<u64> {
    check_opset(options.opset)?;
    refuse_to_write(output.path(), model)?;
    if let Some(normalisation) = &options.normalisation {
        normalisation.check(model.network.input_channels)?;
    }
    let graph = Graph::of(&model.network, options.image_size, options.normalisation.as_ref())?;
    let file = File::of(graph, model, options, metadata);
    if file.bytes() > MOST_BYTES {
        return Err(too_large(file.bytes()));
    }
    output.write(|to| file.write(model, to))?;
    Ok(file.bytes() as u64)
}

pub fn check_opset(opset: u32) -> Result<()> {
    let [oldest, newest] = OPSETS;
    match (oldest..=newest).contains(&opset) {
        true => Ok(()),
        false => Err(Error::usage(format!("opset {opset}"), format!("give between {oldest} and {newest}"))),
    }
}

fn too_large(bytes: usize) -> Error {
    let message = format!("the model would have {} MB, and an ONNX file holds {} MB", bytes >> 20, MOST_BYTES >> 20);
    Error::usage(message, "export a narrower network; weights beside the file are not written")
}

/// The version of the file format that came with a version of the operators.
fn ir_version(opset: u32) -> i64 {
    match opset {
        ..=18 => 8,
        19..=20 => 9,
        21..=22 => 10,
        _ => 11,
    }
}

/// A file in the parts in which it is written.
struct File {
    /// The model without its graph.
    model: proto::Model,
    /// The graph without its constants.
    graph: proto::Graph,
    initialisers: Vec<initialiser::Initialiser>,
}

/// Keys of messages within messages: the field's number, and that a length follows.
const GRAPH: u8 = 7 << 3 | 2;
const INITIALISER: u8 = 5 << 3 | 2;

impl File {
    fn of(graph: Graph, model: &Model, options: &Options, metadata: &Metadata) -> File {
        let Graph { nodes, initialisers, .. } = graph;
        let (input, output) = ends(&model.network, options);
        let entry = |(key, value): (&String, &String)| proto::Entry { key: key.clone(), value: value.clone() };
        let model = proto::Model {
            ir_version: ir_version(options.opset),
            producer_name: env!("CARGO_PKG_NAME").into(),
            producer_version: env!("CARGO_PKG_VERSION").into(),
            graph: None,
            opset_import: vec![proto::OperatorSet { domain: String::new(), version: options.opset.into() }],
            metadata_props: metadata.iter().map(entry).collect(),
        };
        let graph = proto::Graph {
            node: nodes,
            name: "network".into(),
            initializer: Vec::new(),
            input: vec![input],
            output: vec![output],
        };
        File { model, graph, initialisers }
    }

    fn graph_bytes(&self) -> usize {
        let of_constants = self.initialisers.iter().map(|constant| within(constant.encoded_len()));
        self.graph.encoded_len() + of_constants.sum::<usize>()
    }

    fn bytes(&self) -> usize {
        self.model.encoded_len() + within(self.graph_bytes())
    }

    fn write(&self, model: &Model, to: &mut dyn Write) -> io::Result<()> {
        to.write_all(&self.model.encode_to_vec())?;
        write_key(to, GRAPH, self.graph_bytes())?;
        to.write_all(&self.graph.encode_to_vec())?;
        for constant in &self.initialisers {
            write_key(to, INITIALISER, constant.encoded_len())?;
            constant.write(model, to)?;
        }
        Ok(())
    }
}

/// What goes in, and what comes out.
fn ends(network: &Network, options: &Options) -> (proto::ValueInfo, proto::ValueInfo) {
    use proto::Dimension;
    let [height, width] = match options.image_size {
        Some(size) => size.map(Dimension::fixed),
        None => ["H", "W"].map(Dimension::named),
    };
    let images = match options.normalisation {
        Some(_) => "numbers from 0 to 255, which the graph normalises",
        None => "normalised: (bytes / 255 - mean) / std, where medmerge.normalisation has mean and std",
    };
    let batch = || Dimension::named("N");
    let dims = vec![batch(), Dimension::fixed(network.input_channels), height, width];
    let input = proto::ValueInfo::floats(IMAGES, dims, images);
    let dims = vec![batch(), Dimension::fixed(network.classes)];
    (input, proto::ValueInfo::floats(LOGITS, dims, "scores of the classes, before softmax"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::checkpoint::to_file_order;
    use crate::nn::{Architecture, NetworkBuilder, Operation};
    use crate::ops::conv2d::Conv2d;

    fn network(name: &str, width: usize) -> Arc<Network> {
        Architecture::named(name, None, Some(width)).unwrap().build(3, 5)
    }

    fn sized(height: usize, width: usize) -> Options {
        Options { image_size: Some([height, width]), ..Options::default() }
    }

    /// The bytes of a file, which are said to be as many as they are.
    fn exported(model: &Model, options: &Options) -> Result<Vec<u8>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("network.onnx");
        let metadata = Metadata::from([("key".to_string(), "välue".to_string())]);
        let bytes = write(&mut OutputPath::check(&path, false, 0).unwrap(), model, options, &metadata)?;
        let file = std::fs::read(&path).unwrap();
        assert_eq!(file.len() as u64, bytes);
        Ok(file)
    }

    /// The graph of a network, in which every value comes before its readers and has a name of its own.
    fn graph(network: Arc<Network>, options: &Options) -> Result<proto::Graph> {
        let file = exported(&Model::initialized(network, 1), options)?;
        let model = proto::Model::decode(&file[..]).unwrap();
        assert_eq!(model.encoded_len(), file.len(), "nothing was passed over");
        let graph = model.graph.unwrap();
        let mut known: Vec<&str> = vec![IMAGES];
        known.extend(graph.initializer.iter().map(|constant| constant.name.as_str()));
        for node in &graph.node {
            assert!(node.input.iter().all(|input| known.contains(&input.as_str())), "{node:?}");
            known.push(&node.output[0]);
        }
        assert_eq!(known.last(), Some(&LOGITS));
        known.sort_unstable();
        assert!(known.windows(2).all(|pair| pair[0] != pair[1]), "{known:?}");
        Ok(graph)
    }

    fn operators(graph: &proto::Graph) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        graph.node.iter().for_each(|node| *counts.entry(node.op_type.as_str()).or_default() += 1);
        counts
    }

    fn node<'a>(graph: &'a proto::Graph, name: &str) -> &'a proto::Node {
        graph.node.iter().find(|node| node.name == name).unwrap_or_else(|| panic!("no node is called {name}"))
    }

    fn constant<'a>(graph: &'a proto::Graph, name: &str) -> &'a proto::Tensor {
        graph.initializer.iter().find(|constant| constant.name == name).unwrap_or_else(|| panic!("no constant {name}"))
    }

    fn floats(tensor: &proto::Tensor) -> Vec<f32> {
        tensor.raw_data.chunks(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
    }

    fn dims(value: &proto::ValueInfo) -> Vec<String> {
        let shape = value.r#type.clone().unwrap().tensor_type.unwrap().shape.unwrap();
        let text = |dim: &proto::Dimension| dim.dim_param.clone().unwrap_or_else(|| dim.dim_value.unwrap().to_string());
        shape.dim.iter().map(text).collect()
    }

    fn ints(node: &proto::Node, name: &str) -> Vec<i64> {
        node.attribute.iter().find(|attribute| attribute.name == name).unwrap().ints.clone()
    }

    #[test]
    fn a_file_holds_the_network_and_the_same_bytes_each_time() {
        let model = Model::initialized(network("resnet8", 4), 3);
        let file = exported(&model, &Options::default()).unwrap();
        assert_eq!(exported(&model, &Options::default()).unwrap(), file);
        let read = proto::Model::decode(&file[..]).unwrap();
        assert_eq!((read.producer_name.as_str(), read.ir_version, read.opset_import[0].version), ("medmerge", 8, 17));
        assert_eq!(read.metadata_props, [proto::Entry { key: "key".into(), value: "välue".into() }]);
        let graph = read.graph.unwrap();
        for parameter in &model.network.parameters {
            let stored = constant(&graph, &parameter.name);
            assert_eq!(floats(stored), to_file_order(parameter, &model.parameter(parameter).to_vec::<f32>()));
        }
        let filters = constant(&graph, "layer2.0.conv1.weight");
        assert_eq!((&filters.dims[..], filters.data_type), (&[8, 4, 3, 3][..], proto::F32));
        assert_eq!(constant(&graph, "fc.weight").dims, [5, 16]);
        assert_eq!(floats(constant(&graph, "bn1.running_var")), [1.0; 4]);
    }

    #[test]
    fn layers_become_the_operators_that_compute_the_same() {
        let resnet = graph(network("resnet8", 4), &Options::default()).unwrap();
        let expected = [
            ("Add", 3),
            ("BatchNormalization", 9),
            ("Conv", 9),
            ("Flatten", 1),
            ("Gemm", 1),
            ("GlobalAveragePool", 1),
            ("Relu", 7),
        ];
        assert_eq!(operators(&resnet), BTreeMap::from(expected));
        let strided = node(&resnet, "layer2.0.conv1");
        assert_eq!(strided.input, ["layer1.0.relu", "layer2.0.conv1.weight"]);
        assert_eq!([ints(strided, "strides"), ints(strided, "pads")], [vec![2, 2], vec![1, 1, 1, 1]]);
        let norm = ["layer2.0.conv1", "layer2.0.bn1.weight", "layer2.0.bn1.bias"];
        assert_eq!(node(&resnet, "layer2.0.bn1").input[..3], norm);

        let option_a = graph(network("resnet20-option-a", 4), &Options::default()).unwrap();
        assert_eq!([operators(&option_a)["Pad"], operators(&option_a)["AveragePool"]], [2, 2]);
        let pads = &constant(&option_a, "layer2.0.pad.pads").raw_data;
        assert_eq!(*pads, [0i64, 2, 0, 0, 0, 2, 0, 0].map(i64::to_le_bytes).concat());

        let densenet = graph(network("densenet121", 4), &Options::default()).unwrap();
        let counts = ["Concat", "AveragePool", "MaxPool"].map(|operator| operators(&densenet)[operator]);
        assert_eq!(counts, [58, 3, 1]);
        let grouped = graph(network("resnext50_32x4d", 16), &Options::default()).unwrap();
        let groups = node(&grouped, "layer1.0.conv2").attribute.iter().find(|attribute| attribute.name == "group");
        assert_eq!(groups.unwrap().i, Some(32));
    }

    #[test]
    fn the_batch_is_open_and_the_size_of_images_where_it_is_not_given() {
        for (options, expected) in [(Options::default(), ["N", "3", "H", "W"]), (sized(28, 32), ["N", "3", "28", "32"])]
        {
            let graph = graph(network("resnet8", 4), &options).unwrap();
            assert_eq!(dims(&graph.input[0]), expected);
            assert_eq!((dims(&graph.output[0]), graph.output[0].name.as_str()), (vec!["N".into(), "5".into()], LOGITS));
        }
        let refusal = graph(network("vgg11", 4), &Options::default()).unwrap_err();
        assert_eq!(refusal.to_string(), "avgpool pools to 7×7 pixels, and of how many is open");
        assert!(refusal.hint().unwrap().contains("--image-size 224"));
        let refusal = graph(network("vgg11", 4), &sized(31, 64)).unwrap_err();
        assert!(refusal.to_string().contains("too small"), "{refusal}");
    }

    #[test]
    fn adaptive_pooling_is_what_the_size_of_images_makes_it() {
        let of = |height: usize, width: usize| graph(network("vgg11", 4), &sized(height, width)).unwrap();
        let pools = |graph: &proto::Graph| ["AveragePool", "MatMul"].map(|name| operators(graph).get(name).copied());
        assert_eq!(pools(&of(224, 230)), [None, None]);
        let halved = of(448, 224);
        assert_eq!(pools(&halved), [Some(1), None]);
        assert_eq!(ints(node(&halved, "avgpool"), "kernel_shape"), [2, 1]);
        assert_eq!(pools(&of(300, 224)), [None, Some(1)]);
        let repeated = of(32, 64);
        assert_eq!(pools(&repeated), [None, Some(2)]);
        assert_eq!(constant(&repeated, "avgpool.rows").dims, [7, 1]);
        assert_eq!(floats(constant(&repeated, "avgpool.rows")), [1.0; 7]);
        // Each of two columns stands where it is repeated, and both in the middle.
        let columns = constant(&repeated, "avgpool.columns");
        assert_eq!((&columns.dims[..], floats(columns).len()), (&[2, 7][..], 14));
        assert_eq!(floats(columns)[..7], [1.0, 1.0, 1.0, 0.5, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn a_bias_is_its_convolutions_unless_somebody_else_reads_that() {
        let vgg = graph(network("vgg11", 4), &sized(32, 32)).unwrap();
        assert_eq!(operators(&vgg).get("Add"), None);
        assert_eq!(node(&vgg, "features.0").input[1..], ["features.0.weight", "features.0.bias"]);
        assert_eq!(constant(&vgg, "classifier.0.weight").dims, [256, 32, 7, 7]);
        assert_eq!(node(&vgg, "classifier.3").input[0], "classifier.1", "dropout is no node");

        let mut b = NetworkBuilder::new(3);
        let y = b.conv2d_with_bias("conv", b.input(), 4, 1, Conv2d::new(1, 0));
        let sum = b.plain("sum", Operation::Add, &[y, y]);
        let pooled = b.plain("pool", Operation::GlobalAveragePool, &[sum]);
        b.linear("fc", pooled, 5);
        let mut network = Arc::unwrap_or_clone(b.finish());
        let convolution = network.layers[1].inputs[0];
        network.layers[2].inputs[0] = convolution;
        let graph = graph(Arc::new(network), &Options::default()).unwrap();
        assert_eq!(node(&graph, "conv").input, ["images", "conv.weight"]);
        assert_eq!(node(&graph, "conv.add_bias").input, ["conv", "conv.bias"]);
        assert_eq!(constant(&graph, "conv.bias").dims, [4, 1, 1]);
        assert_eq!(node(&graph, "sum").input, ["conv", "conv.add_bias"]);
    }

    #[test]
    fn names_that_are_taken_get_a_number_and_an_image_is_no_logits() {
        let build = |ends: bool| {
            let mut b = NetworkBuilder::new(3);
            let mut x = b.input();
            for name in ["images", "logits", "twice", "twice"] {
                x = b.plain(name, Operation::Relu, &[x]);
            }
            if ends {
                x = b.plain("pool", Operation::GlobalAveragePool, &[x]);
                b.linear("fc", x, 5);
            }
            b.finish()
        };
        let named = graph(build(true), &Options::default()).unwrap();
        let names: Vec<&str> = named.node.iter().map(|node| node.name.as_str()).collect();
        assert_eq!(names, ["images_2", "logits_2", "twice", "twice_2", "pool", "pool.flatten", "fc"]);
        let refusal = graph(build(false), &Options::default()).unwrap_err();
        assert!(refusal.to_string().contains("twice, makes an image"), "{refusal}");
    }

    #[test]
    fn normalisation_is_three_nodes_before_the_first_layer() {
        let normalisation = Normalisation { mean: vec![0.1, 0.2, 0.3], std: vec![0.5] };
        let options = Options { normalisation: Some(normalisation), ..Options::default() };
        let normalised = graph(network("resnet8", 4), &options).unwrap();
        let first: Vec<&str> = normalised.node[..4].iter().map(|node| node.op_type.as_str()).collect();
        assert_eq!(first, ["Div", "Sub", "Div", "Conv"]);
        assert_eq!(floats(constant(&normalised, "normalise.mean.value")), [0.1, 0.2, 0.3]);
        assert_eq!(constant(&normalised, "normalise.std.value").dims, [1, 3, 1, 1]);
        let wrong = Normalisation { mean: vec![0.1; 2], std: vec![0.5] };
        let options = Options { normalisation: Some(wrong), ..Options::default() };
        assert!(graph(network("resnet8", 4), &options).unwrap_err().to_string().contains("2 values for the mean"));
    }

    #[test]
    fn what_no_file_can_hold_is_refused() {
        for opset in [16, 24] {
            let options = Options { opset, ..Options::default() };
            let refusal = graph(network("resnet8", 4), &options).unwrap_err();
            assert_eq!(refusal.hint().unwrap(), "give between 17 and 23");
        }
        let refusal = too_large(3 << 30);
        assert_eq!(refusal.to_string(), "the model would have 3072 MB, and an ONNX file holds 2047 MB");
        let mut model = Model::initialized(network("resnet8", 4), 1);
        model.set_running(0, &[0.0f32; 4], &[f32::NAN; 4]);
        let refusal = exported(&model, &Options::default()).unwrap_err();
        assert!(refusal.to_string().contains("bn1.running_var holds NaN"), "{refusal}");
    }
}
