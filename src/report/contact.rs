//! A contact sheet: rows of small grey images, each with what it shows.

use plotters::style::RGBColor;
use plotters::style::text_anchor::HPos;

use super::canvas::{FAINT_INK, Lettering, fitted, sheet};
use super::plots::{LABEL_SIZE, MARGIN, WIDTH, draw_title};

/// A grey image, row by row, and what stands below it.
#[derive(Clone, Debug, PartialEq)]
pub struct Thumbnail {
    pub label: String,
    pub width: usize,
    pub pixels: Vec<u8>,
}

/// Greys that are told apart: neighbours of one grey are drawn as one.
const GREYS: f64 = 31.0;
const SIDE: f64 = 96.0;
const PITCH: f64 = 107.0;
const LETTERS: f64 = 10.0;
const ROW: f64 = 26.0 + SIDE + 26.0;
const TOP: f64 = 52.0;

/// Each row has its caption above it; images beyond what 900 pixels hold are left out.
pub fn contact_sheet(title: &str, rows: &[(String, Vec<Thumbnail>)]) -> String {
    sheet(WIDTH, TOP + ROW * rows.len() as f64 + MARGIN, |canvas| {
        draw_title(canvas, title, MARGIN);
        for (index, (caption, images)) in rows.iter().enumerate() {
            let top = TOP + ROW * index as f64;
            let caption = fitted(caption, LABEL_SIZE, WIDTH - 2.0 * MARGIN);
            canvas.text(&caption, (MARGIN, top + 12.0), Lettering::new(LABEL_SIZE, HPos::Left));
            let room = ((WIDTH - 2.0 * MARGIN + PITCH - SIDE) / PITCH) as usize;
            for (at, image) in images.iter().take(room).enumerate() {
                let (left, top) = (MARGIN + PITCH * at as f64, top + 26.0);
                let height = image.pixels.len() / image.width.max(1);
                // Whole pixels, where there is room for them: no seams between.
                let pixel = SIDE / image.width.max(height).max(1) as f64;
                let pixel = if pixel > 1.0 { pixel.floor() } else { pixel };
                for (y, line) in image.pixels.chunks(image.width.max(1)).enumerate() {
                    let mut x = 0;
                    for run in line.chunk_by(|a, b| grey(*a) == grey(*b)) {
                        let corner = (left + x as f64 * pixel, top + y as f64 * pixel);
                        x += run.len();
                        let opposite = (left + x as f64 * pixel, top + (y + 1) as f64 * pixel);
                        let level = grey(run[0]);
                        canvas.rectangle(corner, opposite, RGBColor(level, level, level), 1.0);
                    }
                }
                let lettering = Lettering { color: FAINT_INK, ..Lettering::new(LETTERS, HPos::Center) };
                let middle = left + pixel * image.width as f64 / 2.0;
                canvas.text(&fitted(&image.label, LETTERS, PITCH + 8.0), (middle, top + SIDE + 8.0), lettering);
            }
        }
    })
}

fn grey(value: u8) -> u8 {
    let step = 255.0 / GREYS;
    ((f64::from(value) / step).round() * step) as u8
}

#[cfg(test)]
mod tests {
    use super::super::canvas::tests::assert_well_formed;
    use super::*;

    #[test]
    fn every_image_that_fits_is_drawn_with_its_label() {
        let image = |label: usize| Thumbnail {
            label: format!("class {label}"),
            width: 4,
            pixels: (0..16).map(|i| if i % 4 < 2 { 10 } else { 240 }).collect(),
        };
        let rows: Vec<(String, Vec<Thumbnail>)> =
            (1..=3).map(|row| (format!("row <{row}>"), (0..row * 5).map(image).collect())).collect();
        let svg = contact_sheet("Images", &rows);
        assert_well_formed(&svg);
        assert_eq!(svg, contact_sheet("Images", &rows), "the same bytes every time");
        assert!(svg.contains("row &lt;2&gt;"));
        // 5, 8 and 8 images of four lines of two runs each, on a sheet.
        assert_eq!(svg.matches("<rect ").count(), 1 + 21 * 8);
        assert_eq!(svg.matches("class 7").count(), 2);
        assert_well_formed(&contact_sheet("", &[]));
        assert_well_formed(&contact_sheet(
            "",
            &[("empty".into(), vec![Thumbnail { width: 0, pixels: vec![], ..image(0) }])],
        ));
    }
}
