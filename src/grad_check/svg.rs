//! Pictures of a report and of a sweep, as SVG.

use std::error::Error;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::report::InputReport;
use super::sweep::{Sweep, SweepPoint};
use super::verdict::Verdict;

/// A picture, or why the drawing library refused.
type Drawn = Result<String, Box<dyn Error + Send + Sync>>;

const INK: RGBColor = RGBColor(40, 44, 52);
const MEASURED: RGBColor = RGBColor(31, 90, 166);
const NOISE: RGBColor = RGBColor(178, 96, 18);
const TRUNCATION: RGBColor = RGBColor(38, 128, 78);
const FLOOR: RGBColor = RGBColor(150, 150, 156);
const FAINT: RGBColor = RGBColor(228, 228, 232);

/// Cells of a heat map at most, in each dimension; beyond these a cell shows the worst of several components.
const CELLS: usize = 96;

/// The powers of ten that the colours of a heat map span.
const DECADES: std::ops::RangeInclusive<i32> = -2..=3;

impl Sweep {
    /// The curve on logarithmic axes, with the lines that noise (slope -1) and truncation (slope +2) follow.
    ///
    /// # Errors
    ///
    /// If the picture cannot be drawn, because there are no finite points.
    pub fn svg(&self) -> Drawn {
        let mut svg = String::new();
        {
            let root = SVGBackend::with_string(&mut svg, (880, 560)).into_drawing_area();
            self.draw(&root).map_err(|error| error.to_string())?;
        }
        Ok(svg)
    }

    fn draw<B: DrawingBackend>(&self, root: &DrawingArea<B, Shift>) -> Result<(), Box<dyn Error>>
    where
        B::ErrorType: 'static,
    {
        let (Some(first), Some(last)) = (self.points.first(), self.points.last()) else {
            return Err("there is no finite point to draw".into());
        };
        let (bottom, top) = self.decades();
        root.fill(&WHITE)?;
        draw_words(
            root,
            &format!("{} in {}: gradient of {}", self.operation, self.element, self.input),
            &self.in_words(),
        )?;
        root.draw(&Circle::new((720, 24), 3, MEASURED.filled()))?;
        root.draw(&Text::new("|analytic - numeric|", (730, 17), style(14, &MEASURED)))?;
        let area = root.margin(84, 6, 6, 24);
        let mut chart = ChartBuilder::on(&area)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d((first.step..last.step).log_scale(), (bottom..top).log_scale())?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(FAINT)
            .axis_style(INK)
            .label_style(style(13, &INK))
            .x_desc("step")
            .y_desc("difference / rms of the gradient")
            .x_label_formatter(&|value| format!("{value:.0e}"))
            .y_label_formatter(&|value| format!("{value:.0e}"))
            .draw()?;
        let Lines { noise, truncation, floor, measured } = self.lines(bottom..=top);
        chart.draw_series(LineSeries::new([(self.best_step, bottom), (self.best_step, top)], FAINT.stroke_width(2)))?;
        chart.draw_series(LineSeries::new(floor.clone(), FLOOR.stroke_width(2)))?;
        chart.draw_series(DashedLineSeries::new(noise.clone(), 6, 4, NOISE.stroke_width(2)))?;
        chart.draw_series(DashedLineSeries::new(truncation.clone(), 6, 4, TRUNCATION.stroke_width(2)))?;
        chart.draw_series(LineSeries::new(measured.clone(), MEASURED.stroke_width(2)))?;
        chart.draw_series(measured.iter().map(|&point| Circle::new(point, 3, MEASURED.filled())))?;
        // The noise is named below it, and below what was measured.
        let below = at(&noise, 0.14).map(|(step, noise)| {
            let near = |point: &&SweepPoint| (point.step / step).log10().abs() < 0.6;
            let measured = self.points.iter().filter(near).map(|point| point.difference).filter(|d| *d > bottom);
            (step, measured.fold(noise, f64::min))
        });
        let late = (self.best_step / first.step).ln() > 0.7 * (last.step / first.step).ln();
        let (best_side, best_offset) = if late { (HPos::Right, (-6, 10)) } else { (HPos::Left, (6, 10)) };
        // Each label stands beside its own line, on the side where no other line runs.
        let labels = [
            (below, "noise, slope -1".to_owned(), NOISE, HPos::Right, (-8, 12)),
            (at(&truncation, 0.12), "truncation, slope +2".to_owned(), TRUNCATION, HPos::Left, (8, 14)),
            (at(&floor, 0.30), "floor: 6 noise + 2 truncation".to_owned(), FLOOR, HPos::Left, (8, -14)),
            (Some((self.best_step, top)), format!("best step {:.0e}", self.best_step), INK, best_side, best_offset),
        ];
        for (place, words, colour, side, offset) in labels {
            if let Some(place) = place {
                let style = style(14, &colour).pos(Pos::new(side, VPos::Center));
                let label = EmptyElement::at(place) + Text::new(words, offset, style);
                chart.draw_series(std::iter::once(label))?;
            }
        }
        root.present()?;
        Ok(())
    }

