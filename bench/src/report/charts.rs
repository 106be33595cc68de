//! The charts of a page, as the inside of SVG elements.
//!
//! Every stroke and fill is a variable of the page's style sheet, so that one drawing serves light and
//! dark pages. Each chart is drawn for the width it will have, because text that is scaled down with
//! its chart cannot be read on a phone. Nothing here knows HTML.

use std::ops::Range;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::text;
use crate::results::{Floor, Measurement, Ratio};
use crate::statistics::{self, Estimate, Verdict};

/// The most lines of one chart that can still be distinguished, by colour and dashes.
pub(super) const LINES_MAX: usize = 6;

/// Units of a drawing in a pixel, as plotters knows whole units only.
const FINE: f64 = 8.0;
/// The part of its size that a character is wide, on average; there is no font to ask.
const CHARACTER: f64 = 0.56;
/// From this ratio of the greatest value to the least, an axis is logarithmic.
const LOGARITHMIC_FROM: f64 = 20.0;

// Colours that stand for variables of the style sheet until the drawing is done.
const INK: RGBColor = RGBColor(0xd0, 0, 0);
const SOFT: RGBColor = RGBColor(0xd0, 0, 1);
const GRID: RGBColor = RGBColor(0xd0, 0, 2);
const ACCENT: RGBColor = RGBColor(0xd0, 0, 3);
const NAMED: [(RGBColor, &str); 4] =
    [(INK, "ink"), (SOFT, "soft"), (GRID, "grid"), (ACCENT, "accent")];

/// The room that a chart has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    /// All of a wide page.
    Whole,
    /// Half of one.
    Half,
    /// All of a telephone's.
    Narrow,
}

impl Width {
    fn px(self) -> f64 {
        match self {
            Width::Whole => 1040.0,
            Width::Half => 512.0,
            Width::Narrow => 350.0,
        }
    }

    fn text_px(self) -> f64 {
        match self {
            Width::Whole | Width::Half => 13.0,
            Width::Narrow => 12.0,
        }
    }

    /// How many characters of a name there is room for.
    fn name_characters(self) -> usize {
        match self {
            Width::Whole => 28,
            Width::Half | Width::Narrow => 16,
        }
    }

    fn text_width_px(self, characters: usize) -> f64 {
        characters as f64 * CHARACTER * self.text_px()
    }
}

/// A chart: the content of an SVG element with a view box of this size.
#[derive(Debug)]
pub(super) struct Drawing {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) elements: String,
}

/// The latencies of `shown` by percentile, on axes that fit `all`; `None` if `all` are empty.
pub(super) fn percentiles(
    shown: &[Measurement],
    all: &[Measurement],
    width: Width,
) -> Option<Drawing> {
    let points = |measurement| percentile_points(measurement);
    let latencies_us = span(all.iter().flat_map(points).map(|(_, us)| us))?;
    let nines = all.iter().flat_map(points).fold(1.0, |most: f64, (nines, _)| most.max(nines));
    let lines: Vec<Line> =
        shown.iter().map(|of| Line { name: &of.name, points: points(of) }).collect();
    Some(line_chart(width, "latency, µs", &lines, &|plot_px| {
        (nines_axis(nines, plot_px / width.text_px()), Axis::from_zero(latencies_us, 7))
    }))
}

/// Messages a second in each round of `shown`, on axes that fit `all`; `None` if there are no rounds.
pub(super) fn rates(shown: &[Measurement], all: &[Measurement], width: Width) -> Option<Drawing> {
    let points = |measurement: &Measurement| -> Vec<(f64, f64)> {
        measurement.rounds.iter().map(|round| (round.begin_s, round.rate())).collect()
    };
    let (_, end_s) = span(all.iter().flat_map(points).map(|(begin_s, _)| begin_s))?;
    let (_, rate_max) = span(all.iter().flat_map(points).map(|(_, rate)| rate))?;
    let lines: Vec<Line> =
        shown.iter().map(|of| Line { name: &of.name, points: points(of) }).collect();
    let most = if width == Width::Narrow { 5 } else { 8 };
    Some(line_chart(width, "messages a second", &lines, &|_| {
        (Axis::linear((0.0, end_s), most, " s"), Axis::linear((0.0, rate_max), 6, ""))
    }))
}

