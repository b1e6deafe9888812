//! Tables of text: names to the left, numbers to the right.
//!
//! A column is one of numbers if every cell that says anything begins with a number (`12`, `0.613 ± 0.021`, `3.1 ms`,
//! `40 %`, `nan`); a dash stands for a figure that does not exist and fits either kind.

/// A header and rows of as many cells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    headers: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new<S: Into<String>>(headers: impl IntoIterator<Item = S>) -> Table {
        Table { headers: headers.into_iter().map(|header| in_one_line(header.into())).collect(), rows: Vec::new() }
    }

    /// Adds a row.
    ///
    /// # Panics
    /// If it has not as many cells as the header.
    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) -> &mut Table {
        let row: Vec<String> = cells.into_iter().map(|cell| in_one_line(cell.into())).collect();
        assert_eq!(row.len(), self.headers.len(), "a row of {row:?} under a header of {:?}", self.headers);
        self.rows.push(row);
        self
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// For a terminal: columns two spaces apart, a rule under the header, no trailing spaces.
    pub fn to_text(&self) -> String {
        let columns = self.columns(&self.headers, &self.rows);
        let rule: Vec<String> = columns.iter().map(|column| "-".repeat(column.width)).collect();
        let mut text = String::new();
        for row in [&self.headers, &rule].into_iter().chain(&self.rows) {
            let cells: Vec<String> = row.iter().zip(&columns).map(|(cell, column)| column.pad(cell)).collect();
            text.push_str(cells.join("  ").trim_end());
            text.push('\n');
        }
        text
    }

    /// A GitHub-flavoured table, aligned in its source as well.
    pub fn to_markdown(&self) -> String {
        let escaped = |row: &Vec<String>| row.iter().map(|cell| cell.replace('|', "\\|")).collect::<Vec<_>>();
        let headers = escaped(&self.headers);
        let rows: Vec<Vec<String>> = self.rows.iter().map(escaped).collect();
        let mut columns = self.columns(&headers, &rows);
        // GitHub asks for three dashes.
        columns.iter_mut().for_each(|column| column.width = column.width.max(3));
        let rule: Vec<String> = columns.iter().map(Column::markdown_rule).collect();
        let mut text = String::new();
        for row in [&headers, &rule].into_iter().chain(&rows) {
            let cells: Vec<String> = row.iter().zip(&columns).map(|(cell, column)| column.pad(cell)).collect();
            text.push_str(&format!("| {} |\n", cells.join(" | ")));
        }
        text
    }

    fn columns(&self, headers: &[String], rows: &[Vec<String>]) -> Vec<Column> {
        (0..headers.len())
            .map(|index| {
                let cells = rows.iter().map(|row| &row[index]);
                let width = cells.chain([&headers[index]]).map(|cell| width(cell)).max().unwrap_or(0);
                Column { width, numbers: holds_numbers(self.rows.iter().map(|row| row[index].as_str())) }
            })
            .collect()
    }
}

struct Column {
    width: usize,
    numbers: bool,
}

impl Column {
    fn pad(&self, cell: &str) -> String {
        let spaces = " ".repeat(self.width.saturating_sub(width(cell)));
        if self.numbers { spaces + cell } else { cell.to_string() + &spaces }
    }

    fn markdown_rule(&self) -> String {
        if self.numbers { format!("{}:", "-".repeat(self.width - 1)) } else { "-".repeat(self.width) }
    }
}

fn holds_numbers<'a>(cells: impl Iterator<Item = &'a str>) -> bool {
    let mut some = false;
    for cell in cells.filter(|cell| !matches!(*cell, "" | "-" | "–")) {
        let first = cell.split_whitespace().next().unwrap_or("");
        let number = first.trim_end_matches(['%', '×']).replace(',', "").replace('−', "-");
        if number.parse::<f64>().is_err() {
            return false;
        }
        some = true;
    }
    some
}

/// Places that a text takes in a terminal: combining marks take none, the wide characters of East Asia and emoji two.
fn width(text: &str) -> usize {
    text.chars()
        .map(|character| match character {
            '\u{300}'..='\u{36f}' | '\u{200b}'..='\u{200f}' | '\u{fe00}'..='\u{fe0f}' => 0,
            '\u{1100}'..='\u{115f}'
            | '\u{2e80}'..='\u{a4cf}'
            | '\u{ac00}'..='\u{d7a3}'
            | '\u{f900}'..='\u{faff}'
            | '\u{fe30}'..='\u{fe6f}'
            | '\u{ff00}'..='\u{ff60}'
            | '\u{ffe0}'..='\u{ffe6}'
            | '\u{1f300}'..='\u{1faff}'
            | '\u{20000}'..='\u{3fffd}' => 2,
            _ => 1,
        })
        .sum()
}

/// Line ends and control characters, which a file name may hold, would tear a table apart.
fn in_one_line(cell: String) -> String {
    if cell.contains(char::is_control) { cell.replace(char::is_control, " ") } else { cell }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Table {
        let mut table = Table::new(["method", "macro F1", "epochs"]);
        table.row(["probe", "0.613 ± 0.021", "5"]).row(["merge – filter", "nan", "10"]).row(["scratch", "–", "–"]);
        table
    }

    #[test]
    fn text_stands_left_and_numbers_right() {
        let expected = "\
method               macro F1  epochs
--------------  -------------  ------
probe           0.613 ± 0.021       5
merge – filter            nan      10
scratch                     –       –
";
        assert_eq!(example().to_text(), expected);
    }

    #[test]
    fn markdown_says_how_columns_align() {
        let expected = "\
| method         |      macro F1 | epochs |
| -------------- | ------------: | -----: |
| probe          | 0.613 ± 0.021 |      5 |
| merge – filter |           nan |     10 |
| scratch        |             – |      – |
";
        assert_eq!(example().to_markdown(), expected);
    }

    #[test]
    fn cells_cannot_break_the_table() {
        let mut table = Table::new(["a"]);
        table.row(["x|y\nz\u{1b}"]);
        assert_eq!(table.to_markdown(), "| a       |\n| ------- |\n| x\\|y z  |\n");
        assert_eq!(table.to_text(), "a\n------\nx|y z\n");
    }

    #[test]
    fn a_table_without_rows_shows_its_header() {
        let table = Table::new(["a", "bcd"]);
        assert!(table.is_empty());
        assert_eq!(table.to_text(), "a  bcd\n-  ---\n");
        assert_eq!(table.to_markdown(), "| a   | bcd |\n| --- | --- |\n");
    }

    #[test]
    #[should_panic(expected = "under a header of")]
    fn a_short_row_is_a_mistake() {
        Table::new(["a", "b"]).row(["1"]);
    }

    #[test]
    fn what_counts_as_numbers() {
        for cells in [vec!["1", "-2.5e-3"], vec!["3.1 ms"], vec!["40 %", "7%"], vec!["", "1,024", "–"], vec!["1.5×"]]
        {
            assert!(holds_numbers(cells.iter().copied()), "{cells:?}");
        }
        for cells in [vec!["1", "resnet8"], vec!["–"], vec![], vec!["3x3"]] {
            assert!(!holds_numbers(cells.iter().copied()), "{cells:?}");
        }
    }

    #[test]
    fn widths() {
        for (text, expected) in [("0.6 ± 0.1", 9), ("–", 1), ("e\u{301}", 1), ("網路", 4), ("", 0)] {
            assert_eq!(width(text), expected, "{text}");
        }
    }
}
