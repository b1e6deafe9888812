//! The configuration of a written network, `config.json`, by which timm and transformers build it before they load its file.

use serde_json::{Map, Value, json};

use super::{Form, Names, Provenance};
use crate::data::Normalisation;
use crate::nn::families::resnet::{EXPANSION, ResNet};
use crate::nn::{Architecture, Model, Network, Stem};

/// A network in a file, as far as a configuration tells of it.
#[derive(Clone, Copy)]
pub struct Described<'a> {
    pub architecture: &'a Architecture,
    pub model: &'a Model,
    pub has_head: bool,
    pub form: &'a Form,
    pub provenance: &'a Provenance,
}

/// A configuration and the library that goes by it.
pub struct Configuration {
    pub library: &'static str,
    pub json: Value,
}

/// The height and width that are told where nobody knows others.
const USUAL_SIZE: [usize; 2] = [224; 2];

impl<'a> Described<'a> {
    /// A network with a classifier.
    pub fn of(
        architecture: &'a Architecture,
        model: &'a Model,
        form: &'a Form,
        provenance: &'a Provenance,
    ) -> Described<'a> {
        Described { architecture, model, has_head: true, form, provenance }
    }

    /// The configuration by which a library builds the network; `None` where none has such a network under these names.
    pub fn configuration(&self) -> Option<Configuration> {
        let network = &self.model.network;
        if self.form.is_like(Names::Transformers, self.architecture, network) {
            let network = self.architecture.as_family::<ResNet>()?;
            return Some(Configuration { library: "transformers", json: self.of_transformers(&network) });
        }
        // timm translates torchvision's names where they are not its own.
        let is_like = |names| self.form.is_like(names, self.architecture, network);
        let name = self.name_in_timm().filter(|_| is_like(Names::Timm) || is_like(Names::Torchvision))?;
        Some(Configuration { library: "timm", json: self.of_timm(name) })
    }

    /// The network's name in timm, which knows those of the usual width with the 7×7 stem.
    fn name_in_timm(&self) -> Option<&'static str> {
        let name = self.architecture.name()?;
        let usual = Architecture::named(name, None, None).ok()?;
        let is_known = usual == *self.architecture && usual.stem().is_none_or(|stem| stem == Stem::Large);
        is_known.then_some(name)
    }

    /// The number of classes; 0 where there is no classifier, as timm has it.
    fn classes(&self) -> usize {
        if self.has_head { self.model.network.classes } else { 0 }
    }

    fn of_timm(&self, name: &str) -> Value {
        let network: &Network = &self.model.network;
        let channels = network.input_channels;
        let [height, width] = self.provenance.image_size.unwrap_or(USUAL_SIZE);
        let Normalisation { mean, std } = self.provenance.normalisation.clone().unwrap_or_default();
        let per_channel = |values: Vec<f32>| values.into_iter().cycle().take(channels).collect::<Vec<f32>>();
        let mut pretrained = json!({
            "input_size": [channels, height, width], "mean": per_channel(mean), "std": per_channel(std),
            "num_classes": self.classes(), "crop_pct": 1.0, "interpolation": "bilinear", "fixed_input_size": false,
            "custom_load": false,
        });
        let layer = |parameter: &str| self.form.name_of(parameter).trim_end_matches(".weight").to_string();
        if let Some([weight, _]) = network.classifier() {
            pretrained["classifier"] = layer(&weight.name).into();
        }
        // timm takes filters under this name for those of three channels.
        if channels == 3 {
            pretrained["first_conv"] = layer(&network.parameters[0].name).into();
        }
        let mut all = json!({"architecture": name, "num_classes": self.classes(), "pretrained_cfg": pretrained});
        if channels != 3 {
            all["model_args"] = json!({"in_chans": channels});
        }
        if let Some(names) = self.provenance.class_names.as_ref().filter(|_| self.has_head) {
            all["label_names"] = json!(names);
        }
        all
    }

    fn of_transformers(&self, network: &ResNet) -> Value {
        let expansion = if network.bottleneck { EXPANSION } else { 1 };
        let sizes: Vec<usize> = network.widths.iter().map(|width| expansion * width).collect();
        let name = |class: usize| match &self.provenance.class_names {
            Some(names) => names[class].clone(),
            None => format!("LABEL_{class}"),
        };
        let classes = 0..self.classes();
        let by_id: Map<String, Value> = classes.clone().map(|class| (class.to_string(), name(class).into())).collect();
        let by_name: Map<String, Value> = classes.map(|class| (name(class), class.into())).collect();
        let mut all = json!({
            "model_type": "resnet", "num_channels": self.model.network.input_channels, "embedding_size": network.widths[0],
            "hidden_sizes": sizes, "depths": network.blocks, "hidden_act": "relu", "downsample_in_first_stage": false,
            "downsample_in_bottleneck": false, "layer_type": if network.bottleneck { "bottleneck" } else { "basic" },
            "architectures": [if self.has_head { "ResNetForImageClassification" } else { "ResNetModel" }],
        });
        if self.has_head {
            all["id2label"] = by_id.into();
            all["label2id"] = by_name.into();
        }
        all
    }
}
