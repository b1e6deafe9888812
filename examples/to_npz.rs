//! Any data set that medmerge reads, as one file in MedMNIST's format: decoded, in one size, with its splits.
//!
//! ```sh
//! cargo run --release --example to_npz -- FOLDER data.npz 64
//! ```

use std::path::PathBuf;
use std::process::ExitCode;

use medmerge::data::{Collecting, Dataset};
use medmerge::error::Result;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(from), Some(to)) = (arguments.next().map(PathBuf::from), arguments.next().map(PathBuf::from)) else {
        eprintln!("usage: to_npz FOLDER FILE.npz [PIXELS]");
        return ExitCode::from(2);
    };
    let image_size = arguments.next().and_then(|side| side.to_str()?.parse().ok());
    match convert(&from, &to, image_size) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn convert(from: &std::path::Path, to: &std::path::Path, image_size: Option<usize>) -> Result<()> {
    let collected = Dataset::open(from, &Collecting { image_size, ..Collecting::default() })?;
    collected.remarks.iter().for_each(|remark| eprintln!("{remark}"));
    collected.data.save(to)
}
