//! `train`.

use serde_json::json;

use medmerge::checkpoint::{self, Checkpoint};
use medmerge::error::Result;
use medmerge::merge::training_metadata;
use medmerge::nn::{Architecture, Model, Region, init};
use medmerge::output::OutputPath;
use medmerge::tensor::{DType, Device};
use medmerge::train::{Subject, Target, train};

use super::progress::Progress;
use super::{check_fit, load_data, note, report, train_options};
use crate::cli::{Global, Train};

pub fn run(options: &Train, global: &Global) -> Result<()> {
    let train_options = train_options(&options.schedule, 0.0, global)?;
    // Found wrong before a large file is read.
    let named = Architecture::named(&options.architecture, options.stem, options.width)?;
    OutputPath::check(&options.out, options.force, 0)?;
    let from = options.from.as_deref().map(Checkpoint::load).transpose()?;
    let (data, normalisation) = load_data(&options.data)?;

    let (architecture, channels) = match &from {
        Some(from) => (from.architecture.clone(), from.model.network.input_channels),
        None => (named, options.input_channels.unwrap_or(data.channels)),
    };
    let network = architecture.build(channels, data.classes);
    check_fit(&data, &normalisation, &network, None)?;
    let output = OutputPath::check(&options.out, options.force, checkpoint::file_size(&network))?;
    let mut model = match &from {
        None => Model::initialized(network, global.seed),
        Some(from) => {
            let keeps_head = from.has_head && from.model.network.classes == data.classes && !options.new_head;
            if keeps_head {
                from.model.clone()
            } else {
                note(global, format_args!("the head is new: {} classes", data.classes));
                let mut model = Model::zeros(network, DType::F32, Device::Cpu);
                model.trunk = from.model.trunk.clone();
                model.statistics = from.model.statistics.clone();
                model.batches_tracked = from.model.batches_tracked.clone();
                init::initialize(&mut model, Region::Head, global.seed);
                model
            }
        }
    };

    let metadata = training_metadata(&architecture, global.seed, from.as_ref());
    let mut progress = Progress::new("training", global).saving_to(output, metadata.clone());
    let mut subject = if options.head_only { Subject::Head } else { Subject::Everything };
    let target = Target { data: &data, normalisation: &normalisation };
    let history = train(&mut model, &mut subject, target, &train_options, &mut progress)?;
    let mut output = progress.finish().expect("given above");
    checkpoint::save(&mut output, &model, &metadata)?;

    let best = history.iter().filter_map(|record| record.val_macro_f1).fold(f64::NAN, f64::max);
    let result = json!({
        "out": options.out, "architecture": architecture, "parameters": model.network.parameter_count(),
        "options": train_options, "epochs": history,
    });
    report(global, &result, || {
        println!(
            "{}: {architecture}, {} epochs, best validation macro F1 {best:.4}",
            options.out.display(),
            history.len()
        );
    });
    Ok(())
}
