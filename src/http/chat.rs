//! What the chat surfaces have in common: models that are namespaces, the last message as a question, its prefix
//! as a mode, and the requests of chat frontends that are none of a person.
//!
//! **Invariant:** a model's name names a namespace of the caller's tenant or nothing; there is no default for a
//! name that is unknown.

use std::cell::Cell;

use crate::domain::audit::{AuditEntry, AuditKind, Decision};
use crate::domain::ids::NamespaceName;
use crate::domain::query::Mode;
use crate::inference::Message;
use crate::retrieval::{Answer, RetrievalSettings};

use super::problem::{Kind, Problem};
use super::query::{
    Asked, Asking, Broken, Gone, Output, ReferenceBody, Reply, each, estimated_tokens, generate, references,
};

/// How frontends mark a request for a conversation's title or tags.
const TASK: &str = "\n<chat_history>\nUSER:";
/// Words of a conversation that stand for its title when no language model makes one.
const TITLE_WORDS: usize = 8;
/// What Ollama's clients put behind a model's name.
const LATEST: &str = ":latest";

/// The namespace that a model's name stands for.
pub(super) fn namespace(model: &str) -> Result<NamespaceName, Problem> {
    NamespaceName::parse(model).map_err(|_| Problem::not_found())
}

/// The same for a name that may end in `:latest`.
pub(super) fn tagged_namespace(model: &str) -> Result<NamespaceName, Problem> {
    namespace(model.strip_suffix(LATEST).unwrap_or(model))
}

/// A model's name as Ollama's clients write it.
pub(super) fn tagged(namespace: &NamespaceName) -> String {
    format!("{namespace}{LATEST}")
}

/// What the beginning of a message says of how to answer it.
#[derive(Debug, PartialEq, Eq)]
struct Prefixed<'t> {
    mode: Mode,
    output: Output,
    user_prompt: Option<&'t str>,
    text: &'t str,
}

/// Reads `/mode question`, `/modecontext question`, `/context question` and `/mode[instruction] question`.
fn prefixed(message: &str) -> Prefixed<'_> {
    let plain = Prefixed { mode: Mode::default(), output: Output::Answer, user_prompt: None, text: message };
    let Some(rest) = message.strip_prefix('/') else { return plain };
    let end = rest.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(rest.len());
    let (word, rest) = rest.split_at(end);
    let (user_prompt, text) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((wish, text)) if !wish.contains('\n') => (Some(wish.trim()), text),
        _ if rest.is_empty() || rest.starts_with(char::is_whitespace) => (None, rest),
        _ => return plain,
    };
    let user_prompt = user_prompt.filter(|wish| !wish.is_empty());
    let text = text.trim_start();
    let (name, output) = match word.strip_suffix("context") {
        Some(name) => (name, Output::Context),
        None => (word, Output::Answer),
    };
    let named = match name {
        "" if output == Output::Context || rest.starts_with('[') => Some(Mode::default()),
        name => Mode::from_name(name).filter(|mode| *mode != Mode::Bypass || output == Output::Answer),
    };
    match named {
        Some(mode) => Prefixed { mode, output, user_prompt, text },
        None => plain,
    }
}

/// The last message of a conversation, as a question.
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) asked: Asked,
    /// Whether a frontend asks it for itself, as for a title.
    pub(super) task: bool,
}

/// Reads a conversation whose last message is the user's.
pub(super) fn turn(
    mut messages: Vec<Message>,
    stream: bool,
    settings: &RetrievalSettings,
) -> Result<Turn, Problem> {
    let wrong = |words: &'static str| Problem::new(Kind::BadRequest).saying(words);
    let last = messages.pop().ok_or_else(|| wrong("`messages` holds at least one message."))?;
    if last.role != "user" {
        return Err(wrong("The last message is the user's."));
    }
    let said = prefixed(last.content.trim());
    if said.text.trim().is_empty() {
        return Err(wrong("The last message asks nothing."));
    }
    let task = !stream && said.text.contains(TASK);
    let mut asked = Asked::new(said.text.to_owned(), said.mode, settings);
    asked.output = said.output;
    asked.user_prompt = said.user_prompt.map(str::to_owned);
    asked.history = messages;
    Ok(Turn { asked, task })
}

