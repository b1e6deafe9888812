//! The two charts of a run: what changed with the epochs, and which merge weights each layer learned.
//!
//! Colours are Okabe and Ito's, which people with any colour vision can tell apart; curves differ by marker and dashes
//! as well, so that a print in black will do.

use plotters::style::RGBColor;
use plotters::style::text_anchor::HPos;

use super::canvas::{Axis, Canvas, FAINT_INK, GRID, INK, Lettering, Pen, Point, drawable, fitted, sheet, text_width};

pub(super) const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 560.0;
pub(super) const MARGIN: f64 = 24.0;
const TITLE_SIZE: f64 = 17.0;
pub(super) const LABEL_SIZE: f64 = 13.0;
pub(super) const TICK_SIZE: f64 = 12.0;

pub(super) const BLUE: RGBColor = RGBColor(0, 114, 178);
pub(super) const VERMILLION: RGBColor = RGBColor(213, 94, 0);
const COLORS: [RGBColor; 6] =
    [BLUE, VERMILLION, RGBColor(0, 158, 115), RGBColor(204, 121, 167), RGBColor(230, 159, 0), RGBColor(86, 180, 233)];

/// Opacity of the bars over a layer's weights.
const LIGHT: f64 = 0.35;
const DARK: f64 = 0.6;

/// One line of a chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    pub name: String,
    /// A point with a number that is not finite is a gap in the line.
    pub points: Vec<(f64, f64)>,
}

/// A line chart as SVG, 900 × 560 pixels, its legend beside it.
pub fn curves(title: &str, x_label: &str, y_label: &str, curves: &[Curve]) -> String {
    let shown = || curves.iter().flat_map(|curve| &curve.points).filter(|(x, y)| drawable(*x) && drawable(*y));
    let whole = shown().all(|(x, _)| x.fract() == 0.0);
    let x_axis = Axis::over(shown().map(|(x, _)| *x), 0.02);
    let mut y_axis = Axis::over(shown().map(|(_, y)| *y), 0.05);
    if shown().all(|(_, y)| *y >= 0.0) {
        y_axis.low = y_axis.low.max(0.0);
    }

    let names: Vec<String> = curves.iter().map(|curve| fitted(&curve.name, TICK_SIZE, 190.0)).collect();
    let sample = 30.0;
    let legend = match names.iter().map(|name| text_width(name, TICK_SIZE)).reduce(f64::max) {
        Some(widest) => 16.0 + sample + 8.0 + widest,
        None => 0.0,
    };
    sheet(WIDTH, HEIGHT, |canvas| {
        let frame = Frame { top: 54.0, bottom: HEIGHT - 62.0, right: WIDTH - MARGIN - legend };
        let (left, y_axis) = frame.draw(canvas, y_label, y_axis);
        draw_title(canvas, title, left);
        let x_axis = x_axis.on(left, frame.right);
        for (value, label) in x_axis.ticks(((frame.right - left) / 80.0) as usize, whole) {
            let x = x_axis.at(value);
            canvas.path(&[(x, frame.bottom), (x, frame.bottom + 5.0)], Pen::solid(INK, 1.0));
            canvas.text(&label, (x, frame.bottom + 16.0), Lettering::new(TICK_SIZE, HPos::Center));
        }
        let middle = (left + frame.right) / 2.0;
        let x_label = fitted(x_label, LABEL_SIZE, frame.right - left);
        canvas.text(&x_label, (middle, frame.bottom + 42.0), Lettering::new(LABEL_SIZE, HPos::Center));

        for (index, curve) in curves.iter().enumerate() {
            let place = |&(x, y): &(f64, f64)| (drawable(x) && drawable(y)).then(|| (x_axis.at(x), y_axis.at(y)));
            draw_curve(canvas, Look::of(index), index, curve.points.iter().map(place));
        }
        let pitch = (frame.bottom - frame.top) / curves.len().max(1) as f64;
        for (index, name) in names.iter().enumerate() {
            let (x, y) = (frame.right + 16.0, frame.top + 8.0 + index as f64 * pitch.min(24.0));
            let look = Look::of(index);
            canvas.path(&[(x, y), (x + sample, y)], look.pen);
            look.marker.draw(canvas, (x + sample / 2.0, y), look.pen.color);
            canvas.text(name, (x + sample + 8.0, y), Lettering::new(TICK_SIZE, HPos::Left));
        }
        if shown().next().is_none() {
            no_data(canvas, (middle, (frame.top + frame.bottom) / 2.0));
        }
    })
}

