use std::io::Write;

use serde::Serialize;
use swiglu_conformance::timing::Timing;

use super::limits::Limits;
use crate::failure::Result;

/// One line: what ran, how long it took, and what it moved and computed.
#[derive(Clone, Debug)]
pub struct Row {
    /// The operation, as it prints itself.
    pub what: String,
    /// The elements' or the weights' type.
    pub dtype: &'static str,
    pub tokens: usize,
    /// Sets of weights or of inputs and outputs that passes took in turn.
    pub copies: usize,
    /// Whether they are too large together for the last cache.
    pub cold: bool,
    pub timing: Timing,
    /// Bytes that a pass cannot do without: an activation's input and output, an MLP's weights.
    pub bytes: usize,
    /// Operations on floats in matmuls; none are counted in an activation.
    pub flops: f64,
    /// Whether they are done on FP8 tensor cores.
    pub fp8: bool,
}

impl Row {
    pub fn gigabytes(&self) -> f64 {
        self.bytes as f64 / self.timing.median / 1e9
    }

    pub fn gigaflops(&self) -> Option<f64> {
        (self.flops > 0.0).then(|| self.flops / self.timing.median / 1e9)
    }

    /// GB/s that the machine could do: matmuls read, an activation reads and writes.
    pub fn memory_limit(&self, limits: &Limits) -> Option<f64> {
        let limit = match self.flops > 0.0 {
            true => limits.read,
            false => limits.read_and_write,
        };
        limit.filter(|_| self.cold)
    }

    /// GFLOP/s that the machine could do in a matmul, on the matrix unit where it may run there.
    pub fn peak(&self, limits: &Limits) -> Option<f64> {
        let peak = match self.fp8 {
            true => limits.fp8,
            false => limits.matrix_unit.or(limits.gigaflops),
        };
        peak.filter(|_| self.flops > 0.0)
    }

    pub fn of_memory(&self, limits: &Limits) -> Option<f64> {
        Some(self.gigabytes() / self.memory_limit(limits)?)
    }

    pub fn of_peak(&self, limits: &Limits) -> Option<f64> {
        Some(self.gigaflops()? / self.peak(limits)?)
    }

    /// The least time that the limits allow, in seconds.
    pub fn floor(&self, limits: &Limits) -> Option<f64> {
        let memory = self
            .memory_limit(limits)
            .map(|l| self.bytes as f64 / l / 1e9);
        let arithmetic = self.peak(limits).map(|l| self.flops / l / 1e9);
        match (memory, arithmetic) {
            (Some(a), Some(b)) => Some(a.max(b)),
            (a, b) => a.or(b),
        }
    }
}

/// The lines for a person to read.
pub fn table(rows: &[Row], limits: &Limits, out: &mut impl Write) -> Result<()> {
    let mut last = None;
    for row in rows {
        if last != Some((&row.what, row.dtype)) {
            last = Some((&row.what, row.dtype));
            writeln!(out, "\n{} in {}", row.what, row.dtype)?;
            writeln!(
                out,
                "{:>6} {:>11} {:>23} {:>8} {:>9} {:>9} {:>8} {:>16}",
                "tokens",
                "median",
                "10 % to 90 %",
                "GB/s",
                "of memory",
                "GFLOP/s",
                "of peak",
                "copies in turn"
            )?;
        }
        let part = |part: Option<f64>| part.map_or("-".to_owned(), |p| format!("{p:.2}"));
        let Timing {
            median, low, high, ..
        } = row.timing;
        let copies = format!(
            "{}, {}",
            row.copies,
            if row.cold { "cold" } else { "cached" }
        );
        writeln!(
            out,
            "{:>6} {:>11} {:>23} {:>8.1} {:>9} {:>9} {:>8} {copies:>16}",
            row.tokens,
            duration(median),
            format!("{} to {}", duration(low), duration(high)),
            row.gigabytes(),
            part(row.of_memory(limits)),
            row.gigaflops()
                .map_or("-".to_owned(), |g| format!("{g:.0}")),
            part(row.of_peak(limits)),
        )?;
    }
    Ok(())
}

/// A time in the unit that it is read in.
fn duration(seconds: f64) -> String {
    match seconds {
        _ if seconds < 1e-3 => format!("{:.2} µs", seconds * 1e6),
        _ if seconds < 1.0 => format!("{:.2} ms", seconds * 1e3),
        _ => format!("{seconds:.2} s"),
    }
}

/// A row's figures under the names that CSV and JSON give them. What is not known is empty there
/// and null here.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    what: String,
    dtype: &'static str,
    tokens: usize,
    copies: usize,
    cold: bool,
    batch: usize,
    median_us: f64,
    p10_us: f64,
    p90_us: f64,
    gb_per_s: f64,
    memory_limit_gb_per_s: Option<f64>,
    of_memory: Option<f64>,
    gflop_per_s: Option<f64>,
    peak_gflop_per_s: Option<f64>,
    of_peak: Option<f64>,
}

impl Row {
    pub fn line(&self, limits: &Limits) -> Line {
        Line {
            what: self.what.clone(),
            dtype: self.dtype,
            tokens: self.tokens,
            copies: self.copies,
            cold: self.cold,
            batch: self.timing.batch,
            median_us: self.timing.median * 1e6,
            p10_us: self.timing.low * 1e6,
            p90_us: self.timing.high * 1e6,
            gb_per_s: self.gigabytes(),
            memory_limit_gb_per_s: self.memory_limit(limits),
            of_memory: self.of_memory(limits),
            gflop_per_s: self.gigaflops(),
            peak_gflop_per_s: self.peak(limits),
            of_peak: self.of_peak(limits),
        }
    }
}

