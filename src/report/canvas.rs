//! A sheet of SVG, measured in pixels from its top left corner, and the axes of a chart on it.
//!
//! The backend knows whole units only, so a sheet is drawn at [`SCALE`] units a pixel, and its head says how large it
//! is to be shown. No font is at hand here: the width of a text is estimated from its length.

use plotters::backend::{DrawingBackend, SVGBackend};
use plotters::element::{DashedPathElement, Drawable};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, FontStyle, FontTransform, RGBColor, ShapeStyle, TextStyle};

const SCALE: f64 = 10.0;
const DRAWN: &str = "a sheet in memory takes every shape";

/// Pixels from the left, pixels from the top.
pub type Point = (f64, f64);

pub const INK: RGBColor = RGBColor(34, 34, 34);
pub const FAINT_INK: RGBColor = RGBColor(110, 110, 110);
pub const GRID: RGBColor = RGBColor(228, 228, 228);

pub struct Canvas<'a>(SVGBackend<'a>);

#[derive(Clone, Copy)]
pub struct Pen {
    pub color: RGBColor,
    /// In pixels.
    pub width: f64,
    pub dashed: bool,
}

impl Pen {
    pub fn solid(color: RGBColor, width: f64) -> Pen {
        Pen { color, width, dashed: false }
    }
}

/// How a text stands: its size in pixels, and where in it the point lies that it is written at.
#[derive(Clone, Copy)]
pub struct Lettering {
    pub size: f64,
    pub color: RGBColor,
    pub bold: bool,
    pub anchor: HPos,
    /// To be read from below.
    pub upwards: bool,
}

impl Lettering {
    pub fn new(size: f64, anchor: HPos) -> Lettering {
        Lettering { size, color: INK, bold: false, anchor, upwards: false }
    }
}

/// A white sheet filled by `draw`, as the text of an SVG file.
pub fn sheet(width: f64, height: f64, draw: impl FnOnce(&mut Canvas)) -> String {
    let mut svg = String::new();
    let (across, down) = units((width, height));
    {
        let mut canvas = Canvas(SVGBackend::with_string(&mut svg, (across as u32, down as u32)));
        canvas.rectangle((0.0, 0.0), (width, height), RGBColor(255, 255, 255), 1.0);
        draw(&mut canvas);
        canvas.0.present().expect(DRAWN);
    }
    let drawn = format!("<svg width=\"{across}\" height=\"{down}\"");
    svg.replacen(&drawn, &format!("<svg width=\"{width}\" height=\"{height}\""), 1)
}

impl Canvas<'_> {
    pub fn rectangle(&mut self, corner: Point, opposite: Point, color: RGBColor, opacity: f64) {
        let style = ShapeStyle { color: color.mix(opacity), filled: true, stroke_width: 0 };
        self.0.draw_rect(units(corner), units(opposite), &style, true).expect(DRAWN);
    }

    pub fn circle(&mut self, center: Point, radius: f64, color: RGBColor, opacity: f64) {
        let style = ShapeStyle { color: color.mix(opacity), filled: true, stroke_width: 0 };
        self.0.draw_circle(units(center), (radius * SCALE).round() as u32, &style, true).expect(DRAWN);
    }

    pub fn polygon(&mut self, corners: &[Point], color: RGBColor) {
        let style = ShapeStyle { color: color.to_rgba(), filled: true, stroke_width: 0 };
        self.0.fill_polygon(corners.iter().copied().map(units), &style).expect(DRAWN);
    }

    pub fn path(&mut self, points: &[Point], pen: Pen) {
        let stroke_width = (pen.width * SCALE).round() as u32;
        let style = ShapeStyle { color: pen.color.to_rgba(), filled: false, stroke_width };
        let mut points: Vec<(i32, i32)> = points.iter().copied().map(units).collect();
        points.dedup();
        if pen.dashed {
            let (dash, gap) = (7.0 * SCALE, 4.0 * SCALE);
            let dashes = DashedPathElement::new(points.iter().copied(), dash, gap, style);
            dashes.draw(points.iter().copied(), &mut self.0, (0, 0)).expect(DRAWN);
        } else {
            self.0.draw_path(points, &style).expect(DRAWN);
        }
    }

    pub fn text(&mut self, text: &str, at: Point, lettering: Lettering) {
        let Lettering { size, color, bold, anchor, upwards } = lettering;
        // The backend divides by 1.24.
        let font = ("sans-serif", size * SCALE * 1.24, if bold { FontStyle::Bold } else { FontStyle::Normal });
        let mut style = TextStyle::from(font).color(&color).pos(Pos::new(anchor, VPos::Center));
        if upwards {
            style = style.transform(FontTransform::Rotate270);
        }
        self.0.draw_text(&printable(text), &style, units(at)).expect(DRAWN);
    }
}

