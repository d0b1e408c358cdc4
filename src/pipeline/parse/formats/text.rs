//! Plain text, with headings written the way Markdown writes them.
//!
//! **Invariant:** but for heading lines, the text is kept as it stands.

use crate::pipeline::parse::{ParseError, outline::Outline};

/// Reads plain text. A heading of level 1 on the first line that is not blank names the document.
pub(in crate::pipeline::parse) fn read(text: &str, outline: &mut Outline) -> Result<(), ParseError> {
    let mut fence: Option<&str> = None;
    for line in text.lines() {
        let trimmed = line.trim_start();
        if let Some(mark) = fence_mark(trimmed) {
            match fence {
                Some(open) if trimmed.starts_with(open) => fence = None,
                Some(_) => {}
                None => fence = Some(mark),
            }
        }
        match heading(line) {
            Some((level, heading)) if fence.is_none() => {
                if level == 1 && outline.is_blank() {
                    outline.title(heading);
                }
                outline.heading(level, heading)?;
            }
            _ => outline.line(line)?,
        }
    }
    Ok(())
}

fn fence_mark(line: &str) -> Option<&'static str> {
    ["```", "~~~"].into_iter().find(|mark| line.starts_with(mark))
}

/// An ATX heading (`CommonMark` 4.2): up to three blanks, one to six `#`, a blank, words.
fn heading(line: &str) -> Option<(u8, &str)> {
    let unindented = line.trim_start_matches(' ');
    if line.len() - unindented.len() > 3 {
        return None;
    }
    let words = unindented.trim_start_matches('#');
    let level = u8::try_from(unindented.len() - words.len()).ok()?;
    if !(1..=6).contains(&level) || !words.starts_with([' ', '\t']) {
        return None;
    }
    let words = words.trim();
    let bare = words.trim_end_matches('#');
    let words = if bare.is_empty() || bare.ends_with([' ', '\t']) { bare.trim_end() } else { words };
    (!words.is_empty()).then_some((level, words))
}

#[cfg(test)]
mod tests {
    use super::heading;

    #[test]
    fn headings_are_those_of_commonmark() {
        assert_eq!(heading("# One"), Some((1, "One")));
        assert_eq!(heading("   ### Three ###"), Some((3, "Three")));
        assert_eq!(heading("## C#"), Some((2, "C#")));
        for line in ["#hashtag", "    # code", "####### seven", "# ", "plain"] {
            assert_eq!(heading(line), None, "{line}");
        }
    }
}