    /// Whole decades that hold all that is drawn.
    fn decades(&self) -> (f64, f64) {
        let positive = |value: &f64| *value > 0.0;
        let values = || self.points.iter().flat_map(|point| [point.difference, point.floor]).filter(positive);
        let least = self.points.iter().map(|point| point.noise).chain(values()).filter(positive);
        let bottom = 10_f64.powf(least.fold(f64::INFINITY, f64::min).log10().floor());
        (bottom, 10_f64.powf(values().fold(0.0, f64::max).log10().ceil()).max(10.0 * bottom))
    }

    fn lines(&self, height: std::ops::RangeInclusive<f64>) -> Lines {
        let (first, last) = (self.points[0].step, self.points[self.points.len() - 1].step);
        let inside = |(_, y): &(f64, f64)| height.contains(y);
        let model = |curve: &dyn Fn(f64) -> f64| {
            let steps = (0..=200).map(|i| first * (last / first).powf(f64::from(i) / 200.0));
            steps.map(|step| (step, curve(step))).filter(inside).collect()
        };
        let line = |curve: fn(&SweepPoint) -> f64| {
            self.points.iter().map(|point| (point.step, curve(point))).filter(inside).collect()
        };
        Lines {
            noise: model(&|step| self.noise / step),
            truncation: model(&|step| self.truncation * step * step),
            floor: line(|point| point.floor),
            measured: line(|point| point.difference),
        }
    }
}

/// The lines of a sweep, as points of step and difference.
struct Lines {
    noise: Vec<(f64, f64)>,
    truncation: Vec<(f64, f64)>,
    floor: Vec<(f64, f64)>,
    measured: Vec<(f64, f64)>,
}

fn style(size: i32, colour: &RGBColor) -> TextStyle<'_> {
    TextStyle::from(("sans-serif", size).into_font()).color(colour)
}

/// A title, and a sentence below it.
fn draw_words<B: DrawingBackend>(root: &DrawingArea<B, Shift>, title: &str, words: &str) -> Result<(), Box<dyn Error>>
where
    B::ErrorType: 'static,
{
    root.draw(&Text::new(title.to_owned(), (70, 14), style(20, &INK)))?;
    for (line, words) in wrapped(words, 110).into_iter().enumerate() {
        root.draw(&Text::new(words, (70, 42 + 18 * line as i32), style(14, &INK)))?;
    }
    Ok(())
}

/// The point a given fraction of the way along a line.
fn at(line: &[(f64, f64)], fraction: f64) -> Option<(f64, f64)> {
    line.get((line.len() as f64 * fraction) as usize).copied()
}