fn units((x, y): Point) -> (i32, i32) {
    ((x * SCALE).round() as i32, (y * SCALE).round() as i32)
}

/// XML has no place for control characters, not even escaped.
fn printable(text: &str) -> String {
    text.replace(|character: char| character.is_control() || matches!(character, '\u{fffe}' | '\u{ffff}'), " ")
}

/// About how many pixels a text takes.
pub fn text_width(text: &str, size: f64) -> f64 {
    0.62 * size * text.chars().count() as f64
}

/// The text, or its two ends, so that it takes no more than `room` pixels: names differ at either end.
pub fn fitted(text: &str, size: f64, room: f64) -> String {
    let characters: Vec<char> = text.chars().collect();
    let fit = ((room / text_width("m", size)) as usize).max(3);
    if characters.len() <= fit {
        return text.to_string();
    }
    let (head, tail) = (fit / 2, fit - fit / 2 - 1);
    characters[..head].iter().chain(&['…']).chain(&characters[characters.len() - tail..]).collect()
}

/// The values `low` to `high`, shown on the pixels `start` to `end`.
#[derive(Clone, Copy, Debug)]
pub struct Axis {
    pub low: f64,
    pub high: f64,
    pub start: f64,
    pub end: f64,
}

impl Axis {
    /// Over the values with a margin of `padding` times their range; where they are all the same, or there are none,
    /// over some values around.
    pub fn over(values: impl Iterator<Item = f64>, padding: f64) -> Axis {
        let (low, high) = values
            .filter(|value| drawable(*value))
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        let (low, high) = if low > high { (0.0, 1.0) } else { (low, high) };
        let magnitude = low.abs().max(high.abs());
        let margin = match high - low {
            range if range > 1e-6 * magnitude => padding * range,
            _ if magnitude > 0.0 => 0.1 * magnitude,
            _ => 1.0,
        };
        Axis { low: low - margin, high: high + margin, start: 0.0, end: 1.0 }
    }

    pub fn on(self, start: f64, end: f64) -> Axis {
        Axis { start, end, ..self }
    }

    pub fn at(&self, value: f64) -> f64 {
        self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)
    }

    /// About `count` round values, each with what to write at it; integers alone if `whole`.
    pub fn ticks(&self, count: usize, whole: bool) -> Vec<(f64, String)> {
        let rough = (self.high - self.low) / count.max(1) as f64;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0].map(|factor| factor * power).into_iter().find(|step| *step >= 0.7 * rough);
        let step = step.unwrap_or(10.0 * power).max(if whole { 1.0 } else { 0.0 });
        // A thousandth against rounding of what lies exactly on an end.
        let (first, last) = ((self.low / step - 1e-3).ceil(), (self.high / step + 1e-3).floor());
        let write = |value: f64| written(value, step, self.low.abs().max(self.high.abs()));
        (0..=(last - first).max(0.0) as usize)
            .map(|index| (first + index as f64) * step)
            .map(|value| (value, write(value)))
            .collect()
    }
}

