//! Tables beside images: which column is what.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::files::Files;
use crate::data::soft::{largest_of, soft_label};
use crate::data::{MOST_LABELS, SplitName, Task};
use crate::error::{Error, Result};

/// Rows of texts below named columns.
#[derive(Debug)]
pub(super) struct Table {
    pub path: PathBuf,
    pub columns: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

/// In lower case, the first that is there counts.
const LABELS: [&str; 13] = [
    "label",
    "labels",
    "class",
    "dx",
    "diagnosis",
    "target",
    "level",
    "category",
    "class_name",
    "grade",
    "benign_malignant",
    "finding",
    "finding labels",
];
/// What stands for no label where there may be several.
pub(super) const NONE: &str = "No Finding";
const SPLITS: [&str; 5] = ["split", "set", "partition", "subset", "phase"];
const GROUPS: [&str; 10] = [
    "lesion_id",
    "patient_id",
    "patientid",
    "patient",
    "subject_id",
    "subject",
    "group",
    "case_id",
    "study_id",
    "participant_id",
];

/// Whether a file is a table by its name.
pub(super) fn is_table(name: &str) -> bool {
    let extension = extension(name);
    extension.eq_ignore_ascii_case("csv") || extension.eq_ignore_ascii_case("tsv")
}

impl Table {
    /// Commas, semicolons or tabs between columns; a mark of the byte order, any line ends, quotes.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Table> {
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let first = bytes.split(|&byte| byte == b'\n').next().unwrap_or_default();
        let count = |of: u8| first.iter().filter(|&&byte| byte == of).count();
        let delimiter = *[b',', b';', b'\t'].iter().rev().max_by_key(|&&delimiter| count(delimiter)).expect("three");
        let broken = |error: csv::Error| {
            Error::data(path, format!("not a table: {error}"), "give each row as many columns as the first line names")
        };
        let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).trim(csv::Trim::All).from_reader(bytes);
        let texts = |record: &csv::ByteRecord| record.iter().map(text).collect::<Vec<String>>();
        let columns = texts(reader.byte_headers().map_err(broken)?);
        let rows = reader.byte_records().map(|record| record.map(|record| texts(&record)).map_err(broken));
        Ok(Table { path: path.to_path_buf(), columns, rows: rows.collect::<Result<_>>()? })
    }

    /// Lines of a path, or of a path and a label.
    pub fn of_list(path: &Path, bytes: &[u8]) -> Table {
        let text = String::from_utf8_lossy(bytes);
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let parts = |line: &&str| {
            let (path, label) = line.rsplit_once([' ', '\t', ','])?;
            Some(vec![path.trim_end_matches([' ', '\t', ',']).to_string(), label.to_string()])
        };
        // A path with a space is no path and label.
        let labelled: Option<Vec<Vec<String>>> = lines.iter().map(parts).collect();
        let (columns, rows) = match labelled.filter(|rows| !rows.iter().any(|row| row[1].contains(['.', '/']))) {
            Some(rows) => (vec!["path", "label"], rows),
            None => (vec!["path"], lines.iter().map(|line| vec![line.to_string()]).collect()),
        };
        Table { path: path.to_path_buf(), columns: columns.into_iter().map(String::from).collect(), rows }
    }

    /// By its name, in upper or lower case.
    pub fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.eq_ignore_ascii_case(name))
    }

    fn any_column(&self, names: &[&str]) -> Option<usize> {
        names.iter().find_map(|name| self.column(name))
    }

    pub fn value(&self, row: usize, column: usize) -> &str {
        &self.rows[row][column]
    }

    fn values(&self, column: usize) -> impl Iterator<Item = &str> {
        self.rows.iter().map(move |row| row[column].as_str())
    }

    /// The column that names images, by what it says: that with the most rows that do.
    pub fn images(&self, names: &Names) -> Option<usize> {
        const LOOKED_AT: usize = 100;
        let every = self.rows.len().div_ceil(LOOKED_AT).max(1);
        let found = |column: usize| {
            let rows = self.rows.iter().step_by(every);
            rows.filter(|row| matches!(names.find(&row[column]), Found::One(_))).count()
        };
        let counts: Vec<usize> = (0..self.columns.len()).map(found).collect();
        let most = counts.iter().copied().max().filter(|&most| most > 0)?;
        counts.iter().position(|&count| count == most)
    }

    pub fn split(&self) -> Option<usize> {
        let column = self.any_column(&SPLITS)?;
        self.values(column).all(|value| split_named(value).is_some()).then_some(column)
    }

    pub fn group(&self) -> Option<usize> {
        self.any_column(&GROUPS)
    }

    /// The label of each row, and the names of all, in order.
    ///
    /// # Errors
    /// If several columns say that a row has a class; if the column that was asked for is not there.
    pub fn labels(&self, asked: Option<&str>, others: &[usize]) -> Result<Option<TableLabels>> {
        if let Some(names) = asked.filter(|names| self.column(names).is_none() && names.contains(',')) {
            let column = |name: &str| {
                let columns = self.columns.iter().map(String::as_str);
                self.column(name).ok_or_else(|| Error::unknown("column", name, columns))
            };
            let classes = names.split(',').map(|name| column(name.trim())).collect::<Result<Vec<usize>>>()?;
            let are_flags = |&column: &usize| self.values(column).all(|value| flag(value).is_some());
            return if classes.iter().all(are_flags) { self.of_flags(classes) } else { self.of_shares(classes) }
                .map(Some);
        }
        let column = match asked {
            None => self.any_column(&LABELS),
            Some(name) => match self.column(name) {
                Some(column) => Some(column),
                None => {
                    let columns = self.columns.iter().map(String::as_str);
                    let error = Error::unknown("column", name, columns);
                    return Err(error);
                }
            },
        };
        match column {
            Some(column) if self.values(column).any(|value| value.contains('|')) => self.of_sets(column).map(Some),
            Some(column) => self.of_column(column).map(Some),
            None => self.of_classes(others),
        }
    }

    /// Integers in their order, texts in the order of their letters.
    fn of_column(&self, column: usize) -> Result<TableLabels> {
        let known: BTreeSet<&str> = self.values(column).filter(|value| !value.is_empty()).collect();
        let number =
            |text: &str| text.parse::<f64>().ok().filter(|n| n.fract() == 0.0 && n.abs() < 1e9).map(|n| n as i64);
        let numbers: Option<BTreeMap<i64, Vec<&str>>> = known.iter().try_fold(BTreeMap::new(), |mut all, text| {
            all.entry(number(text)?).or_insert_with(Vec::new).push(*text);
            Some(all)
        });
        let (index, names): (BTreeMap<&str, u32>, Option<Vec<String>>) = match &numbers {
            None => {
                let index = known.iter().zip(0..).map(|(text, label)| (*text, label)).collect();
                (index, Some(known.iter().map(ToString::to_string).collect()))
            }
            Some(numbers) => {
                let mut index = BTreeMap::new();
                for (texts, label) in numbers.values().zip(0..) {
                    index.extend(texts.iter().map(|text| (*text, label)));
                }
                let counts_from_0 = numbers.keys().copied().eq(0..numbers.len() as i64);
                let texts = || numbers.keys().map(ToString::to_string).collect();
                (index, self.names_of(column, numbers.len()).or_else(|| (!counts_from_0).then(texts)))
            }
        };
        let labels = self.values(column).map(|value| index.get(value).copied()).collect();
        let (column, classes) = (self.columns[column].clone(), index_len(&index));
        Ok(TableLabels { column, labels, classes, task: Task::MultiClass, names, shares: None })
    }

    /// The texts of another column, where they say the same as the numbers of this one.
    fn names_of(&self, column: usize, classes: usize) -> Option<Vec<String>> {
        let others = LABELS.iter().filter_map(|name| self.column(name)).filter(|&other| other != column);
        others.into_iter().find_map(|other| {
            let mut names: BTreeMap<i64, &str> = BTreeMap::new();
            for row in &self.rows {
                let label = row[column].parse::<f64>().ok()? as i64;
                if names.insert(label, &row[other]).is_some_and(|before| before != row[other]) {
                    return None;
                }
            }
            let distinct: BTreeSet<&&str> = names.values().collect();
            let are_names = names.values().all(|name| !name.is_empty() && name.parse::<f64>().is_err());
            (distinct.len() == classes && names.len() == classes && are_names)
                .then(|| names.into_values().map(String::from).collect())
        })
    }

    /// Texts of one or several labels, `a|b`.
    fn of_sets(&self, column: usize) -> Result<TableLabels> {
        let parts = |value: &str| -> Vec<String> {
            value
                .split('|')
                .map(|part| part.trim().to_string())
                .filter(|part| !part.is_empty() && part != NONE)
                .collect()
        };
        let known: BTreeSet<String> = self.values(column).flat_map(parts).collect();
        self.check_count(known.len())?;
        let place = |part: &String| known.iter().position(|known| known == part).expect("it is one of them");
        let set = |value: &str| -> Option<u32> {
            (!value.is_empty()).then(|| parts(value).iter().fold(0, |set, part| set | 1 << place(part)))
        };
        let labels = self.values(column).map(set).collect();
        let (classes, column) = (known.len(), self.columns[column].clone());
        Ok(TableLabels {
            column,
            labels,
            classes,
            task: Task::MultiLabel,
            names: Some(known.into_iter().collect()),
            shares: None,
        })
    }

    /// A column for each class.
    fn of_classes(&self, others: &[usize]) -> Result<Option<TableLabels>> {
        let is_class = |&column: &usize| {
            let mut values = self.values(column);
            !others.contains(&column) && values.all(|value| flag(value).is_some()) && self.has_flags(column)
        };
        let classes: Vec<usize> = (0..self.columns.len()).filter(is_class).collect();
        let is_share = |&column: &usize| {
            let share = |value: &str| value.is_empty() || share(value).is_some();
            !others.contains(&column) && self.values(column).all(share) && self.has_flags(column)
        };
        let shares: Vec<usize> = (0..self.columns.len()).filter(is_share).collect();
        // Numbers between 0 and 1 that sum to 1 in every row are hardly anything else.
        if shares.len() > classes.len().max(1)
            && let Ok(soft) = self.of_shares(shares)
        {
            return Ok(Some(soft));
        }
        if classes.len() < 2 || self.rows.is_empty() {
            return Ok(None);
        }
        self.of_flags(classes).map(Some)
    }

    /// Whether anything in it is 0 or 1.
    fn has_flags(&self, column: usize) -> bool {
        self.values(column).any(|value| !value.is_empty())
    }

    /// Classes where each row has one 1, and otherwise what an image may have at once.
    fn of_flags(&self, classes: Vec<usize>) -> Result<TableLabels> {
        let of_row = |row: &Vec<String>| -> Vec<u32> {
            (0..)
                .zip(&classes)
                .filter(|(_, column)| flag(&row[**column]) == Some(true))
                .map(|(label, _)| label)
                .collect()
        };
        let all: Vec<Vec<u32>> = self.rows.iter().map(of_row).collect();
        let name = |label: u32| self.columns[classes[label as usize]].clone();
        if all.iter().any(|labels| labels.len() > 1) {
            self.check_count(classes.len())?;
            let column = (0..classes.len() as u32).map(name).collect::<Vec<_>>().join(", ");
            let names = Some((0..classes.len() as u32).map(name).collect());
            let labels = all.iter().map(|labels| Some(labels.iter().map(|label| 1 << label).sum())).collect();
            return Ok(TableLabels {
                column,
                labels,
                classes: classes.len(),
                task: Task::MultiLabel,
                names,
                shares: None,
            });
        }
        // Classes of which there is no image, as ISIC-2019's UNK, are none.
        let there: BTreeSet<u32> = all.iter().flatten().copied().collect();
        let new: BTreeMap<u32, u32> = there.iter().copied().zip(0..).collect();
        let names = Some(there.iter().map(|&label| name(label)).collect());
        let labels = all.iter().map(|labels| labels.first().map(|label| new[label])).collect();
        let column = "one for each class".into();
        Ok(TableLabels { column, labels, classes: there.len(), task: Task::MultiClass, names, shares: None })
    }

    /// A column for each class that says what a row has of it.
    fn of_shares(&self, classes: Vec<usize>) -> Result<TableLabels> {
        let of_row = |row: usize| -> Result<Option<Vec<f32>>> {
            if classes.iter().all(|&column| self.value(row, column).is_empty()) {
                return Ok(None);
            }
            let refused = |message| {
                let hint = "several columns of labels are 0 and 1, or shares of 1";
                Err(Error::data(&self.path, format!("row {}: {message}", row + 2), hint))
            };
            let mut numbers = Vec::new();
            for &column in &classes {
                match share(self.value(row, column)) {
                    Some(number) => numbers.push(number),
                    None => {
                        let (name, value) = (&self.columns[column], self.value(row, column));
                        return refused(format!("column '{name}' is '{value}'"));
                    }
                }
            }
            soft_label(&numbers).map(Some).or_else(refused)
        };
        let shares = (0..self.rows.len()).map(of_row).collect::<Result<Vec<_>>>()?;
        let names: Vec<String> = classes.iter().map(|&column| self.columns[column].clone()).collect();
        let labels = shares.iter().map(|shares| shares.as_deref().map(|shares| largest_of(shares) as u32)).collect();
        let (column, classes) = (names.join(", "), names.len());
        Ok(TableLabels { column, labels, classes, task: Task::MultiClass, names: Some(names), shares: Some(shares) })
    }

    fn check_count(&self, labels: usize) -> Result<()> {
        if labels <= MOST_LABELS {
            return Ok(());
        }
        let message = format!("{labels} labels that an image may have at once");
        let hint = format!("there may be up to {MOST_LABELS}: name the columns, --label-column A,B");
        Err(Error::data(&self.path, message, hint))
    }
}

