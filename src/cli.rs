//! The command line, as `clap` structs and nothing else.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::RangedU64ValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};

use medmerge::checkpoint::{FloatType, Hidden, Names};
use medmerge::data::SplitName;
use medmerge::error::Error;
use medmerge::jobs::ImageSize;
use medmerge::merge::{BatchNormPolicy, Constraint, Granularity, Heads, ProbeStatistics, Start};
use medmerge::nn::Stem;
use medmerge::ops::conv2d::Pass;

/// Learn how much of each source network to keep, per convolution filter; fold them into one; fine-tune it.
///
/// Start with `medmerge demo`, which makes data, trains two sources, merges them and prints a table.
/// On your own files: `train` the sources, `learn` the merge weights, `train --from` the merged network, `eval` it.
#[derive(Parser)]
#[command(
    version,
    max_term_width = 110,
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct Cli {
    #[command(subcommand)]
    pub verb: Verb,
    #[command(flatten)]
    pub global: Global,
}

#[derive(Args, Clone)]
pub struct Global {
    /// Where to compute: auto, cpu, cuda[:N], emulator, or emulator:sm_80 or :sm_90a, whose tensor cores cut off as those of these GPUs
    #[arg(long, global = true, default_value = "auto", help_heading = "Global options")]
    pub device: String,
    /// Precision of activations: f32; tf32, bf16 or f16 on a GPU or the emulator
    #[arg(long, global = true, default_value = "f32", help_heading = "Global options")]
    pub precision: String,
    /// Run every layer on its own instead of batch norms, sums and ReLUs in one pass; inspect --plan shows both
    #[arg(long, global = true, help_heading = "Global options")]
    pub no_fusion: bool,
    /// Seed of everything random; the same seed gives the same bits
    #[arg(long, global = true, default_value_t = 0, help_heading = "Global options")]
    pub seed: u64,
    /// CPU threads; results do not depend on it [default: all cores]
    #[arg(long, global = true, help_heading = "Global options")]
    pub threads: Option<usize>,
    /// Instruction set of the CPU's matrix products: avx512, avx2, neon or portable; MEDMERGE_ISA names one too [default: the widest that
    /// the processor has]
    #[arg(long, global = true, value_name = "ISA", help_heading = "Global options")]
    pub isa: Option<String>,
    /// Details on stderr: a line per epoch, what a step is made of
    #[arg(short, long, global = true, help_heading = "Global options")]
    pub verbose: bool,
    /// No progress bars and no notes
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = "Global options")]
    pub quiet: bool,
    /// Print the result as one JSON object
    #[arg(long, global = true, help_heading = "Global options")]
    pub json: bool,
}

#[derive(Subcommand)]
pub enum Verb {
    /// The whole job on generated data: two sources, merge weights, merged network, a table against the baselines
    Demo(Demo),
    /// Train a network, or fine-tune one with --from
    Train(Box<Train>),
    /// Learn merge weights for sources on a target; write them and the folded network
    Learn(Box<Learn>),
    /// Fold learned weights, or fixed coefficients, into one network
    Merge(Merge),
    /// Compare ways to use the sources on a target: every recipe with every seed, on the same splits with the same budget
    ///
    /// A recipe is a name and what is not as usual: NAME:KEY=VALUE,KEY=VALUE
    ///   scratch            train everything, from a drawn start
    ///   fine-tune:source=0 train everything, from a source under a new head
    ///   lp-ft:source=0     train the new head alone, then everything
    ///   rescale:source=0   learn one number per kernel of a source with the head, fold, train
    ///                      everything: a learned merge without another source; granularity,
    ///                      merge-rate
    ///   linear, slerp, pleas:budget=1.3
    ///                      as lp-ft, from what a method of `merge --method list` makes of the
    ///                      sources; align=weights|activations, and the method's numbers
    ///   medmerge           learn merge weights with the head, fold, train everything;
    ///                      granularity, constraint, start, anchor, batch-norm, align,
    ///                      probe-statistics, regularise as in `learn`; merge-rate=RATE;
    ///                      learn-on=yes or a rate (learn on while everything is trained);
    ///                      of start=0/0.5 or anchor=0/1 the best by validation is kept
    ///   ensemble, greedy-soup
    ///                      of lp-ft of every source
    /// Recipes with a phase for the head alone also take probe-epochs=N, those that train
    /// everything ema=DECAY and l2-sp=λ as in `train`, single sources and learned merges also
    /// distill=λ (teachers are the sources). `usual` and `all` stand for lists.
    ///
    /// Each run leaves a small file in OUT/runs. The same command continues after a stop, also
    /// with more recipes or seeds, and on another machine. OUT/table.md, table.csv and
    /// summary.json tell what all come to, results.svg and curves.svg show it.
    #[command(verbatim_doc_comment)]
    Compare(Box<Compare>),
    /// Bring a network's units into the order of another's; it computes what it did before
    ///
    /// Filter k of one network has nothing to do with filter k of another that was initialised otherwise. `inspect --units` lists
    /// what may change places. Units keep their signs: behind a ReLU, a unit and its negative are two different ones.
    Align(Align),
    /// Accuracy, macro F1, AUC and per-class figures of a network on a split
    ///
    /// Of the data set only that split is read, images and labels: it may be all that the file holds. Its labels count the
    /// network's classes; classes without an image have no AUC, and means say of how many classes they are.
    Eval(Measure),
    /// The class of each image and its scores, as CSV; labels are not needed
    ///
    /// Of the data set only the images of the split are read, and its labels where there are any.
    Predict(Predict),
    /// Write a network as an ONNX model, for ONNX Runtime and other programs
    ///
    /// Its input `images` is a batch of N×C×H×W in f32, N of any size, its output `logits` N×classes. Its metadata are the
    /// header's entries: architecture, names of classes, normalisation and where the network comes from.
    Export(Export),
    /// Contents of a checkpoint, a data set or a file of merge weights; how a network runs
    Inspect(Inspect),
    /// Write the generated data sets: texture.npz, shape.npz and target.npz
    Synth(Synth),
    /// How long merges, convolutions and steps take, beside what this machine can do
    #[command(subcommand)]
    Bench(Bench),
    /// Check every op on --device against its definition
    Selftest(Selftest),
    /// Compile all GPU kernels; what each needs. No GPU is needed; later runs find them compiled
    Kernels(Kernels),
    /// Devices that can compute here, and why others cannot
    Devices,
}

