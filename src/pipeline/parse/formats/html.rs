//! HTML to plain text.
//!
//! All text that a reader sees is kept: headings open sections, blocks and table rows end lines. Scripts, styles,
//! navigation and what is marked hidden go. Nothing is judged by how article-like it looks, because a dropped
//! paragraph cannot be found again.
//!
//! **Invariant:** the walk uses no recursion, so that no page can exhaust the stack.

use dom_query::{Document, NodeData, NodeRef};

use crate::pipeline::parse::{ParseError, outline::Outline};

/// Reads a page; its `<title>` names the document.
pub(super) fn read(html: &str, depth_limit: u32, outline: &mut Outline) -> Result<(), ParseError> {
    walk(html, depth_limit, outline, true)
}

/// Reads a piece of a larger document; a `<title>` in it names nothing.
pub(super) fn read_fragment(html: &str, depth_limit: u32, outline: &mut Outline) -> Result<(), ParseError> {
    walk(html, depth_limit, outline, false)
}

fn walk(html: &str, depth_limit: u32, outline: &mut Outline, titled: bool) -> Result<(), ParseError> {
    if clearly_deeper_than(html, depth_limit.saturating_mul(UNCLOSED_ALLOWANCE)) {
        return Err(ParseError::TooDeep { limit: depth_limit });
    }
    let document = Document::from(html);
    let mut page = Page {
        outline,
        line: String::new(),
        gap: false,
        verbatim: 0,
        cells: 0,
        headings: 0,
        items: 0,
        titled,
    };
    let root = document.root();
    let mut node = root;
    let mut depth = 0_u32;
    loop {
        if page.enter(&node)?
            && let Some(child) = node.first_child()
        {
            depth += 1;
            if depth > depth_limit {
                return Err(ParseError::TooDeep { limit: depth_limit });
            }
            node = child;
            continue;
        }
        loop {
            page.leave(&node)?;
            if node.id == root.id {
                return page.end_line();
            }
            if let Some(sibling) = node.next_sibling() {
                node = sibling;
                break;
            }
            let Some(parent) = node.parent() else {
                return page.end_line();
            };
            depth = depth.saturating_sub(1);
            node = parent;
        }
    }
}

/// How many times the bound the tags may seem to nest before the page is parsed: pages forget to close elements.
const UNCLOSED_ALLOWANCE: u32 = 8;
/// Elements that have no end tag or may leave it out (WHATWG HTML, 13.1.2).
const OPEN_ENDED: [&str; 32] = [
    "area", "base", "body", "br", "col", "colgroup", "dd", "dt", "embed", "head", "hr", "html", "img",
    "input", "li", "link", "meta", "optgroup", "option", "p", "param", "rp", "rt", "source", "tbody", "td",
    "tfoot", "th", "thead", "tr", "track", "wbr",
];

/// Whether start tags outnumber end tags by more than `limit` somewhere. The tree builder's time grows with the square
/// of the depth, so that a page of hostile depth has to be known before it is parsed.
fn clearly_deeper_than(html: &str, limit: u32) -> bool {
    let mut depth = 0_u32;
    let mut rest = html;
    while let Some(at) = rest.find('<') {
        rest = &rest[at + 1..];
        if let Some(comment) = rest.strip_prefix("!--") {
            rest = comment.split_once("-->").map_or("", |(_, after)| after);
            continue;
        }
        let (closing, tag) = rest.strip_prefix('/').map_or((false, rest), |tag| (true, tag));
        let end = tag.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(tag.len());
        let name = tag[..end].to_ascii_lowercase();
        if !name.starts_with(|c: char| c.is_ascii_alphabetic()) || OPEN_ENDED.contains(&name.as_str()) {
            continue;
        }
        if closing {
            depth = depth.saturating_sub(1);
        } else if matches!(name.as_str(), "script" | "style") {
            // What looks like tags in a program is none.
            let end = tag.find("</").unwrap_or(tag.len());
            rest = &tag[end..];
            depth += 1;
        } else if !tag.split('>').next().is_some_and(|tag| tag.ends_with('/')) {
            depth += 1;
        }
        if depth > limit {
            return true;
        }
    }
    false
}

struct Page<'a> {
    outline: &'a mut Outline,
    /// The line being written.
    line: String,
    /// White space was read since the last word.
    gap: bool,
    /// Open `pre` elements: white space counts inside.
    verbatim: u32,
    /// Open table cells: blocks inside do not end the row's line.
    cells: u32,
    /// Open headings: likewise.
    headings: u32,
    /// Open list items: no empty lines inside.
    items: u32,
    titled: bool,
}

/// What an element means for the text.
enum Role {
    Skipped,
    Title,
    Heading(u8),
    Paragraph,
    Line,
    Item,
    Row,
    Cell,
    Verbatim,
    Break,
    Picture,
    Inline,
}

fn role(name: &str) -> Role {
    match name {
        "script" | "style" | "nav" | "template" | "iframe" | "object" | "canvas" | "noframes" => {
            Role::Skipped
        }
        "title" => Role::Title,
        "h1" => Role::Heading(1),
        "h2" => Role::Heading(2),
        "h3" => Role::Heading(3),
        "h4" => Role::Heading(4),
        "h5" => Role::Heading(5),
        "h6" => Role::Heading(6),
        "p" | "table" | "ul" | "ol" | "dl" | "blockquote" | "section" | "article" | "figure" | "hr" => {
            Role::Paragraph
        }
        "div" | "header" | "footer" | "main" | "aside" | "address" | "caption" | "figcaption" | "dt"
        | "dd" | "form" | "fieldset" | "legend" | "details" | "summary" | "option" | "body" | "thead"
        | "tbody" | "tfoot" => Role::Line,
        "li" => Role::Item,
        "tr" => Role::Row,
        "td" | "th" => Role::Cell,
        "pre" | "textarea" => Role::Verbatim,
        "br" => Role::Break,
        "img" => Role::Picture,
        _ => Role::Inline,
    }
}