/// The first words of the conversation in a frontend's request.
fn first_words(text: &str) -> String {
    let conversation = text.split_once(TASK).map_or(text, |(_, conversation)| conversation);
    let first = conversation.trim_start().lines().next().unwrap_or_default();
    first.split_whitespace().take(TITLE_WORDS).collect::<Vec<_>>().join(" ")
}

/// An answer with the references that its marks stand for.
pub(super) struct Answered {
    pub(super) reply: Reply,
    pub(super) references: Vec<ReferenceBody>,
    /// Estimated tokens of what was asked.
    pub(super) prompt_tokens: usize,
    /// The list of references for those who see words alone; empty when there is nothing to list.
    pub(super) list: String,
}

/// What was said, once all of it was.
pub(super) struct Said {
    pub(super) text: String,
    /// Estimated tokens of it.
    pub(super) tokens: usize,
    /// Whether a language model wrote it.
    pub(super) llm_generated: bool,
}

impl Reply {
    /// All of it, with what follows.
    pub(super) fn whole(self, list: &str) -> Result<Said, Problem> {
        let Self::Whole(answer) = self else {
            return Err(Problem::internal("a whole answer came in pieces"));
        };
        let text = format!("{}{list}", answer.text);
        Ok(Said { tokens: estimated_tokens(&text), text, llm_generated: answer.llm_generated })
    }

    /// Hands on its pieces as they come, and what follows; the text is then with whoever took them.
    pub(super) async fn in_pieces(
        self,
        list: String,
        take: impl AsyncFn(String) -> Result<(), Gone>,
    ) -> Result<Said, Broken> {
        let tokens = Cell::new(0);
        let piece = async |text: String| {
            tokens.set(tokens.get() + estimated_tokens(&text));
            take(text).await
        };
        let llm_generated = match self {
            Self::Whole(answer) => {
                piece(answer.text).await?;
                answer.llm_generated
            }
            Self::Pieces(pieces) => {
                each(pieces, &piece).await?;
                true
            }
        };
        if !list.is_empty() {
            piece(list).await?;
        }
        Ok(Said { text: String::new(), tokens: tokens.get(), llm_generated })
    }
}

/// Answers a turn; `pieces`: as it is written.
pub(super) async fn answer(asking: &Asking, task: bool, pieces: bool) -> Result<Answered, Problem> {
    let said = asking.asked.history.iter().map(|message| estimated_tokens(&message.content)).sum::<usize>();
    let prompt_tokens = said + estimated_tokens(&asking.asked.text);
    if task {
        let reply = asking.while_valid(answer_task(asking)).await?;
        return Ok(Answered { reply, references: Vec::new(), prompt_tokens, list: String::new() });
    }
    let answered = async {
        let found = asking.find().await?;
        let reply = asking.reply(&found, pieces).await?;
        Ok((reply, references(&found.material, false)))
    };
    let (reply, references) = asking.while_valid(answered).await?;
    let list = match asking.asked.output {
        Output::Answer => listed(&references),
        Output::Context | Output::Prompt => String::new(),
    };
    Ok(Answered { reply, references, prompt_tokens, list })
}

/// Nothing is looked for: what a frontend asks is about the conversation itself.
async fn answer_task(asking: &Asking) -> Result<Reply, Problem> {
    asking.require_namespace().await?;
    asking.wait_for_turn().await?;
    let scope = asking.caller.scope();
    let entry = AuditEntry::new(AuditKind::Query, "chat.task", Decision::Allowed)
        .of_query(asking.app.audit.query_hash(scope, &asking.asked.text));
    asking.app.audit.record(scope, entry).await;
    let Some(model) = &asking.app.language_model else {
        return Ok(Reply::Whole(Answer::quoted(first_words(&asking.asked.text))));
    };
    let mut messages = asking.asked.history.clone();
    messages.push(Message { role: "user".to_owned(), content: asking.asked.text.clone() });
    generate(model, &messages, false).await
}