/// A tick's value to as many places as tell it from the next; by powers of ten where the largest is large or the step
/// small.
fn written(value: f64, step: f64, largest: f64) -> String {
    let exponent = |number: f64| (number.log10() + 1e-9).floor();
    let places = -exponent(step).min(0.0);
    if value.abs() < step / 2.0 {
        return "0".into();
    }
    if largest >= 1e6 || places > 5.0 {
        let digits = (exponent(value.abs()) - exponent(step)).clamp(0.0, 15.0) as usize;
        return format!("{value:.digits$e}");
    }
    format!("{value:.0$}", places as usize)
}

/// Whether a number has a place on an axis; the bound keeps ranges finite.
pub fn drawable(value: f64) -> bool {
    value.abs() < 1e300
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Every tag is closed by its like, and no character stands for itself that XML keeps.
    pub fn assert_well_formed(svg: &str) {
        let mut open: Vec<&str> = Vec::new();
        let mut rest = svg;
        while let Some(begin) = rest.find('<') {
            let end = begin + rest[begin..].find('>').expect("a tag ends");
            let (text, tag) = (&rest[..begin], &rest[begin + 1..end]);
            assert!(!text.contains('>') && !tag.contains('<'), "{text}<{tag}>");
            assert!(tag.matches('"').count().is_multiple_of(2), "{tag}");
            for entity in text.split('&').skip(1).chain(tag.split('&').skip(1)) {
                assert!(
                    ["amp;", "lt;", "gt;", "quot;", "apos;"].iter().any(|name| entity.starts_with(name)),
                    "{entity}"
                );
            }
            let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap();
            match (tag.starts_with('/'), tag.ends_with('/')) {
                (true, _) => assert_eq!(open.pop(), Some(name)),
                (_, true) => assert!(!open.is_empty()),
                _ => open.push(name),
            }
            rest = &rest[end + 1..];
        }
        assert!(open.is_empty() && rest.trim().is_empty() && svg.starts_with("<svg "), "{open:?} {rest}");
        assert!(!svg.chars().any(|character| character.is_control() && character != '\n'));
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "a coordinate that is no number");
    }

    fn labels(low: f64, high: f64, whole: bool) -> Vec<String> {
        Axis { low, high, start: 0.0, end: 1.0 }.ticks(5, whole).into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(labels(0.0, 1.0, false), ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(labels(-0.13, 0.11, false), ["-0.10", "-0.05", "0", "0.05", "0.10"]);
        assert_eq!(labels(0.9, 3.1, true), ["1", "2", "3"]);
        assert_eq!(labels(0.0, 12e6, false), ["0", "2e6", "4e6", "6e6", "8e6", "1.0e7", "1.2e7"]);
        assert_eq!(labels(1e-7, 3e-7, false), ["1.0e-7", "1.5e-7", "2.0e-7", "2.5e-7", "3.0e-7"]);
    }

    #[test]
    fn every_range_has_few_ticks() {
        for values in [
            vec![],
            vec![0.0],
            vec![5.0, 5.0],
            vec![1e9, 1e9 + 1e-7],
            vec![-9e299, 9e299],
            vec![f64::NAN, f64::INFINITY],
            vec![1e-300, 2e-300],
        ] {
            for whole in [false, true] {
                let axis = Axis::over(values.iter().copied(), 0.05);
                assert!(axis.high > axis.low, "{values:?} {axis:?}");
                assert!(axis.ticks(5, whole).len() < 15, "{values:?} {axis:?}");
            }
        }
    }

    #[test]
    fn long_texts_keep_both_ends() {
        assert_eq!(fitted("layer4.2.conv1", 10.0, 200.0), "layer4.2.conv1");
        assert_eq!(fitted("layer4.2.downsample.0", 10.0, 62.0), "layer…le.0");
        assert_eq!(fitted("abcdef", 10.0, 0.0), "a…f");
    }
}
