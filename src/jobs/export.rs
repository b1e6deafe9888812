//! A network as an ONNX model, for programs that run those.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Normalise, networks};
use crate::checkpoint::{self, Checkpoint, Reading, onnx};
use crate::error::{Error, Result};
use crate::nn::Architecture;
use crate::output::{OutputPath, check_apart};
use crate::train::Observer;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Export {
    pub model: PathBuf,
    #[serde(default)]
    pub reading: Reading,
    /// The version of ONNX's operators.
    #[serde(default = "usual_opset")]
    pub opset: u32,
    #[serde(default)]
    pub image_size: ImageSize,
    /// Makes the graph normalise images of numbers from 0 to 255.
    #[serde(default)]
    pub normalise: Option<Normalise>,
    /// The ONNX model.
    pub out: PathBuf,
    /// Overwrites what exists.
    #[serde(default)]
    pub force: bool,
}

fn usual_opset() -> u32 {
    onnx::OPSETS[0]
}

/// The height and width of the images that a graph takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageSize {
    /// As the network was trained; any where its file does not say.
    #[default]
    Trained,
    Any,
    Pixels([usize; 2]),
}

/// The most pixels, down or across: far beyond any image in use.
const MOST_PIXELS: usize = 1 << 16;

impl FromStr for ImageSize {
    type Err = Error;

    /// `any`, `trained`, one number, or height and width as `224x192`.
    fn from_str(text: &str) -> Result<ImageSize> {
        let pixels = |text: &str| text.parse().ok().filter(|pixels| (1..=MOST_PIXELS).contains(pixels));
        let (height, width) = text.split_once('x').unwrap_or((text, text));
        match (text, pixels(height), pixels(width)) {
            ("trained", ..) => Ok(ImageSize::Trained),
            ("any", ..) => Ok(ImageSize::Any),
            (_, Some(height), Some(width)) => Ok(ImageSize::Pixels([height, width])),
            _ => {
                let hint = format!("give 224, 224x192 (height, width, up to {MOST_PIXELS}), any or trained");
                Err(Error::usage(format!("an image size of '{text}'"), hint))
            }
        }
    }
}

/// The result of a run of [`Export`].
#[derive(Clone, Debug)]
pub struct Exported {
    pub architecture: Architecture,
    pub input_channels: usize,
    pub classes: usize,
    /// `None` where the graph takes any.
    pub image_size: Option<[usize; 2]>,
    pub bytes: u64,
}

/// The images: what a batch of them looks like.
impl fmt::Display for Exported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.image_size {
            Some([height, width]) => write!(f, "N×{}×{height}×{width}", self.input_channels),
            None => write!(f, "N×{}×H×W", self.input_channels),
        }
    }
}

impl Export {
    /// Refuses what is wrong in itself, before anything is read.
    pub fn check(&self) -> Result<()> {
        onnx::check_opset(self.opset)?;
        check_apart(&[("the network", &self.model)], &[("--onnx", &self.out)])
    }

    pub fn run(&self, observer: &mut dyn Observer) -> Result<Exported> {
        self.check()?;
        let _claim = OutputPath::check(&self.out, self.force, 0)?;
        let checkpoint = networks::load(&self.model, &self.reading, observer)?;
        networks::check_classifier(&self.model, &checkpoint)?;
        let options = self.options(&checkpoint, observer)?;
        let Checkpoint { model, architecture, .. } = &checkpoint;
        let mut output = OutputPath::check(&self.out, self.force, checkpoint::file_size(&model.network))?;
        let bytes = onnx::write(&mut output, model, &options, &onnx::metadata(&checkpoint, &options))?;
        Ok(Exported {
            architecture: architecture.clone(),
            input_channels: model.network.input_channels,
            classes: model.network.classes,
            image_size: options.image_size,
            bytes,
        })
    }

    fn options(&self, checkpoint: &Checkpoint, observer: &mut dyn Observer) -> Result<onnx::Options> {
        let image_size = match self.image_size {
            ImageSize::Trained => checkpoint.provenance.image_size,
            ImageSize::Any => None,
            ImageSize::Pixels(size) => Some(size),
        };
        let files = [(self.model.as_path(), &checkpoint.provenance)];
        let channels = checkpoint.model.network.input_channels;
        let normalisation = match &self.normalise {
            Some(asked) => Some(networks::normalisation(asked, &files, channels, observer)?),
            None => None,
        };
        Ok(onnx::Options { opset: self.opset, image_size, normalisation })
    }
}