impl Page<'_> {
    /// Takes in a node on the way down; whether its children are to be read.
    fn enter(&mut self, node: &NodeRef<'_>) -> Result<bool, ParseError> {
        enum Seen {
            Text(String),
            Element(Role, bool, Option<String>),
            Other(bool),
        }
        let seen = node.query_or(Seen::Other(false), |node| match &node.data {
            NodeData::Text { contents } => Seen::Text(contents.to_string()),
            NodeData::Element(element) => {
                let role = role(&element.name.local);
                let description = match role {
                    Role::Picture => element.attr("alt").map(|alt| alt.to_string()),
                    _ => None,
                };
                Seen::Element(role, element.has_attr("hidden"), description)
            }
            NodeData::Document | NodeData::Fragment => Seen::Other(true),
            _ => Seen::Other(false),
        });
        match seen {
            Seen::Text(text) => {
                self.text(&text)?;
                Ok(false)
            }
            Seen::Other(descend) => Ok(descend),
            Seen::Element(_, true, _) | Seen::Element(Role::Skipped, ..) => Ok(false),
            Seen::Element(role, _, description) => self.open(&role, description, node),
        }
    }

    fn open(
        &mut self,
        role: &Role,
        description: Option<String>,
        node: &NodeRef<'_>,
    ) -> Result<bool, ParseError> {
        match role {
            Role::Title => {
                // An SVG picture has titles too, which are text like any other.
                if node.parent().is_some_and(|parent| parent.node_name().as_deref() == Some("head")) {
                    if self.titled {
                        self.outline.title(&node.text());
                    }
                    return Ok(false);
                }
            }
            Role::Heading(_) => {
                self.end_line()?;
                self.headings += 1;
            }
            Role::Paragraph => self.paragraph()?,
            Role::Line | Role::Row | Role::Break => self.block()?,
            Role::Item => {
                self.block()?;
                self.items += 1;
                self.text("- ")?;
            }
            Role::Cell => {
                if !self.line.trim().is_empty() {
                    self.line.push_str(" | ");
                    self.gap = false;
                }
                self.cells += 1;
            }
            Role::Verbatim => {
                self.block()?;
                self.verbatim += 1;
            }
            Role::Picture => self.text(&description.unwrap_or_default())?,
            Role::Inline | Role::Skipped => {}
        }
        Ok(true)
    }

    /// Takes in a node on the way up.
    fn leave(&mut self, node: &NodeRef<'_>) -> Result<(), ParseError> {
        let role = node.query_or(Role::Inline, |node| match &node.data {
            NodeData::Element(element) if !element.has_attr("hidden") => role(&element.name.local),
            _ => Role::Inline,
        });
        match role {
            Role::Heading(level) => {
                self.headings = self.headings.saturating_sub(1);
                let heading = std::mem::take(&mut self.line);
                self.gap = false;
                self.outline.heading(level, &heading)
            }
            Role::Paragraph => self.paragraph(),
            Role::Line | Role::Row => self.block(),
            Role::Item => {
                self.items = self.items.saturating_sub(1);
                if self.is_bare_item() {
                    self.line.clear();
                }
                self.block()
            }
            Role::Cell => {
                self.cells = self.cells.saturating_sub(1);
                Ok(())
            }
            Role::Verbatim => {
                self.verbatim = self.verbatim.saturating_sub(1);
                self.paragraph()
            }
            _ => Ok(()),
        }
    }

    fn text(&mut self, text: &str) -> Result<(), ParseError> {
        if self.verbatim > 0 && self.cells == 0 && self.headings == 0 {
            let mut lines = text.split('\n').peekable();
            while let Some(line) = lines.next() {
                self.line.push_str(line);
                if lines.peek().is_some() {
                    let line = std::mem::take(&mut self.line);
                    self.outline.line(line.trim_end())?;
                }
            }
            return Ok(());
        }
        for word in text.split_inclusive(char::is_whitespace) {
            let bare = word.trim_end();
            if !bare.is_empty() {
                if self.gap && !self.line.is_empty() {
                    self.line.push(' ');
                }
                self.gap = false;
                self.line.push_str(bare);
            }
            self.gap |= bare.len() < word.len();
        }
        Ok(())
    }

    /// A block begins or ends: a new line, or a blank inside a cell or a heading.
    fn block(&mut self) -> Result<(), ParseError> {
        if self.cells > 0 || self.headings > 0 || self.is_bare_item() {
            self.gap = true;
            return Ok(());
        }
        self.end_line()
    }

    /// Whether nothing of a list item was read but the dash that opens it.
    fn is_bare_item(&self) -> bool {
        self.items > 0 && self.line.trim() == "-"
    }

    fn paragraph(&mut self) -> Result<(), ParseError> {
        self.block()?;
        if self.cells == 0 && self.headings == 0 && self.items == 0 {
            self.outline.gap();
        }
        Ok(())
    }

    fn end_line(&mut self) -> Result<(), ParseError> {
        let line = std::mem::take(&mut self.line);
        self.gap = false;
        if line.trim().is_empty() {
            return Ok(());
        }
        self.outline.line(line.trim_end())
    }
}
