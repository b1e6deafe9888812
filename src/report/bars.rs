//! A chart of results: a row for each thing that is compared, in it a bar for each of a few figures.

use plotters::style::RGBColor;
use plotters::style::text_anchor::HPos;

use super::canvas::{Axis, Canvas, FAINT_INK, GRID, INK, Lettering, Pen, drawable, fitted, sheet, text_width};
use super::plots::{BLUE, LABEL_SIZE, MARGIN, TICK_SIZE, VERMILLION, WIDTH, draw_title, no_data};

/// A row: what it is called, and of each series a value with half of its interval, where there is one.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    pub name: String,
    pub values: Vec<Option<(f64, f64)>>,
}

/// Colours of two series.
const SERIES: [RGBColor; 2] = [BLUE, VERMILLION];

/// Heights in pixels.
const TOP: f64 = 76.0;
const THICKNESS: f64 = 13.0;
const BETWEEN: f64 = 12.0;
const BELOW: f64 = 58.0;

/// Horizontal bars from 0 as SVG, 900 pixels wide, of at most two series; a thin line is the interval, and a value that is no
/// number has no bar.
pub fn bars(title: &str, x_label: &str, series: &[&str], rows: &[Bar]) -> String {
    let pitch = THICKNESS * series.len().max(1) as f64 + BETWEEN;
    let height = TOP + pitch * rows.len().max(1) as f64 + BELOW;
    let reach = |&(value, interval): &(f64, f64)| if drawable(interval) { value + interval } else { value };
    let shown = || rows.iter().flat_map(|row| row.values.iter().flatten()).filter(|(value, _)| drawable(*value));
    let axis = Axis::over(shown().map(reach).chain([0.0]), 0.04);
    let names: Vec<String> = rows.iter().map(|row| fitted(&row.name, TICK_SIZE, 400.0)).collect();
    let widest = names.iter().map(|name| text_width(name, TICK_SIZE)).fold(0.0, f64::max);
    let (left, right, bottom) = (MARGIN + widest + 10.0, WIDTH - MARGIN - 50.0, height - BELOW);
    sheet(WIDTH, height, |canvas| {
        draw_title(canvas, title, MARGIN);
        let mut x = MARGIN;
        for (name, color) in series.iter().zip(SERIES) {
            canvas.rectangle((x, 48.0), (x + 14.0, 58.0), color, 1.0);
            canvas.text(name, (x + 20.0, 53.0), Lettering::new(TICK_SIZE, HPos::Left));
            x += 20.0 + text_width(name, TICK_SIZE) + 20.0;
        }
        // Bars begin at the left side, whatever margin there is.
        let axis = Axis { low: axis.low.max(0.0).min(shown().fold(0.0, |low, (value, _)| low.min(*value))), ..axis };
        let axis = axis.on(left, right);
        for (value, label) in axis.ticks(((right - left) / 80.0) as usize, false) {
            let x = axis.at(value);
            canvas.path(&[(x, TOP - 6.0), (x, bottom)], Pen::solid(GRID, 1.0));
            canvas.text(&label, (x, bottom + 14.0), Lettering::new(TICK_SIZE, HPos::Center));
        }
        for (index, (row, name)) in rows.iter().zip(&names).enumerate() {
            let top = TOP + index as f64 * pitch;
            let middle = top + (pitch - BETWEEN) / 2.0;
            canvas.text(name, (left - 8.0, middle), Lettering::new(TICK_SIZE, HPos::Right));
            for (at, (value, color)) in row.values.iter().zip(SERIES).enumerate() {
                let Some((value, interval)) = value.filter(|(value, _)| drawable(*value)) else { continue };
                draw_bar(canvas, (axis, top + at as f64 * THICKNESS), (value, interval), color);
            }
        }
        canvas.path(&[(axis.at(0.0), TOP - 6.0), (axis.at(0.0), bottom)], Pen::solid(INK, 1.0));
        let middle = (left + right) / 2.0;
        let x_label = fitted(x_label, LABEL_SIZE, 2.0 * (WIDTH - MARGIN - middle));
        canvas.text(&x_label, (middle, bottom + 38.0), Lettering::new(LABEL_SIZE, HPos::Center));
        if shown().next().is_none() {
            no_data(canvas, ((left + right) / 2.0, (TOP + bottom) / 2.0));
        }
    })
}

fn draw_bar(canvas: &mut Canvas, (axis, top): (Axis, f64), (value, interval): (f64, f64), color: RGBColor) {
    let (zero, end) = (axis.at(0.0), axis.at(value));
    canvas.rectangle((zero.min(end), top + 1.0), (zero.max(end), top + THICKNESS - 1.0), color, 0.85);
    let middle = top + THICKNESS / 2.0;
    let mut last = zero.max(end);
    if drawable(interval) {
        let ends = [value - interval, value + interval].map(|value| axis.at(value.max(axis.low)));
        canvas.path(&[(ends[0], middle), (ends[1], middle)], Pen::solid(INK, 1.2));
        for x in ends {
            canvas.path(&[(x, middle - 3.0), (x, middle + 3.0)], Pen::solid(INK, 1.2));
        }
        last = last.max(ends[1]);
    }
    let lettering = Lettering { color: FAINT_INK, ..Lettering::new(11.0, HPos::Left) };
    canvas.text(&format!("{value:.3}"), (last + 5.0, middle), lettering);
}

#[cfg(test)]
mod tests {
    use super::super::canvas::tests::assert_well_formed;
    use super::*;

    #[test]
    fn a_row_has_its_name_its_bars_and_their_values() {
        let row = |name: &str, values: &[Option<(f64, f64)>]| Bar { name: name.into(), values: values.to_vec() };
        let rows = [
            row("scratch <1>", &[None, Some((0.4, 0.05))]),
            row("one seed", &[Some((0.2, f64::NAN)), Some((0.5, f64::NAN))]),
            row("nothing", &[Some((f64::NAN, 0.1)), None]),
        ];
        let chart = || bars("Results", "macro F1", &["frozen", "fine-tuned"], &rows);
        let svg = chart();
        assert_well_formed(&svg);
        assert_eq!(svg, chart(), "the same bytes every time");
        assert!(svg.contains("scratch &lt;1&gt;") && svg.contains("nothing"));
        for value in ["0.400", "0.200", "0.500"] {
            assert_eq!(svg.matches(value).count(), 1, "{value}");
        }
        // The sheet, two keys, three bars; an interval has a line and two ends.
        assert_eq!(svg.matches("<rect ").count(), 6);
        for rows in [&[][..], &[row("nothing", &[None, None])]] {
            let svg = bars("", "", &["frozen", "fine-tuned"], rows);
            assert_well_formed(&svg);
            assert!(svg.contains("no data"));
        }
        assert_well_formed(&bars("", "", &["below"], &[row("a", &[Some((-0.3, 0.1))])]));
    }
}