/// Words in lines of at most so many letters.
fn wrapped(words: &str, letters: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in words.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + word.len() < letters => {
                if !line.is_empty() {
                    line.push(' ');
                }
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

impl InputReport {
    /// A heat map of `|analytic - numeric|`, in units of what is allowed: the floor or, where it is greater, the
    /// tolerance. One cell for each component, or for the worst of several.
    ///
    /// # Errors
    ///
    /// If the picture cannot be drawn, because the input has no elements.
    pub fn svg(&self) -> Drawn {
        let mut svg = String::new();
        {
            let root = SVGBackend::with_string(&mut svg, (880, 560)).into_drawing_area();
            self.draw(&root).map_err(|error| error.to_string())?;
        }
        Ok(svg)
    }

    fn draw<B: DrawingBackend>(&self, root: &DrawingArea<B, Shift>) -> Result<(), Box<dyn Error>>
    where
        B::ErrorType: 'static,
    {
        let cells = Cells::of(self).ok_or("there is no component to draw")?;
        root.fill(&WHITE)?;
        let title = format!("Gradient of {} {:?}: {}", self.name, self.shape, self.verdict);
        let unit = "|analytic - numeric| / max(floor, tolerance)";
        let words = match (self.patterns.first(), self.verdict) {
            (Some(pattern), _) => format!("{unit}; {pattern}"),
            (None, Verdict::Passed) => format!("{unit}; all within what is allowed"),
            (None, _) => unit.to_owned(),
        };
        draw_words(root, &title, &words)?;
        let (map, legend) = root.margin(84, 6, 6, 16).split_horizontally(720);
        let mut chart = ChartBuilder::on(&map)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d(0.0..cells.width as f64, cells.rows as f64..0.0)?;
        chart
            .configure_mesh()
            .disable_mesh()
            .axis_style(INK)
            .label_style(style(13, &INK))
            .x_desc("column")
            .y_desc("row")
            .x_labels(cells.width.min(12) + 1)
            .y_labels(cells.rows.min(12) + 1)
            .x_label_formatter(&whole_number)
            .y_label_formatter(&whole_number)
            .draw()?;
        chart.draw_series(
            cells.rectangles().map(|(corners, excess)| Rectangle::new(corners, colour(excess).filled())),
        )?;
        draw_legend(&legend)?;
        root.present()?;
        Ok(())
    }
}

/// A tick of rows or columns; what lies between two of them has no name.
fn whole_number(value: &f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { String::new() }
}

/// The greatest difference of each cell in units of what is allowed; NaN where it is not finite, negative where nobody
/// looked, or where the step changed nothing.
struct Cells {
    rows: usize,
    width: usize,
    down: usize,
    across: usize,
    excess: Vec<f64>,
}

impl Cells {
    fn of(input: &InputReport) -> Option<Self> {
        let width = input.row_len();
        let components = &input.components;
        let rows = components.analytic.len().div_ceil(width);
        if rows == 0 {
            return None;
        }
        let (down, across) = (rows.min(CELLS), width.min(CELLS));
        let mut excess = vec![-1.0_f64; down * across];
        let parts = [&components.analytic, &components.numeric, &components.floor];
        let [analytic, numeric, floor] = parts.map(|array| array.as_slice().unwrap_or_default());
        input.judge.components_of(0, analytic.len(), analytic, numeric, floor, |element, component| {
            if component.is_without_step() {
                return;
            }
            let (row, column) = (element / width, element % width);
            let cell = &mut excess[row * down / rows * across + column * across / width];
            let invalid = component.verdict() == Verdict::Invalid || cell.is_nan();
            *cell = if invalid { f64::NAN } else { cell.max(component.excess()) };
        });
        Some(Self { rows, width, down, across, excess })
    }

    fn rectangles(&self) -> impl Iterator<Item = ([(f64, f64); 2], f64)> {
        self.excess.iter().enumerate().map(|(cell, &excess)| {
            let (row, column) = (cell / self.across, cell % self.across);
            let x = |column: usize| (column * self.width) as f64 / self.across as f64;
            let y = |row: usize| (row * self.rows) as f64 / self.down as f64;
            ([(x(column), y(row)), (x(column + 1), y(row + 1))], excess)
        })
    }
}

/// Pale blues up to what is allowed, then yellow to dark red; black is not finite, grey was not looked at.
fn colour(excess: f64) -> RGBColor {
    const STOPS: [(f64, [f64; 3]); 6] = [
        (-2.0, [247.0, 250.0, 253.0]),
        (-1.0, [218.0, 230.0, 243.0]),
        (0.0, [160.0, 193.0, 222.0]),
        (0.001, [255.0, 224.0, 130.0]),
        (1.0, [240.0, 120.0, 60.0]),
        (3.0, [128.0, 0.0, 32.0]),
    ];
    if excess.is_nan() {
        return BLACK;
    }
    if excess < 0.0 {
        return FAINT;
    }
    let decades = excess.max(1e-300).log10();
    let after = STOPS.iter().position(|(stop, _)| decades < *stop);
    let [r, g, b] = match after {
        Some(0) => STOPS[0].1,
        None => STOPS[STOPS.len() - 1].1,
        Some(after) => {
            let ((from, a), (to, b)) = (STOPS[after - 1], STOPS[after]);
            let share = (decades - from) / (to - from);
            std::array::from_fn(|channel| a[channel] + share * (b[channel] - a[channel]))
        }
    };
    RGBColor(r as u8, g as u8, b as u8)
}

fn draw_legend<B: DrawingBackend>(area: &DrawingArea<B, Shift>) -> Result<(), Box<dyn Error>>
where
    B::ErrorType: 'static,
{
    const HEIGHT: i32 = 360;
    let (low, high) = (f64::from(*DECADES.start()), f64::from(*DECADES.end()));
    let decades = |y: i32| high - f64::from(y) / f64::from(HEIGHT) * (high - low);
    for y in (0..HEIGHT).step_by(3) {
        area.draw(&Rectangle::new([(24, 20 + y), (44, 23 + y)], colour(10_f64.powf(decades(y))).filled()))?;
    }
    let style = style(13, &INK);
    for decade in DECADES {
        let y = 20 + (f64::from(HEIGHT) * (high - f64::from(decade)) / (high - low)) as i32;
        let words = match decade {
            3 => "1000 or more".to_owned(),
            0 => "1: allowed".to_owned(),
            _ => format!("{}", 10_f64.powi(decade)),
        };
        area.draw(&PathElement::new(vec![(44, y), (49, y)], INK))?;
        area.draw(&Text::new(words, (53, y - 7), style.clone()))?;
    }
    for (line, (fill, words)) in [(BLACK, "not finite"), (FAINT, "not looked at")].into_iter().enumerate() {
        let y = 40 + HEIGHT + 22 * line as i32;
        area.draw(&Rectangle::new([(24, y), (44, y + 14)], fill.filled()))?;
        area.draw(&Text::new(words, (53, y), style.clone()))?;
    }
    Ok(())
}
