//! A set of texts, questions and known answers, read from a folder in one of two layouts.
//!
//! That of BEIR (Thakur et al. 2021): `corpus.jsonl` (`_id`, `title`, `text`), `queries.jsonl` (`_id`, `text`) and `qrels.tsv` (question, passage, score; with a header). Or one long text, `corpus.txt`, with `queries.jsonl` (`_id`, `text`, `evidence`: statements, divided by semicolons, that an answer needs).
//!
//! **Invariant:** passages are known by their place in the file; titles may repeat.

use std::collections::{HashMap, HashSet};
use std::io::BufRead;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

/// A passage: what is looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passage {
    /// Its title; may be empty.
    pub title: String,
    /// Its text.
    pub text: String,
}

/// What a question's answer needs, at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answers {
    /// Places of the passages.
    Passages(HashSet<usize>),
    /// Statements that the text makes, in other words perhaps.
    Statements(Vec<String>),
}

/// A question with what answers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The question.
    pub text: String,
    /// What its answer needs.
    pub answers: Answers,
}

/// A set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataSet {
    /// The folder's name.
    pub name: String,
    /// The passages, in the file's order.
    pub passages: Vec<Passage>,
    /// The questions that have an answer, in the file's order.
    pub questions: Vec<Asked>,
}

/// A document to be ingested, made of one passage or of several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Its identity.
    pub id: String,
    /// Its title, where it has one.
    pub title: Option<String>,
    /// Its text.
    pub text: String,
    /// Places of the passages in it, in their order.
    pub passages: Vec<usize>,
}

/// Why a set cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DataSetError {
    /// A file cannot be read.
    #[error("{path} cannot be read")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A line is not what it should be.
    #[error("{path}, line {line}: {words}")]
    Line {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// What is wrong with it.
        words: String,
    },
    /// Nothing can be measured.
    #[error("no question of the set has an answer in it")]
    NoAnswer,
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "_id")]
    id: Value,
    #[serde(default)]
    title: String,
    text: String,
    #[serde(default)]
    evidence: String,
}

/// Identities are numbers in some sets and text in others.
fn name(id: &Value) -> String {
    id.as_str().map_or_else(|| id.to_string(), str::to_owned)
}

fn json(line: &str) -> Result<Line, String> {
    serde_json::from_str(line).map_err(|error| error.to_string())
}

