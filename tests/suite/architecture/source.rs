//! Reads Rust as text: takes out what is no code, and finds paths and signatures in what remains.

use std::collections::BTreeSet;

/// The text with comments and the content of strings and characters blanked; lines stay where they are.
pub fn without_comments_and_strings(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = match chars[at] {
            '/' if chars.get(at + 1) == Some(&'/') => line_end(&chars, at),
            '/' if chars.get(at + 1) == Some(&'*') => comment_end(&chars, at),
            '"' => string_end(&chars, at),
            'r' if !continues_name(&chars, at) => raw_string_end(&chars, at).unwrap_or(at),
            '\'' => character_end(&chars, at).unwrap_or(at),
            _ => at,
        };
        if end == at {
            out.push(chars[at]);
            at += 1;
        } else {
            out.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    out
}

fn continues_name(chars: &[char], at: usize) -> bool {
    let before = at.checked_sub(1).map(|before| chars[before]);
    before.is_some_and(|c| c != 'b' && (c.is_alphanumeric() || c == '_'))
}

fn line_end(chars: &[char], at: usize) -> usize {
    chars[at..].iter().position(|c| *c == '\n').map_or(chars.len(), |length| at + length)
}

fn comment_end(chars: &[char], mut at: usize) -> usize {
    let mut depth = 0;
    while at < chars.len() {
        match (chars[at], chars.get(at + 1)) {
            ('/', Some('*')) => {
                depth += 1;
                at += 2;
            }
            ('*', Some('/')) => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    at
}

fn string_end(chars: &[char], mut at: usize) -> usize {
    at += 1;
    while at < chars.len() {
        match chars[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    chars.len()
}

fn raw_string_end(chars: &[char], at: usize) -> Option<usize> {
    let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
    let mut at = at + 1 + hashes;
    if chars.get(at) != Some(&'"') {
        return None;
    }
    loop {
        at += 1 + chars[at + 1..].iter().position(|c| *c == '"')?;
        if chars[at + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes {
            return Some(at + 1 + hashes);
        }
    }
}

/// The end of a character; `None` for a lifetime.
fn character_end(chars: &[char], at: usize) -> Option<usize> {
    match (chars.get(at + 1)?, chars.get(at + 2)?) {
        ('\\', _) => chars[at + 3..].iter().position(|c| *c == '\'').map(|length| at + 4 + length),
        (_, '\'') => Some(at + 3),
        _ => None,
    }
}

/// Code without the items that only tests compile.
pub fn production(code: &str) -> String {
    let mut out = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(start) = rest.find("#[cfg(test)]") {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let open = rest.find('{').unwrap_or(rest.len());
        let end = match rest.find(';') {
            Some(semicolon) if semicolon < open => semicolon + 1,
            _ => open + balanced(&rest[open..]),
        };
        rest = &rest[end..];
    }
    out + rest
}

/// Length of the braces that the text opens with.
fn balanced(text: &str) -> usize {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => {
                depth -= 1;
                if depth == 0 {
                    return at + 1;
                }
            }
            _ => {}
        }
    }
    text.len()
}

/// The module of a file, from the crate's root.
pub fn module_of(path: &str) -> Vec<String> {
    let path = path.strip_suffix(".rs").unwrap_or(path);
    let path = path.strip_suffix("/mod").unwrap_or(path);
    path.split('/').map(str::to_owned).collect()
}

/// The top modules that a file in `module` names, by `crate::` or by enough of `super::`.
pub fn imports(module: &[String], code: &str) -> BTreeSet<String> {
    let code: String = code.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        if !code[..at].ends_with(is_name) {
            firsts(&code[at + "crate::".len()..], &mut found);
        }
    }
    let climb = "super::".repeat(module.len());
    for (at, _) in code.match_indices(&climb) {
        if !code[..at].ends_with(':') {
            firsts(&code[at + climb.len()..], &mut found);
        }
    }
    found
}

/// The first segments of a path's end: one, or those of each branch of a group.
fn firsts(path: &str, found: &mut BTreeSet<String>) {
    let path = path.trim_start();
    if !path.starts_with('{') {
        let name: String = path.chars().take_while(|c| is_name(*c)).collect();
        // A capital is an item of the crate's root, not a module.
        if name.starts_with(|c: char| c.is_lowercase()) && name != "super" {
            found.insert(name);
        }
        return;
    }
    let group = &path[1..balanced(path).saturating_sub(1).max(1)];
    let mut depth = 0;
    for branch in group.split(|c| {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    }) {
        firsts(branch, found);
    }
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether the code says this name as a whole word.
pub fn says_word(code: &str, word: &str) -> bool {
    code.match_indices(word)
        .any(|(at, _)| !code[..at].ends_with(is_name) && !code[at + word.len()..].starts_with(is_name))
}

/// Whether the code says a path that begins so.
pub fn says_path(code: &str, prefix: &str) -> bool {
    code.match_indices(prefix).any(|(at, _)| !code[..at].ends_with(|c| is_name(c) || c == ':'))
}

/// What public functions return and public fields hold, by name.
pub fn returns(code: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("pub ") {
        let item = code[at + 4..].trim_start_matches("const ").trim_start_matches("async ");
        if let Some(function) = item.strip_prefix("fn ") {
            let signature = &function[..function.find(['{', ';']).unwrap_or(function.len())];
            let name = signature.chars().take_while(|c| is_name(*c)).collect();
            if let Some((_, given)) = signature.rsplit_once("->") {
                found.push((name, given.to_owned()));
            }
        } else if let Some((name, rest)) = item.split_once(": ")
            && name.chars().all(is_name)
        {
            let kind = &rest[..rest.find(['\n', ';', '=']).unwrap_or(rest.len())];
            found.push((name.to_owned(), kind.to_owned()));
        }
    }
    found
}

#[test]
fn text_that_is_no_code_is_taken_out() {
    let code = without_comments_and_strings(
        "a /* x /* y */ z */ b // c\n\"d \\\" e\" f r#\"g \" h\"# 'i' '\\'' &'life j '\"' k",
    );
    let words: Vec<&str> = code.split_whitespace().collect();
    assert_eq!(words, ["a", "b", "f", "&'life", "j", "k"]);
    let rest = production("a #[cfg(test)] mod tests { { b } } c #[cfg(test)] mod tests; d");
    assert_eq!(rest.split_whitespace().collect::<Vec<_>>(), ["a", "c", "d"]);
}

#[test]
fn what_is_given_out_is_read_from_signatures() {
    let code =
        "pub fn pool(&self) -> &PgPool { } pub(crate) fn f() -> PgPool; pub struct S { pub pool: PgPool,\n }";
    let given = returns(code);
    assert_eq!(given.len(), 2);
    assert!(given.iter().all(|(name, kind)| name == "pool" && says_word(kind, "PgPool")));
}