const COLUMNS: [&str; 17] = [
    "platform",
    "device",
    "what",
    "dtype",
    "tokens",
    "copies",
    "cold",
    "batch",
    "median_us",
    "p10_us",
    "p90_us",
    "gb_per_s",
    "memory_limit_gb_per_s",
    "of_memory",
    "gflop_per_s",
    "peak_gflop_per_s",
    "of_peak",
];

/// The lines as comma-separated values, one for each row and one for the names. What is not known
/// is empty.
pub fn csv(
    platform: &str,
    device: &str,
    rows: &[Row],
    limits: &Limits,
    out: &mut impl Write,
) -> Result<()> {
    writeln!(out, "{}", COLUMNS.join(","))?;
    for row in rows {
        let known = |x: Option<f64>| x.map_or(String::new(), |x| format!("{x:.4}"));
        let us = |us: f64| format!("{us:.4}");
        let line = row.line(limits);
        let fields: [String; COLUMNS.len()] = [
            platform.to_owned(),
            device.to_owned(),
            line.what,
            line.dtype.to_owned(),
            line.tokens.to_string(),
            line.copies.to_string(),
            line.cold.to_string(),
            line.batch.to_string(),
            us(line.median_us),
            us(line.p10_us),
            us(line.p90_us),
            known(Some(line.gb_per_s)),
            known(line.memory_limit_gb_per_s),
            known(line.of_memory),
            known(line.gflop_per_s),
            known(line.peak_gflop_per_s),
            known(line.of_peak),
        ];
        writeln!(out, "{}", fields.map(|f| quoted(&f)).join(","))?;
    }
    Ok(())
}

/// A field as RFC 4180 wants it.
fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(flops: f64, cold: bool) -> Row {
        Row {
            what: "f(limit=10, official)".to_owned(),
            dtype: "bf16",
            tokens: 4,
            copies: 2,
            cold,
            timing: Timing {
                median: 1e-3,
                low: 0.9e-3,
                high: 2e-3,
                batch: 2,
            },
            bytes: 10_000_000,
            flops,
            fp8: false,
        }
    }

    const LIMITS: Limits = Limits {
        read: Some(20.0),
        read_and_write: Some(40.0),
        gigaflops: Some(100.0),
        matrix_unit: None,
        fp8: None,
    };

    #[test]
    fn fractions_are_of_the_limit_that_binds() {
        let act = row(0.0, true);
        assert!((act.of_memory(&LIMITS).unwrap() - 0.25).abs() < 1e-12);
        assert_eq!(act.of_peak(&LIMITS), None);
        assert!((act.floor(&LIMITS).unwrap() - 0.25e-3).abs() < 1e-12);
        let mlp = row(8e7, true);
        assert!((mlp.of_memory(&LIMITS).unwrap() - 0.5).abs() < 1e-12);
        assert!((mlp.of_peak(&LIMITS).unwrap() - 0.8).abs() < 1e-12);
        assert!((mlp.floor(&LIMITS).unwrap() - 0.8e-3).abs() < 1e-12);
        let cached = row(0.0, false);
        assert_eq!(
            (cached.of_memory(&LIMITS), cached.floor(&LIMITS)),
            (None, None)
        );
        assert_eq!(mlp.floor(&Limits::default()), None);
        let unit = Limits {
            matrix_unit: Some(400.0),
            ..LIMITS
        };
        assert!((mlp.of_peak(&unit).unwrap() - 0.2).abs() < 1e-12);
        assert_eq!(act.peak(&unit), None);
        let codes = Row {
            fp8: true,
            ..row(8e7, true)
        };
        assert_eq!(codes.of_peak(&unit), None);
        let unit = Limits {
            fp8: Some(800.0),
            ..unit
        };
        assert!((codes.of_peak(&unit).unwrap() - 0.1).abs() < 1e-12);
        assert!((mlp.of_peak(&unit).unwrap() - 0.2).abs() < 1e-12);
    }

    #[test]
    fn times_are_read_in_their_unit() {
        let times = [5e-7, 2.5e-4, 2.5e-2, 2.5].map(duration);
        assert_eq!(times, ["0.50 µs", "250.00 µs", "25.00 ms", "2.50 s"]);
    }

    #[test]
    fn fields_with_commas_and_quotes_are_quoted() {
        assert_eq!(quoted("a"), "a");
        assert_eq!(quoted("a, b"), "\"a, b\"");
        assert_eq!(quoted("a \"b\""), "\"a \"\"b\"\"\"");
        let mut text = Vec::new();
        csv(
            "cpu",
            "avx2, 2 threads",
            &[row(0.0, true)],
            &LIMITS,
            &mut text,
        )
        .unwrap();
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text.lines().count(), 2);
        let line = text.lines().nth(1).unwrap();
        let start = "cpu,\"avx2, 2 threads\",\"f(limit=10, official)\",bf16,4,2,true,2,1000.0000,";
        assert!(line.starts_with(start), "{line}");
        assert!(line.ends_with(",10.0000,40.0000,0.2500,,,"), "{line}");
    }
}