fn lines<T>(path: &Path, parse: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, DataSetError> {
    let unreadable = |source| DataSetError::File { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mut parsed = Vec::new();
    for (at, line) in std::io::BufReader::new(file).lines().enumerate() {
        let line = line.map_err(unreadable)?;
        if !line.trim().is_empty() {
            let wrong = |words| DataSetError::Line { path: path.to_owned(), line: at + 1, words };
            parsed.push(parse(&line).map_err(wrong)?);
        }
    }
    Ok(parsed)
}

impl DataSet {
    /// Reads a set from its folder.
    ///
    /// # Errors
    /// [`DataSetError`], naming file and line.
    pub fn read(folder: &Path) -> Result<Self, DataSetError> {
        let name = folder.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let text = folder.join("corpus.txt");
        let (passages, questions) =
            if text.is_file() { Self::read_text(folder, text)? } else { Self::read_passages(folder)? };
        if questions.is_empty() {
            return Err(DataSetError::NoAnswer);
        }
        Ok(Self { name, passages, questions })
    }

    /// One long text, and questions with the statements that their answers need.
    fn read_text(folder: &Path, path: PathBuf) -> Result<(Vec<Passage>, Vec<Asked>), DataSetError> {
        let text = std::fs::read_to_string(&path).map_err(|source| DataSetError::File { path, source })?;
        let asked = |line: Line| {
            let statements = line.evidence.split(';').map(str::trim).filter(|one| !one.is_empty());
            let statements: Vec<String> = statements.map(str::to_owned).collect();
            let answers = (!statements.is_empty()).then_some(Answers::Statements(statements))?;
            Some(Asked { text: line.text, answers })
        };
        let questions = lines(&folder.join("queries.jsonl"), json)?.into_iter().filter_map(asked).collect();
        Ok((vec![Passage { title: String::new(), text }], questions))
    }

    fn read_passages(folder: &Path) -> Result<(Vec<Passage>, Vec<Asked>), DataSetError> {
        let corpus = lines(&folder.join("corpus.jsonl"), json)?;
        let queries = lines(&folder.join("queries.jsonl"), json)?;
        let places: HashMap<String, usize> =
            corpus.iter().enumerate().map(|(at, line)| (name(&line.id), at)).collect();
        let judgements = lines(&folder.join("qrels.tsv"), |line| {
            let [question, passage, score] = line.split('\t').collect::<Vec<_>>()[..] else {
                return Err("three columns are wanted".to_owned());
            };
            Ok((question.to_owned(), passage.to_owned(), score.trim().parse::<f64>().ok()))
        })?;
        let mut relevant: HashMap<String, HashSet<usize>> = HashMap::new();
        for (question, passage, score) in judgements {
            // The header has no score; answers that are not in the corpus cannot be found.
            if let (Some(place), true) = (places.get(&passage), score.is_some_and(|score| score > 0.0)) {
                relevant.entry(question).or_default().insert(*place);
            }
        }
        let asked = |line: Line| {
            let answers = Answers::Passages(relevant.remove(&name(&line.id))?);
            Some(Asked { text: line.text, answers })
        };
        let questions = queries.into_iter().filter_map(asked).collect();
        let passage = |line: Line| Passage { title: line.title, text: line.text };
        Ok((corpus.into_iter().map(passage).collect(), questions))
    }

    /// The documents to ingest: each passage by itself, or `join` at a time, in the order of their titles, each
    /// under its title as a heading.
    #[must_use]
    pub fn sources(&self, join: usize) -> Vec<Source> {
        if join <= 1 {
            let alone = |(at, passage): (usize, &Passage)| Source {
                id: format!("p{at}"),
                title: Some(passage.title.trim().to_owned()).filter(|title| !title.is_empty()),
                text: passage.text.clone(),
                passages: vec![at],
            };
            return self.passages.iter().enumerate().map(alone).collect();
        }
        let mut order: Vec<usize> = (0..self.passages.len()).collect();
        order.sort_by_key(|at| &self.passages[*at].title);
        let together = |(group, places): (usize, &[usize])| {
            let section =
                |at: &usize| format!("## {}\n\n{}\n\n", self.passages[*at].title, self.passages[*at].text);
            Source {
                id: format!("d{group}"),
                title: None,
                text: places.iter().map(section).collect(),
                passages: places.to_vec(),
            }
        };
        order.chunks(join).enumerate().map(together).collect()
    }

    /// The passage of a source that a chunk is from; `None` when it is of none, as a heading alone.
    #[must_use]
    pub fn locate(&self, source: &Source, chunk: &str) -> Option<usize> {
        if let [only] = source.passages[..] {
            return Some(only);
        }
        let wanted = bare(chunk);
        let wanted: String = wanted.chars().take(120).collect();
        let holds = |at: &&usize| bare(&self.passages[**at].text).contains(&wanted);
        source.passages.iter().find(holds).copied()
    }
}

/// A text without its white space, which parsing may change.
fn bare(text: &str) -> String {
    text.split_whitespace().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(corpus: &str, queries: &str, judgements: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for (file, text) in [("corpus.jsonl", corpus), ("queries.jsonl", queries), ("qrels.tsv", judgements)]
        {
            std::fs::write(folder.path().join(file), text).expect("written");
        }
        folder
    }

    const CORPUS: &str = r#"{"_id": 0, "title": "Zinc", "text": "Zinc is a metal."}
{"_id": "b", "title": "Amber", "text": "Amber  is resin.\nIt floats."}
"#;

    #[test]
    fn identities_are_compared_as_text_and_questions_without_an_answer_are_left_out() {
        let queries = "{\"_id\": 7, \"text\": \"A metal?\"}\n{\"_id\": \"8\", \"text\": \"Nothing?\"}\n";
        let folder = folder(CORPUS, queries, "query-id\tcorpus-id\tscore\n7\t0\t1\n7\tb\t0\n8\tgone\t1\n");
        let set = DataSet::read(folder.path()).expect("read");
        assert_eq!(set.passages.len(), 2);
        let answers = Answers::Passages(HashSet::from([0]));
        assert_eq!(set.questions, [Asked { text: "A metal?".to_owned(), answers }]);
    }

    #[test]
    fn a_long_text_has_questions_with_the_statements_that_they_need() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("corpus.txt"), "Amber floats. Zinc does not.").expect("written");
        let queries = "{\"_id\": 1, \"text\": \"What floats?\", \"evidence\": \"Amber floats.; Zinc sinks.\"}\n\
                       {\"_id\": 2, \"text\": \"Nothing?\", \"evidence\": \" ; \"}\n";
        std::fs::write(folder.path().join("queries.jsonl"), queries).expect("written");
        let set = DataSet::read(folder.path()).expect("read");
        assert_eq!(set.passages.len(), 1);
        let answers = Answers::Statements(vec!["Amber floats.".to_owned(), "Zinc sinks.".to_owned()]);
        assert_eq!(set.questions, [Asked { text: "What floats?".to_owned(), answers }]);
    }

    #[test]
    fn a_wrong_line_is_named() {
        let folder = folder("{\"_id\": 1}\n", "", "");
        let error = DataSet::read(folder.path()).expect_err("no text").to_string();
        assert!(error.contains("corpus.jsonl, line 1"), "{error}");
    }

    #[test]
    fn joined_passages_stand_under_their_titles_and_chunks_are_led_back_to_them() {
        let folder = folder(CORPUS, "{\"_id\": 7, \"text\": \"A metal?\"}\n", "7\t0\t1\n");
        let set = DataSet::read(folder.path()).expect("read");
        let sources = set.sources(5);
        assert_eq!(sources.len(), 1);
        assert_eq!(sources[0].passages, [1, 0]);
        assert!(sources[0].text.starts_with("## Amber\n\nAmber"));
        assert_eq!(set.locate(&sources[0], "Amber is resin. It"), Some(1));
        assert_eq!(set.locate(&sources[0], "Zinc is a metal."), Some(0));
        assert_eq!(set.locate(&sources[0], "Amber"), Some(1));
        assert_eq!(set.locate(&sources[0], "lead"), None);
        assert_eq!(set.sources(1)[1].title.as_deref(), Some("Amber"));
    }
}