/// The line through each run of places, and markers on it: at every point of a short curve, at a few of a long one.
fn draw_curve(canvas: &mut Canvas, look: Look, index: usize, places: impl Iterator<Item = Option<Point>>) {
    let places: Vec<Option<Point>> = places.collect();
    let count = places.iter().flatten().count();
    let every = if count <= 30 { 1 } else { count.div_ceil(12) };
    let mut drawn = 0;
    for run in places.split(|place| place.is_none()) {
        let run: Vec<Point> = run.iter().copied().flatten().collect();
        if run.len() > 1 {
            canvas.path(&run, look.pen);
        }
        for place in &run {
            // Each curve begins elsewhere, so that markers of curves that meet do not hide one another.
            if (drawn + index).is_multiple_of(every) || run.len() == 1 {
                look.marker.draw(canvas, *place, look.pen.color);
            }
            drawn += 1;
        }
    }
}

/// The look that tells a curve from the others.
#[derive(Clone, Copy)]
struct Look {
    pen: Pen,
    marker: Marker,
}

impl Look {
    /// The colours twice over, solid, then dashed and with other markers.
    fn of(index: usize) -> Look {
        let round = index / COLORS.len();
        let pen = Pen { color: COLORS[index % COLORS.len()], width: 2.0, dashed: round % 2 == 1 };
        Look { pen, marker: MARKERS[(index + round) % MARKERS.len()] }
    }
}

#[derive(Clone, Copy)]
enum Marker {
    Circle,
    /// Corners, in pixels from the point.
    Polygon(&'static [Point]),
    Cross,
}

const MARKERS: [Marker; 6] = [
    Marker::Circle,
    Marker::Polygon(&[(-3.2, -3.2), (3.2, -3.2), (3.2, 3.2), (-3.2, 3.2)]),
    Marker::Polygon(&[(0.0, -4.4), (4.2, 3.2), (-4.2, 3.2)]),
    Marker::Polygon(&[(0.0, -4.8), (4.8, 0.0), (0.0, 4.8), (-4.8, 0.0)]),
    Marker::Polygon(&[(0.0, 4.4), (4.2, -3.2), (-4.2, -3.2)]),
    Marker::Cross,
];

impl Marker {
    fn draw(self, canvas: &mut Canvas, (x, y): Point, color: RGBColor) {
        match self {
            Marker::Circle => canvas.circle((x, y), 3.6, color, 1.0),
            Marker::Polygon(corners) => {
                let corners: Vec<Point> = corners.iter().map(|(right, down)| (x + right, y + down)).collect();
                canvas.polygon(&corners, color);
            }
            Marker::Cross => {
                for down in [-3.6, 3.6] {
                    canvas.path(&[(x - 3.6, y - down), (x + 3.6, y + down)], Pen::solid(color, 2.0));
                }
            }
        }
    }
}

/// The merge weights of one layer for one source: one number, or one for each filter or kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerWeights {
    pub name: String,
    pub weights: Vec<f32>,
}

/// The merge weights of one source, for the same layers as every other one's.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceWeights {
    pub name: String,
    pub layers: Vec<LayerWeights>,
}