#[derive(Args)]
pub struct Demo {
    /// The longer comparison: ten seeds, larger networks, images and data sets, more classes; some fifty times as long
    #[arg(long)]
    pub full: bool,
    /// The networks; see train --help for their names
    #[arg(long, default_value = "resnet8", value_name = "NAME")]
    pub architecture: String,
    /// Filters of their first stage [default: 8, with --full 16]
    #[arg(long)]
    pub width: Option<usize>,
    /// Folder for everything it makes
    #[arg(long, default_value = "demo")]
    pub out: PathBuf,
    /// Write into the folder even if it holds something
    #[arg(long)]
    pub force: bool,
}

/// The images, and how they become numbers.
#[derive(Args)]
pub struct Data {
    /// A data set: a file in MedMNIST's .npz format; or images in a folder, a tar or a zip archive, with a folder for each class or a
    /// table beside them; or such a table, or a list of paths
    #[arg(long, value_name = "PATH")]
    pub data: PathBuf,
    #[command(flatten)]
    pub normalise: Normalise,
    #[command(flatten)]
    pub collecting: Collecting,
}

/// Where these options stand in the help.
const FOLDERS: &str = "Images in folders and archives";

/// How images in a folder or an archive become a data set.
#[derive(Args)]
pub struct Collecting {
    /// Height and width that images are brought to [default: those of the network's training, else 224]
    #[arg(long, help_heading = FOLDERS, value_name = "PIXELS")]
    pub image_size: Option<usize>,
    #[command(flatten)]
    pub table: Table,
}

/// Where labels and splits of images come from.
#[derive(Args)]
pub struct Table {
    /// The table with the labels, CSV or TSV [default: one among the images that names them]
    #[arg(long, help_heading = FOLDERS, value_name = "FILE")]
    pub labels: Option<PathBuf>,
    /// Its column of labels [default: label, class, dx, diagnosis or the like; or a column of 0 and 1, or of shares, for each class]
    #[arg(long, help_heading = FOLDERS, value_name = "NAME")]
    pub label_column: Option<String>,
    /// The column of what may not be in two splits, such as a patient, or none [default: lesion_id, patient_id or the like]
    #[arg(long, help_heading = FOLDERS, value_name = "NAME")]
    pub group_column: Option<String>,
    /// Shares of the images for validation and test, where these splits are not given [default: 0.1,0.2]
    #[arg(long, help_heading = FOLDERS, value_name = "VAL,TEST", value_parser = two_numbers)]
    pub shares: Option<[f64; 2]>,
    /// Seed by which splits are drawn [default: that of the network's training on these images, else 0]
    #[arg(long, help_heading = FOLDERS, value_name = "SEED")]
    pub split_seed: Option<u64>,
    /// Leave out images that cannot be read, and rows whose images are not there
    #[arg(long, help_heading = FOLDERS)]
    pub skip_broken: bool,
}

impl Table {
    pub fn given(&self, image_size: Option<usize>) -> medmerge::data::Collecting {
        let Table { labels, label_column, group_column, shares, split_seed, skip_broken } = self;
        medmerge::data::Collecting {
            image_size,
            labels: labels.clone(),
            label_column: label_column.clone(),
            group_column: group_column.clone(),
            shares: *shares,
            split_seed: *split_seed,
            skip_broken: *skip_broken,
        }
    }
}

impl Collecting {
    pub fn given(&self) -> medmerge::data::Collecting {
        self.table.given(self.image_size)
    }
}

/// Two numbers with a comma between them.
fn two_numbers(text: &str) -> Result<[f64; 2], String> {
    let numbers: Option<Vec<f64>> = text.split(',').map(|number| number.trim().parse().ok()).collect();
    let numbers = numbers.and_then(|numbers| numbers.try_into().ok());
    numbers.ok_or_else(|| "give two numbers with a comma between them".to_string())
}

/// The normalisation of bytes: (v / 255 − mean) / std.
#[derive(Args)]
pub struct Normalise {
    /// Mean per channel, after dividing by 255 [default: as the network was trained, else 0.5]
    #[arg(long, value_delimiter = ',')]
    pub mean: Option<Vec<f32>>,
    /// Standard deviation per channel, after dividing by 255 [default: as the network was trained, else 0.5]
    #[arg(long, value_delimiter = ',')]
    pub std: Option<Vec<f32>>,
}

/// What a file's tensors leave open, and what is to be read differently.
#[derive(Args)]
pub struct Reading {
    /// The stem of networks whose files do not say it: 3x3, 3x3-pool, 3x3-stride2, 3x3-stride2-pool or 7x7. Tensors tell its
    /// window alone, and 3×3 ones are in use with strides of 1 and 2, with and without max pooling; without this, 3x3 has
    /// stride 1 and no pooling
    #[arg(long, value_parser = parse::<Stem>)]
    pub stem: Option<Stem>,
    /// Channels of the images that the network is to see [default: those of the file]. Where its filters see others, a single
    /// channel gets their sum, and more get them repeated and scaled
    #[arg(long, value_name = "CHANNELS")]
    pub input_channels: Option<usize>,
    /// Hidden fully connected layers, as VGGs have them: merged row by row like filters, or new like the head
    #[arg(long, value_parser = parse::<Hidden>, default_value = "merge", value_name = "merge|new")]
    pub hidden: Hidden,
}

impl Reading {
    pub fn given(&self) -> medmerge::checkpoint::Reading {
        let Reading { stem, input_channels, hidden } = *self;
        medmerge::checkpoint::Reading { stem, input_channels, hidden }
    }
}

/// The form of the network that is written.
#[derive(Args)]
pub struct Writing {
    /// Whose names --out has: torchvision (the network's own), timm, transformers, or source, those of --from or the anchor's
    /// file without what wrappers of training put before them
    #[arg(long, value_parser = parse::<Names>, default_value = "torchvision")]
    pub names: Names,
    /// Type of the numbers in --out, to which they are rounded: f32, bf16, f16, or source, that of --from or the anchor's file
    #[arg(long, value_parser = parse::<FloatType>, default_value = "f32", value_name = "TYPE")]
    pub dtype: FloatType,
    /// Also write a card, which tells where the network comes from, and the configuration by which timm or transformers build
    /// it: NAME.md and NAME.config.json beside --out; README.md and config.json beside an --out called model.safetensors
    #[arg(long)]
    pub card: bool,
}

impl Writing {
    pub fn given(&self) -> medmerge::checkpoint::Writing {
        let Writing { names, dtype, .. } = *self;
        medmerge::checkpoint::Writing { names, dtype }
    }
}

