//! `bench data`: how fast images come, beside what a step consumes.

use serde_json::json;

use medmerge::bench::data::{Loaded, Loading};
use medmerge::bench::is_emulated;
use medmerge::data::Dataset;
use medmerge::error::Result;
use medmerge::output::shown;
use medmerge::report::Table;

use super::{augmentation, collecting, note, place, report};
use crate::cli::{BenchData, Global};

pub fn run(options: &BenchData, global: &Global) -> Result<()> {
    let place = place::open(global)?;
    let augmentation = augmentation(&options.augmentation);
    augmentation.check()?;
    let collecting = collecting(&options.collecting, true)?;
    let loading = Loading {
        images: options.images,
        batch_size: options.batch_size,
        rounds: options.rounds,
        augmentation: (!augmentation.is_none()).then_some(augmentation),
        network: options.network.clone(),
        device: place.device,
        precision: place.precision,
        is_fused: place.is_fused,
    };
    let (data, mut is_first) = (&options.data, true);
    let found = loading.measure(&mut || {
        let collected = Dataset::open(data, &collecting)?;
        if std::mem::take(&mut is_first) {
            collected
                .remarks
                .iter()
                .for_each(|remark| note(global, format_args!("note: {}: {remark}", data.display())));
        }
        Ok(collected.data)
    })?;
    if is_emulated(place.device) {
        note(
            global,
            format_args!("note: the emulator checks kernels and does not time them: the step's rate means nothing"),
        );
    }
    let Loaded { images, shape: [height, width, channels], threads, batch_size, stages, step_images_per_second } =
        &found;
    let device = place.device.to_string();
    let result =
        json!({"bench": "data", "data": shown(data), "device": device, "network": options.network, "measured": found});
    report(global, &result, |out| {
        writeln!(
            out,
            "{}: {images} training images at {height}×{width}×{channels}, {threads} threads\n",
            data.display()
        )?;
        let mut table = Table::new(["", "images/s", "±", "× the step"]);
        let per_step = |rate: f64| format!("{:.2}", rate / step_images_per_second);
        for stage in stages {
            let rate = stage.images_per_second;
            table.row([
                stage.name.to_string(),
                format!("{rate:.0}"),
                format!("{:.0} %", 100.0 * stage.seconds.spread()),
                per_step(rate),
            ]);
        }
        let step = format!("step of {}, {batch_size} images, {device}", options.network);
        table.row([step, format!("{step_images_per_second:.1}"), String::new(), per_step(*step_images_per_second)]);
        writeln!(out, "{}", table.to_text())?;
        writeln!(
            out,
            "Each stage has those above in it. Later epochs find images decoded where all of them fit into memory."
        )?;
        writeln!(out, "While a step computes on this machine's CPU, images are made by the same threads.")
    })
}