/// The medians of the rounds, a row for each measurement, beside the machine's floor; `None` if
/// there are no rounds.
pub(super) fn rounds(all: &[Measurement], floor: Option<Floor>, width: Width) -> Option<Drawing> {
    let rows: Vec<(&str, Vec<f64>)> = all
        .iter()
        .map(|of| (of.name.as_str(), of.rounds.iter().filter(|round| round.messages > 0)))
        .map(|(name, rounds)| (name, rounds.map(|round| round.p50_ns as f64 / 1000.0).collect()))
        .collect();
    span(rows.iter().flat_map(|(_, medians)| medians.iter().copied()))?;
    let floors: Vec<(&str, f64)> = floor
        .iter()
        .flat_map(|floor| [("asleep", floor.block_ns), ("spinning", floor.spin_ns)])
        .map(|(name, ns)| (name, ns as f64 / 1000.0))
        .filter(|(_, us)| *us > 0.0)
        .collect();
    let values =
        rows.iter().flat_map(|(_, medians)| medians).chain(floors.iter().map(|(_, us)| us));
    let axis = Axis::around(span(values.copied())?, if width == Width::Narrow { 4 } else { 9 });

    let row_px = if rows.len() == 1 { 44.0 } else { 24.0 };
    let names: Vec<String> = rows.iter().map(|(name, _)| (*name).to_owned()).collect();
    let line_px = width.text_px() + 4.0;
    let mut frame = Frame::of_rows(width, &names, row_px, "median latency, µs");
    frame.make_room_above(line_px * floors.len() as f64);
    let y = Axis::rows(&names, width);
    Some(drawn(width.px(), frame.height_px, |area| {
        let mut chart = frame.chart(area, &axis, &y)?;
        for (index, (name, us)) in floors.iter().enumerate() {
            let at = axis.place(*us);
            chart.draw_series([PathElement::new(
                [(at, y.from), (at, y.to)],
                SOFT.stroke_width(fine(1.5)),
            )])?;
            // Each on its own line, because the floors may be close to each other.
            let (x_px, y_px) = chart.backend_coord(&(at, y.to));
            let y_px = y_px - fine_i32(line_px * (floors.len() - 1 - index) as f64);
            let side = if x_px < fine_i32(width.px() / 2.0) { HPos::Left } else { HPos::Right };
            let label = format!("floor, {name}");
            area.draw_text(&label, &style(width, SOFT, side, VPos::Bottom), (x_px, y_px))?;
        }
        for (row, (_, medians)) in rows.iter().enumerate() {
            let middle = -(row as f64) - 0.5;
            for (round, us) in medians.iter().enumerate() {
                // Spread a little, always the same way, so that equal rounds do not hide each other.
                let offset = ((round * 37 % 100) as f64 / 100.0 - 0.5) * 0.5;
                let at = (axis.place(*us), middle + offset);
                chart.draw_series([Circle::new(at, fine(3.2), ACCENT.mix(0.45).filled())])?;
            }
            if !medians.is_empty() {
                let at = axis.place(statistics::median(medians));
                let ends = [(at, middle - 0.42), (at, middle + 0.42)];
                chart.draw_series([PathElement::new(ends, INK.stroke_width(fine(2.5)))])?;
            }
        }
        Ok(())
    }))
}