/// Where these options stand in the help.
const UPDATES: &str = "How updates are made";

/// How long and how fast to learn.
#[derive(Args)]
pub struct Schedule {
    /// Passes over the training split
    #[arg(long, default_value_t = 10)]
    pub epochs: usize,
    /// As many passes as have so many steps, instead of --epochs
    #[arg(long, conflicts_with = "epochs")]
    pub steps: Option<usize>,
    /// Images per step
    #[arg(long, default_value_t = 128)]
    pub batch_size: usize,
    /// Batches whose gradients make one update; batch norms see one batch at a time
    #[arg(long, default_value_t = 1, value_name = "BATCHES", help_heading = UPDATES)]
    pub accumulate: usize,
    /// Learning rate at the start
    #[arg(long, default_value_t = 1e-3, allow_negative_numbers = true)]
    pub learning_rate: f64,
    /// How the learning rate falls
    #[arg(long, value_enum, default_value_t = ScheduleName::Cosine)]
    pub schedule: ScheduleName,
    /// With --schedule plateau: epochs without a better figure that are waited out before the rate falls [default: 10]
    #[arg(long, value_name = "EPOCHS")]
    pub plateau_patience: Option<usize>,
    /// Epochs in which the learning rate rises to its value, before that
    #[arg(long, default_value_t = 0, value_name = "EPOCHS")]
    pub warmup: usize,
    /// Update rule
    #[arg(long, value_enum, default_value_t = OptimizerName::Adamw)]
    pub optimizer: OptimizerName,
    /// Nesterov's momentum, with --optimizer sgd
    #[arg(long, help_heading = UPDATES)]
    pub nesterov: bool,
    /// Clip the gradient of all that learns to this norm (L2)
    #[arg(long, value_name = "NORM", allow_negative_numbers = true, help_heading = UPDATES)]
    pub clip_norm: Option<f64>,
    /// Decay of the parameters towards zero
    #[arg(long, default_value_t = 1e-4)]
    pub weight_decay: f64,
    /// What decays: all parameters, or weights, not the scales and shifts of norms nor biases
    #[arg(long, value_enum, default_value_t = DecayOfName::All, help_heading = UPDATES)]
    pub decay_of: DecayOfName,
    /// Share of each label that is spread over all classes
    #[arg(long, default_value_t = 0.0)]
    pub label_smoothing: f64,
    /// Weight of each class in the loss
    #[arg(long, value_enum, default_value_t = ClassWeights::None)]
    pub class_weights: ClassWeights,
    /// Which training images an epoch shows
    #[arg(long, value_enum, default_value_t = Sampling::Shuffled)]
    pub sampling: Sampling,
    #[command(flatten)]
    pub augmentation: Augment,
    /// Stop after so many epochs without a better macro F1 (or --select-by) on the validation split
    #[arg(long, value_name = "EPOCHS")]
    pub patience: Option<usize>,
}

/// What happens to training images.
#[derive(Args, Clone)]
pub struct Augment {
    /// Flip training images left to right half of the time
    #[arg(long, help_heading = AUGMENTATION)]
    pub flip: bool,
    /// Shift training images by up to so many pixels
    #[arg(long, default_value_t = 0, value_name = "PIXELS", help_heading = AUGMENTATION)]
    pub shift: usize,
    /// Turn training images upside down half of the time
    #[arg(long, help_heading = AUGMENTATION)]
    pub flip_vertical: bool,
    /// Turn training images by 0, 90, 180 or 270 degrees
    #[arg(long, help_heading = AUGMENTATION)]
    pub quarter_turns: bool,
    /// Turn training images by up to so many degrees, either way
    #[arg(long, value_name = "DEGREES", help_heading = AUGMENTATION, allow_negative_numbers = true)]
    pub rotate: Option<f64>,
    /// Show a window of training images, of at least so much of the area, in full size
    #[arg(long, value_name = "SHARE", help_heading = AUGMENTATION, allow_negative_numbers = true)]
    pub crop: Option<f64>,
    /// Change brightness, contrast, saturation and hue by up to so much: 0.2,0.2,0.2,0.05
    #[arg(long, value_name = "B,C,S,H", value_parser = jitter, help_heading = AUGMENTATION, allow_negative_numbers = true)]
    pub jitter: Option<[f64; 4]>,
    /// Blur training images half of the time, with a standard deviation of up to so many pixels
    #[arg(long, value_name = "PIXELS", help_heading = AUGMENTATION, allow_negative_numbers = true)]
    pub blur: Option<f64>,
    /// Erase a window of training images, this often (0 to 1)
    #[arg(long, value_name = "PROBABILITY", help_heading = AUGMENTATION, allow_negative_numbers = true)]
    pub erase: Option<f64>,
    /// Mix images of a batch, and their labels, in shares of a Beta distribution: 0.2
    #[arg(long, value_name = "ALPHA", help_heading = AUGMENTATION, allow_negative_numbers = true)]
    pub mixup: Option<f64>,
    /// Put a window of one image of a batch into another: 1
    #[arg(long, value_name = "ALPHA", help_heading = AUGMENTATION, allow_negative_numbers = true)]
    pub cutmix: Option<f64>,
}

const AUGMENTATION: &str = "What happens to training images";

fn jitter(text: &str) -> Result<[f64; 4], String> {
    let numbers: Option<Vec<f64>> = text.split(',').map(|number| number.trim().parse().ok()).collect();
    let numbers = numbers.and_then(|numbers| numbers.try_into().ok());
    numbers.ok_or_else(|| "give four numbers: brightness, contrast, saturation, hue".into())
}

const FINDING: &str = "Finding a learning rate";

/// What has no effect on a search that measures no epoch and writes no network.
const FINDS_NO_RATE: [&str; 15] = [
    "out",
    "epochs",
    "schedule",
    "plateau_patience",
    "warmup",
    "patience",
    "select_by",
    "ema",
    "resume",
    "keep_state",
    "metrics",
    "tensorboard",
    "names",
    "dtype",
    "card",
];

