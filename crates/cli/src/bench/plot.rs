use plotters::element::DashedPathElement;
use plotters::prelude::*;

use super::limits::Limits;
use super::report::Row;
use crate::failure::{Failure, Result};
use crate::files::OutputFile;

const SIZE: (u32, u32) = (960, 600);
/// One for each line, told apart with any eyes.
const COLORS: [RGBColor; 4] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
];

/// Draws the time of a pass over tokens, medians with the spread between tenths, and dashed what
/// the limits allow.
pub fn draw(file: &OutputFile, title: &str, rows: &[Row], limits: &Limits) -> Result<()> {
    let mut svg = String::new();
    chart(&mut svg, title, rows, limits)
        .map_err(|e| Failure::file(file.name(), format!("cannot draw: {e}")))?;
    file.write(svg.as_bytes())
}

type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

fn chart(svg: &mut String, title: &str, rows: &[Row], limits: &Limits) -> Drawn {
    if rows.is_empty() {
        return Err("nothing was timed".into());
    }
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
        let color = COLORS[n % COLORS.len()];
        let points = series
            .iter()
            .map(|r| (r.tokens as f64, us(r.timing.median)));
        let label = format!("{} in {}", series[0].what, series[0].dtype);
        chart
            .draw_series(LineSeries::new(points, color.stroke_width(2)))?
            .label(label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
        chart.draw_series(series.iter().map(|r| {
            let t = r.timing;
            ErrorBar::new_vertical(
                r.tokens as f64,
                us(t.low),
                us(t.median),
                us(t.high),
                color.filled(),
                8,
            )
        }))?;
        let floor: Vec<_> = series
            .iter()
            .filter_map(|r| Some((r.tokens as f64, us(r.floor(limits)?))))
            .collect();
        if !floor.is_empty() {
            chart
                .draw_series(DashedLineSeries::new(floor, 6, 4, color.stroke_width(1)))?
                .label("what the limits allow")
                .legend(move |(x, y)| {
                    DashedPathElement::new([(x, y), (x + 18, y)], 6, 4, color.stroke_width(1))
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

#[cfg(test)]
mod tests {
    use super::*;
    use swiglu_conformance::timing::Timing;

    #[test]
    fn every_line_has_its_label_and_its_floor() {
        let row = |what: &str, tokens: usize, flops| {
            let median = 1e-6 * (3 * tokens) as f64;
            Row {
                what: what.to_owned(),
                dtype: "bf16",
                tokens,
                copies: 2,
                cold: true,
                timing: Timing {
                    median,
                    low: median * 0.9,
                    high: median * 1.5,
                    batch: 1,
                },
                bytes: tokens << 14,
                flops,
                fp8: false,
            }
        };
        let rows: Vec<_> = [1, 4, 16, 256]
            .map(|t| row("act <&> \"d\"", t, 0.0))
            .into_iter()
            .chain([1, 4, 16, 256].map(|t| row("mlp", t, 9e4 * t as f64)))
            .collect();
        let limits = Limits {
            read: Some(20.0),
            read_and_write: Some(30.0),
            gigaflops: Some(60.0),
            matrix_unit: None,
            fp8: None,
        };
        let draw = |limits| {
            let mut svg = String::new();
            chart(&mut svg, "cpu: two threads", &rows, limits).unwrap();
            svg
        };
        assert!(chart(&mut String::new(), "", &[], &limits).is_err());
        let (with, without) = (draw(&limits), draw(&Limits::default()));
        for (svg, floors) in [(&with, 2), (&without, 0)] {
            let document = roxmltree::Document::parse(svg).unwrap();
            let texts: Vec<_> = document
                .descendants()
                .filter(roxmltree::Node::is_text)
                .filter_map(|n| n.text())
                .map(str::trim)
                .collect();
            let count = |text: &str| texts.iter().filter(|t| **t == text).count();
            assert_eq!(count("act <&> \"d\" in bf16"), 1, "{texts:?}");
            assert_eq!((count("mlp in bf16"), count("cpu: two threads")), (1, 1));
            assert_eq!(count("what the limits allow"), floors);
        }
    }

    #[test]
    fn times_are_read_in_their_unit() {
        assert_eq!(duration(0.5), "0.5 µs");
        assert_eq!(duration(100.0), "100 µs");
        assert_eq!(duration(1e4), "10 ms");
        assert_eq!(duration(1e6), "1 s");
    }
}
