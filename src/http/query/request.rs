//! The body of the three query routes, and the question that it and the chat surfaces are parsed to.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::domain::names::names;
use crate::domain::query::{Mode, TopK};
use crate::http::json::{Check, Faults};
use crate::inference::Message;
use crate::retrieval::{Question, RetrievalSettings};

/// Longest question or instruction, characters.
pub(crate) const MAX_QUERY: usize = 64 * 1024;
/// Longest conversation, messages.
pub(crate) const MAX_MESSAGES: usize = 128;
/// Question, instruction and conversation together, characters.
pub(crate) const MAX_TEXT: usize = 128 * 1024;
/// The most keywords of one kind.
const MAX_KEYWORDS: usize = 64;
/// Longest keyword, and longest name of a form of answer, characters.
const MAX_WORDS: usize = 256;
/// The largest token budget.
const MAX_TOKENS: i64 = 1_000_000;
/// The shortest question that something can be found for.
const LEAST: usize = 3;

/// A question with how it is to be answered. Unknown fields are ignored.
#[derive(Debug, Clone, Deserialize, utoipa::ToSchema)]
pub(crate) struct QueryRequest {
    /// The question; at least 3 characters in the modes that retrieve.
    #[schema(min_length = 1, max_length = 65536, example = "Who inspected the turbine?")]
    query: String,
    /// How to look for the answer; `mix` when absent.
    mode: Option<Mode>,
    /// Answer with the material alone.
    only_need_context: Option<bool>,
    /// Answer with the prompt that a language model would get.
    only_need_prompt: Option<bool>,
    /// The form of a language model's answer, as `Bullet Points`.
    response_type: Option<String>,
    /// Entities and relations, at most.
    #[schema(minimum = 1, maximum = 1000)]
    top_k: Option<i64>,
    /// Chunks, at most.
    #[schema(minimum = 1, maximum = 1000)]
    chunk_top_k: Option<i64>,
    /// Tokens of all entities, at most; estimated.
    max_entity_tokens: Option<i64>,
    /// Tokens of all relations, at most; estimated.
    max_relation_tokens: Option<i64>,
    /// Tokens of all chunks, at most.
    max_total_tokens: Option<i64>,
    /// Topics to look for beside the question.
    #[serde(default)]
    hl_keywords: Vec<String>,
    /// Names to look for beside the question.
    #[serde(default)]
    ll_keywords: Vec<String>,
    /// What was said before; for the language model, not for retrieval.
    conversation_history: Option<Vec<Message>>,
    /// A further instruction for the language model.
    user_prompt: Option<String>,
    /// Accepted, and without effect.
    #[expect(dead_code, reason = "clients send it")]
    enable_rerank: Option<bool>,
    /// Whether the answer names its references; true when absent.
    include_references: Option<bool>,
    /// Whether references hold the chunks' text.
    include_chunk_content: Option<bool>,
    /// Whether a stream tells its progress.
    include_progress: Option<bool>,
    /// Whether `/query/stream` streams; true when absent.
    stream: Option<bool>,
    /// Whether words count beside meaning; true when absent.
    lexical: Option<bool>,
    /// Whether a language model's earlier answer to the same question will do, where the server keeps them; true when
    /// absent.
    cache: Option<bool>,
}

/// What of an answer is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a wish of its own")]
pub(crate) struct Shown {
    pub(crate) references: bool,
    pub(crate) content: bool,
    pub(crate) progress: bool,
    pub(crate) stream: bool,
}

/// What is made of the material.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// An answer.
    Answer,
    /// The material itself.
    Context,
    /// The prompt that a language model would get.
    Prompt,
}

/// Topics and names of a question.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub(crate) struct Keywords {
    /// Topics, as the caller named them.
    pub(crate) high_level: Vec<String>,
    /// Names: the caller's, or those that the question holds.
    pub(crate) low_level: Vec<String>,
}

/// A question with everything that its answer depends on.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// As it was asked.
    pub(crate) text: String,
    /// As it is looked for.
    pub(crate) question: Question,
    pub(crate) history: Vec<Message>,
    pub(crate) user_prompt: Option<String>,
    pub(crate) response_type: Option<String>,
    pub(crate) output: Output,
    /// Whether an answer that was written earlier will do. Who asks again in a chat wants another one.
    pub(crate) cache: bool,
    pub(crate) keywords: Keywords,
    /// Estimated tokens of all entities, at most.
    pub(crate) max_entity_tokens: usize,
    /// Estimated tokens of all relations, at most.
    pub(crate) max_relation_tokens: usize,
}