#[derive(Args)]
#[command(group = clap::ArgGroup::new("start").args(["from", "weights"]))]
pub struct Train {
    #[command(flatten)]
    pub data: Data,
    /// resnet8, 14, 20, 32, 44, 56 (three stages; with -option-a, shortcuts without parameters), resnet18, 34, 50, 101, 152
    /// (four), wide_resnet50_2, wide_resnet101_2, resnext50_32x4d, resnext101_32x8d, resnext101_64x4d, densenet121, 161, 169,
    /// 201, vgg11, 13, 16, 19 (with _bn, batch norms)
    #[arg(long, default_value = "resnet18", conflicts_with = "start")]
    pub architecture: String,
    /// 3x3 for small images (stride 1; also 3x3-pool, 3x3-stride2, 3x3-stride2-pool), 7x7 for large ones (stride 2 and max
    /// pooling) [default: 3x3 for three stages, 7x7 for four]. With --from, the stem of a file that leaves it open: tensors
    /// tell its window alone
    #[arg(long, value_parser = parse::<Stem>)]
    pub stem: Option<Stem>,
    /// Filters of the first stage, or of the stem of a DenseNet [default: 16 for three stages, else 64; densenet161: 96]
    #[arg(long, conflicts_with = "start")]
    pub width: Option<usize>,
    /// Channels the network sees; grey images are repeated to fill them [default: the images', or those of --from, whose first
    /// filters are adapted to others]
    #[arg(long, value_name = "CHANNELS")]
    pub input_channels: Option<usize>,
    /// With --from or --weights: hidden fully connected layers, as VGGs have them, are kept (merge), or new like the head (new)
    #[arg(long, requires = "start", value_parser = parse::<Hidden>, default_value = "merge", value_name = "merge|new")]
    pub hidden: Hidden,
    /// Fine-tune this network; its head is kept if it fits the classes
    #[arg(long, value_name = "CKPT")]
    pub from: Option<PathBuf>,
    /// Fine-tune the network folded from these merge weights, which `learn` wrote, and learn the weights on beside it: its trunk
    /// is V + Σ (α − α⁰)·W, where all of V is fine-tuned, W are the sources as they are, and α starts as the α⁰ of the file.
    /// --out is an ordinary network
    #[arg(long, value_name = "FILE", requires = "models")]
    pub weights: Option<PathBuf>,
    /// With --weights: the sources, in the order in which the weights were learned
    #[arg(long, num_args = 1.., value_name = "CKPT", requires = "weights")]
    pub models: Vec<PathBuf>,
    /// With --weights: learning rate of the merge weights; --learning-rate is that of all else
    #[arg(long, default_value_t = 1e-2, allow_negative_numbers = true, requires = "weights")]
    pub merge_learning_rate: f64,
    /// Learning rate of the head [default: --learning-rate]
    #[arg(long, value_name = "RATE", allow_negative_numbers = true, help_heading = UPDATES)]
    pub head_learning_rate: Option<f64>,
    /// Stage by stage from the head, multiply the learning rate by this once more
    ///
    /// A stage of a ResNet is a layer1 to layer4, and its stem; of a DenseNet a block, and its stem; of a VGG what lies between two
    /// poolings, and its hidden layers
    #[arg(
        long,
        default_value_t = 1.0,
        value_name = "FACTOR",
        allow_negative_numbers = true,
        conflicts_with = "head_only",
        help_heading = UPDATES
    )]
    pub layer_decay: f64,
    /// Start with a new head even if the old one fits
    #[arg(long, requires = "start")]
    pub new_head: bool,
    /// Train the head alone, on a trunk that stays as it is, running statistics included: a linear probe
    #[arg(long, requires = "from", conflicts_with = "weights")]
    pub head_only: bool,
    /// Pull the trunk towards where fine-tuning starts, by λ (L2-SP); 0: not at all
    ///
    /// The loss is L + λ/2·‖T − T₀‖². Each step moves T by −rate·λ·(T − T₀), where rate is --learning-rate as the schedule leaves it,
    /// with sgd ten times that
    #[arg(
        long,
        default_value_t = 0.0,
        value_name = "λ",
        allow_negative_numbers = true,
        requires = "start",
        conflicts_with = "head_only"
    )]
    pub l2_sp: f64,
    /// Keep the features, which the classifier reads, near those of --teachers, by λ; 0: not at all
    ///
    /// The loss is L + λ/2·‖f − t‖², the mean over the images of a batch, where t is the mean of the teachers' features
    #[arg(long, default_value_t = 0.0, value_name = "λ", allow_negative_numbers = true, requires = "teachers")]
    pub distill: f64,
    /// With --distill: networks of the architecture of --from, such as the sources it was merged of
    #[arg(long, num_args = 1.., value_name = "CKPT", requires = "from", conflicts_with_all = ["head_only", "weights"])]
    pub teachers: Vec<PathBuf>,
    /// Measure and keep an exponential moving average over epochs, of which each leaves so much; 0: the network itself
    #[arg(long, default_value_t = 0.0, value_name = "DECAY", allow_negative_numbers = true)]
    pub ema: f64,
    #[command(flatten)]
    pub schedule: Schedule,
    /// Figure of the validation split by which the best epoch is kept, patience is lost and plateaus are seen
    #[arg(long, value_enum, default_value_t = SelectByName::MacroF1, value_name = "FIGURE")]
    pub select_by: SelectByName,
    /// Keep the state of the run beside --out after each epoch, and continue from it where there is one
    #[arg(long)]
    pub resume: bool,
    /// The trained network: the best epoch on the validation split
    #[arg(long, value_name = "FILE.safetensors", required_unless_present = "find_learning_rate")]
    pub out: Option<PathBuf>,
    /// Instead of training, let the learning rate rise from LOW to HIGH in 100 updates (or --steps), as all else asks for, and tell
    /// where the loss falls fastest and where it is least. No network is written [default: 1e-7,10]
    #[arg(
        long,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "1e-7,10",
        value_name = "LOW,HIGH",
        value_parser = two_numbers,
        help_heading = FINDING,
        conflicts_with_all = FINDS_NO_RATE
    )]
    pub find_learning_rate: Option<[f64; 2]>,
    /// With --find-learning-rate: a picture of the loss
    #[arg(long, value_name = "FILE.svg", help_heading = FINDING)]
    pub picture: Option<PathBuf>,
    /// With --resume: keep that state at the end too, so that the same command with more --epochs goes on
    #[arg(long, requires = "resume")]
    pub keep_state: bool,
    /// Also log epochs into this file, as a line of JSON each
    #[arg(long, value_name = "FILE.jsonl")]
    pub metrics: Option<PathBuf>,
    /// Also log epochs into a file in this folder, for TensorBoard
    #[arg(long, value_name = "FOLDER")]
    pub tensorboard: Option<PathBuf>,
    #[command(flatten)]
    pub writing: Writing,
    /// Overwrite what exists
    #[arg(long)]
    pub force: bool,
}

