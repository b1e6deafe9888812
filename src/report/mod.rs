//! The report that a run leaves for people to read: tables for the terminal and for Markdown, charts as SVG (with the
//! feature `cli`).
//!
//! Everything here turns numbers into a `String`, the same bytes for the same numbers; only [`save`] touches a disk. It
//! knows nothing of networks or data sets: whoever has results hands over names and numbers.

#[cfg(feature = "cli")]
mod bars;
#[cfg(feature = "cli")]
mod canvas;
#[cfg(feature = "cli")]
mod contact;
#[cfg(feature = "cli")]
mod plots;
mod table;

#[cfg(feature = "cli")]
pub use bars::{Bar, bars};
#[cfg(feature = "cli")]
pub use contact::{Thumbnail, contact_sheet};
#[cfg(feature = "cli")]
pub use plots::{Curve, LayerWeights, SourceWeights, curves, merge_weights};
pub use table::Table;

use crate::error::Result;
use crate::output::OutputPath;

/// Writes a table or a chart to its file.
pub fn save(text: &str, output: &mut OutputPath) -> Result<()> {
    output.write(|file| file.write_all(text.as_bytes()))
}

#[cfg(all(test, feature = "cli"))]
mod tests {
    use super::*;

    #[test]
    fn a_chart_reaches_its_file_unchanged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("chart.svg");
        let chart = curves("Loss", "epoch", "loss", &[]);
        save(&chart, &mut OutputPath::check(&path, false, 0).unwrap()).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), chart);
    }
}
