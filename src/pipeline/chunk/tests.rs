//! What the chunker keeps, for texts of every kind.

use proptest::prelude::*;
use tokenizers::models::wordlevel::WordLevel;
use tokenizers::pre_tokenizers::whitespace::Whitespace;

use super::*;

/// A tokenizer that sees one token in each word and each run of punctuation.
fn tokenizer() -> Tokenizer {
    let vocabulary = [("[UNK]".to_owned(), 0)].into_iter().collect();
    let model = WordLevel::builder().vocab(vocabulary).unk_token("[UNK]".into()).build().unwrap();
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(Whitespace {}));
    tokenizer
}

fn chunker(max_tokens: usize, overlap_tokens: usize) -> Chunker {
    Chunker::new(&tokenizer(), ChunkSettings { max_tokens, overlap_tokens, title_tokens: 32 }).unwrap()
}

fn section(heading: Option<&str>, text: &str) -> Section {
    Section { heading: heading.map(str::to_owned), level: u8::from(heading.is_some()), text: text.to_owned() }
}

fn texts(chunker: &Chunker, title: Option<&str>, sections: &[Section]) -> Vec<String> {
    chunker.chunk(title, sections).unwrap().into_iter().map(|draft| draft.text).collect()
}

#[test]
fn a_short_document_is_one_chunk_as_written() {
    let drafts =
        chunker(64, 32).chunk(Some("Log"), &[section(None, " The Tern left.\n\nNobody waved. ")]).unwrap();
    assert_eq!(drafts.len(), 1);
    assert_eq!(drafts[0].text, "The Tern left.\n\nNobody waved.");
    assert_eq!((drafts[0].start, drafts[0].tokens), (1, 9));
}

#[test]
fn chunks_end_at_sentences_and_repeat_a_short_one() {
    let text = "One two three four. Five six seven. Eight nine ten eleven twelve. Thirteen fourteen.";
    let found = texts(&chunker(16, 4), None, &[section(None, text)]);
    assert_eq!(
        found,
        ["One two three four. Five six seven. Eight nine ten eleven twelve.", "Thirteen fourteen."],
        "the last sentence of six tokens is too long to be repeated"
    );
    let found = texts(&chunker(16, 6), None, &[section(None, text)]);
    assert_eq!(found[1], "Eight nine ten eleven twelve. Thirteen fourteen.");
}

#[test]
fn a_heading_begins_a_chunk_and_one_without_text_is_kept() {
    let sections =
        [section(Some("Crew"), "Mara."), section(Some("Cargo"), " "), section(Some("Route"), "North.")];
    let drafts = chunker(64, 32).chunk(None, &sections).unwrap();
    let seen: Vec<_> = drafts.iter().map(|d| (d.heading.as_deref(), d.text.as_str(), d.start)).collect();
    assert_eq!(seen, [(Some("Crew"), "Mara.", 0), (Some("Cargo"), "Cargo", 5), (Some("Route"), "North.", 6)]);
}

#[test]
fn a_long_sentence_is_cut_at_words() {
    let text = "word ".repeat(50);
    let found = texts(&chunker(16, 4), None, &[section(None, &text)]);
    assert_eq!(found.len(), 4);
    assert!(found.iter().all(|t| t.split(' ').all(|w| w == "word")));
}

#[test]
fn a_title_takes_room_but_never_more_than_a_quarter() {
    let chunker = chunker(40, 0);
    let title = "ship ".repeat(30);
    assert_eq!(
        chunker.lead(Some(&title), Some("Crew")).unwrap(),
        format!("{}. Crew", "ship ".repeat(9).trim())
    );
    let drafts = chunker.chunk(Some(&title), &[section(Some("Crew"), &"word ".repeat(100))]).unwrap();
    assert_eq!(drafts[0].tokens, 40);
    assert_eq!(drafts[0].text.split(' ').count(), 40 - 10 - 2);
    assert_eq!(embedding_text("Tern. Crew", "Mara."), "Tern. Crew. Mara.");
    assert_eq!(embedding_text("", "Mara."), "Mara.");
}

#[test]
fn a_word_without_end_is_bounded_in_bytes() {
    let found = texts(&chunker(16, 4), None, &[section(None, &"é".repeat(5_000))]);
    assert!(found.iter().all(|t| t.len() <= 16 * MAX_BYTES_PER_TOKEN));
    assert_eq!(found.concat().chars().count(), 5_000);
}

#[test]
fn nothing_comes_of_blank_text() {
    assert!(texts(&chunker(64, 32), Some("Log"), &[section(None, " \n\t ")]).is_empty());
    assert!(texts(&chunker(64, 32), Some("Log"), &[]).is_empty());
}

#[test]
fn a_model_that_reads_next_to_nothing_is_refused() {
    assert!(Chunker::new(&tokenizer(), ChunkSettings { max_tokens: 8, ..ChunkSettings::default() }).is_err());
}

proptest! {
    #[test]
    fn every_character_is_in_a_chunk_and_no_chunk_is_too_long(
        texts in prop::collection::vec("([A-Za-zé]{1,9}[ ,.!?\n東]{0,3}|\\PC{0,4}){0,80}", 1..4),
        title in "[A-Z][a-z ]{0,60}",
        max_tokens in 16_usize..64,
    ) {
        let chunker = chunker(max_tokens, 8);
        let sections: Vec<_> = texts.iter().map(|text| section(None, text)).collect();
        let whole = texts.concat();
        let mut covered = vec![false; whole.len()];
        let drafts = chunker.chunk(Some(&title), &sections).unwrap();
        for (n, draft) in drafts.iter().enumerate() {
            prop_assert_eq!(draft.ordinal as usize, n);
            prop_assert!(!draft.text.trim().is_empty());
            prop_assert!(draft.tokens as usize <= max_tokens);
            prop_assert_eq!(&whole[draft.start..draft.start + draft.text.len()], draft.text.as_str());
            covered[draft.start..draft.start + draft.text.len()].fill(true);
            let lead = chunker.lead(Some(&title), None).unwrap();
            let seen = chunker.tokenizer.encode_fast(embedding_text(&lead, &draft.text), true).unwrap().len();
            prop_assert!(seen <= max_tokens + 1, "{seen} of {max_tokens}");
        }
        for (at, c) in whole.char_indices() {
            prop_assert!(c.is_whitespace() || covered[at], "{c:?} at {at} is in no chunk");
        }
    }
}