#[derive(Args)]
pub struct Learn {
    /// The sources, two or more; of a single one, --constraint free learns one number for each of its kernels or filters
    #[arg(long, num_args = 1.., required = true, value_name = "CKPT")]
    pub models: Vec<PathBuf>,
    #[command(flatten)]
    pub reading: Reading,
    #[command(flatten)]
    pub data: Data,
    /// The source on the `1 − w` side: its path, its name, its number from 0, auto (the better linear probe), or each: all are
    /// learned with, and the best on the validation split is kept
    #[arg(long, default_value = "auto")]
    pub anchor: String,
    /// Unit that shares one merge weight: model, layer, filter or kernel
    ///
    /// model: the whole network
    /// layer: a convolution, with the batch norm behind it
    /// filter: the C·R·S weights of one output channel
    /// kernel: the R·S weights between one input and one output channel
    #[arg(long, verbatim_doc_comment, value_parser = parse::<Granularity>, default_value = "kernel")]
    pub granularity: Granularity,
    /// Constraint on the weights α, for M sources with anchor a: affine, clamp, simplex or free
    ///
    /// affine: α_m = w_m for each source but the anchor, α_a = 1 − Σ w_m
    /// clamp: the same, with each w_m kept in [0, 1] after every step
    /// simplex: α = softmax(l), one number l_m for each source
    /// free: one number α_m for each source, whatever their sum
    #[arg(long, verbatim_doc_comment, value_parser = parse::<Constraint>, default_value = "affine")]
    pub constraint: Constraint,
    /// Weight that every source but the anchor starts with: a number, uniform, layer or filter; of several, as in 0/0.5/layer, each
    /// is learned from, and the best on the validation split is kept
    ///
    /// layer: what is learned first with one weight for each layer, from uniform, for half of the epochs.
    /// filter: the same with one for each filter; --regularise then pulls each kernel's weight towards its filter's
    #[arg(long, value_parser = parse::<Start>, default_value = "uniform", allow_negative_numbers = true, value_delimiter = '/')]
    pub start: Vec<Start>,
    /// Batch norms are merged by the weights of the filters before them, the anchor's, or merged by weights of their own
    #[arg(long, value_parser = parse::<BatchNormPolicy>, default_value = "merge", value_name = "merge|anchor|own")]
    pub batch_norm: BatchNormPolicy,
    /// Bring the sources' units into the order of the anchor's first: none, weights, or activations on the training split
    #[arg(long, value_parser = parse::<medmerge::merge::Align>, default_value = "none",
        value_name = "none|weights|activations")]
    pub align: medmerge::merge::Align,
    /// Keep the running statistics of the probe instead of re-estimating them on the training split
    #[arg(long)]
    pub keep_statistics: bool,
    /// What batch norms normalise by while merge weights are learned: the batch, or running statistics, re-estimated after each epoch
    #[arg(long, value_parser = parse::<ProbeStatistics>, default_value = "batch", value_name = "batch|running")]
    pub probe_statistics: ProbeStatistics,
    /// Learning rate of the merge weights; --learning-rate is the head's
    #[arg(long, default_value_t = 1e-2, allow_negative_numbers = true)]
    pub merge_learning_rate: f64,
    /// Pull the merge weights w (with simplex, the l) towards their start w₀, by λ; 0: not at all
    ///
    /// The loss is L + λ/2·‖w − w₀‖². Each step moves w by −rate·λ·(w − w₀) beside what the update rule makes of L, where rate is
    /// --merge-learning-rate as the schedule leaves it, with sgd ten times that, as momentum makes it of L's gradient. It may
    /// take w back to w₀, not further: rate·λ is 1 at most
    #[arg(long, default_value_t = 0.0, value_name = "λ", allow_negative_numbers = true)]
    pub regularise: f64,
    #[command(flatten)]
    pub schedule: Schedule,
    /// The folded network
    #[arg(long, value_name = "FILE.safetensors")]
    pub out: PathBuf,
    #[command(flatten)]
    pub writing: Writing,
    /// The learned merge weights [default: beside --out, named *.weights.safetensors]
    #[arg(long, value_name = "FILE.safetensors")]
    pub weights: Option<PathBuf>,
    /// Keep the state of the run beside --out after each epoch, and continue from it where there is one
    #[arg(long)]
    pub resume: bool,
    /// A picture of the learned weights per layer
    #[arg(long, value_name = "FILE.svg")]
    pub picture: Option<PathBuf>,
    /// Overwrite what exists
    #[arg(long)]
    pub force: bool,
}

#[derive(Args)]
pub struct Compare {
    /// The sources, two or more
    #[arg(long, num_args = 1.., required = true, value_name = "CKPT")]
    pub models: Vec<PathBuf>,
    #[command(flatten)]
    pub reading: Reading,
    #[command(flatten)]
    pub data: Data,
    /// What to compare; usual: single sources, averages, MedMerge by filter and by kernel, ensemble, soup; all: every merging method and
    /// option beside them; @FILE: those of a text file, one a line, after a # is none
    #[arg(long, num_args = 1.., value_name = "RECIPE", default_values_t = ["usual".to_string()])]
    pub recipes: Vec<String>,
    /// Seeds, counted up from --seed
    #[arg(long, default_value_t = 3)]
    pub seeds: u64,
    /// Draw so many training images by each seed, of each class its share [default: all]
    #[arg(long, value_name = "IMAGES")]
    pub train_images: Option<usize>,
    /// Epochs of the first phase, the head alone; without a first phase they are spent on everything
    #[arg(long, default_value_t = 10, value_name = "EPOCHS")]
    pub probe_epochs: usize,
    /// Learning rates of fine-tuning: each recipe takes the one that is best on the validation split over all seeds
    #[arg(long, value_delimiter = ',', num_args = 1.., default_values_t = [1e-3, 3e-4], value_name = "RATE")]
    pub learning_rates: Vec<f64>,
    /// Learning rate of the merge weights; --learning-rate is that of the first phase's head
    #[arg(long, default_value_t = 1e-2, allow_negative_numbers = true)]
    pub merge_learning_rate: f64,
    #[command(flatten)]
    pub schedule: Schedule,
    /// Seeds that run side by side on a CPU, each on its share of --threads
    #[arg(long, default_value_t = 1)]
    pub jobs: usize,
    /// Print what there is to do and how long it takes, by a measured step; write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// A folder: new, or of this comparison, which is continued
    #[arg(long, value_name = "FOLDER")]
    pub out: PathBuf,
}

