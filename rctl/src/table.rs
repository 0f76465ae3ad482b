//! Aligned columns.

/// Spaces between columns.
const GAP: usize = 3;

/// Rows under a header; columns are as wide as their widest cell.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(header: &[&str]) -> Self {
        Self { rows: vec![header.iter().map(|cell| (*cell).to_owned()).collect()] }
    }

    /// Control characters (a message from a container may hold any) are shown escaped, so that a cell
    /// stays in its line and can't steer the terminal.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells.into_iter().map(|cell| printable(&cell)).collect());
    }

    pub(crate) fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let mut widths = vec![0; columns];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (width, cell) in widths.iter().zip(row) {
                line.push_str(cell);
                line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + GAP));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// The text with its control characters escaped.
pub(crate) fn printable(text: &str) -> String {
    if !text.contains(char::is_control) {
        return text.to_owned();
    }
    let escape = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["ID", "NAME", "PORTS"]);
        table.row(vec!["1".into(), "größer".into(), String::new()]);
        table.row(vec!["22222".into(), "b".into(), "*:80".into()]);
        let expected = "ID      NAME     PORTS\n1       größer\n22222   b        *:80\n";
        assert_eq!(table.render(), expected);
    }

    #[test]
    fn a_cell_stays_in_its_line() {
        let mut table = Table::new(&["ERROR"]);
        table.row(vec!["a\nb\u{1b}[2J".into()]);
        assert_eq!(table.render(), "ERROR\na\\nb\\u{1b}[2J\n");
    }
}