/// The distribution of each layer's merge weights as SVG: a row per source, and in it a column per layer, in which a dot
/// is a weight (of many, a sample spread evenly over their ranks, the extremes included), the light bar reaches from the
/// 10th to the 90th percentile, the dark bar over the quartiles, and the line is the median. 900 × 560 pixels, wider if
/// there are more layers than fit, and higher if there are more sources.
pub fn merge_weights(title: &str, y_label: &str, sources: &[SourceWeights]) -> String {
    let sorted: Vec<Vec<Vec<f64>>> = sources
        .iter()
        .map(|source| source.layers.iter().map(|layer| finite_in_order(&layer.weights)).collect())
        .collect();
    let given: usize = sources.iter().flat_map(|source| &source.layers).map(|layer| layer.weights.len()).sum();
    let left_out = given - sorted.iter().flatten().map(Vec::len).sum::<usize>();
    let ends = sorted.iter().flatten().flat_map(|weights| [weights.first(), weights.last()]).flatten().copied();
    let y_axis = Axis::over(ends.chain([0.0, 1.0]), 0.05);

    let layers = sources.first().map_or(&[][..], |source| &source.layers);
    let names = LayerNames::of(layers);
    let width = WIDTH.max(110.0 + 13.0 * layers.len() as f64);
    let upwards = names.widest + 10.0 > (width - 110.0) / layers.len() as f64;
    let below = if upwards { names.widest + 26.0 } else { 44.0 };
    let row = ((HEIGHT - ROWS_TOP - below) / sources.len().max(1) as f64).max(LEAST_ROW);
    let height = ROWS_TOP + row * sources.len().max(1) as f64 + below;
    sheet(width, height, |canvas| {
        let bottom = |index: usize| ROWS_TOP + row * (index + 1) as f64;
        let mut left = MARGIN;
        for (index, (source, weights)) in sources.iter().zip(&sorted).enumerate() {
            let frame = Frame { top: bottom(index) - row + ROW_NAME, bottom: bottom(index), right: width - MARGIN };
            left = draw_source(canvas, &frame, y_label, y_axis, source, weights);
        }
        draw_title(canvas, title, left);
        names.draw(canvas, (left, width - MARGIN), bottom(sources.len().max(1) - 1), upwards);
        if sorted.iter().flatten().any(|weights| weights.len() > 1) {
            draw_key(canvas, left, 54.0);
        }
        if left_out > 0 {
            let note = format!("not finite, not drawn: {left_out} of the weights");
            let lettering = Lettering { color: VERMILLION, ..Lettering::new(TICK_SIZE, HPos::Right) };
            canvas.text(&note, (width - MARGIN, 54.0), lettering);
        }
        if sorted.iter().flatten().all(Vec::is_empty) {
            no_data(canvas, ((left + width - MARGIN) / 2.0, ROWS_TOP + row / 2.0));
        }
    })
}

/// Where the rows of sources begin, what each has at least, and of that for its name.
const ROWS_TOP: f64 = 66.0;
const LEAST_ROW: f64 = 220.0;
const ROW_NAME: f64 = 26.0;

/// Draws the columns of one source, and returns where they begin.
fn draw_source(
    canvas: &mut Canvas,
    frame: &Frame,
    y_label: &str,
    y_axis: Axis,
    source: &SourceWeights,
    sorted: &[Vec<f64>],
) -> f64 {
    let (left, y_axis) = frame.draw(canvas, y_label, y_axis);
    let name = fitted(&source.name, LABEL_SIZE, frame.right - left);
    canvas.text(&name, (left, frame.top - 11.0), Lettering::new(LABEL_SIZE, HPos::Left));
    let pitch = (frame.right - left) / source.layers.len().max(1) as f64;
    for (index, pair) in source.layers.windows(2).enumerate() {
        if stage(&pair[0].name) != stage(&pair[1].name) {
            let x = left + (index + 1) as f64 * pitch;
            canvas.path(&[(x, frame.top), (x, frame.bottom - 1.0)], Pen::solid(GRID, 1.0));
        }
    }
    for value in [0.0, 1.0] {
        canvas.path(&[(left, y_axis.at(value)), (frame.right, y_axis.at(value))], Pen::solid(FAINT_INK, 1.2));
    }
    let dots = (6000 / source.layers.len().max(1)).clamp(40, 200);
    for (index, weights) in sorted.iter().enumerate() {
        let x = left + (index as f64 + 0.5) * pitch;
        draw_distribution(canvas, Column { index, x, width: (0.84 * pitch).min(90.0), dots }, weights, y_axis);
    }
    left
}

/// The names that stand below the columns.
struct LayerNames {
    fitted: Vec<String>,
    widest: f64,
}

impl LayerNames {
    const SIZE: f64 = 11.0;