#[derive(Args)]
#[command(group = clap::ArgGroup::new("how").required(true).multiple(true).args(["weights", "coefficients", "method"]))]
pub struct Merge {
    /// The sources, two or more, in the order in which the weights were learned
    #[arg(long, num_args = 1.., value_name = "CKPT")]
    pub models: Vec<PathBuf>,
    /// Merge weights that `learn` wrote
    #[arg(long, value_name = "FILE")]
    pub weights: Option<PathBuf>,
    /// How sources become one without learned weights; `--method list` tells of each [default: linear]
    #[arg(long, value_name = "NAME", conflicts_with = "weights")]
    pub method: Option<String>,
    /// One fixed coefficient per source, such as 0.3,0.7 [default: 1/M of M sources; 1 where methods add changes up]
    #[arg(long, value_delimiter = ',', conflicts_with = "weights")]
    pub coefficients: Option<Vec<f64>>,
    /// Coefficients of the parameters whose names contain FILTER, such as layer3=0.2,0.8; may be given several times, and the first
    /// that matches counts. A number may be several that the trunk's depth goes through: layer=0:0.5:1,1:0.5:0. Of linear merges,
    /// batch norms and biases have the coefficients of the layer that feeds them
    #[arg(long, value_name = "FILTER=NUMBERS", value_parser = filtered, conflicts_with = "weights")]
    pub coefficients_for: Vec<medmerge::merge::methods::Filtered>,
    /// The network that the sources were fine-tuned from, for methods that add up their changes
    #[arg(long, value_name = "CKPT", conflicts_with = "weights")]
    pub base: Option<PathBuf>,
    /// By what summed changes are multiplied [default: 1]
    #[arg(long, conflicts_with = "weights", allow_negative_numbers = true)]
    pub scale: Option<f64>,
    /// Share of changes that are kept [default: 0.2 of ties, 0.5 of dare]
    #[arg(long, conflicts_with = "weights", allow_negative_numbers = true)]
    pub density: Option<f64>,
    /// How far from the first source to the second, 0 to 1 [default: 0.5]
    #[arg(long, conflicts_with = "weights", allow_negative_numbers = true)]
    pub t: Option<f64>,
    /// Partners that correlate less stay two units [default: 1, any may]
    #[arg(long, conflicts_with = "weights", allow_negative_numbers = true)]
    pub threshold: Option<f64>,
    /// The most parameters that the merged network may have, in multiples of a source's [default: 1]
    #[arg(long, conflicts_with = "weights", allow_negative_numbers = true)]
    pub budget: Option<f64>,
    /// With --coefficients: the source whose head and running statistics are kept
    #[arg(long, default_value = "0", conflicts_with = "weights")]
    pub anchor: String,
    /// With --coefficients: batch norms are merged, or the anchor's
    #[arg(long, value_parser = parse::<BatchNormPolicy>, default_value = "merge", conflicts_with = "weights",
        value_name = "merge|anchor")]
    pub batch_norm: BatchNormPolicy,
    /// With --coefficients: heads are merged where all sources tell equally many classes apart, else the anchor's is
    /// kept (merge); left out, for train --from to make a new one (new); the anchor's (anchor); all kept side by side,
    /// each with columns of its own in the logits (concat), which eval and predict take by --head
    #[arg(long, value_parser = parse::<Heads>, default_value = "merge", value_name = "merge|new|anchor|concat",
          conflicts_with = "weights")]
    pub heads: Heads,
    /// Running statistics: the anchor's; rescale, what follows from the sources' own without images, for linear merges; or
    /// reestimate, on the training split of --data [default: reestimate with --data, else anchor]
    #[arg(long, value_parser = parse::<medmerge::merge::Statistics>, conflicts_with = "weights",
        value_name = "anchor|rescale|reestimate")]
    pub statistics: Option<medmerge::merge::Statistics>,
    /// With --coefficients: bring the sources' units into the order of the anchor's first: none, weights, or activations on the
    /// training split of --data
    #[arg(long, value_parser = parse::<medmerge::merge::Align>, default_value = "none", conflicts_with = "weights",
        value_name = "none|weights|activations")]
    pub align: medmerge::merge::Align,
    /// With --coefficients: re-estimate the running statistics on this data set's training split
    #[arg(long, value_name = "PATH", conflicts_with = "weights")]
    pub data: Option<PathBuf>,
    #[command(flatten)]
    pub normalise: Normalise,
    #[command(flatten)]
    pub collecting: Collecting,
    #[command(flatten)]
    pub reading: Reading,
    /// The merged network
    #[arg(long, value_name = "FILE.safetensors")]
    pub out: Option<PathBuf>,
    #[command(flatten)]
    pub writing: Writing,
    /// Overwrite what exists
    #[arg(long)]
    pub force: bool,
}

#[derive(Args)]
pub struct Align {
    /// The network whose units change places
    #[arg(long, value_name = "CKPT")]
    pub model: PathBuf,
    /// The network whose order they get
    #[arg(long, value_name = "CKPT")]
    pub to: PathBuf,
    /// weights: partners have the largest inner product of all that they own. activations: they say the most alike to the images
    /// of --data
    #[arg(long, value_parser = parse::<medmerge::merge::Align>, default_value = "weights", value_name = "weights|activations")]
    pub by: medmerge::merge::Align,
    /// With --by activations: the data set on whose training split activations are compared
    #[arg(long, value_name = "PATH")]
    pub data: Option<PathBuf>,
    #[command(flatten)]
    pub normalise: Normalise,
    #[command(flatten)]
    pub collecting: Collecting,
    #[command(flatten)]
    pub reading: Reading,
    /// The aligned network
    #[arg(long, value_name = "FILE.safetensors")]
    pub out: PathBuf,
    #[command(flatten)]
    pub writing: Writing,
    /// Overwrite what exists
    #[arg(long)]
    pub force: bool,
}