impl Asked {
    /// A question with everything else as usual.
    pub(crate) fn new(text: String, mode: Mode, settings: &RetrievalSettings) -> Self {
        let top = |raw: u16| TopK::new(i64::from(raw)).or(TopK::new(1));
        let question = Question {
            text: text.clone(),
            mode,
            top_k: top(settings.top_k).expect("1 is a number of results"),
            chunk_top_k: top(settings.chunk_top_k).expect("1 is a number of results"),
            lexical: true,
            max_total_tokens: 30_000,
        };
        let low_level = names(&text).take(MAX_KEYWORDS).map(|found| found.name.to_owned()).collect();
        Self {
            text,
            question,
            history: Vec::new(),
            user_prompt: None,
            response_type: None,
            output: Output::Answer,
            cache: false,
            keywords: Keywords { high_level: Vec::new(), low_level },
            max_entity_tokens: 6000,
            max_relation_tokens: 8000,
        }
    }
}

impl QueryRequest {
    /// The question, with the server's own numbers where the body has none.
    pub(crate) fn asked(self, settings: &RetrievalSettings) -> Asked {
        let mut asked = Asked::new(self.query.trim().to_owned(), self.mode.unwrap_or_default(), settings);
        let question = &mut asked.question;
        question.top_k = self.top_k.and_then(TopK::new).unwrap_or(question.top_k);
        question.chunk_top_k = self.chunk_top_k.and_then(TopK::new).unwrap_or(question.chunk_top_k);
        question.lexical = self.lexical.unwrap_or(true);
        let budget = |raw: Option<i64>, usual| raw.and_then(|raw| usize::try_from(raw).ok()).unwrap_or(usual);
        question.max_total_tokens = budget(self.max_total_tokens, question.max_total_tokens);
        asked.max_entity_tokens = budget(self.max_entity_tokens, asked.max_entity_tokens);
        asked.max_relation_tokens = budget(self.max_relation_tokens, asked.max_relation_tokens);
        for keyword in self.hl_keywords.iter().chain(&self.ll_keywords) {
            question.text.push(' ');
            question.text.push_str(keyword);
        }
        if !(self.hl_keywords.is_empty() && self.ll_keywords.is_empty()) {
            asked.keywords = Keywords { high_level: self.hl_keywords, low_level: self.ll_keywords };
        }
        asked.output = match (self.only_need_context, self.only_need_prompt) {
            (Some(true), _) => Output::Context,
            (_, Some(true)) => Output::Prompt,
            _ => Output::Answer,
        };
        asked.cache = self.cache.unwrap_or(true);
        asked.history = self.conversation_history.unwrap_or_default();
        asked.user_prompt = self.user_prompt.filter(|wish| !wish.trim().is_empty());
        asked.response_type = self.response_type;
        asked
    }

    /// What of the answer is shown.
    pub(crate) fn shown(&self) -> Shown {
        Shown {
            references: self.include_references.unwrap_or(true),
            content: self.include_chunk_content.unwrap_or(false),
            progress: self.include_progress.unwrap_or(false),
            stream: self.stream.unwrap_or(true),
        }
    }
}

/// Length of a question, where a character that is a word or half of one counts twice.
fn weight(text: &str) -> usize {
    let cjk = |c: char| matches!(u32::from(c), 0x3040..=0x30ff | 0x3400..=0x9fff | 0xac00..=0xd7af);
    text.chars().map(|c| 1 + usize::from(cjk(c))).sum()
}

/// The bounds of everything that is said in one request.
pub(crate) fn bound_conversation(faults: &mut Faults, name: &str, history: &[Message], others: &[&str]) {
    faults.list(name, history.len(), 0, MAX_MESSAGES);
    let said = history.iter().map(|message| message.role.chars().count() + message.content.chars().count());
    let all = said.sum::<usize>() + others.iter().map(|text| text.chars().count()).sum::<usize>();
    if all > MAX_TEXT {
        faults.value(name, format!("Question and conversation have at most {MAX_TEXT} characters together"));
    }
    for (at, message) in history.iter().enumerate() {
        faults.text_at(&[json!(name), json!(at), json!("role")], message.role.trim(), 1, 64);
    }
}