/// Which document each mark stands for.
fn listed(references: &[ReferenceBody]) -> String {
    let lines: Vec<String> = references
        .iter()
        .map(|reference| format!("- [{}] {}", reference.reference_id, reference.file_path))
        .collect();
    if lines.is_empty() { String::new() } else { format!("\n\n### References\n{}", lines.join("\n")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::query::usual::settings;

    fn said(role: &str, content: &str) -> Message {
        Message { role: role.to_owned(), content: content.to_owned() }
    }

    fn read(message: &str) -> (Mode, Output, Option<&str>, &str) {
        let said = prefixed(message);
        (said.mode, said.output, said.user_prompt, said.text)
    }

    #[test]
    fn a_prefix_chooses_the_mode() {
        use Output::{Answer, Context};
        assert_eq!(read("who?"), (Mode::Mix, Answer, None, "who?"));
        assert_eq!(read("/naive who?"), (Mode::Naive, Answer, None, "who?"));
        assert_eq!(read("/global\n who?\nand why?"), (Mode::Global, Answer, None, "who?\nand why?"));
        assert_eq!(read("/bypass who?"), (Mode::Bypass, Answer, None, "who?"));
        assert_eq!(read("/context who?"), (Mode::Mix, Context, None, "who?"));
        assert_eq!(read("/hybridcontext who?"), (Mode::Hybrid, Context, None, "who?"));
        assert_eq!(read("/local[in verse] who?"), (Mode::Local, Answer, Some("in verse"), "who?"));
        assert_eq!(read("/[in verse]who?"), (Mode::Mix, Answer, Some("in verse"), "who?"));
        assert_eq!(read("/local"), (Mode::Local, Answer, None, ""));
    }

    #[test]
    fn what_only_looks_like_a_prefix_is_part_of_the_question() {
        for message in [
            "/nope who?",
            "/naively who?",
            "/etc/passwd",
            "/",
            "/ who?",
            "/bypasscontext who?",
            "/local[a\nb] c",
        ] {
            assert_eq!(read(message), (Mode::Mix, Output::Answer, None, message));
        }
    }

    #[test]
    fn a_conversation_without_a_question_at_its_end_is_refused() {
        let refused = |messages| turn(messages, false, &settings()).err().map(|problem| problem.kind());
        assert_eq!(refused(vec![]), Some(Kind::BadRequest));
        assert_eq!(refused(vec![said("assistant", "hello")]), Some(Kind::BadRequest));
        assert_eq!(refused(vec![said("user", " /naive ")]), Some(Kind::BadRequest));
        assert_eq!(refused(vec![said("user", "hi")]), None);
    }

    #[test]
    fn what_was_said_before_is_history() {
        let messages =
            vec![said("system", "be brief"), said("user", "a"), said("assistant", "b"), said("user", "c")];
        let turn = turn(messages, true, &settings()).expect("a turn");
        assert_eq!((turn.asked.text.as_str(), turn.asked.history.len(), turn.task), ("c", 3, false));
    }

    #[test]
    fn a_title_is_made_of_the_first_words_where_nothing_can_write_one() {
        let text = "Make a title.\n<chat_history>\nUSER: Who keeps the light at Port Anselm in winter and why?\nASSISTANT: x";
        let turn = turn(vec![said("user", text)], false, &settings()).expect("a turn");
        assert!(turn.task);
        assert_eq!(first_words(text), "Who keeps the light at Port Anselm in");
        let streamed = super::turn(vec![said("user", text)], true, &settings()).expect("a turn");
        assert!(!streamed.task);
    }

    #[test]
    fn a_model_is_a_namespace_or_nothing() {
        assert!(namespace("default").is_ok_and(|name| name.is_default()));
        assert!(namespace("default:latest").is_err());
        assert!(tagged_namespace("default:latest").is_ok());
        for model in ["gpt-4o.mini", "", "../x", "Default", "default:7b"] {
            assert_eq!(tagged_namespace(model).err().map(|problem| problem.kind()), Some(Kind::NotFound));
        }
    }
}