#[derive(Args)]
pub struct Eval {
    /// The network; several are an ensemble, whose probabilities are the mean of theirs
    #[arg(long, value_name = "CKPT", required = true, num_args = 1..)]
    pub model: Vec<PathBuf>,
    #[command(flatten)]
    pub reading: Reading,
    /// One of several heads (merge --heads concat), by its name or its number from 0; inspect lists them [default: eval
    /// takes the head whose classes the data set names, predict all]
    #[arg(long, value_name = "HEAD")]
    pub head: Option<String>,
    #[command(flatten)]
    pub data: Data,
    /// train, val or test; the file needs no other
    #[arg(long, value_parser = parse::<SplitName>, default_value = "test")]
    pub split: SplitName,
    /// Images per pass; it changes results by rounding alone
    #[arg(long, default_value_t = 128)]
    pub batch_size: usize,
    /// Look at images in mirrors too, and take the mean of the probabilities
    #[arg(long, value_enum, default_value_t = FlipsName::None, value_name = "MIRRORS")]
    pub test_flips: FlipsName,
}

#[derive(Args)]
pub struct Measure {
    #[command(flatten)]
    pub eval: Eval,
    /// Draw images again so often, by --seed, for 95 % intervals; 0: none
    #[arg(long, default_value_t = 1000, value_name = "TIMES")]
    pub bootstrap: usize,
    /// Also decide by thresholds that are best on the validation split, which is scored for it
    #[arg(long, value_enum, value_name = "FIGURE")]
    pub threshold_by: Option<ThresholdName>,
}

#[derive(Args)]
pub struct Predict {
    #[command(flatten)]
    pub eval: Eval,
    /// Write logits; without it, softmax probabilities
    #[arg(long)]
    pub logits: bool,
    /// Columns of the CSV
    #[arg(long, value_enum, default_value_t = FormatName::Table)]
    pub format: FormatName,
    /// CSV with a row per image in file order; - is stdout
    #[arg(long, value_name = "FILE.csv")]
    pub out: PathBuf,
    /// Overwrite what exists
    #[arg(long)]
    pub force: bool,
}

#[derive(Args)]
pub struct Export {
    /// The network
    #[arg(value_name = "CKPT")]
    pub model: PathBuf,
    /// The ONNX model
    #[arg(long, value_name = "FILE.onnx")]
    pub onnx: PathBuf,
    /// Version of ONNX's operators, 17 to 23
    #[arg(long, default_value_t = 17)]
    pub opset: u32,
    /// Height and width of the images: 224, or 224x192, or any, which VGGs do not take [default: as the network was trained;
    /// any where its file does not say]
    #[arg(long, value_parser = parse::<ImageSize>, default_value = "trained", hide_default_value = true)]
    pub image_size: ImageSize,
    /// Take images of numbers from 0 to 255, and normalise them in the graph; without it, they come normalised
    #[arg(long)]
    pub normalise: bool,
    #[command(flatten)]
    pub numbers: Normalise,
    #[command(flatten)]
    pub reading: Reading,
    /// Overwrite what exists
    #[arg(long)]
    pub force: bool,
}

#[derive(Args)]
pub struct Inspect {
    /// A network, merge weights or a data set, which may be a folder; with --plan also an architecture
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Another network: how the two differ, and whether they can be merged
    #[arg(value_name = "OTHER", conflicts_with = "plan")]
    pub other: Option<PathBuf>,
    /// Height and width of the images whose FLOPs are counted [default: those of the training, else the usual ones]; of images in a
    /// folder or an archive, that which they are brought to
    #[arg(long, value_name = "PIXELS")]
    pub image_size: Option<usize>,
    #[command(flatten)]
    pub table: Table,
    /// Write which image is in which split, with its label and group: a table that --labels takes
    #[arg(long, value_name = "FILE.csv")]
    pub write_splits: Option<PathBuf>,
    /// Overwrite what exists
    #[arg(long, requires = "write_splits")]
    pub force: bool,
    /// Of a data set: look for images that are in two splits, exactly or nearly
    #[arg(long)]
    pub duplicates: bool,
    /// Which channels of a network may change places: its groups of units, and what moves with each
    #[arg(long, conflicts_with_all = ["plan", "other"])]
    pub units: bool,
    /// How a network runs: the stages that its layers are joined into, and what each launches on a GPU
    #[arg(long)]
    pub plan: bool,
    #[command(flatten)]
    pub reading: Reading,
}

#[derive(Args)]
pub struct Synth {
    /// Folder for texture.npz, shape.npz and target.npz
    #[arg(long, value_name = "FOLDER")]
    pub out: PathBuf,
    /// Height and width of the images
    #[arg(long, default_value_t = 28)]
    pub image_size: usize,
    /// 1 for grey, 3 for RGB
    #[arg(long, default_value_t = 1)]
    pub channels: usize,
    /// Training images of each source task
    #[arg(long, default_value_t = 4000)]
    pub source_train: usize,
    /// Training images of the target
    #[arg(long, default_value_t = 600)]
    pub target_train: usize,
    /// Validation images of each task
    #[arg(long, default_value_t = 600)]
    pub val: usize,
    /// Test images of each task
    #[arg(long, default_value_t = 2000)]
    pub test: usize,
    /// Overwrite what exists
    #[arg(long)]
    pub force: bool,
}

#[derive(Subcommand)]
pub enum Bench {
    /// Whole-network merges, one α per filter: the blend, and its gradient dα
    Merge {
        /// How many sources; several are separated by commas [default: 2,4,8]
        #[arg(long, value_delimiter = ',')]
        sources: Vec<usize>,
        #[command(flatten)]
        options: BenchOptions,
    },
    /// Each distinct convolution of the networks, pass by pass
    Conv {
        /// fprop, dgrad or wgrad; several are separated by commas [default: all]
        #[arg(long, value_delimiter = ',', value_name = "PASS", value_parser = parse::<Pass>)]
        pass: Vec<Pass>,
        /// Time every tile of the kernels for tensor cores, and write the fastest of each convolution to this file, which
        /// MEDMERGE_TILES=FILE.json makes later runs follow
        #[arg(long, value_name = "FILE.json", conflicts_with = "baseline")]
        tune: Option<PathBuf>,
        /// Replace the file if it is there
        #[arg(long, requires = "tune")]
        force: bool,
        /// Run nothing, and tell which kernels and tiles each convolution gets; no GPU is needed
        #[arg(long, conflicts_with_all = ["baseline", "rounds", "tune"])]
        dry_run: bool,
        #[command(flatten)]
        images: BenchImages,
        #[command(flatten)]
        options: BenchOptions,
    },
    /// Training steps, and learning steps of merge weights
    Step {
        /// How many sources a learning step merges; several are separated by commas [default: 2]
        #[arg(long, value_delimiter = ',')]
        sources: Vec<usize>,
        /// Also list each step's kernels: how often they are launched, and what they read and write
        #[arg(long)]
        launches: bool,
        /// Run nothing, and tell what a step on a GPU launches, moves and needs of memory; no GPU is needed
        #[arg(long, conflicts_with_all = ["baseline", "rounds"])]
        dry_run: bool,
        /// Run nothing, and tell how a step's convolutions would fill so many threads of a CPU, by the lists of their tasks; several numbers
        /// are separated by commas
        #[arg(long, value_delimiter = ',', value_name = "THREADS", value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024))]
        #[arg(conflicts_with_all = ["baseline", "rounds", "dry_run", "launches"])]
        scaling: Vec<usize>,
        #[command(flatten)]
        images: BenchImages,
        #[command(flatten)]
        options: BenchOptions,
    },
    /// How fast images come from their files to batches, beside what a training step takes
    Data(Box<BenchData>),
}

