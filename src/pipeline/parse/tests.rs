//! Every format, read in this process from documents made here, sound and hostile.

use std::io::{Cursor, Write};

use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

use super::*;

fn read(file_type: FileType, bytes: impl Into<Vec<u8>>) -> Result<Parsed, ParseError> {
    formats::parse(file_type, bytes.into(), &ParseLimits::default())
}

fn parsed(file_type: FileType, bytes: impl Into<Vec<u8>>) -> Parsed {
    read(file_type, bytes).unwrap()
}

/// Sections as `level heading: text`, for comparing at a glance.
fn shape(parsed: &Parsed) -> Vec<(u8, &str, &str)> {
    parsed
        .sections
        .iter()
        .map(|s| (s.level, s.heading.as_deref().unwrap_or_default(), s.text.as_str()))
        .collect()
}

fn zipped(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
    for (name, content) in entries {
        archive.start_file(*name, options).unwrap();
        archive.write_all(content).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

const TYPES: &[u8] = br#"<?xml version="1.0"?><Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"><Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/><Default Extension="xml" ContentType="application/xml"/></Types>"#;

fn relations(entries: &[(&str, &str, &str)]) -> String {
    const OFFICE: &str = "http://schemas.openxmlformats.org/officeDocument/2006/relationships";
    let relations: Vec<String> = entries
        .iter()
        .map(|(id, kind, target)| {
            format!(r#"<Relationship Id="{id}" Type="{OFFICE}/{kind}" Target="{target}"/>"#)
        })
        .collect();
    format!(
        r#"<?xml version="1.0"?><Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">{}</Relationships>"#,
        relations.concat()
    )
}

fn docx(body: &str) -> Vec<u8> {
    let document = format!(
        r#"<?xml version="1.0"?><w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:body>{body}</w:body></w:document>"#
    );
    let styles = r#"<?xml version="1.0"?><w:styles xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:style w:type="paragraph" w:styleId="Heading1"><w:name w:val="heading 1"/><w:pPr><w:outlineLvl w:val="0"/></w:pPr></w:style></w:styles>"#;
    zipped(&[
        ("[Content_Types].xml", TYPES),
        ("_rels/.rels", relations(&[("r1", "officeDocument", "word/document.xml")]).as_bytes()),
        ("word/_rels/document.xml.rels", relations(&[("r1", "styles", "styles.xml")]).as_bytes()),
        ("word/styles.xml", styles.as_bytes()),
        ("word/document.xml", document.as_bytes()),
    ])
}

fn xlsx(rows: &str) -> Vec<u8> {
    let workbook = r#"<?xml version="1.0"?><workbook xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main" xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships"><sheets><sheet name="Stock" sheetId="1" r:id="r1"/></sheets></workbook>"#;
    let styles = r#"<?xml version="1.0"?><styleSheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><cellXfs count="2"><xf numFmtId="0"/><xf numFmtId="14"/></cellXfs></styleSheet>"#;
    let sheet = format!(
        r#"<?xml version="1.0"?><worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData>{rows}</sheetData></worksheet>"#
    );
    zipped(&[
        ("[Content_Types].xml", TYPES),
        ("_rels/.rels", relations(&[("r1", "officeDocument", "xl/workbook.xml")]).as_bytes()),
        (
            "xl/_rels/workbook.xml.rels",
            relations(&[("r1", "worksheet", "worksheets/sheet1.xml"), ("r2", "styles", "styles.xml")])
                .as_bytes(),
        ),
        ("xl/workbook.xml", workbook.as_bytes()),
        ("xl/styles.xml", styles.as_bytes()),
        ("xl/worksheets/sheet1.xml", sheet.as_bytes()),
    ])
}

fn pptx(title: &str, body: &str) -> Vec<u8> {
    let shape = |kind: &str, text: &str| {
        format!(
            r#"<p:sp><p:nvSpPr><p:cNvPr id="2" name="x"/><p:cNvSpPr/><p:nvPr><p:ph type="{kind}"/></p:nvPr></p:nvSpPr><p:spPr/><p:txBody><a:bodyPr/><a:p><a:r><a:t>{text}</a:t></a:r></a:p></p:txBody></p:sp>"#
        )
    };
    let slide = format!(
        r#"<?xml version="1.0"?><p:sld xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main" xmlns:p="http://schemas.openxmlformats.org/presentationml/2006/main"><p:cSld><p:spTree>{}{}</p:spTree></p:cSld></p:sld>"#,
        shape("title", title),
        shape("body", body)
    );
    let presentation = r#"<?xml version="1.0"?><p:presentation xmlns:p="http://schemas.openxmlformats.org/presentationml/2006/main" xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships"><p:sldIdLst><p:sldId id="256" r:id="r1"/></p:sldIdLst></p:presentation>"#;
    zipped(&[
        ("[Content_Types].xml", TYPES),
        ("_rels/.rels", relations(&[("r1", "officeDocument", "ppt/presentation.xml")]).as_bytes()),
        ("ppt/_rels/presentation.xml.rels", relations(&[("r1", "slide", "slides/slide1.xml")]).as_bytes()),
        ("ppt/presentation.xml", presentation.as_bytes()),
        ("ppt/slides/slide1.xml", slide.as_bytes()),
    ])
}

fn epub(chapter: &str) -> Vec<u8> {
    zipped(&[
        ("mimetype", b"application/epub+zip"),
        (
            "META-INF/container.xml",
            br#"<?xml version="1.0"?><container version="1.0" xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles><rootfile full-path="book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>"#,
        ),
        (
            "book.opf",
            br#"<?xml version="1.0"?><package xmlns="http://www.idpf.org/2007/opf" version="3.0" unique-identifier="id"><metadata xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:identifier id="id">x</dc:identifier><dc:title>The Lighthouse</dc:title><dc:language>en</dc:language></metadata><manifest><item id="c2" href="two.xhtml" media-type="application/xhtml+xml"/><item id="c1" href="one.xhtml" media-type="application/xhtml+xml"/></manifest><spine><itemref idref="c1"/><itemref idref="c2"/></spine></package>"#,
        ),
        ("one.xhtml", chapter.as_bytes()),
        ("two.xhtml", b"<html><head><title>2</title></head><body><h2>Two</h2><p>The end.</p></body></html>"),
    ])
}

/// A PDF with one page for each text, each text one line.
fn pdf(pages: &[&str]) -> Vec<u8> {
    let kids: Vec<String> = (0..pages.len()).map(|i| format!("{} 0 R", 4 + 2 * i)).collect();
    let mut objects = vec![
        "<< /Type /Catalog /Pages 2 0 R >>".to_owned(),
        format!("<< /Type /Pages /Count {} /Kids [{}] >>", pages.len(), kids.join(" ")),
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>".to_owned(),
    ];
    for (i, text) in pages.iter().enumerate() {
        let stream = format!("BT /F1 12 Tf 72 700 Td ({text}) Tj ET");
        objects.push(format!(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> >> \
             /Contents {} 0 R >>",
            5 + 2 * i
        ));
        objects.push(format!("<< /Length {} >>\nstream\n{stream}\nendstream", stream.len()));
    }
    let mut file = b"%PDF-1.4\n".to_vec();
    let mut table = format!("xref\n0 {}\n0000000000 65535 f \n", objects.len() + 1).into_bytes();
    for (i, object) in objects.iter().enumerate() {
        writeln!(table, "{:010} 00000 n ", file.len()).unwrap();
        write!(file, "{} 0 obj\n{object}\nendobj\n", i + 1).unwrap();
    }
    let start = file.len();
    file.extend(table);
    write!(file, "trailer\n<< /Size {} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n", objects.len() + 1)
        .unwrap();
    file
}

#[test]
fn plain_text_keeps_its_lines_and_knows_headings() {
    let text = "# Guide\nFirst.\n\n  indented\n```\n# not a heading\n```\n## Part\r\nSecond.\u{7}\n";
    let found = parse_text(text);
    assert_eq!(found.title.as_deref(), Some("Guide"));
    assert_eq!(
        shape(&found),
        [(1, "Guide", "First.\n\n  indented\n```\n# not a heading\n```"), (2, "Part", "Second.")]
    );
    assert_eq!(parsed(FileType::Txt, text), found);
    assert!(parse_text(" \n\t\n").sections.is_empty());
}

#[test]
fn markdown_becomes_plain_words_under_its_headings() {
    let text = "---\ntitle: The Manual\n---\nIntro with a [link](http://x.test) and ![a chart](c.png).\n\n\
        # One *bold*\n\n- a\n- b\n  1. c\n\n| Name | Price |\n|---|---|\n| Pen | 2 |\n\n\
        ```rust\nlet x = 1;\n```\n\n<div>raw <b>html</b></div>\n\n## Two\n\nText[^1].\n\n[^1]: The note.\n";
    let found = parsed(FileType::Markdown, text);
    assert_eq!(found.title.as_deref(), Some("The Manual"));
    let sections = shape(&found);
    assert_eq!(sections[0], (0, "", "title: The Manual\n\nIntro with a link and a chart."));
    assert_eq!(
        sections[1],
        (1, "One bold", "- a\n- b\n  1. c\n\nName | Price\nPen | 2\n\nrust\nlet x = 1;\n\nraw html")
    );
    assert_eq!(sections[2], (2, "Two", "Text.\n\nThe note."));
}

#[test]
fn a_page_keeps_what_a_reader_sees() {
    let html = "<!doctype html><html><head><title>Prices &amp; terms</title><style>p{}</style></head><body>\
        <nav>Home</nav><h1>Prices</h1><p>We sell <b>pens</b>\n and ink.</p><script>evil()</script>\
        <table><tr><th>Item</th><th>Price</th></tr><tr><td><p>Pen</p></td><td>2</td></tr></table>\
        <ul><li>one</li><li><p>two</p></li></ul><pre>a\n  b</pre><p hidden>unseen</p><img alt='a pen'>\
        <h2>Terms<br>of sale</h2>Pay<br>now.</body></html>";
    let found = parsed(FileType::Html, html);
    assert_eq!(found.title.as_deref(), Some("Prices & terms"));
    assert_eq!(
        shape(&found),
        [
            (
                1,
                "Prices",
                "We sell pens and ink.\n\nItem | Price\nPen | 2\n\n- one\n- two\n\na\n  b\n\na pen"
            ),
            (2, "Terms of sale", "Pay\nnow."),
        ]
    );
}

#[test]
fn json_records_become_sections_and_other_values_lines() {
    let found = parsed(
        FileType::Json,
        r#"{"title":"Catalogue","year":2024,"items":[{"name":"Pen","text":"Writes.","tags":["a","b"]},{"price":{"eur":2}}],"note":null}"#,
    );
    assert_eq!(found.title.as_deref(), Some("Catalogue"));
    assert_eq!(
        shape(&found),
        [(1, "Catalogue", "year: 2024"), (2, "Pen", "Writes.\n\ntags: a, b"), (2, "items 2", "price.eur: 2"),]
    );
    assert_eq!(shape(&parsed(FileType::Json, "[1, \"two\", true]")), [(0, "", "1, two, true")]);
    assert!(matches!(
        read(FileType::Json, "{\n\"a\": }"),
        Err(ParseError::Damaged { what: Damage::Json { line: 2, .. } })
    ));
}

#[test]
fn json_lines_are_one_section_each() {
    let found = parsed(FileType::Jsonl, "{\"title\":\"A\",\"text\":\"x\"}\n\n{\"q\":1,\"r\":[{\"s\":2}]}\n");
    assert_eq!(shape(&found), [(2, "A", "x"), (0, "", "q: 1\nr[1].s: 2")]);
    assert!(matches!(
        read(FileType::Jsonl, "{}\n[1\n"),
        Err(ParseError::Damaged { what: Damage::Json { line: 2, .. } })
    ));
}

#[test]
fn a_csv_row_carries_its_headers() {
    let found = parsed(FileType::Csv, "Name;Price;Note\n\"Pen; blue\";2;\nInk;5;\"two\nlines\"\n");
    assert_eq!(shape(&found), [(0, "", "Name: Pen; blue; Price: 2\nName: Ink; Price: 5; Note: two lines")]);
    assert_eq!(shape(&parsed(FileType::Csv, "only,header")), [(0, "", "only; header")]);
}

#[test]
fn a_pdf_is_read_page_by_page() {
    let found = parsed(FileType::Pdf, pdf(&["The lamp burns oil.", "It needs a trimmed"]));
    assert_eq!(shape(&found), [(0, "", "The lamp burns oil.\n\nIt needs a trimmed")]);
    assert_eq!(found.unread, 0);
}

#[test]
fn a_word_document_keeps_headings_lists_and_tables() {
    let run = |text: &str| format!("<w:p><w:r><w:t>{text}</w:t></w:r></w:p>");
    let body = format!(
        r#"<w:p><w:pPr><w:pStyle w:val="Heading1"/></w:pPr><w:r><w:t>Safety</w:t></w:r></w:p>{}<w:tbl><w:tr><w:tc>{}</w:tc><w:tc>{}</w:tc></w:tr></w:tbl>"#,
        run("Wear gloves."),
        run("Acid"),
        run("Strong")
    );
    let found = parsed(FileType::Docx, docx(&body));
    assert_eq!(found.title.as_deref(), Some("Safety"));
    assert_eq!(shape(&found), [(1, "Safety", "Wear gloves.\n\nAcid | Strong")]);
}

#[test]
fn a_slide_is_a_section_under_its_title() {
    let found = parsed(FileType::Pptx, pptx("Roadmap", "Ship in May."));
    assert_eq!(found.title.as_deref(), Some("Roadmap"));
    assert_eq!(found.sections.len(), 1);
    assert_eq!(found.sections[0].heading.as_deref(), Some("Roadmap"));
    assert_eq!(found.sections[0].text.trim_start_matches("- "), "Ship in May.");
}

#[test]
fn a_sheet_row_carries_its_headers_and_dates_are_dates() {
    let text = |cell: &str, text: &str| format!(r#"<c r="{cell}" t="inlineStr"><is><t>{text}</t></is></c>"#);
    let rows = format!(
        r#"<row r="1">{}{}</row><row r="2">{}<c r="B2" s="1"><v>45292</v></c></row><row r="4"><c r="A4"><v>2.5</v></c></row>"#,
        text("A1", "Item"),
        text("B1", "Since"),
        text("A2", "Pen")
    );
    let found = parsed(FileType::Xlsx, xlsx(&rows));
    assert_eq!(shape(&found), [(1, "Stock", "Item; Since\nItem: Pen; Since: 2024-01-01\nItem: 2.5")]);
}

#[test]
fn a_book_is_read_in_the_order_of_its_spine() {
    let found = parsed(FileType::Epub, epub("<html><body><h1>One</h1><p>It was dark.</p></body></html>"));
    assert_eq!(found.title.as_deref(), Some("The Lighthouse"));
    assert_eq!(shape(&found), [(1, "One", "It was dark."), (2, "Two", "The end.")]);
}

#[test]
fn nothing_to_read_is_said_to_be_empty() {
    for (file_type, bytes) in [
        (FileType::Txt, b" \n ".to_vec()),
        (FileType::Html, b"<html><script>x</script></html>".to_vec()),
        (FileType::Json, b"{}".to_vec()),
        (FileType::Pdf, pdf(&[""])),
        (FileType::Docx, docx("")),
        (FileType::Xlsx, xlsx("")),
    ] {
        assert!(matches!(read(file_type, bytes), Err(ParseError::Empty)), "{file_type}");
    }
}

#[test]
fn a_damaged_container_is_refused() {
    let whole = docx("<w:p><w:r><w:t>x</w:t></w:r></w:p>");
    for cut in [10, whole.len() / 2, whole.len() - 30] {
        assert!(
            matches!(read(FileType::Docx, &whole[..cut]), Err(ParseError::Damaged { what: Damage::Archive })),
            "cut at {cut}"
        );
    }
    assert!(matches!(
        read(FileType::Docx, zipped(&[("readme.txt", b"x")])),
        Err(ParseError::Damaged { what: Damage::MissingPart })
    ));
    assert!(matches!(
        read(FileType::Docx, xlsx("")),
        Err(ParseError::WrongType { expected: FileType::Docx, found: Found::Excel })
    ));
    for name in ["../evil.xml", "/etc/passwd", "word\\..\\..\\x"] {
        let tricky = zipped(&[("word/document.xml", b"<w/>"), (name, b"x")]);
        assert!(
            matches!(read(FileType::Docx, tricky), Err(ParseError::Damaged { what: Damage::ArchivePath })),
            "{name}"
        );
    }
}

#[test]
fn a_truncated_or_mangled_pdf_is_refused_and_never_a_panic() {
    let whole = pdf(&["Some text."]);
    let mut refused = 0;
    for cut in (8..whole.len() - 40).step_by(37) {
        let outcome = std::panic::catch_unwind(|| read(FileType::Pdf, &whole[..cut]));
        refused += u32::from(matches!(outcome, Err(_) | Ok(Err(_))));
    }
    assert!(refused > 10, "a cut PDF without its table of objects is no PDF");
    assert!(matches!(
        read(FileType::Pdf, "%PDF-1.7\nnothing of the sort"),
        Err(ParseError::Damaged { what: Damage::Pdf })
    ));
}

#[test]
fn a_zip_bomb_is_stopped_by_its_real_size() {
    let zeros = vec![b' '; 40 << 20];
    let bomb = zipped(&[("word/document.xml", b"<w/>"), ("word/media/a.bin", &zeros)]);
    assert!(bomb.len() < 100_000);
    assert!(matches!(
        read(FileType::Docx, bomb.clone()),
        Err(ParseError::TooLarge { what: Bound::Ratio, .. })
    ));
    let limits = ParseLimits { unpacked_bytes: 1 << 20, ..ParseLimits::default() };
    assert!(matches!(
        formats::parse(FileType::Docx, bomb.clone(), &limits),
        Err(ParseError::TooLarge { what: Bound::Unpacked, .. })
    ));

    // The same with sizes that lie: both headers of the large entry claim a hundred bytes.
    let mut lying = bomb;
    let size = u32::try_from(zeros.len()).unwrap().to_le_bytes();
    for at in 0..lying.len() - 4 {
        if lying[at..at + 4] == size {
            lying[at..at + 4].copy_from_slice(&100_u32.to_le_bytes());
        }
    }
    assert!(read(FileType::Docx, lying).is_err());

    let names: Vec<String> = (0..50).map(|i| format!("word/{i}.bin")).collect();
    let crowd: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), b"x".as_slice())).collect();
    let limits = ParseLimits { archive_entries: 20, ..ParseLimits::default() };
    assert!(matches!(
        formats::parse(FileType::Docx, zipped(&crowd), &limits),
        Err(ParseError::TooLarge { what: Bound::Entries, limit: 20 })
    ));
}

#[test]
fn an_entity_bomb_is_refused() {
    let lol = r#"<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]><w:document>&b;</w:document>"#;
    let bomb = zipped(&[("[Content_Types].xml", TYPES), ("word/document.xml", lol.as_bytes())]);
    assert!(matches!(read(FileType::Docx, bomb), Err(ParseError::Damaged { what: Damage::Entities })));
    let chapter = r#"<!DOCTYPE html [<!ENTITY a SYSTEM "file:///etc/passwd">]><html><body>&a;</body></html>"#;
    assert!(matches!(
        read(FileType::Epub, epub(chapter)),
        Err(ParseError::Damaged { what: Damage::Entities })
    ));
}

#[test]
fn deep_nesting_is_refused_in_every_format() {
    let deep = 100_000;
    let json = "[".repeat(deep);
    assert!(matches!(read(FileType::Json, json.clone()), Err(ParseError::TooDeep { .. })));
    assert!(matches!(read(FileType::Jsonl, json), Err(ParseError::TooDeep { .. })));
    assert!(matches!(read(FileType::Json, "{\"a\":".repeat(127) + "1"), Err(ParseError::Damaged { .. })));
    assert!(matches!(
        read(FileType::Html, "<div>".repeat(3000) + "x"),
        Err(ParseError::TooDeep { limit: 256 })
    ));
    // Without a look before parsing, this one takes minutes.
    assert!(matches!(
        read(FileType::Html, "<div>".repeat(200_000) + "x"),
        Err(ParseError::TooDeep { limit: 256 })
    ));
    let icons = "<svg><circle r='1'/></svg><p>word<script>if (a<b) c</script>".repeat(5000);
    assert!(read(FileType::Html, icons).is_ok());
    assert!(matches!(
        read(FileType::Markdown, ">".repeat(3000) + " x"),
        Err(ParseError::TooDeep { limit: 256 })
    ));
    let word = docx(&("<w:tbl><w:tr><w:tc>".repeat(3000) + &"</w:tc></w:tr></w:tbl>".repeat(3000)));
    assert!(matches!(read(FileType::Docx, word), Err(ParseError::TooDeep { limit: 256 })));
}

#[test]
fn a_sheet_that_claims_all_cells_costs_nothing() {
    let corner =
        r#"<row r="1"><c r="A1"><v>1</v></c></row><row r="1048576"><c r="XFD1048576"><v>2</v></c></row>"#;
    let found = parsed(FileType::Xlsx, xlsx(corner));
    assert_eq!(shape(&found), [(1, "Stock", "1\n2")]);
}

#[test]
fn output_is_bounded_however_it_grows() {
    let limits = ParseLimits { output_bytes: 10_000, ..ParseLimits::default() };
    let wide = format!("{}\n{}", "header".repeat(500), "x\n".repeat(50));
    for (file_type, text) in [
        (FileType::Csv, wide),
        (FileType::Txt, "word ".repeat(3000)),
        (FileType::Jsonl, "{\"a\":1}\n".repeat(500)),
    ] {
        assert!(
            matches!(
                formats::parse(file_type, text.into_bytes(), &limits),
                Err(ParseError::TooLarge { what: Bound::Output, limit: 10_000 })
            ),
            "{file_type}"
        );
    }
}
