//! Aligned columns of text.

use crate::words::steers;

/// Gap between two columns, in blanks.
const GAP: usize = 2;

/// Lays rows out in columns as wide as their widest cell, the head first. Lines have no blanks at their ends.
pub(crate) fn columns(head: &[&str], rows: &[Vec<String>]) -> String {
    let head: Vec<String> = head.iter().map(|title| (*title).to_owned()).collect();
    let all: Vec<&Vec<String>> = std::iter::once(&head).chain(rows).collect();
    let widths: Vec<usize> = (0..head.len())
        .map(|column| all.iter().filter_map(|row| row.get(column)).map(|cell| width(cell)).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in all {
        let mut line = String::new();
        for (cell, wide) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.push_str(&" ".repeat(wide.saturating_sub(width(cell)).saturating_add(GAP)));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// One thing's fields, a line each.
pub(crate) fn fields(rows: &[(&str, String)]) -> String {
    let widest = rows.iter().map(|(name, _)| width(name)).max().unwrap_or(0);
    let mut text = String::new();
    for (name, value) in rows {
        let pad = " ".repeat(widest.saturating_sub(width(name)).saturating_add(GAP));
        text.push_str(format!("{name}{pad}{value}").trim_end());
        text.push('\n');
    }
    text
}

/// The text without what could steer a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|character| if steers(character) { ' ' } else { character }).collect()
}

fn width(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["1".to_owned(), "änderung".to_owned()], vec!["12345".to_owned(), String::new()]];
        assert_eq!(columns(&["ID", "NAME"], &rows), "ID     NAME\n1      änderung\n12345\n");
        assert_eq!(columns(&["ID", "NAME"], &[]), "ID  NAME\n");
        assert_eq!(fields(&[("id", "1".to_owned()), ("name", "x".to_owned())]), "id    1\nname  x\n");
    }

    #[test]
    fn nothing_steers_the_terminal() {
        assert_eq!(printable("a\u{1b}[31mb\n"), "a [31mb ");
        assert_eq!(printable("a\u{202e}b\u{2066}c\u{200f}"), "a b c ");
    }
}