#[derive(Args)]
pub struct BenchData {
    /// A data set, as train takes it
    #[arg(long, value_name = "PATH")]
    pub data: PathBuf,
    #[command(flatten)]
    pub collecting: Collecting,
    #[command(flatten)]
    pub augmentation: Augment,
    /// The network whose step consumes the images
    #[arg(long, default_value = "resnet18", value_name = "NAME")]
    pub network: String,
    /// The first so many training images
    #[arg(long, default_value_t = 512)]
    pub images: usize,
    /// Images of a batch
    #[arg(long, default_value_t = 32)]
    pub batch_size: usize,
    /// How often each stage is timed
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
}

#[derive(Args)]
pub struct BenchImages {
    /// Height and width; up to 64 with the 3x3 stem, else 7x7; several are separated by commas [default: 28; also 224 on a GPU]
    #[arg(long, value_delimiter = ',', value_name = "PIXELS")]
    pub image_size: Vec<usize>,
    /// Images of a batch [default: 128; on the CPU 8 large ones]
    #[arg(long)]
    pub batch_size: Option<usize>,
}

#[derive(Args)]
pub struct BenchOptions {
    /// Networks, separated by commas [default: resnet18,resnet50; their convolutions, and those of densenet121]
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    pub network: Vec<String>,
    /// Only rows whose name contains this; --json shows the names
    #[arg(long, value_name = "TEXT")]
    pub filter: Option<String>,
    /// Timings of each row, of which the median is shown [default: 31 on a GPU, 11 on the CPU, 5 for its steps]
    #[arg(long)]
    pub rounds: Option<usize>,
    /// The CPU's last-level cache in MiB, where what the system says is not what this machine may use: working sets and the
    /// arrays behind the memory's limits are larger [default: what the system says]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=4096))]
    pub cache_mib: Option<u64>,
    /// Output of an earlier run with --json: shows this run's times as multiples of it
    #[arg(long, value_name = "FILE.json")]
    pub baseline: Option<PathBuf>,
}

#[derive(Args)]
pub struct Selftest {
    /// Only this op; may be given several times [default: all ops]
    #[arg(long = "op", value_name = "NAME")]
    pub ops: Vec<String>,
}

#[derive(Args)]
pub struct Kernels {
    /// The architecture to compile for, such as sm_80, sm_90a or sm_100 [default: that of the first GPU, else sm_90a]
    #[arg(long = "arch", value_name = "ARCH")]
    pub architecture: Option<String>,
    /// Write the binaries into this folder
    #[arg(long, value_name = "FOLDER")]
    pub cubin: Option<PathBuf>,
    /// Write into the folder even if it holds something
    #[arg(long, requires = "cubin")]
    pub force: bool,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum ScheduleName {
    /// Half a cosine, to 0
    Cosine,
    Constant,
    /// A tenth from half of the steps on, a hundredth from three quarters on
    Step,
    /// A tenth each time that the validation split's figure has not improved for more than --plateau-patience epochs
    Plateau,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum SelectByName {
    Accuracy,
    BalancedAccuracy,
    MacroF1,
    Auc,
    /// The mean of −log p of the label
    Loss,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum DecayOfName {
    All,
    Weights,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum OptimizerName {
    Adamw,
    Sgd,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ThresholdName {
    F1,
    /// Sensitivity + specificity
    Youden,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FlipsName {
    None,
    /// Left to right
    Horizontal,
    /// Left to right, upside down, and both
    Both,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum FormatName {
    /// With a header: index,label,predicted,score0,score1,… Without labels that column is empty; where classes have names,
    /// label_name and predicted_name come before the scores. Of several heads index,label, then the others of each
    /// head, with its name
    Table,
    /// MedMNIST's result files: index,score0,score1,… and no header
    Medmnist,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Sampling {
    /// Each once
    Shuffled,
    /// As many, of classes that come equally often
    Balanced,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum ClassWeights {
    None,
    /// Each class weighs as if all had the same number of images
    Balanced,
}

/// The arguments of the program, in which a list of numbers that begins below zero is joined to its option: the parser
/// takes `-0.5,1.5` for an option of its own, and told to take everything for numbers, it would take `--out` too.
pub fn arguments(given: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = Vec::new();
    for argument in given {
        match arguments.last_mut() {
            Some(option) if NUMBERS.iter().any(|name| option == name) && is_below_zero(&argument) => {
                option.push("=");
                option.push(&argument);
            }
            _ => arguments.push(argument),
        }
    }
    arguments
}

/// Options that take a list of numbers.
const NUMBERS: [&str; 3] = ["--coefficients", "--mean", "--std"];

fn is_below_zero(argument: &OsStr) -> bool {
    matches!(argument.as_encoded_bytes(), [b'-', b'0'..=b'9' | b'.', ..])
}

/// Reads FILTER=NUMBERS: numbers by commas, each of one or several by colons.
fn filtered(text: &str) -> Result<medmerge::merge::methods::Filtered, String> {
    let (filter, numbers) = text.split_once('=').ok_or("give FILTER=NUMBERS, such as layer3=0.2,0.8")?;
    let number = |text: &str| text.trim().parse::<f64>().map_err(|_| format!("'{text}' is no number"));
    let of_source = |text: &str| text.split(':').map(number).collect::<Result<Vec<f64>, String>>();
    let values = numbers.split(',').map(of_source).collect::<Result<Vec<_>, String>>()?;
    Ok(medmerge::merge::methods::Filtered { filter: filter.to_string(), values })
}

/// Reads a named value; the nearest known name goes into the message.
fn parse<T: FromStr<Err = Error>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: Error| match error.hint() {
        Some(hint) => format!("{error}; {hint}"),
        None => error.to_string(),
    })
}
