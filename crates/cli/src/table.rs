//! Columns for people: aligned, two spaces apart, no lines, no trailing blanks.

use std::fmt::Write as _;

/// One column.
#[derive(Clone, Copy)]
pub(crate) struct Column {
    pub(crate) title: &'static str,
    pub(crate) align: Align,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

pub(crate) const fn left(title: &'static str) -> Column {
    Column {
        title,
        align: Align::Left,
    }
}

pub(crate) const fn right(title: &'static str) -> Column {
    Column {
        title,
        align: Align::Right,
    }
}

/// The rows below their titles.
pub(crate) fn table<const N: usize>(columns: [Column; N], rows: &[[String; N]]) -> String {
    let widths: [usize; N] = std::array::from_fn(|i| {
        let cells = rows.iter().map(|row| row[i].chars().count());
        cells.chain([columns[i].title.len()]).max().unwrap_or(0)
    });
    let mut text = String::new();
    let titles = columns.map(|column| column.title.to_owned());
    for row in std::iter::once(&titles).chain(rows) {
        let mut line = String::new();
        for ((cell, column), width) in row.iter().zip(&columns).zip(widths) {
            let written = match column.align {
                Align::Left => write!(line, "{cell:<width$}  "),
                Align::Right => write!(line, "{cell:>width$}  "),
            };
            written.expect("writing to a string does not fail");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// `NAME: value` lines, the values below each other.
pub(crate) fn fields(pairs: &[(&str, String)]) -> String {
    let width = pairs
        .iter()
        .map(|(name, _)| name.len() + 1)
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for (name, value) in pairs {
        let name = format!("{name}:");
        writeln!(text, "{name:<width$}  {value}").expect("writing to a string does not fail");
    }
    text
}