/// 0 or 1; blank and -1 are what CheXpert has where nothing is mentioned, or nothing certain.
fn flag(text: &str) -> Option<bool> {
    match text.parse::<f64>() {
        Ok(0.0 | -1.0) => Some(false),
        Ok(1.0) => Some(true),
        Err(_) if text.is_empty() => Some(false),
        _ => None,
    }
}

/// A number from 0 to 1.
fn share(text: &str) -> Option<f64> {
    text.parse().ok().filter(|number| (0.0..=1.0).contains(number))
}

fn index_len(index: &BTreeMap<&str, u32>) -> usize {
    index.values().max().map_or(0, |&largest| largest as usize + 1)
}

/// UTF-8, or what else is one byte for a letter.
fn text(bytes: &[u8]) -> String {
    match str::from_utf8(bytes) {
        Ok(text) => text.to_string(),
        Err(_) => bytes.iter().map(|&byte| char::from(byte)).collect(),
    }
}

/// What a column of labels says.
#[derive(Debug)]
pub(super) struct TableLabels {
    pub column: String,
    /// `None` where a row has none.
    pub labels: Vec<Option<u32>>,
    pub classes: usize,
    pub task: Task,
    /// `None` where labels count from 0, and nothing names them.
    pub names: Option<Vec<String>>,
    /// Of soft labels what each row has of every class; its label is the largest.
    pub shares: Option<Vec<Option<Vec<f32>>>>,
}