/// The ratios with their intervals, figure by figure, beside a line at 1; `None` if there are none.
pub(super) fn ratios(all: &[Ratio], width: Width) -> Option<Drawing> {
    let rows = ratio_rows(all);
    let usable = |ratio: &&Ratio| ends(ratio).iter().all(|end| end.is_finite() && *end > 0.0);
    let values = all.iter().filter(usable).flat_map(ends);
    span(values.clone())?;
    let axis = Axis::around(span(values.chain([1.0]))?, if width == Width::Narrow { 4 } else { 9 });

    let names: Vec<String> =
        rows.iter().map(|(name, ratio)| ratio.map_or_else(String::new, |_| name.clone())).collect();
    let mut frame = Frame::of_rows(width, &names, 26.0, "times the first target");
    if width != Width::Narrow {
        let labels = all.iter().map(|ratio| text::ratio(&ratio.estimate).chars().count());
        frame.right_px = width.text_width_px(labels.max().unwrap_or(0)) + 24.0;
    }
    // Headings use the same margin as the names.
    let heading = rows.iter().filter(|(_, ratio)| ratio.is_none());
    let longest = heading.map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    frame.left_px = frame.left_px.max(width.text_width_px(longest) + 16.0);
    let y = Axis::rows(&names, width);
    Some(drawn(width.px(), frame.height_px, |area| {
        let mut chart = frame.chart(area, &axis, &y)?;
        let one = axis.place(1.0);
        chart.draw_series([PathElement::new(
            [(one, y.from), (one, y.to)],
            INK.stroke_width(fine(1.5)),
        )])?;
        for (row, (name, ratio)) in rows.iter().enumerate() {
            let middle = -(row as f64) - 0.5;
            let Some(ratio) = ratio else {
                // A heading with a line below it.
                let rule = [(axis.from, middle - 0.5), (axis.to, middle - 0.5)];
                chart.draw_series([PathElement::new(rule, SOFT.stroke_width(fine(1.0)))])?;
                let (_, y_px) = chart.backend_coord(&(one, middle - 0.1));
                let at = (fine_i32(frame.left_px - 8.0), y_px);
                area.draw_text(name, &style(width, INK, HPos::Right, VPos::Center), at)?;
                continue;
            };
            if !usable(ratio) {
                continue;
            }
            let [low, median, high] = ends(ratio).map(|end| axis.place(end));
            let shown = ratio.estimate.verdict() == Verdict::Different;
            let colour = if shown { ACCENT } else { SOFT };
            let bar = [(one.min(median), middle - 0.28), (one.max(median), middle + 0.28)];
            let interval = [
                [(low, middle), (high, middle)],
                [(low, middle - 0.2), (low, middle + 0.2)],
                [(high, middle - 0.2), (high, middle + 0.2)],
            ];
            chart.draw_series([Rectangle::new(bar, colour.mix(0.25).filled())])?;
            chart.draw_series(
                interval.map(|line| PathElement::new(line, colour.stroke_width(fine(2.0)))),
            )?;
            if shown {
                chart.draw_series([Circle::new((median, middle), fine(4.0), colour.filled())])?;
            }
            if width != Width::Narrow {
                let (_, y_px) = chart.backend_coord(&(one, middle));
                let at = (fine_i32(width.px() - frame.right_px + 12.0), y_px);
                let label = text::ratio(&ratio.estimate);
                area.draw_text(&label, &style(width, colour, HPos::Left, VPos::Center), at)?;
            }
        }
        Ok(())
    }))
}

/// The rows of a chart of ratios: for each figure its name as a heading, then its ratios by target.
fn ratio_rows(all: &[Ratio]) -> Vec<(String, Option<&Ratio>)> {
    let mut figures: Vec<&str> = Vec::new();
    for ratio in all {
        if !figures.contains(&ratio.figure.as_str()) {
            figures.push(&ratio.figure);
        }
    }
    let mut rows = Vec::new();
    for figure in figures {
        rows.push((figure.to_owned(), None));
        let of_figure = all.iter().filter(|ratio| ratio.figure == figure);
        rows.extend(of_figure.map(|ratio| (ratio.of.clone(), Some(ratio))));
    }
    rows
}

/// The lower end of a ratio's interval, the median, and the upper end.
fn ends(ratio: &Ratio) -> [f64; 3] {
    let Estimate { median, interval, .. } = ratio.estimate;
    let [low, high] = interval.map_or([median; 2], |interval| [interval.low, interval.high]);
    [low, median, high]
}

