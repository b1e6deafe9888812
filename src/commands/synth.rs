//! `synth`.

use std::path::PathBuf;

use serde_json::json;

use medmerge::data::synthetic::{FILES, SyntheticOptions, Task, generate};
use medmerge::error::Result;
use medmerge::output::{OutputPath, shown};

use super::progress::spinner;
use super::report;
use crate::cli::{Global, Synth};

pub fn run(options: &Synth, global: &Global) -> Result<()> {
    let of_task = |task: Task| SyntheticOptions {
        size: options.image_size,
        channels: options.channels,
        train: if task == Task::Both { options.target_train } else { options.source_train },
        val: options.val,
        test: options.test,
        seed: global.seed,
        ..SyntheticOptions::default()
    };
    for (task, _) in FILES {
        of_task(task).check(task)?;
    }
    std::fs::create_dir_all(&options.out).map_err(medmerge::error::Error::io("create", &options.out))?;
    let paths = FILES.map(|(_, name)| options.out.join(name));
    let check = |path: &PathBuf| OutputPath::check(path, options.force, 0);
    let _claims = paths.iter().map(check).collect::<Result<Vec<_>>>()?;
    let spinner = spinner("drawing images", global);
    for ((task, _), path) in FILES.iter().zip(&paths) {
        generate(*task, &of_task(*task)).save(path)?;
    }
    spinner.finish_and_clear();
    let shown = paths.each_ref().map(|path| shown(path));
    report(global, &json!({"out": shown}), |out| shown.iter().try_for_each(|path| writeln!(out, "{path}")))
}