/// A split by any of its usual names.
pub(super) fn split_named(name: &str) -> Option<SplitName> {
    match name.to_ascii_lowercase().as_str() {
        "train" | "training" => Some(SplitName::Train),
        "val" | "valid" | "validation" | "dev" => Some(SplitName::Val),
        "test" | "testing" | "holdout" => Some(SplitName::Test),
        _ => None,
    }
}

/// Images by what a table may call them.
pub(super) struct Names<'a> {
    files: &'a Files,
    /// Files of a name without folders, and of one without extension.
    by_name: BTreeMap<&'a str, Vec<usize>>,
    by_stem: BTreeMap<&'a str, Vec<usize>>,
}

/// Which image a text names.
#[derive(Debug, PartialEq)]
pub(super) enum Found {
    None,
    One(usize),
    Several,
}

impl<'a> Names<'a> {
    /// Of some of the files.
    pub fn new(files: &'a Files, images: &[usize]) -> Names<'a> {
        let (mut by_name, mut by_stem) = (BTreeMap::<&str, Vec<usize>>::new(), BTreeMap::<&str, Vec<usize>>::new());
        for &index in images {
            let name = base(&files.names()[index]);
            by_name.entry(name).or_default().push(index);
            by_stem.entry(stem(name)).or_default().push(index);
        }
        Names { files, by_name, by_stem }
    }

    /// By a path, whole or the end of one, with or without an extension.
    pub fn find(&self, text: &str) -> Found {
        let text = text.replace('\\', "/");
        let text = text.trim_start_matches("./");
        let name = base(text);
        if name.is_empty() {
            return Found::None;
        }
        let candidates = self.by_name.get(name).or_else(|| self.by_stem.get(name));
        let fits = |&&index: &&usize| {
            let file = &self.files.names()[index];
            let (file, text) = if base(file) == name { (file.as_str(), text) } else { (stem(file), text) };
            let ends = |whole: &str, end: &str| {
                whole.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('/'))
            };
            ends(file, text) || ends(text, file)
        };
        let mut fitting = candidates.into_iter().flatten().filter(fits);
        match (fitting.next(), fitting.next()) {
            (Some(&index), None) => Found::One(index),
            (None, _) => Found::None,
            (Some(_), Some(_)) => Found::Several,
        }
    }
}