impl Check for QueryRequest {
    fn check(&self, faults: &mut Faults) {
        let query = self.query.trim();
        let retrieves = self.mode != Some(Mode::Bypass);
        let least = if retrieves && weight(query) < LEAST { LEAST } else { 1 };
        faults.text("query", query, least, MAX_QUERY);
        for (name, number) in [("top_k", self.top_k), ("chunk_top_k", self.chunk_top_k)] {
            if let Some(number) = number {
                faults.number(name, number, 1, 1000);
            }
        }
        let budgets = [
            ("max_entity_tokens", self.max_entity_tokens),
            ("max_relation_tokens", self.max_relation_tokens),
            ("max_total_tokens", self.max_total_tokens),
        ];
        for (name, number) in budgets {
            if let Some(number) = number {
                faults.number(name, number, 1, MAX_TOKENS);
            }
        }
        for (name, keywords) in [("hl_keywords", &self.hl_keywords), ("ll_keywords", &self.ll_keywords)] {
            faults.list(name, keywords.len(), 0, MAX_KEYWORDS);
            for (at, keyword) in keywords.iter().enumerate() {
                faults.text_at(&[json!(name), Value::from(at)], keyword, 0, MAX_WORDS);
            }
        }
        if let Some(form) = &self.response_type {
            faults.text("response_type", form, 1, MAX_WORDS);
        }
        let wish = self.user_prompt.as_deref().unwrap_or_default();
        faults.text("user_prompt", wish, 0, MAX_QUERY);
        let history = self.conversation_history.as_deref().unwrap_or_default();
        bound_conversation(faults, "conversation_history", history, &[query, wish]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::json::parse;
    use crate::http::query::usual::settings;

    fn asked(body: &Value) -> Asked {
        let request: QueryRequest = parse(body.to_string().as_bytes()).expect("a good body");
        request.asked(&settings())
    }

    fn fault(body: &Value) -> (&'static str, Vec<Value>) {
        let problem = parse::<QueryRequest>(body.to_string().as_bytes()).expect_err("refused");
        (problem.fields()[0].rule, problem.fields()[0].loc.clone())
    }

    #[test]
    fn what_the_body_does_not_say_is_as_usual() {
        let asked = asked(&json!({"query": "  Who runs the Grey Heron?  ", "temperature": 1}));
        assert_eq!(asked.text, "Who runs the Grey Heron?");
        assert_eq!((asked.question.mode, asked.question.lexical), (Mode::Mix, true));
        assert_eq!((asked.question.top_k.get(), asked.question.chunk_top_k.get()), (40, 20));
        assert_eq!(asked.keywords.low_level, ["Grey Heron"]);
        assert_eq!(asked.output, Output::Answer);
    }

    #[test]
    fn keywords_are_looked_for_beside_the_question_and_not_asked() {
        let body =
            json!({"query": "Who?", "hl_keywords": ["energy"], "ll_keywords": ["Norvik"], "lexical": false});
        let asked = asked(&body);
        assert_eq!(asked.text, "Who?");
        assert_eq!((asked.question.text.as_str(), asked.question.lexical), ("Who? energy Norvik", false));
        assert_eq!(asked.keywords.high_level, ["energy"]);
    }

    #[test]
    fn a_question_too_short_to_find_anything_is_refused_where_it_would_retrieve() {
        assert_eq!(fault(&json!({"query": "ab"})).0, "string_too_short");
        assert_eq!(fault(&json!({"query": "   "})).0, "string_too_short");
        assert_eq!(fault(&json!({"query": " ", "mode": "bypass"})).0, "string_too_short");
        assert_eq!(asked(&json!({"query": "hi", "mode": "bypass"})).question.mode, Mode::Bypass);
        assert_eq!(asked(&json!({"query": "何故"})).text, "何故");
    }

    #[test]
    fn every_bound_is_held() {
        assert_eq!(fault(&json!({"query": "q".repeat(MAX_QUERY + 1)})).0, "string_too_long");
        assert_eq!(fault(&json!({"query": "why", "mode": "nope"})).0, "enum");
        assert_eq!(fault(&json!({"query": "why", "top_k": 0})).0, "greater_than_equal");
        assert_eq!(fault(&json!({"query": "why", "chunk_top_k": 1001})).0, "less_than_equal");
        let said = |count: usize, length: usize| {
            let message = json!({"role": "user", "content": "x".repeat(length)});
            json!({"query": "why", "conversation_history": vec![message; count]})
        };
        assert_eq!(fault(&said(MAX_MESSAGES + 1, 1)).0, "too_long");
        assert_eq!(fault(&said(4, MAX_TEXT / 4)).0, "value_error");
        assert_eq!(asked(&said(4, 100)).history.len(), 4);
    }
}