    fn of(layers: &[LayerWeights]) -> LayerNames {
        let fitted: Vec<String> = layers.iter().map(|layer| fitted(&layer.name, LayerNames::SIZE, 150.0)).collect();
        let widest = fitted.iter().map(|name| text_width(name, LayerNames::SIZE)).fold(0.0, f64::max);
        LayerNames { fitted, widest }
    }

    fn draw(&self, canvas: &mut Canvas, (left, right): (f64, f64), bottom: f64, upwards: bool) {
        let pitch = (right - left) / self.fitted.len().max(1) as f64;
        let anchor = if upwards { HPos::Right } else { HPos::Center };
        let lettering = Lettering { upwards, ..Lettering::new(LayerNames::SIZE, anchor) };
        for (index, name) in self.fitted.iter().enumerate() {
            let x = left + (index as f64 + 0.5) * pitch;
            canvas.text(name, (x, bottom + if upwards { 8.0 } else { 18.0 }), lettering);
        }
    }
}

/// Where a layer's weights are drawn, and as how many dots at most.
struct Column {
    index: usize,
    x: f64,
    width: f64,
    dots: usize,
}

/// Draws `weights`, which are in rising order.
fn draw_distribution(canvas: &mut Canvas, column: Column, weights: &[f64], axis: Axis) {
    let Column { index, x, width, dots } = column;
    if let [weight] = weights {
        canvas.circle((x, axis.at(*weight)), 4.0, BLUE, 1.0);
        return;
    }
    if weights.is_empty() {
        return;
    }
    let shown = weights.len().min(dots);
    for dot in 0..shown {
        let weight = weights[dot * (weights.len() - 1) / (shown - 1)];
        let aside = (scatter(index * dots + dot) - 0.5) * width;
        canvas.circle((x + aside, axis.at(weight)), 1.5, FAINT_INK, 0.4);
    }
    for (low, high, opacity) in [(0.1, 0.9, LIGHT), (0.25, 0.75, DARK)] {
        let (top, bottom) = (axis.at(quantile(weights, high)), axis.at(quantile(weights, low)));
        canvas.rectangle((x - 0.3 * width, top), (x + 0.3 * width, bottom), BLUE, opacity);
    }
    let median = axis.at(quantile(weights, 0.5));
    canvas.path(&[(x - width / 2.0, median), (x + width / 2.0, median)], Pen::solid(VERMILLION, 2.2));
}

/// Draws the key: what the shapes of a column mean.
fn draw_key(canvas: &mut Canvas, left: f64, y: f64) {
    let mut x = left;
    for name in ["one weight", "10–90 %", "quartiles", "median"] {
        let (corner, opposite) = ((x, y - 5.0), (x + 16.0, y + 5.0));
        match name {
            "one weight" => canvas.circle((x + 8.0, y), 2.0, FAINT_INK, 0.8),
            "10–90 %" => canvas.rectangle(corner, opposite, BLUE, LIGHT),
            // One lies on the other in the chart.
            "quartiles" => canvas.rectangle(corner, opposite, BLUE, LIGHT + DARK - LIGHT * DARK),
            _ => canvas.path(&[(x, y), (x + 16.0, y)], Pen::solid(VERMILLION, 2.2)),
        }
        let lettering = Lettering { color: FAINT_INK, ..Lettering::new(TICK_SIZE, HPos::Left) };
        canvas.text(name, (x + 22.0, y), lettering);
        x += 22.0 + text_width(name, TICK_SIZE) + 16.0;
    }
}

fn finite_in_order(weights: &[f32]) -> Vec<f64> {
    let mut finite: Vec<f64> =
        weights.iter().filter(|weight| weight.is_finite()).map(|weight| *weight as f64).collect();
    finite.sort_unstable_by(f64::total_cmp);
    finite
}

/// A quantile of values in rising order, interpolated linearly between ranks.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let rank = share * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[rank.floor() as usize], sorted[rank.ceil() as usize]);
    below + (above - below) * rank.fract()
}