/// A line of a chart and its name.
struct Line<'a> {
    name: &'a str,
    points: Vec<(f64, f64)>,
}

/// For each percentile how many nines it has, `log10(1 / (1 - part))`, and the latency in µs. The
/// last is where one message is left.
fn percentile_points(measurement: &Measurement) -> Vec<(f64, f64)> {
    let latencies = &measurement.latencies;
    if latencies.count() == 0 {
        return Vec::new();
    }
    let last = (latencies.count() as f64).log10();
    let nines = |part: f64| if part < 1.0 { (-(1.0 - part).log10()).min(last) } else { last };
    let points = latencies.distribution().into_iter();
    points.map(|(part, ns)| (nines(part), ns as f64 / 1000.0)).collect()
}

/// The least and the greatest of the values that are finite; `None` without one.
fn span(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.filter(|value| value.is_finite()).fold(None, |span, value| match span {
        None => Some((value, value)),
        Some((least, greatest)) => Some((least.min(value), greatest.max(value))),
    })
}

fn line_chart(
    width: Width,
    unit: &str,
    lines: &[Line<'_>],
    axes: &dyn Fn(f64) -> (Axis, Axis),
) -> Drawing {
    let names: Vec<String> =
        lines.iter().map(|line| text::cut(line.name, width.name_characters())).collect();
    let longest = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    // On a narrow page the names stand below the chart.
    let direct = width != Width::Narrow;
    let right_px = if direct { width.text_width_px(longest) + 26.0 } else { 22.0 };
    let (_, y) = axes(width.px());
    let left_px = width.text_width_px(y.label_characters()) + 12.0;
    let (x, _) = axes(width.px() - left_px - right_px);
    let height_px = match width {
        Width::Whole => 420.0,
        Width::Half => 330.0,
        Width::Narrow => 290.0,
    };
    let frame =
        Frame { width, height_px, left_px, right_px, top_px: 28.0, bottom_px: 30.0, below: "" };
    drawn(width.px(), height_px, |area| {
        let mut chart = frame.chart(area, &x, &y)?;
        let at = (fine_i32(2.0), fine_i32(4.0));
        let unit = format!("{unit}{}", y.remark());
        area.draw_text(&unit, &style(width, SOFT, HPos::Left, VPos::Top), at)?;
        let mut ends = Vec::new();
        for (index, line) in lines.iter().enumerate() {
            let colour = series_colour(index);
            let points: Vec<(f64, f64)> = line
                .points
                .iter()
                .filter(|(at, value)| at.is_finite() && value.is_finite())
                .map(|(at, value)| (x.place(*at), y.place(*value)))
                .collect();
            let Some(end) = points.last() else { continue };
            ends.push((index, chart.backend_coord(end)));
            match points[..] {
                [only] => {
                    chart.draw_series([Circle::new(only, fine(4.0), colour.filled())])?;
                }
                _ => {
                    let stroke = colour.stroke_width(fine(2.0));
                    chart.draw_series([PathElement::new(points, stroke)])?;
                }
            }
        }
        if direct {
            name_ends(area, &frame, &names, ends)?;
        }
        Ok(())
    })
}

/// Writes the names of lines beside their ends, moved apart where they would lie on each other.
fn name_ends(
    area: &Area<'_>,
    frame: &Frame<'_>,
    names: &[String],
    mut ends: Vec<(usize, (i32, i32))>,
) -> Drawn {
    let distance = fine_i32(frame.width.text_px() + 3.0);
    ends.sort_by_key(|(index, (_, y))| (*y, *index));
    let mut heights: Vec<i32> = ends.iter().map(|(_, (_, y))| *y).collect();
    for at in 1..heights.len() {
        heights[at] = heights[at].max(heights[at - 1] + distance);
    }
    // What was moved below the chart moves back up, and those above it with it.
    let mut limit = fine_i32(frame.height_px - frame.bottom_px);
    for height in heights.iter_mut().rev() {
        *height = (*height).min(limit);
        limit = *height - distance;
    }
    let left = fine_i32(frame.width.px() - frame.right_px + 14.0);
    for ((index, (x, y)), height) in ends.into_iter().zip(heights) {
        let colour = series_colour(index);
        let gap = fine_i32(4.0);
        let leader = vec![(x + gap / 2, y), (left - gap * 2, height), (left - gap, height)];
        area.draw(&PathElement::new(leader, SOFT.mix(0.6).stroke_width(fine(1.0))))?;
        let style = style(frame.width, colour, HPos::Left, VPos::Center);
        area.draw_text(&names[index], &style, (left, height))?;
    }
    Ok(())
}

fn series_colour(index: usize) -> RGBColor {
    RGBColor(0xd1, 0, index as u8)
}

/// The margins of the plot within a chart.
#[derive(Clone, Copy)]
struct Frame<'a> {
    width: Width,
    height_px: f64,
    left_px: f64,
    right_px: f64,
    top_px: f64,
    bottom_px: f64,
    /// What the horizontal axis measures.
    below: &'a str,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Plot<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Axis, Axis>>;
type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

impl<'f> Frame<'f> {
    /// A chart of rows with a name each.
    fn of_rows(width: Width, names: &[String], row_px: f64, below: &'f str) -> Frame<'f> {
        let longest = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
        let (top_px, bottom_px) = (8.0, 50.0);
        Frame {
            width,
            height_px: top_px + bottom_px + row_px * names.len() as f64,
            left_px: width.text_width_px(longest.min(width.name_characters())) + 16.0,
            right_px: 22.0,
            top_px,
            bottom_px,
            below,
        }
    }

    fn make_room_above(&mut self, px: f64) {
        self.top_px += px;
        self.height_px += px;
    }

    /// The plot with its grid and the labels of its ticks.
    fn chart<'a, 'b>(
        &self,
        area: &'a Area<'b>,
        x: &Axis,
        y: &Axis,
    ) -> Result<Plot<'a, 'b>, DrawingAreaErrorKind<std::io::Error>> {
        let mut chart = ChartBuilder::on(area)
            .margin_top(fine(self.top_px))
            .margin_right(fine(self.right_px))
            .y_label_area_size(fine(self.left_px))
            .x_label_area_size(fine(self.bottom_px))
            .build_cartesian_2d(x.clone(), y.clone())?;
        let right = style(self.width, SOFT, HPos::Right, VPos::Center);
        let centre = style(self.width, SOFT, HPos::Center, VPos::Top);
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID.stroke_width(fine(1.0)))
            .axis_style(GRID.stroke_width(fine(1.0)))
            .set_all_tick_mark_size(fine(4.0))
            .x_label_style(centre)
            .y_label_style(right)
            .draw()?;
        let at = (fine_i32(self.left_px), fine_i32(self.height_px - 4.0));
        let below = format!("{}{}", self.below, x.remark());
        if !self.below.is_empty() {
            area.draw_text(&below, &style(self.width, SOFT, HPos::Left, VPos::Bottom), at)?;
        }
        Ok(chart)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scale {
    Linear,
    Logarithmic,
}

/// An axis of a plot. `from` is less than `to` whatever was measured, because plotters cannot draw an
/// empty range.
#[derive(Debug, Clone)]
struct Axis {
    scale: Scale,
    from: f64,
    to: f64,
    /// Where there is a line, and what is written at it.
    ticks: Vec<(f64, String)>,
}

impl Axis {
    /// From 0, or logarithmic where the values are too far apart for that.
    fn from_zero((least, greatest): (f64, f64), ticks_max: usize) -> Axis {
        if least > 0.0 && greatest / least > LOGARITHMIC_FROM {
            return Axis::logarithmic((least, greatest), ticks_max);
        }
        Axis::linear((0.0, greatest), ticks_max, "")
    }

    /// Around values whose distance to 0 is not of interest.
    fn around((least, greatest): (f64, f64), ticks_max: usize) -> Axis {
        if least > 0.0 && greatest / least > LOGARITHMIC_FROM {
            return Axis::logarithmic((least, greatest), ticks_max);
        }
        let margin = ((greatest - least) * 0.04).max(greatest.abs() * 0.005);
        let least = if least > 0.0 { (least - margin).max(0.0) } else { least - margin };
        Axis::linear((least, greatest + margin), ticks_max, "")
    }

    /// With ticks at multiples of 1, 2 or 5 by a power of ten.
    fn linear((least, greatest): (f64, f64), ticks_max: usize, unit: &str) -> Axis {
        let greatest = if greatest > least { greatest } else { least + 1.0 };
        let rough = (greatest - least) / ticks_max as f64;
        let power = 10f64.powf(rough.log10().floor());
        let steps = [1.0, 2.0, 5.0, 10.0].map(|multiple| multiple * power);
        let step = steps.into_iter().find(|step| *step >= rough).unwrap_or(10.0 * power);
        let (first, last) = ((least / step).floor(), (greatest / step).ceil());
        let decimals = (-step.log10().floor()).max(0.0) as usize;
        let ticks = (0..=(last - first) as usize).map(|tick| (first + tick as f64) * step);
        let ticks = ticks.map(|at| (at, text::grouped(at, decimals) + unit)).collect();
        Axis { scale: Scale::Linear, from: first * step, to: last * step, ticks }
    }

    /// With ticks at 1, 2 and 5 by powers of ten, or at fewer of them where there are many.
    fn logarithmic((least, greatest): (f64, f64), ticks_max: usize) -> Axis {
        let decades = (least.log10().floor() as i32)..=(greatest.log10().ceil() as i32);
        let at = |decade: i32, multiple: f64| multiple * 10f64.powi(decade);
        let fine: Vec<f64> =
            decades.clone().flat_map(|d| [1.0, 2.0, 5.0].map(|m| at(d, m))).collect();
        let below = fine.iter().copied().rfind(|tick| *tick <= least).unwrap_or(least);
        let above = fine.iter().copied().find(|tick| *tick >= greatest).unwrap_or(greatest);
        let within = |tick: &f64| (below..=above).contains(tick);
        let choices = [&[1.0, 2.0, 5.0][..], &[1.0, 3.0], &[1.0]];
        let choices = choices.map(|multiples| {
            let ticks = decades.clone().flat_map(|d| multiples.iter().map(move |m| at(d, *m)));
            ticks.filter(within).collect::<Vec<f64>>()
        });
        let [.., coarse] = &choices;
        let few = choices.iter().find(|ticks| ticks.len() <= ticks_max);
        let step = coarse.len().div_ceil(ticks_max);
        let ticks: Vec<f64> = match few {
            Some(ticks) => ticks.clone(),
            None => coarse.iter().copied().step_by(step).collect(),
        };
        let ticks = ticks.into_iter().map(|tick| {
            let decimals = (-tick.log10().floor()).max(0.0) as usize;
            (tick.log10(), text::grouped(tick, decimals))
        });
        Axis {
            scale: Scale::Logarithmic,
            from: below.log10(),
            to: above.log10(),
            ticks: ticks.collect(),
        }
    }

    /// A row for each name, from above; one without a name has no tick.
    fn rows(names: &[String], width: Width) -> Axis {
        let label = |name: &String| text::cut(name, width.name_characters());
        let named = names.iter().enumerate().filter(|(_, name)| !name.is_empty());
        let ticks = named.map(|(row, name)| (-(row as f64) - 0.5, label(name)));
        Axis {
            scale: Scale::Linear,
            from: -(names.len().max(1) as f64),
            to: 0.0,
            ticks: ticks.collect(),
        }
    }

    /// Where a value lies.
    fn place(&self, value: f64) -> f64 {
        match self.scale {
            Scale::Linear => value,
            Scale::Logarithmic => value.max(f64::MIN_POSITIVE).log10().max(self.from),
        }
    }

    fn label_characters(&self) -> usize {
        self.ticks.iter().map(|(_, label)| label.chars().count()).max().unwrap_or(0)
    }

    fn remark(&self) -> &'static str {
        match self.scale {
            Scale::Linear => "",
            Scale::Logarithmic => " (logarithmic)",
        }
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, place: &f64, (from, to): (i32, i32)) -> i32 {
        let part = (place - self.from) / (self.to - self.from);
        from + (part * f64::from(to - from)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() {
            return Vec::new();
        }
        self.ticks.iter().map(|(place, _)| *place).collect()
    }

    fn range(&self) -> Range<f64> {
        self.from..self.to
    }
}

impl ValueFormatter<f64> for Axis {
    fn format(place: &f64) -> String {
        place.to_string()
    }

    fn format_ext(&self, place: &f64) -> String {
        let found = self.ticks.iter().find(|(tick, _)| tick == place);
        found.map(|(_, label)| label.clone()).unwrap_or_default()
    }
}

/// The axis of percentiles, up to this many nines, in a plot whose width is `plot_characters` times the
/// height of its text.
fn nines_axis(nines: f64, plot_characters: f64) -> Axis {
    let label = |tick: usize| match tick {
        0 => "0 %".to_owned(),
        1 => "90 %".to_owned(),
        nines => format!("99{}{} %", if nines > 2 { "." } else { "" }, "9".repeat(nines - 2)),
    };
    let last = nines.floor() as usize;
    let widest = (label(last).chars().count() + 2) as f64 * CHARACTER;
    let step = (widest * nines / plot_characters).ceil().max(1.0) as usize;
    let named = |tick| if tick % step == 0 { label(tick) } else { String::new() };
    let mut ticks: Vec<(f64, String)> = (0..=last).map(|tick| (tick as f64, named(tick))).collect();
    // A label of four characters between two that stand at their ticks, with some room around it.
    let median = 2f64.log10();
    if median / nines * plot_characters > 6.0 * CHARACTER {
        ticks.push((median, "50 %".to_owned()));
    }
    Axis { scale: Scale::Linear, from: 0.0, to: nines, ticks }
}

fn style(width: Width, colour: RGBColor, side: HPos, height: VPos) -> TextStyle<'static> {
    // plotters draws text smaller than asked for, by this factor.
    let size = width.text_px() * FINE * 1.24;
    let font = FontDesc::new(FontFamily::SansSerif, size, FontStyle::Normal);
    font.color(&colour).pos(Pos::new(side, height))
}

fn fine(px: f64) -> u32 {
    (px * FINE).round() as u32
}

fn fine_i32(px: f64) -> i32 {
    (px * FINE).round() as i32
}

/// Draws something, and replaces its colours with the page's variables.
fn drawn(width_px: f64, height_px: f64, draw: impl FnOnce(&Area<'_>) -> Drawn) -> Drawing {
    let (width, height) = (fine(width_px), fine(height_px));
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, (width, height)).into_drawing_area();
    let done = draw(&area).and_then(|()| area.present());
    done.expect("a string takes all that is drawn");
    drop(area);
    // The page has its own element around it.
    let inside = svg.split_once('>').and_then(|(_, rest)| rest.rsplit_once("</svg>"));
    let mut elements = inside.map(|(elements, _)| elements.to_owned()).unwrap_or_default();
    let series = (0..LINES_MAX).map(|at| (series_colour(at), format!("series-{at}")));
    let named = NAMED.into_iter().map(|(colour, name)| (colour, name.to_owned()));
    for (RGBColor(red, green, blue), name) in named.chain(series) {
        // Within text plotters escapes quotes, so that this is always a whole attribute.
        let written = format!("\"#{red:02X}{green:02X}{blue:02X}\"");
        elements = elements.replace(&written, &format!("\"var(--{name})\""));
    }
    Drawing { width, height, elements: elements.replace(" opacity=\"1\"", "") }
}