pub(super) fn base(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

/// What is behind the last dot of its last part; nothing where there is none.
pub(super) fn extension(path: &str) -> &str {
    base(path).rsplit_once('.').map_or("", |(_, extension)| extension)
}

/// Without the extension of its last part.
pub(super) fn stem(path: &str) -> &str {
    match path.rsplit_once('.') {
        Some((stem, extension)) if !extension.contains('/') && !stem.is_empty() => stem,
        _ => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> Table {
        Table::parse(Path::new("labels.csv"), text.as_bytes()).unwrap()
    }

    #[test]
    fn tables_come_in_many_forms() {
        let expected = [["a", "1"], ["b, c", "2"]];
        for text in [
            "name,label\na,1\n\"b, c\",2\n",
            "\u{feff}name,label\r\na, 1\r\n\"b, c\",2\r\n",
            "name\tlabel\na\t1\nb, c\t2",
            "name;label\na;1\nb, c;2\n",
        ] {
            let table = table(text);
            assert_eq!(
                (table.columns.as_slice(), table.rows.as_slice()),
                (
                    &["name".to_string(), "label".to_string()][..],
                    &expected.map(|row| row.map(String::from).to_vec())[..]
                ),
                "{text:?}"
            );
        }
        assert_eq!(Table::parse(Path::new("x"), b"name\nM\xfcller\n").unwrap().rows[0][0], "Müller");
        assert!(Table::parse(Path::new("x"), b"a,b\n1\n").is_err());
    }

    #[test]
    fn labels_are_numbers_names_or_flags() {
        let of = |text: &str| table(text).labels(None, &[0]).unwrap().unwrap();
        let names = of("image,dx\na,nv\nb,mel\nc,nv\n");
        assert_eq!(
            (names.labels, names.names.unwrap()),
            (vec![Some(1), Some(0), Some(1)], vec!["mel".into(), "nv".to_string()])
        );
        let numbers = of("image,level\na,10\nb,2\nc,\n");
        assert_eq!(
            (numbers.labels, numbers.names.unwrap()),
            (vec![Some(1), Some(0), None], vec!["2".into(), "10".to_string()])
        );
        assert_eq!(of("image,level\na,0\nb,1\n").names, None);
        let both = of("image,class,label\na,nv,5\nb,mel,4\nc,nv,5\n");
        assert_eq!(
            (both.labels, both.names.unwrap()),
            (vec![Some(1), Some(0), Some(1)], vec!["mel".into(), "nv".to_string()])
        );
        let flags = of("image,MEL,NV,UNK\na,0.0,1.0,0.0\nb,1.0,0.0,0.0\nc,0,1,0\n");
        assert_eq!(
            (flags.labels, flags.names.unwrap()),
            (vec![Some(1), Some(0), Some(1)], vec!["MEL".into(), "NV".to_string()])
        );
        let several = of("image,a,b,c\nx,1,1,0\ny,,-1,0\nz,0,1.0,1\n");
        assert_eq!((several.task, several.labels), (Task::MultiLabel, vec![Some(0b011), Some(0), Some(0b110)]));
        assert_eq!(several.names.unwrap(), ["a", "b", "c"]);
        let joined = of("image,Finding Labels\nx,Mass|Edema\ny,No Finding\nz,Mass\nw,\n");
        assert_eq!((joined.task, joined.labels), (Task::MultiLabel, vec![Some(3), Some(0), Some(2), None]));
        assert_eq!(joined.names.unwrap(), ["Edema", "Mass"]);
        let soft = of("image,a,b,c,age\nx,0.25,0.5,0.25,40\ny,1,0,0,50\nz,,,,\nw,0.33,0.33,0.33,60\n");
        assert_eq!((soft.task, soft.labels), (Task::MultiClass, vec![Some(1), Some(0), None, Some(0)]));
        let shares = soft.shares.unwrap();
        assert_eq!((&shares[0], &shares[2]), (&Some(vec![0.25, 0.5, 0.25]), &None));
        assert!(shares[3].as_ref().unwrap().iter().all(|share| (share - 1.0 / 3.0).abs() < 1e-6));
        // What does not sum to 1 is no label unless it is asked for.
        let other = table("image,a,b\nx,0.25,0.5\n");
        assert!(other.labels(None, &[0]).unwrap().is_none());
        assert!(other.labels(Some("a,b"), &[0]).unwrap_err().to_string().contains("row 2: shares that sum to 0.75"));
        let asked = |columns: &str| table("image,a,b,c\nx,1,1,7\ny,0,1,3\n").labels(Some(columns), &[0]);
        assert_eq!(asked("b, a").unwrap().unwrap().labels, [Some(0b11), Some(0b01)]);
        assert!(asked("a,c").unwrap_err().to_string().contains("row 2: column 'c' is '7'"));
        assert!(asked("a,d").is_err());
        assert!(table("image,age\nx,40\n").labels(None, &[0]).unwrap().is_none());
        let error = table("image,dx\nx,nv\n").labels(Some("dxx"), &[0]).unwrap_err();
        assert_eq!(error.hint().unwrap(), "did you mean 'dx'?");
    }

    #[test]
    fn lists_have_paths_and_may_have_labels() {
        let of = |text: &str| Table::of_list(Path::new("list.txt"), text.as_bytes());
        assert_eq!(
            of("a/b c.png 1\nd.png 0\n").rows,
            [["a/b c.png", "1"], ["d.png", "0"]].map(|row| row.map(String::from).to_vec())
        );
        assert_eq!(of("a/b c.png\nd.png\n").rows, [["a/b c.png"], ["d.png"]].map(|row| row.map(String::from).to_vec()));
    }
}
