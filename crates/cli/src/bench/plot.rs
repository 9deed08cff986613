use std::path::Path;

use plotters::element::DashedPathElement;
use plotters::prelude::*;

use super::limits::Limits;
use super::report::Row;
use crate::failure::{Failure, Result};

const SIZE: (u32, u32) = (960, 600);
/// One for each line, told apart with any eyes.
const COLOURS: [RGBColor; 4] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
];

/// Draws the time of a pass over tokens, medians with the spread between tenths, and dashed what
/// the limits allow.
pub fn draw(path: &Path, title: &str, rows: &[Row], limits: &Limits) -> Result<()> {
    let mut svg = String::new();
    chart(&mut svg, title, rows, limits)
        .map_err(|e| Failure::file(path, format!("cannot draw: {e}")))?;
    std::fs::write(path, svg).map_err(|e| Failure::file(path, e))
}

type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

fn chart(svg: &mut String, title: &str, rows: &[Row], limits: &Limits) -> Drawn {
    let us = |seconds: f64| seconds * 1e6;
    let times = || {
        let of = |r: &Row| [Some(r.timing.low), Some(r.timing.high), r.floor(limits)];
        rows.iter().flat_map(of).flatten().map(us)
    };
    let tokens = || rows.iter().map(|r| r.tokens as f64);
    let least = |x: f64, y: f64| x.min(y);
    let most = |x: f64, y: f64| x.max(y);
    let x = tokens().fold(f64::INFINITY, least) / 1.2..tokens().fold(1.0, most) * 1.2;
    let y = times().fold(f64::INFINITY, least) / 1.5..times().fold(1e-3, most) * 1.5;

    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 18))
        .margin(16)
        .x_label_area_size(48)
        .y_label_area_size(72)
        .build_cartesian_2d(x.log_scale().base(2.0), y.log_scale())?;
    chart
        .configure_mesh()
        .light_line_style(WHITE.mix(0.0))
        .x_desc("tokens")
        .y_desc("time of a pass")
        .x_label_formatter(&|tokens| format!("{tokens:.0}"))
        .y_label_formatter(&|us| duration(*us))
        .label_style(("sans-serif", 14))
        .draw()?;
    for (n, series) in rows
        .chunk_by(|a, b| (&a.what, a.dtype) == (&b.what, b.dtype))
        .enumerate()
    {
        let colour = COLOURS[n % COLOURS.len()];
        let points = series
            .iter()
            .map(|r| (r.tokens as f64, us(r.timing.median)));
        let label = format!("{} in {}", series[0].what, series[0].dtype);
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)))?
            .label(label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        chart.draw_series(series.iter().map(|r| {
            let t = r.timing;
            ErrorBar::new_vertical(
                r.tokens as f64,
                us(t.low),
                us(t.median),
                us(t.high),
                colour.filled(),
                8,
            )
        }))?;
        let floor: Vec<_> = series
            .iter()
            .filter_map(|r| Some((r.tokens as f64, us(r.floor(limits)?))))
            .collect();
        if !floor.is_empty() {
            chart
                .draw_series(DashedLineSeries::new(floor, 6, 4, colour.stroke_width(1)))?
                .label("what the limits allow")
                .legend(move |(x, y)| {
                    DashedPathElement::new([(x, y), (x + 18, y)], 6, 4, colour.stroke_width(1))
                });
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .label_font(("sans-serif", 13))
        .draw()?;
    root.present()?;
    Ok(())
}

/// A time in the unit that it is read in.
fn duration(us: f64) -> String {
    match us {
        _ if us < 1e3 => format!("{us} µs"),
        _ if us < 1e6 => format!("{} ms", us / 1e3),
        _ => format!("{} s", us / 1e6),
    }
}
