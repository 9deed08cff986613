//! The command line of a bench and what it prints.

use std::io::Write;

/// What the command line of a bench asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Rows of CSV instead of tables.
    pub csv: bool,
    /// All that is no option: each bench says what its words mean.
    pub words: Vec<String>,
}

impl Options {
    /// Those of this process. What cargo adds (`--bench`) and unknown options are left out.
    pub fn from_env() -> Self {
        Self::new(std::env::args().skip(1))
    }

    fn new(arguments: impl Iterator<Item = String>) -> Self {
        let (options, words): (Vec<_>, Vec<_>) = arguments.partition(|a| a.starts_with('-'));
        Self {
            csv: options.iter().any(|o| o == "--csv"),
            words,
        }
    }

    /// Those of `all` whose name is among the words; all if none is.
    pub fn named<T: Copy>(&self, all: &[T], name: impl Fn(T) -> String) -> Vec<T> {
        let asked = |&&x: &&T| self.words.contains(&name(x));
        let some: Vec<T> = all.iter().filter(asked).copied().collect();
        if some.is_empty() { all.to_vec() } else { some }
    }

    /// The words that are numbers; `default` if there are none.
    pub fn numbers(&self, default: &[usize]) -> Vec<usize> {
        let some: Vec<usize> = self.words.iter().filter_map(|w| w.parse().ok()).collect();
        if some.is_empty() {
            default.to_vec()
        } else {
            some
        }
    }
}

/// A measured value with its name and unit.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    name: String,
    unit: &'static str,
    value: f64,
}

/// A figure: `figure("clamp, PDL", "us", 0.96)`. A quotient's unit is `ratio`.
pub fn figure(name: impl Into<String>, unit: &'static str, value: f64) -> Figure {
    Figure {
        name: name.into(),
        unit,
        value,
    }
}

/// Prints cases as they come: a table for each run of cases with the same section and figures, or
/// rows of CSV.
pub struct Report<W: Write = std::io::Stdout> {
    to: W,
    csv: bool,
    /// The section and the figures' titles of the table that is being printed.
    table: Option<(String, Vec<String>)>,
}

/// Columns of a table's first column.
const CASE: usize = 48;

impl Report {
    /// A report on standard output.
    pub fn new(options: &Options) -> Self {
        Self::to(std::io::stdout(), options.csv)
    }

    /// Says on standard error what is no row: the device, or a case that cannot run here.
    #[allow(clippy::print_stderr, reason = "that is what it is for")]
    pub fn note(&self, text: &str) {
        eprintln!("{text}");
    }
}

impl<W: Write> Report<W> {
    fn to(mut to: W, csv: bool) -> Self {
        if csv {
            line(&mut to, "section,case,figure,unit,value");
        }
        Self {
            to,
            csv,
            table: None,
        }
    }

    /// Prints the figures of a case. Figures that are no number (a peer that was not there) are left
    /// out of CSV, and empty in a table.
    pub fn case(&mut self, section: &str, case: &str, figures: &[Figure]) {
        if self.csv {
            for figure in figures.iter().filter(|f| f.value.is_finite()) {
                let fields = [section, case, &figure.name, figure.unit];
                let fields = fields.map(quoted).join(",");
                line(&mut self.to, &format!("{fields},{}", rounded(figure.value)));
            }
            return;
        }
        let title = |f: &Figure| format!("{} [{}]", f.name, f.unit);
        let table = (section.to_owned(), figures.iter().map(title).collect());
        let table = self.start(table);
        let mut text = format!("{case:CASE$}");
        for (figure, title) in figures.iter().zip(&table.1) {
            let value = if figure.value.is_finite() {
                rounded(figure.value)
            } else {
                String::new()
            };
            text += &format!("  {value:>width$}", width = width(title));
        }
        line(&mut self.to, &text);
        self.table = Some(table);
    }

    /// Prints a heading, unless the table goes on.
    fn start(&mut self, table: (String, Vec<String>)) -> (String, Vec<String>) {
        if self.table.as_ref() != Some(&table) {
            let mut heading = format!("\n{:CASE$}", table.0);
            for title in &table.1 {
                heading += &format!("  {title:>width$}", width = width(title));
            }
            line(&mut self.to, &heading);
        }
        table
    }
}

/// Columns of a figure: its title's, or what a value needs.
fn width(title: &str) -> usize {
    title.chars().count().max(8)
}

/// Prints a line. A reader who has closed the pipe has seen enough: the bench ends.
fn line(to: &mut impl Write, text: &str) {
    if writeln!(to, "{text}").is_err() {
        std::process::exit(0);
    }
}

/// Four significant digits, without an exponent.
fn rounded(value: f64) -> String {
    let magnitude = value.abs().log10().floor();
    let decimals = if magnitude.is_finite() {
        (3.0 - magnitude).clamp(0.0, 12.0) as usize
    } else {
        0
    };
    format!("{value:.decimals$}")
}

/// A field of CSV, quoted where it must be.
fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\n']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(csv: bool, print: impl FnOnce(&mut Report<&mut Vec<u8>>)) -> String {
        let mut text = Vec::new();
        print(&mut Report::to(&mut text, csv));
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn csv_has_a_row_a_figure_and_none_for_what_is_not_there() {
        let text = printed(true, |report| {
            let figures = [
                figure("clamp, PDL", "us", 0.961_23),
                figure("peer", "us", f64::NAN),
            ];
            report.case("activation", "bf16 1x2048", &figures);
        });
        let rows = "section,case,figure,unit,value\n\
            activation,bf16 1x2048,\"clamp, PDL\",us,0.9612\n";
        assert_eq!(text, rows);
    }

    #[test]
    fn a_table_has_one_heading_until_its_figures_change() {
        let text = printed(false, |report| {
            report.case("mlp", "T=1", &[figure("time", "ms", 1.5)]);
            report.case("mlp", "T=4", &[figure("time", "ms", 1.6)]);
            report.case("mlp", "T=4", &[figure("rate", "GB/s", f64::NAN)]);
        });
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        assert_eq!(lines.len(), 7, "{text}");
        assert_eq!(
            lines[1].split_whitespace().collect::<Vec<_>>(),
            ["mlp", "time", "[ms]"]
        );
        assert!(lines[2].starts_with("T=1") && lines[2].ends_with("1.500"));
        assert!(lines[3].starts_with("T=4") && lines[3].ends_with("1.600"));
        assert!(lines[5].ends_with("rate [GB/s]"));
        assert_eq!(lines[6], "T=4");
    }

    #[test]
    fn values_have_four_digits() {
        for (value, text) in [
            (0.0, "0"),
            (0.001_234_56, "0.001235"),
            (1.0, "1.000"),
            (12.3456, "12.35"),
            (123_456.7, "123457"),
        ] {
            assert_eq!(rounded(value), text);
        }
    }

    #[test]
    fn words_choose_and_nothing_chooses_all() {
        let options = Options::new(
            ["--bench", "--csv", "bf16", "4"]
                .map(String::from)
                .into_iter(),
        );
        assert!(options.csv);
        assert_eq!(options.words, ["bf16", "4"]);
        assert_eq!(options.numbers(&[1, 2]), [4]);
        assert_eq!(options.named(&["bf16", "f16"], str::to_owned), ["bf16"]);
        assert_eq!(options.named(&["avx2"], str::to_owned), ["avx2"]);
    }
}