/// A number in 0..1 that looks random and is always the same for an index (the finalizer of SplitMix64).
fn scatter(index: usize) -> f64 {
    let mut bits = (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((bits ^ (bits >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

/// The part of a layer's name that it shares with its neighbours.
fn stage(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}

/// The sides of a plot in pixels, but for the left one, which depends on how long the ticks' labels are.
struct Frame {
    top: f64,
    bottom: f64,
    right: f64,
}

impl Frame {
    /// Draws y axis, grid and border; the left side, and the axis on its pixels.
    fn draw(&self, canvas: &mut Canvas, y_label: &str, axis: Axis) -> (f64, Axis) {
        let axis = axis.on(self.bottom, self.top);
        let ticks = axis.ticks(((self.bottom - self.top) / 50.0) as usize, false);
        let widest = ticks.iter().map(|(_, label)| text_width(label, TICK_SIZE)).fold(0.0, f64::max);
        let left = MARGIN + LABEL_SIZE + 14.0 + widest;
        for (value, label) in ticks {
            let y = axis.at(value);
            canvas.path(&[(left, y), (self.right, y)], Pen::solid(GRID, 1.0));
            canvas.path(&[(left - 5.0, y), (left, y)], Pen::solid(INK, 1.0));
            canvas.text(&label, (left - 9.0, y), Lettering::new(TICK_SIZE, HPos::Right));
        }
        canvas.path(&[(left, self.top), (left, self.bottom), (self.right, self.bottom)], Pen::solid(INK, 1.0));
        let lettering = Lettering { upwards: true, ..Lettering::new(LABEL_SIZE, HPos::Center) };
        let y_label = fitted(y_label, LABEL_SIZE, self.bottom - self.top);
        canvas.text(&y_label, (MARGIN, (self.top + self.bottom) / 2.0), lettering);
        (left, axis)
    }
}

pub(super) fn draw_title(canvas: &mut Canvas, title: &str, left: f64) {
    let lettering = Lettering { bold: true, ..Lettering::new(TITLE_SIZE, HPos::Left) };
    canvas.text(&fitted(title, TITLE_SIZE, WIDTH - MARGIN - left), (left, 27.0), lettering);
}

pub(super) fn no_data(canvas: &mut Canvas, at: Point) {
    canvas.text("no data", at, Lettering { color: FAINT_INK, ..Lettering::new(TITLE_SIZE, HPos::Center) });
}

#[cfg(test)]
mod tests {
    use super::super::canvas::tests::assert_well_formed;
    use super::*;

    fn curve(name: &str, points: &[(f64, f64)]) -> Curve {
        Curve { name: name.into(), points: points.to_vec() }
    }

    fn layer(name: &str, weights: &[f32]) -> LayerWeights {
        LayerWeights { name: name.into(), weights: weights.to_vec() }
    }

    /// The chart of a single source.
    fn one_source(title: &str, y_label: &str, layers: &[LayerWeights]) -> String {
        merge_weights(title, y_label, &[SourceWeights { name: "source".into(), layers: layers.to_vec() }])
    }

    fn count(svg: &str, shape: &str) -> usize {
        svg.matches(&format!("<{shape} ")).count()
    }

    /// Circles besides the key's.
    fn dots(svg: &str) -> usize {
        count(svg, "circle") - svg.contains("one weight") as usize
    }

    #[test]
    fn any_number_of_curves_of_any_length() {
        for curve_count in [0, 1, 2, 12, 40] {
            for length in [0, 1, 2, 10, 500] {
                let points: Vec<_> = (0..length).map(|x| (x as f64, (x as f64 / 9.0).sin())).collect();
                let all: Vec<_> = (0..curve_count).map(|index| curve(&format!("curve {index}"), &points)).collect();
                let svg = curves("Title", "epoch", "loss", &all);
                assert_well_formed(&svg);
                assert_eq!(svg, curves("Title", "epoch", "loss", &all), "the same bytes every time");
                assert_eq!(svg.contains("no data"), curve_count * length == 0);
            }
        }
    }

    #[test]
    fn points_that_are_not_numbers_leave_a_gap() {
        let nan = f64::NAN;
        let whole = curves("", "", "", &[curve("a", &[(1.0, 0.1), (2.0, 0.2), (3.0, 0.3), (4.0, 0.4)])]);
        let gap =
            curves("", "", "", &[curve("a", &[(1.0, 0.1), (2.0, 0.2), (nan, 0.3), (3.0, f64::INFINITY), (4.0, 0.4)])]);
        assert_well_formed(&gap);
        // The legend has a marker of its own.
        assert_eq!((count(&whole, "circle"), count(&gap, "circle")), (5, 4));
        let nothing = curves("", "", "", &[curve("a", &[(nan, nan), (1.0, nan)])]);
        assert_well_formed(&nothing);
        assert!(nothing.contains("no data"));
    }

    #[test]
    fn names_are_escaped() {
        let name = "<a> & \"b\"\u{1}\0 'c'";
        let charts = [
            curves(name, name, name, &[curve(name, &[(0.0, 0.0)])]),
            one_source(name, name, &[layer(name, &[0.5]), layer("other", &[0.1, 0.2])]),
        ];
        for svg in charts {
            assert_well_formed(&svg);
            assert!(svg.contains("&lt;a&gt; &amp; &quot;b&quot;   &apos;c&apos;"), "{svg}");
        }
    }

    #[test]
    fn weights_of_any_shape_of_network() {
        for layer_count in [0, 1, 3, 60, 200] {
            for weight_count in [0, 1, 2, 64, 5000] {
                let weights: Vec<f32> = (0..weight_count).map(|index| (index as f32 * 0.7).sin()).collect();
                let layers: Vec<_> =
                    (0..layer_count).map(|index| layer(&format!("layer{index}.conv"), &weights)).collect();
                let svg = one_source("Weights", "α", &layers);
                assert_well_formed(&svg);
                assert_eq!(svg, one_source("Weights", "α", &layers), "the same bytes every time");
                assert!(dots(&svg) <= 200 * layer_count);
                assert_eq!(svg.contains("no data"), layer_count * weight_count == 0);
            }
        }
        assert_eq!(dots(&one_source("", "", &[layer("model", &[0.3])])), 1);
        assert_eq!(dots(&one_source("", "", &[layer("conv", &[0.3; 64])])), 64);
        assert_eq!(dots(&one_source("", "", &[layer("conv", &[0.3; 64_000])])), 200);
    }

    #[test]
    fn every_source_has_a_row_with_its_name() {
        for count in [1, 2, 3, 8] {
            let source = |index: usize| SourceWeights {
                name: format!("source <{index}>"),
                layers: (0..20).map(|layer_index| layer(&format!("layer{layer_index}"), &[0.2, 0.3])).collect(),
            };
            let sources: Vec<SourceWeights> = (0..count).map(source).collect();
            let svg = merge_weights("Weights", "α", &sources);
            assert_well_formed(&svg);
            assert_eq!(dots(&svg), count * 20 * 2);
            for index in 0..count {
                assert_eq!(svg.matches(&format!("source &lt;{index}&gt;")).count(), 1);
            }
            // The names of layers stand below the last row alone.
            assert_eq!(svg.matches("layer13").count(), 1);
            let height = if count < 3 { HEIGHT } else { ROWS_TOP + count as f64 * LEAST_ROW };
            let drawn: f64 = svg.split("height=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap();
            assert!(drawn >= height && drawn < height + 150.0, "{drawn} for {count}");
        }
    }

    #[test]
    fn weights_that_are_not_numbers_are_counted() {
        let svg = one_source("", "", &[layer("conv", &[f32::NAN, 0.5, f32::INFINITY, 0.7])]);
        assert_well_formed(&svg);
        assert_eq!(dots(&svg), 2);
        assert!(svg.contains("not drawn: 2 of the weights"));
        assert!(!one_source("", "", &[layer("conv", &[0.5])]).contains("not drawn"));
    }

    #[test]
    fn quantiles() {
        let sorted = [0.0, 1.0, 2.0, 3.0];
        assert_eq!([0.0, 0.25, 0.5, 1.0].map(|share| quantile(&sorted, share)), [0.0, 0.75, 1.5, 3.0]);
        assert_eq!(quantile(&[7.0], 0.9), 7.0);
    }
}
